"""Training and evaluation while another job takes the same cores, over the same work alone.

Two threads that share a core with another job meet at a barrier after every operation, and the one that comes first
waits for the other. GNU OpenMP waits 300,000 rounds in a loop before it sleeps, and these rounds take the very core
that the late thread needs. `adagrpo` therefore lets a thread sleep sooner, unless the environment says otherwise.

Processes of their own do the work, because OpenMP reads its environment once. They differ in that environment only:

    default    what `adagrpo` sets where nothing is set
    spinning   `GOMP_SPINCOUNT=300000`, what OpenMP does by itself
    one        one thread, which meets nobody

They take turns, alone, then beside one busy loop on every core, then beside a second process that does the same work.
A job that is given half of every core needs twice the time: no setting can do better than 2 beside the busy loops.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import IO, NamedTuple

from adagrpo.config import FitConfig
from adagrpo.evaluation.predictions import predict, sample_cases
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.trainer import Supervised
from benchmarks.compact import models_of, stepper
from benchmarks.rows import Row, median_spread

__all__ = ["Cost", "beside", "measure", "rows_of"]

READ = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what a user may have set
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "one": {"OMP_NUM_THREADS": "1"},
}
WORKS = ("train", "evaluate")
PLACES = ("alone", "busy", "twin")
SAMPLE = 512  # cases of an evaluation
TURNS = 5
BUSY = "import os\nparent = os.getppid()\nprint(flush=True)\nwhile os.getppid() == parent: pass"


class Cost(NamedTuple):
    """Of one chunk of work: seconds of the clock, and of all the processor time that it took."""

    seconds: float
    processor: float


Costs = dict[tuple[str, str, str], list[Cost]]  # by variant, work and place


class Worker:
    """A process that does a chunk of work whenever it is told to."""

    def __init__(self, run: Path, setting: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in READ} | dict(setting)
        command = [sys.executable, "-m", "benchmarks.beside", str(run)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.answer()

    def ask(self, work: str) -> None:
        """Start a chunk of work."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{work}\n")
        self.process.stdin.flush()

    def answer(self) -> Cost:
        """Wait for it to end."""
        assert self.process.stdout is not None
        return Cost(*json.loads(self.process.stdout.readline()))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy loops, as long as the block."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


def measure(run: Path, variants: Mapping[str, Mapping[str, str]] = VARIANTS, *, turns: int = TURNS) -> Costs:
    """Costs of each variant, work and place, one a turn; with a second process, the mean of both.

    `spinning` is measured beside others in the first turn alone: there it takes many times as long.
    """
    result: Costs = {}
    with ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(Worker(run, setting)) for _ in range(2)] for name, setting in variants.items()
        }
        for turn, place in product(range(turns), PLACES):
            with busy(len(os.sched_getaffinity(0)) if place == "busy" else 0):
                for work, (name, pair) in product(WORKS, pairs.items()):
                    if turn and name == "spinning" and place != "alone":
                        continue
                    workers = pair if place == "twin" else pair[:1]
                    for worker in workers:
                        worker.ask(work)
                    costs = [worker.answer() for worker in workers]
                    cost = Cost(*(statistics.fmean(values) for values in zip(*costs, strict=True)))
                    result.setdefault((name, work, place), []).append(cost)
    return result


def rows_of(costs: Costs) -> list[Row]:
    """For each work: the time beside busy loops and beside its twin over that alone, and what sleeping costs alone."""
    rows = []
    for work in WORKS:
        detail: dict[str, dict[str, float]] = {}
        for (name, _, place), result in ((key, result) for key, result in costs.items() if key[1] == work):
            text = {f"{place}_s": statistics.median(cost.seconds for cost in result)}
            text[f"{place}_processor_s"] = statistics.median(cost.processor for cost in result)
            detail[name] = detail.get(name, {}) | text
        beside = "the same work alone, by the default"
        rows += [
            _ratio(
                f"{work}_beside_ratio", costs["default", work, "busy"], costs["default", work, "alone"], 2.5, beside
            ),
            _ratio(
                f"{work}_beside_twin_ratio",
                costs["default", work, "twin"],
                costs["default", work, "alone"],
                2.5,
                beside,
            ),
            _ratio(
                f"{work}_sleeping_alone_ratio",
                costs["default", work, "alone"],
                costs["spinning", work, "alone"],
                1.03,
                "the same work alone, threads that spin",
            ),
        ]
        rows[-3] = replace(rows[-3], detail=detail)
    return rows


def beside(data: Path, work: Path) -> list[Row]:
    """Eight steps and an evaluation of the compact policy on Beauty."""
    return rows_of(measure(models_of(data, work, "compact").run.directory))


def _ratio(name: str, costs: Sequence[Cost], over: Sequence[Cost], target: float, against: str) -> Row:
    """The median of the ratios of each turn."""
    value, spread = median_spread([one.seconds / other.seconds for one, other in zip(costs, over, strict=True)])
    return Row(name, value, "ratio", spread, f"<= {target:g}", value <= target, against)


def main() -> None:
    """A worker: answers each line, the name of a work, with what it cost; the first answer says that it is ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    works = as_works(RunData(Run.open(parser.parse_args().run)))
    for work in works.values():
        work()
    _answer(Cost(0.0, 0.0), sys.stdout)
    for line in sys.stdin:
        started, used = time.perf_counter(), _processor()
        works[line.strip()]()
        _answer(Cost(time.perf_counter() - started, _processor() - used), sys.stdout)


def as_works(data: RunData) -> dict[str, Callable[[], object]]:
    """Eight NLL steps, and the evaluation of a sample with constrained and free beams of 50."""
    models, weights = Models(data), data.run.path("sft", "best")
    schedule = models.schedule(FitConfig())
    task = Supervised(models.policy(weights), data.catalog.codes, schedule, steps=10**6, validate=dict)
    _, steps = stepper(data.device, task)
    policy, cases = models.policy(weights), sample_cases(data.cases("validation"), SAMPLE, 0)
    return {
        "train": steps,
        "evaluate": lambda: predict(policy, data.catalog, cases, width=50, batch_size=256, max_history=20),
    }


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _answer(cost: Cost, stream: IO[str]) -> None:
    stream.write(json.dumps(cost) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
