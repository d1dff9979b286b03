"""Errors that end a command with one line, the user's to mend or those of a service; numbers that are not finite."""

from collections.abc import Sequence


def install(extra: str) -> str:
    """The command that installs an extra, typed in the checkout: no distribution has been published.

    >>> install("serve")
    "pip install -e '.[serve]'"
    """
    return f"pip install -e '.[{extra}]'"


def first_of(names: Sequence[object]) -> str:
    """The first of some names, and how many more there are.

    >>> first_of(["a"]), first_of(["a", "b", "c"])
    ("'a'", "'a' and 2 more")
    """
    return f"{names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _printable(message: str) -> str:
    r"""A message with what a terminal would obey written out.

    >>> print(_printable("a\x1b[2J b\x00"))
    a\x1b[2J b\x00
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in message)


class UserError(Exception):
    """Bad input or usage; the command line exits with status 2.

    The message is one line that names the file, row or field, says what was found, and what would be right. Control
    characters in it, which a user's file may hold, are written out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class ServiceError(Exception):
    """Something outside, such as the endpoint of a reward, failed or answered wrongly; status 1.

    The message is one line that names it and says what it did. What was finished is kept; the same command continues.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class NotFinite(FloatingPointError):
    """NaN or infinity where a number is needed. Training counts it by `what` and skips the step.

    `what` is one word, such as `reward` or `logits`; the message is one line that says whose it was.
    """

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
