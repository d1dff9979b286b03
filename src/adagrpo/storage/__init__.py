"""Crash-safe, verified files and folders of this program."""
