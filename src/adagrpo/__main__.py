"""`adagrpo` and `python -m adagrpo`."""

from adagrpo.stopping import left_at_once

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    with left_at_once():
        from adagrpo.cli import main as run
    run()


if __name__ == "__main__":
    main()
