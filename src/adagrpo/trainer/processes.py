"""Data-parallel processes, started by `accelerate launch` or `torchrun`.

Each computes a share of the micro-batches; gradients and logs are summed in rank order, so that weights stay bitwise
equal. The first process validates and writes. Messages are JSON and tensors, never pickles. An error in one process is
raised in all; a dead one raises `LostProcess`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.groups.draw import Compute

T = TypeVar("T")
KINDS: dict[str, type[Exception]] = {"not finite": NotFinite, "user": UserError, "service": ServiceError}
PATIENCE = timedelta(days=7)  # the others wait as long while the first one evaluates; a dead one is noticed at once


class LostProcess(ServiceError):
    """Another process of the fit ended or is unreachable."""

    def __init__(self) -> None:
        super().__init__("another process of this fit has ended; the same command continues from the last checkpoint")


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcess from error


class Processes:
    """The processes of a fit; a single one by default."""

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device or torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        """True in the first process."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Iterable[tuple[int, T]]:
        """Return this process's parts, with their indices."""
        return list(enumerate(parts))[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """Gather a JSON value from every process, in rank order."""
        if self.count == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        with _in_touch():
            distributed.all_gather(lengths, torch.tensor([len(text)], device=self.device))
        sizes = [int(size) for size in lengths]
        longest = max(sizes)
        texts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.count)]
        with _in_touch():
            distributed.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(bytes(one[:size].tolist())) for one, size in zip(texts, sizes, strict=True)]

    def broadcast(self, value: str | None = None) -> str:
        """Return the value of the first process."""
        return str(self.gather(value)[0])

    def part(self) -> None:
        """Wait for the first process to finish."""
        with suppress(LostProcess):
            self.broadcast("done")

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce tensors in place by their sum."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        with _in_touch():
            distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_gradients_(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """All-reduce gradients; parameters unused in all processes keep None."""
        if self.count == 1:
            return
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        self.sum_([used])
        reached = [parameter for parameter, users in zip(parameters, used.tolist(), strict=True) if users]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_([parameter.grad for parameter in reached if parameter.grad is not None])

    def agree(self, compute: Callable[[], T]) -> T:
        """Return the result of a computation, or raise the error of any process in all.

        NotFinite, UserError or ServiceError of the first process with an error; other types become RuntimeError.
        """
        if self.count == 1:
            return compute()
        result: list[T] = []
        own: Exception | None = None
        try:
            result.append(compute())
        except Exception as error:  # sent to all before it is raised
            own = error
        message = None
        if own is not None:
            kind = next((name for name, one in KINDS.items() if isinstance(own, one)), type(own).__name__)
            message = [kind, str(own), own.what if isinstance(own, NotFinite) else ""]
        for rank, found in enumerate(self.gather(message)):
            if found is None:
                continue
            if own is not None and rank == self.rank:
                raise own
            kind, text, what = found
            if kind == "not finite":
                raise NotFinite(what, text)
            raise KINDS[kind](text) if kind in KINDS else RuntimeError(f"process {rank}: {kind}: {text}")
        return result[0]

    def rows_of(self, sizes: Sequence[int]) -> Tensor:
        """Return this process's rows of micro-batches of some `sizes`."""
        rows = torch.split(torch.arange(sum(sizes), device=self.device), [*sizes])
        own = [part for _, part in self.share(rows)]
        return torch.cat(own) if own else rows[0][:0]

    def divide(self, rows: Tensor, wholes: Sequence[Tensor], compute: Compute) -> Sequence[Tensor]:
        """Compute this process's rows, and complete `wholes` in all; see `adagrpo.groups.draw.Division`."""
        if self.count == 1:
            return compute(None)
        parts = self.agree(lambda: compute(rows) if len(rows) else ())
        for whole, part in zip(wholes, parts, strict=bool(parts)):
            whole[rows] = part.to(whole.dtype)
        for whole in wholes:  # rows of other processes are zero
            with _in_touch():
                distributed.all_reduce(whole)
        return wholes


@cache
def processes() -> Processes:
    """Return the processes of this launch."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device)
