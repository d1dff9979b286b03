"""Recommendations over HTTP: the server, what a request passes, and the routes."""
