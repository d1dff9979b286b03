"""The command line with fits in float32 whatever the processor: `python -m benchmarks.in_float32 train --run RUN`."""

from adagrpo import cli
from adagrpo.trainer import loop

if __name__ == "__main__":
    loop.autocast_dtype = lambda device: None
    cli.main()
