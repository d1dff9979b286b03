"""A language model of sharded weights: against one process, through kills, and its memory.

`python -m benchmarks.reliability.sharding equal FOLDER STEPS` fits sft and post-training by one process, by two, and by
two that share the weights, with SGD and without clipping, which a sum in the place of a mean does not escape.
`... resume FOLDER STEPS` kills a sharded fit, goes on with one process, kills that, and goes on with two that share.
`... memory FOLDER WIDTH` fits a few steps of a larger model, replicated and sharded, and says how much memory each
process took at most. Float32, without dropout; each way in forks of its own.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from adagrpo.config import FitConfig, Gate, ObjectiveConfig
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import from_configuration
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer import Arm, BatchSchedule, PostTraining, Supervised, fit, loop
from adagrpo.trainer.checkpoints import load_weights
from adagrpo.trainer.processes import processes
from adagrpo.trainer.sharding import sharded
from adagrpo.types import Ragged
from benchmarks.reliability.gloo import LOST, all_whole, die_in, forked

__all__ = ["LOST", "difference", "measured"]

ROOT = Path(__file__).parent.parent.parent
SIZES, ITEMS, USERS, HISTORY, SEED = (4, 4, 3), 40, 21, 6, 3  # a step of an epoch has five histories, the others eight
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}


class Way(NamedTuple):
    """How a fit is carried out."""

    processes: int
    shares: bool = False  # the weights
    batch_size: int = 1
    accumulation: int = 8
    optimizer: str = "sgd"
    gate: Gate = "all"
    saves_every: float = 60.0  # seconds


def measured(what: str, work: Path, number: int) -> Any:
    """Carry out this module in a process of its own; returns what it wrote."""
    command = [sys.executable, "-m", "benchmarks.reliability.sharding", what, str(work), str(number)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def difference(one: Path, other: Path) -> tuple[float, float]:
    """How far the weights of two folders are apart, as a share of their length: all together, and the worst tensor."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    if expected.keys() != found.keys():
        raise ValueError(f"{other}: other tensors than {one}")
    parts = [(float((found[name] - tensor).norm()), float(tensor.norm())) for name, tensor in expected.items()]
    apart, length = (math.hypot(*column) for column in zip(*parts, strict=True))
    return apart / length, max(own / whole for own, whole in parts)


def _short(work: Path, steps: int) -> dict[str, Any]:
    """What a test looks at."""
    return {"equal": _equal(work / "equal", steps, ("sharded",)), "resume": _resume(work / "resume", steps)}


def _equal(work: Path, steps: int, others: Sequence[str] = ("replicated", "sharded")) -> dict[str, tuple[float, float]]:
    """The difference from one process, by way and stage."""
    ways = {"one": Way(1), "replicated": Way(2), "sharded": Way(2, shares=True)}
    ways = {name: way for name, way in ways.items() if name in ("one", *others)}
    for name, way in ways.items():
        all_whole(_launch(partial(_fit, work / name, steps=steps), way))
    return {
        f"{name} {stage}": difference(work / "one" / stage / "final", work / name / stage / "final")
        for name in others
        for stage in ("sft", "train")
    }


def _resume(work: Path, steps: int) -> dict[str, Any]:
    """AdamW and the gate; two micro-batches a step, so that a sum over processes is that of one to the bit."""
    alone, both = (Way(count, count > 1, 4, 2, "adamw", "adagrpo", 0.0) for count in (1, 2))

    def fitted(name: str, way: Way, dies: int | None = None) -> list[int]:
        return _launch(partial(_fit, work / name, steps=steps, dies=dies), way)

    def written() -> list[str]:
        return sorted(path.name for path in (work / "resumed").rglob("checkpoints/*/model*"))

    all_whole(fitted("undisturbed", alone))
    ends, files = [], []
    for way, dies in ((both, steps + 2), (alone, 3), (both, None)):
        ends.append(fitted("resumed", way, dies))
        files.append(written())
    folders = [work / name / "train" / "final" for name in ("undisturbed", "resumed")]
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    rows = [(folder.parent / "steps.jsonl").read_text().splitlines() for folder in folders]
    admitted = [json.loads(row)["admission"] for row in rows[1]]
    return {
        "ends": ends,
        "files": files,
        "difference": difference(*folders),
        "equal": all(torch.equal(one[name], other[name]) for name in one),
        "steps": [len(part) for part in rows],
        "admission": [min(admitted), max(admitted)],
    }


def _memory(work: Path, width: int) -> dict[str, Any]:
    """Parameters of a model, and by way the most memory of each process beyond what it began with, in MB."""
    work.mkdir(parents=True, exist_ok=True)
    layers = {"num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": width // 8}
    model = MODEL | layers | {"hidden_size": width, "intermediate_size": 4 * width}
    result: dict[str, Any] = {}
    for name, way in {"replicated": Way(2), "sharded": Way(2, shares=True)}.items():

        def build(place: Way, name: str = name) -> None:
            began = _peak()
            place = place._replace(optimizer="adamw", batch_size=4, accumulation=2)
            count = _fit(work / name, place, 2, model=model, stages=1)
            file = work / f"{name}-{processes().rank}.json"
            file.write_text(json.dumps([count, began, _peak()]))

        all_whole(_launch(build, way))
        told = [json.loads((work / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        result |= {"parameters": told[0][0], name: [round(peak - began) for _, began, peak in told]}
    return result


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _launch(build: Callable[[Way], Any], way: Way) -> list[int]:
    """Carry something out in a fork for each process. Returns how each ended."""
    asks = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if way.shares else {}
    return forked(partial(build, way), way.processes, asks)


def _fit(
    work: Path, way: Way, steps: int, dies: int | None = None, *, model: dict[str, Any] = MODEL, stages: int = 2
) -> int:
    """Fit a policy, and post-train it by a ranker of random weights; returns how many parameters it has.

    Args:
        work: folder of the fits.
        way: how.
        steps: of each fit.
        dies: the last process kills itself in this backward pass.
        model: configuration of the language model.
        stages: 1 for sft alone.
    """
    loop.autocast_dtype = lambda device: None  # float32
    if way.optimizer == "sgd":
        loop.adamw = lambda groups, rate: torch.optim.SGD(groups, lr=rate)
    together = processes()
    if dies is not None:
        die_in(dies)
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 12, USERS)
    items = draw.integers(0, ITEMS, lengths.sum()).astype(np.int32)
    training = Ragged(items, np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    schedule = BatchSchedule(training, HISTORY, way.batch_size, way.accumulation, SEED, processes=together.count)
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    order = torch.randperm(len(space), generator=torch.Generator().manual_seed(0))
    catalog = Catalog.from_codes(space[order[:ITEMS]], SIZES).with_outside()
    rate = 0.1 if way.optimizer == "sgd" else 1e-3
    settings = FitConfig(learning_rate=rate, max_grad_norm=1e9, validations=2, checkpoint_seconds=way.saves_every)
    common: dict[str, Any] = {"steps": steps, "validate": lambda: {"ndcg@10": 0.0}}

    def policy() -> CausalLMPolicy:
        return CausalLMPolicy(*from_configuration(model, SIZES, seed=0), catalog.codes, max_history=HISTORY)

    first = policy()
    count = sum(parameter.numel() for parameter in first.parameters())
    with sharded([first], together):
        fit(first, Supervised(first, catalog.codes, schedule, **common), settings, work / "sft", seed=SEED)
    if stages == 1:
        return count
    second = policy()
    together.broadcast("written")
    load_weights(work / "sft" / "final", second)
    ranker = SequentialRanker(ITEMS, width=16, layers=1, heads=2, max_history=HISTORY, dropout=0.0, seed=1).eval()
    objective = ObjectiveConfig(num_generations=6, inject_target=True, tau=0.0, q_min=0.0)
    arm = Arm(anchored=True, lambda_=1.0, gate=way.gate)
    task = PostTraining(
        second, catalog, ranker, schedule, objective, arm, shared_by=together, term_norms_every=5, **common
    )
    with sharded([second, task.starting_policy], together):
        fit(second, task, settings, work / "train", seed=SEED)
    return count


if __name__ == "__main__":
    what, folder, number = sys.argv[1:]
    carry_out: dict[str, Callable[[Path, int], Any]] = {
        "equal": _equal,
        "resume": _resume,
        "memory": _memory,
        "short": _short,
    }
    sys.stdout.write(json.dumps(carry_out[what](Path(folder), int(number))) + "\n")
