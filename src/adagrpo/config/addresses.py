"""Validation of service addresses."""

from __future__ import annotations

from urllib.parse import urlsplit


def plain_http(value: str) -> str:
    """Validate an HTTP(S) address without credentials.

    Raises:
        ValueError: it is invalid, or has credentials.
    """
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{value}' is not of the form http://host/path or https://host/path")
    if parts.username is not None:
        raise ValueError("holds a user name or password, which would be written to run.yaml; use token_env")
    _ = parts.port  # a ValueError of its own where it is no number
    return value
