"""What docs/reliability.md promises, measured: see `python -m benchmarks.reliability --help`."""
