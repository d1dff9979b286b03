"""Errors that are the user's to mend. The command line prints their one line and exits with status 2."""

__all__ = ["UserError"]


class UserError(Exception):
    """Bad input or usage.

    The message is one line that names the file, row or field, says what was found, and what would be right.
    """
