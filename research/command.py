"""Ends a study's script as the command line ends: bad input, or Ctrl-C, is one line and not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from adagrpo.errors import UserError

__all__ = ["run"]


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` is printed on stderr as one line, and the status is 2; of Ctrl-C it is 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
