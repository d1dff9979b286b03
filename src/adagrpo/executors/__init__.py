"""One function over many tasks, by one process, by several, or by Ray Data: with equal results."""

from adagrpo.executors.executor import SERIAL, Executor, Kind, each, team

__all__ = ["SERIAL", "Executor", "Kind", "each", "team"]
