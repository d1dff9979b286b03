"""Checkpoints of an unfinished fit: model, optimiser, averaged and best weights, one sealed folder a checkpoint.

Of sharded weights every process writes its rows, `model-00001-of-00002.safetensors` and so on, and the header of each
file says which rows of how many they are. Whoever reads a checkpoint reads the rows that it wants, from whatever files
hold them, so any number of processes goes on from what any number wrote.

The best weights travel inside the checkpoint, so that a kill between two writes cannot leave a best model that belongs
to another history of the run.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adagrpo.errors import UserError
from adagrpo.storage.artifacts import manifest, publish, seal, verify
from adagrpo.storage.removal import MANIFEST, remove
from adagrpo.storage.writing import TOKEN, written_beside
from adagrpo.trainer.divided import is_divided
from adagrpo.trainer.lost_policy import Watch
from adagrpo.trainer.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["PART", "Progress", "load_weights", "local", "restore", "save", "save_weights"]

WEIGHTS, BEST, AVERAGE = "model.safetensors", "best.safetensors", "average.safetensors"
MOMENTS, PROGRESS = "optimizer.safetensors", "progress.json"
FILES = frozenset({WEIGHTS, BEST, AVERAGE, MOMENTS, PROGRESS, MANIFEST})  # of a checkpoint
TENSORS = ("best_weights", "average")  # of the progress, in files of their own
PART = re.compile(r"-\d{5}-of-(\d{5})(?=\.safetensors$)")  # in the names of files that hold some rows


@dataclass
class Progress:
    """How far a fit has come."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_step: int = 0
    best_value: float | None = None
    watch: Watch = field(default_factory=Watch)
    lost: str | None = None  # why the policy counts as lost
    lost_step: int = 0
    task: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of the parameters; empty without averaging

    def offer(self, value: float, model: nn.Module) -> None:
        """Keep a copy of the weights if the validation metric is the highest so far; the earlier one wins a tie.

        A metric that is NaN is below every other.
        """
        if self.best_value is None or math.isnan(self.best_value) or value > self.best_value:
            self.best_value, self.best_step = value, self.step
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_weights(
    directory: Path, weights: Mapping[str, Tensor], step: int, files: Mapping[str, str] | None = None
) -> None:
    """Write a finished model's weights, the step they come from, and text files that the model wants beside them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    _write(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    for name, content in (files or {}).items():
        (directory / name).write_text(content, encoding="utf-8")
    (directory / "checkpoint.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def load_weights(directory: Path, model: nn.Module, *, more_items: int = 0) -> int:
    """Load what `save_weights` wrote into a model; returns the step.

    Args:
        directory: that holds the weights.
        model: of the same kind and sizes.
        more_items: how many items more the model has than the weights; their rows are zero in its tables of items,
            which its attribute `item_tables` names.

    Raises:
        UserError: a file is missing or damaged; it is named.
        RuntimeError: the weights are of another model.
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


def save(
    work: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    shared_by: Processes | None = None,
) -> None:
    """Write a checkpoint and remove the ones before it.

    Args:
        work: folder of the fit.
        model: whose weights may be sharded; then all processes call it.
        optimizer: of its parameters.
        progress: that of the first process counts.
        shared_by: the processes, needed where weights are sharded.
    """
    target = work / "checkpoints" / f"{progress.step:09d}"
    temporary = target.with_name(f".{target.name}.tmp")
    together = shared_by if shared_by is not None and shared_by.lockstep is not None else Processes()
    moments = {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    files = {WEIGHTS: model.state_dict(), BEST: progress.best_weights, AVERAGE: progress.average, MOMENTS: moments}

    def begin() -> None:
        remove(temporary, _is_known)
        temporary.mkdir(parents=True, exist_ok=True)

    def end() -> None:
        state = {each.name: getattr(progress, each.name) for each in fields(progress) if each.name not in TENSORS}
        state["watch"] = asdict(progress.watch)
        (temporary / PROGRESS).write_text(json.dumps(state) + "\n", encoding="utf-8")
        seal(temporary, kind="checkpoint", fingerprint="")
        publish(temporary, target)
        for other in target.parent.iterdir():
            if other != target:
                remove(other, _is_known)

    def write() -> None:
        for name, tensors in files.items():
            _write_part(tensors, temporary / name, together, holder)

    holder = together.led(TOKEN)
    together.for_all(begin, None)
    together.agree(write)
    together.for_all(end, None)


def restore(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Load the newest whole checkpoint into model and optimiser; None where there is none.

    Whether the weights are sharded, and among how many, need not be as it was when the checkpoint was written.
    """
    folders = sorted((work / "checkpoints").glob("[0-9]*"), reverse=True)
    whole = next((folder for folder in folders if manifest(folder) is not None), None)
    if whole is None:
        return None
    verify(whole)
    weights, parameters = model.state_dict(), dict(model.named_parameters())
    model.load_state_dict(_read_like(weights, whole / WEIGHTS))
    numbered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stored = _Stored(whole / MOMENTS)
    state: dict[int, dict[str, Tensor]] = {}
    for key in stored.names:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = stored.like(key, numbered[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    content = json.loads((whole / PROGRESS).read_text(encoding="utf-8"))
    progress = Progress(**content | {"watch": Watch(**content["watch"])})
    progress.best_weights = _read_like(weights, whole / BEST)
    progress.average = _read_like(parameters, whole / AVERAGE)
    return progress


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process has; all of them where it is not divided."""
    return tensor.to_local() if is_divided(tensor) else tensor


def _rows(tensor: DTensor) -> tuple[int, int]:
    """First and last row of a divided tensor that this process has; they are divided as `torch.chunk` does it."""
    total, mesh = tensor.shape[0], tensor.device_mesh
    size = -(-total // mesh.size())
    first, last = (min(number * size, total) for number in (mesh.get_local_rank(), mesh.get_local_rank() + 1))
    if last - first != len(tensor.to_local()):
        raise RuntimeError(f"a tensor of {total} rows is divided otherwise than it was thought to be")
    return first, last


def _write_part(tensors: Mapping[str, Tensor], path: Path, shared_by: Processes, holder: str) -> None:
    """Write the rows that this process has; what is not divided is written by the first one, of the token `holder`."""
    if shared_by.count == 1:
        _write({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return
    rows, own = {}, {}
    for name, tensor in tensors.items():
        if is_divided(tensor):
            rows[name] = [*_rows(tensor), tensor.shape[0]]
            own[name] = tensor.to_local().contiguous()
        elif shared_by.is_main_process:
            own[name] = tensor.contiguous()
    part = path.with_name(f"{path.stem}-{shared_by.rank + 1:05d}-of-{shared_by.count:05d}{path.suffix}")
    _write(own, part, metadata={"rows": json.dumps(rows)}, holder=holder)


class _Stored:
    """Tensors in one file, or in one file a process that wrote them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, list[tuple[int, int, Path]]] = {}  # first and last row of each part, and its file
        self.divided: set[str] = set()
        parts = [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))
        count = PART.search(parts[0].name) if parts else None
        if not parts or (count is not None and len(parts) != int(count[1])):
            raise UserError(f"{path}: missing, or some of its parts are; delete {path.parent} to go on without it")
        for part in parts:
            with _opened(part) as file:
                rows = json.loads((file.metadata() or {}).get("rows", "{}"))
                for name in file.keys():  # noqa: SIM118  it is no dictionary
                    first, last, _ = rows.get(name, (0, 0, 0))
                    self.places.setdefault(name, []).append((first, last, part))
            self.divided |= rows.keys()

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return [*self.places]

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor, divided as another one of its shape; one of another shape, such as a count of steps, whole."""
        if not is_divided(tensor):
            return self._rows_of(name).to(tensor.device)
        shape = self._shape(name)
        if shape != tensor.shape:
            return self._rows_of(name)
        rows = self._rows_of(name, _rows(tensor)).to(tensor.device)
        return type(tensor).from_local(
            rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        _, last, path = max(self.places[name], key=lambda place: place[:2])
        with _opened(path) as file:
            shape = tuple(file.get_slice(name).get_shape())
        return (last, *shape[1:]) if name in self.divided else shape

    def _rows_of(self, name: str, wanted: tuple[int, int] | None = None) -> Tensor:
        """Rows of a tensor, or all of it."""
        found: list[Tensor] = []
        for first, last, path in self.places[name]:
            with _opened(path) as file:
                if name not in self.divided:
                    return _slice(file, name, wanted)
                begin, end = (first, last) if wanted is None else (max(first, wanted[0]), min(last, wanted[1]))
                if begin < end or not found:
                    found.append(_slice(file, name, (begin - first, max(begin, end) - first)))
        return torch.cat(found) if len(found) > 1 else found[0]


def _slice(file: Any, name: str, rows: tuple[int, int] | None) -> Tensor:
    tensor: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows[0] : rows[1]]
    return tensor


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file that can be read ({error}); make it again") from error


def _read_like(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, divided as those of the same names are."""
    stored = _Stored(path)
    return {name: stored.like(name, tensors.get(name, torch.empty(0))) for name in stored.names}


def _is_known(name: str) -> bool:
    """Whether a file is of a checkpoint."""
    return PART.sub("", name) in FILES


def _write(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None, holder: str = TOKEN
) -> None:
    try:
        with written_beside(path, holder) as place:
            save_file(dict(tensors), place, metadata=metadata)
    except SafetensorError as error:  # a full disk is told in these words, and without a name
        raise OSError(errno.EIO, str(error), str(path)) from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file that can be read ({error}); make it again") from error
