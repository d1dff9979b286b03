"""The command line with the gates of the studies: `python -m research compare RECIPE ...`."""

from adagrpo.__main__ import main

if __name__ == "__main__":
    main()
