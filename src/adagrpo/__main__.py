"""`adagrpo` and `python -m adagrpo`. Its imports take seconds, in which an interruption must end in one line too."""

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _leave)
    from adagrpo.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("adagrpo: interrupted; the same command continues\n")
    sys.stderr.flush()
    os._exit(128 + number)


if __name__ == "__main__":
    main()
