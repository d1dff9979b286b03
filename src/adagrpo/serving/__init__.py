"""Recommendations over HTTP: server, request checks and routes."""
