"""`python -m adagrpo` is `adagrpo`."""

from adagrpo.cli import main

if __name__ == "__main__":
    main()
