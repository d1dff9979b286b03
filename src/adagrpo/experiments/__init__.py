"""Experiments on users: plan, assignment and analysis."""
