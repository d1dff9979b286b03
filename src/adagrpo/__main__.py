"""`adagrpo` and `python -m adagrpo`."""

from adagrpo.stopping import exit_on_interrupt


def main() -> None:
    """Run the command line."""
    with exit_on_interrupt():  # while it imports
        from adagrpo.cli import main as run
    run()


if __name__ == "__main__":
    main()
