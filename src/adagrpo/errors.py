"""Errors that end a command with a one-line message, and non-finite numbers."""

from collections.abc import Sequence


def install(extra: str) -> str:
    """Return the command that installs an extra from a checkout.

    >>> install("serve")
    "pip install -e '.[serve]'"
    """
    return f"pip install -e '.[{extra}]'"


def first_of(names: Sequence[object]) -> str:
    """Format the first of some names and the number of others.

    >>> first_of(["a"]), first_of(["a", "b", "c"])
    ("'a'", "'a' and 2 more")
    """
    return f"{names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _printable(message: str) -> str:
    r"""Escape control characters.

    >>> print(_printable("a\x1b[2J b\x00"))
    a\x1b[2J b\x00
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in message)


class UserError(Exception):
    """Bad input or usage, in one line with the remedy; the command line exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class ServiceError(Exception):
    """Failure of an external service; the command line exits with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class NotFinite(FloatingPointError):
    """NaN or infinity in `what`, such as `logits`; training skips the step."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
