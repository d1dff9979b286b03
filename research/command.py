"""Ends a study's script as the command line ends: bad input is one line and status 2, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from adagrpo.errors import UserError

__all__ = ["run"]


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` is printed on stderr as one line, and the status is 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
