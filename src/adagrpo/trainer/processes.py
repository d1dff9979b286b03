"""Processes that fit one model together, started by `accelerate launch` or `torchrun`.

All of them draw the same optimiser step from (seed, step), each takes some of its micro-batches, and gradients and
logged numbers are summed, in the order of the processes, so that all hold the same weights and take the same decisions
to the bit. The first process leads: it alone writes files, validates, asks rewards, and does what is not divided; the
others follow it. What they tell each other is JSON and tensors, never a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import BadReward
from adagrpo.types import Histories

__all__ = ["Processes", "SharedReward", "processes"]

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait as long while the first one evaluates; a dead one is noticed at once


class Processes:
    """This process among those that fit together; one alone where nothing was launched."""

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device or torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Iterable[tuple[int, T]]:
        """This process's parts of a whole, each with its place in it."""
        return list(enumerate(parts))[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """What each process tells, a JSON value each, in their order."""
        if self.count == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.tensor([len(text)], device=self.device))
        longest = max(int(size) for size in sizes)
        texts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.count)]
        distributed.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(bytes(one[: int(size)].tolist())) for one, size in zip(texts, sizes, strict=True)]

    def broadcast(self, value: str | None = None) -> str:
        """The word of the first process, which alone gives one; the others wait for it."""
        return str(self.gather(value)[0])

    def part(self) -> None:
        """Wait until the first process is done. One that has heard so may be gone before the first one knows of it."""
        with suppress(RuntimeError):
            self.broadcast("done")

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of the same shapes in every process by their sums over the processes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_gradients_(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum gradients over the processes; a parameter that none of them has used keeps none."""
        if self.count == 1:
            return
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        self.sum_([used])
        reached = [parameter for parameter, users in zip(parameters, used.tolist(), strict=True) if users]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_([parameter.grad for parameter in reached if parameter.grad is not None])

    def copy_(self, tensor: Tensor) -> None:
        """Replace a tensor by the first process's."""
        if self.count > 1:
            distributed.broadcast(tensor, 0)


@cache
def processes() -> Processes:
    """The processes that this one was launched with."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device)


class SharedReward:
    """A reward that the first process asks for all: an endpoint is asked once, and all read the same scores."""

    def __init__(self, reward: Reward, shared_by: Processes) -> None:
        self.reward, self.processes = reward, shared_by
        self.name = getattr(reward, "name", type(reward).__name__)
        self.members = tuple(SharedReward(member, shared_by) for member in getattr(reward, "members", ()))

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """See `adagrpo.rewards.protocol.Reward`."""
        if self.processes.is_main_process:
            scores = self.reward.score(histories, items).float().contiguous()
            if scores.shape != items.shape:
                raise BadReward(f"the reward must return {tuple(items.shape)} scores, got {tuple(scores.shape)}")
        else:
            scores = torch.empty(items.shape, dtype=torch.float32, device=items.device)
        self.processes.copy_(scores)
        return scores
