"""Errors that end a command with one line: the user's to mend, or those of a service that it depends on."""

__all__ = ["ServiceError", "UserError"]


class UserError(Exception):
    """Bad input or usage; the command line exits with status 2.

    The message is one line that names the file, row or field, says what was found, and what would be right.
    """


class ServiceError(Exception):
    """Something outside, such as the endpoint of a reward, failed or answered wrongly; status 1.

    The message is one line that names it and says what it did. What was finished is kept; the same command continues.
    """
