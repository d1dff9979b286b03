"""Checkpoints of an unfinished fit: model, optimiser, averaged and best weights in one sealed folder."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adagrpo.errors import UserError
from adagrpo.storage.artifacts import manifest, publish, seal, verify
from adagrpo.storage.writing import MANIFEST, atomic_file, remove
from adagrpo.trainer.task import Watch

WEIGHTS, BEST, AVERAGE = "model.safetensors", "best.safetensors", "average.safetensors"
MOMENTS, PROGRESS = "optimizer.safetensors", "progress.json"
FILES = frozenset({WEIGHTS, BEST, AVERAGE, MOMENTS, PROGRESS, MANIFEST})  # of a checkpoint
TENSORS = ("best_weights", "average")  # of the progress, in files of their own


@dataclass
class Progress:
    """Progress of a fit."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_step: int = 0
    best_value: float | None = None
    watch: Watch = field(default_factory=Watch)
    lost: str | None = None  # why the policy counts as collapsed
    lost_step: int = 0
    task: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of the parameters; empty without averaging

    def offer(self, value: float, model: nn.Module) -> None:
        """Copy the weights if the metric is a new maximum; NaN is below all."""
        if self.best_value is None or math.isnan(self.best_value) or value > self.best_value:
            self.best_value, self.best_step = value, self.step
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_weights(
    directory: Path, weights: Mapping[str, Tensor], step: int, files: Mapping[str, str] | None = None
) -> None:
    """Write final weights, their step, and extra text files."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    _write(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    for name, content in (files or {}).items():
        (directory / name).write_text(content, encoding="utf-8")
    (directory / "checkpoint.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def load_weights(directory: Path, model: nn.Module, *, more_items: int = 0) -> int:
    """Load `save_weights` output into a model and return the step; UserError if a file is missing or damaged.

    A model of `more_items` items than the weights has zero rows for them in `item_tables`; other weights: RuntimeError.
    """
    weights = _read(directory / WEIGHTS)
    for name in getattr(model, "item_tables", ()) if more_items else ():
        weights[name] = nn.functional.pad(weights[name], (0, 0, 0, more_items))
    model.load_state_dict(weights)
    path = directory / "checkpoint.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged or missing; make the checkpoint again") from error


def save(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint and remove earlier ones."""
    target = work / "checkpoints" / f"{progress.step:09d}"
    temporary = target.with_name(f".{target.name}.tmp")
    moments = {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    files = {WEIGHTS: model.state_dict(), BEST: progress.best_weights, AVERAGE: progress.average, MOMENTS: moments}
    remove(temporary, FILES.__contains__)
    temporary.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        _write({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary / name)
    state = {each.name: getattr(progress, each.name) for each in fields(progress) if each.name not in TENSORS}
    state["watch"] = asdict(progress.watch)
    (temporary / PROGRESS).write_text(json.dumps(state) + "\n", encoding="utf-8")
    seal(temporary, kind="checkpoint", fingerprint="")
    publish(temporary, target)
    for other in target.parent.iterdir():
        if other != target:
            remove(other, FILES.__contains__)


def restore(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Load the newest complete checkpoint; None if there is none."""
    folders = sorted((work / "checkpoints").glob("[0-9]*"), reverse=True)
    whole = next((folder for folder in folders if manifest(folder) is not None), None)
    if whole is None:
        return None
    verify(whole)
    model.load_state_dict(_read(whole / WEIGHTS))
    device = next(model.parameters()).device
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _read(whole / MOMENTS).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor.to(device)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    content = json.loads((whole / PROGRESS).read_text(encoding="utf-8"))
    progress = Progress(**content | {"watch": Watch(**content["watch"])})
    progress.best_weights = {name: tensor.to(device) for name, tensor in _read(whole / BEST).items()}
    progress.average = {name: tensor.to(device) for name, tensor in _read(whole / AVERAGE).items()}
    return progress


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        with atomic_file(path) as temporary:
            save_file(dict(tensors), temporary, metadata=metadata)
    except SafetensorError as error:  # a full disk raises this, without a file name
        raise OSError(errno.EIO, str(error), str(path)) from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file that can be read ({error}); make it again") from error
