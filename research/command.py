"""Ends a study's script as the command line ends: bad input, or Ctrl-C, is one line and not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from adagrpo.errors import UserError

__all__ = ["run"]


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; what went wrong is one line on stderr, and the status 2, or 130 of Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
