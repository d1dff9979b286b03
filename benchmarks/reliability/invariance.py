"""Row 4: sft, ranker and post-training of a small world, however a step of 8 histories is cut and by however many.

`python -m benchmarks.reliability.invariance FOLDER STEPS OPTIMIZER` fits them all, each cut in forks of its own, and
leaves the weights of each model in the folder; with `killed` in the place of an optimiser it writes what `killed`
gives. Float32, without dropout, whose masks are those of a micro-batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adagrpo.config import FitConfig, ObjectiveConfig
from adagrpo.policies.compact import CompactPolicy
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer import Arm, BatchSchedule, PostTraining, RankerFit, Supervised, fit, loop
from adagrpo.trainer.processes import processes
from adagrpo.types import Ragged
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.gloo import LOST, all_whole, die_in, forked

__all__ = ["LOST", "MODELS", "deviations", "invariance", "killed", "run"]

ROOT = Path(__file__).parent.parent.parent
MODELS = ("sft", "ranker", "train")
SIZES, ITEMS, USERS, HISTORY, SEED = (4, 4, 3), 40, 120, 6, 3
CUTS = {"1 x 8 histories": (8, 1, 1), "8 x 1": (1, 8, 1), "two processes": (8, 1, 2)}


def invariance(work: Path, steps: int = 50) -> Finding:
    """The largest difference between weights, over the ways to cut a step, with either optimiser."""
    result = {optimizer: deviations(work / optimizer, steps, optimizer) for optimizer in ("adamw", "sgd")}
    figure = "; ".join(
        f"{optimizer}: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        for optimizer, found in result.items()
    )
    return Finding(
        4,
        f"largest difference of a weight after {steps} steps between 1 x 8, 8 x 1 and two processes (gloo), {figure}",
        max(value for found in result.values() for value in found.values()) < 1e-6,
    )


def deviations(work: Path, steps: int, optimizer: str) -> dict[str, float]:
    """The largest difference of a weight from 1 x 8, by model.

    The bias of attention's keys is left out: nothing depends on it, and Adam makes steps of its gradient's rounding.

    Args:
        work: empty folder.
        steps: of each fit.
        optimizer: `adamw`, or `sgd` without clipping, which a sum in the place of a mean does not escape.
    """
    run(work, steps, optimizer)
    largest = dict.fromkeys(MODELS, 0.0)
    first, *others = (work / name for name in CUTS)
    for model in MODELS:
        expected = load_file(first / f"{model}.safetensors")
        for other in others:
            for name, tensor in load_file(other / f"{model}.safetensors").items():
                difference = (tensor - expected[name]).abs()
                if name.endswith("query_key_value.bias"):
                    difference = difference.view(3, -1)[[0, 2]]
                largest[model] = max(largest[model], float(difference.max()))
    return largest


def run(work: Path, steps: int, what: str) -> str:
    """Carry out this module in a process of its own; returns what it wrote."""
    command = [sys.executable, "-m", "benchmarks.reliability.invariance", str(work), str(steps), what]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def killed(work: Path, steps: int) -> dict[str, Any]:
    """Two processes of which the second is killed in post-training, and the same two again.

    Returns:
        `ends`: how each of them ended, a signal as a negative number and `LOST` for one that found the other gone;
        `seconds` until both had ended; `saved`: the step that the first one kept; `equal`: whether the weights are in
        the end those of two that were not killed, to the bit.
    """
    cut = (8, 1, 2)
    all_whole(_launch(work / "undisturbed", cut, steps, "adamw"))
    started = time.monotonic()
    ends = _launch(work / "killed", cut, steps, "adamw", dies=2 * steps + steps // 2)  # backward passes before it
    seconds = time.monotonic() - started
    saved = [int(path.name) for path in (work / "killed" / "train" / "checkpoints").iterdir()]
    all_whole(_launch(work / "killed", cut, steps, "adamw"))
    one, other = ((work / name / "train.safetensors").read_bytes() for name in ("undisturbed", "killed"))
    return {"ends": ends, "seconds": seconds, "saved": saved, "equal": one == other}


def _launch(work: Path, cut: tuple[int, int, int], steps: int, optimizer: str, dies: int | None = None) -> list[int]:
    """Fit everything in a fork for each process.

    Args:
        work: folder of the fits.
        cut: histories of a micro-batch, micro-batches of a step, processes.
        steps: of each fit.
        optimizer: see `deviations`.
        dies: the last process kills itself in this backward pass.

    Returns:
        How each ended.
    """
    batch_size, accumulation, count = cut

    def build() -> None:
        if dies is not None:
            die_in(dies)
        _fit_all(work, batch_size, accumulation, steps, optimizer)

    return forked(build, count)


def _fit_all(work: Path, batch_size: int, accumulation: int, steps: int, optimizer: str) -> None:
    """Fit a policy and a ranker, and post-train the policy by the ranker; every gate decision is `all`."""
    loop.autocast_dtype = lambda device: None  # float32
    if optimizer == "sgd":
        loop.adamw = lambda groups, rate: torch.optim.SGD(groups, lr=rate)
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 12, USERS)
    items = draw.integers(0, ITEMS, lengths.sum()).astype(np.int32)
    training = Ragged(items, np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    together = processes()
    schedule = BatchSchedule(training, HISTORY, batch_size, accumulation, SEED, processes=together.count)
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    generator = torch.Generator().manual_seed(0)
    catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:ITEMS]], SIZES)
    policy = CompactPolicy(
        catalog.codes, SIZES, width=16, layers=1, heads=2, decoder_hidden=16, max_history=HISTORY, dropout=0.0
    )
    ranker = SequentialRanker(ITEMS, width=16, layers=1, heads=2, max_history=HISTORY, dropout=0.0)
    rate, longest = (1e-3, 1.0) if optimizer == "adamw" else (0.1, 1e9)  # a clipped gradient hides its length
    settings = FitConfig(learning_rate=rate, max_grad_norm=longest, validations=0)

    def fitted(name: str, model: nn.Module, task: Supervised | RankerFit | PostTraining) -> None:
        fit(model, task, settings, work / name, seed=SEED)
        if together.is_main_process:
            save_file(model.state_dict(), work / f"{name}.safetensors")

    common = {"steps": steps, "validate": lambda: {"ndcg@10": 0.0}}
    fitted("sft", policy, Supervised(policy, catalog.codes, schedule, **common))
    fitted("ranker", ranker, RankerFit(ranker, schedule, loss="sampled", negatives=20, **common))
    objective = ObjectiveConfig(num_generations=6, inject_target=True)
    arm = Arm(anchored=True, lambda_=1.0, gate="all")
    task = PostTraining(policy, catalog, ranker.eval(), schedule, objective, arm, shared_by=together, **common)
    fitted("train", policy, task)


if __name__ == "__main__":
    folder, number, what = sys.argv[1:]
    if what == "killed":
        sys.stdout.write(json.dumps(killed(Path(folder), int(number))))
    else:
        for name, one in CUTS.items():
            all_whole(_launch(Path(folder) / name, one, int(number), what))
