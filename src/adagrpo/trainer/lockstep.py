"""Passes through sharded models, which all processes make at the same time, whether or not they have something to do.

Every layer of a sharded model is gathered from all processes before it computes, so one process alone can make no pass.
Ours have different things to do: one has no admitted group, one has a micro-batch less, one alone validates. So each
pass begins with a word to the others, the number of its model; a process that is done (0) makes an idle pass of the
same model, over one token of zeros, until all are done.

    process 0   pass   pass   pass   done
    process 1   pass   idle   idle   done        idle: the same exchanges, and a gradient of zeros

With gradients, each pass is part of the loss of its process, an idle one too: a backward pass visits the layers in the
reverse order of the passes, and so it is the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Lockstep", "Stepped"]


class Stepped(Protocol):
    """A model whose passes are made in step."""

    def open(self) -> None:
        """Gather what is outside its layers; all processes call it at the same time."""
        ...

    def close(self) -> None:
        """Let go of that."""
        ...

    def idle_pass(self) -> Tensor:
        """Make a pass over nothing; returns its states."""
        ...


class Lockstep:
    """The passes of this process among those of all."""

    def __init__(self, tell: Callable[[int], Sequence[int]]) -> None:
        """Begin with no model.

        Args:
            tell: what each process says, from what this one says; waits for all.
        """
        self.tell = tell
        self.models: list[Stepped] = []
        self._states: list[Tensor] | None = None  # of the passes that a loss is made of
        self._opened: list[Stepped] = []  # since the last piece of work began

    def before_pass(self, model: Stepped) -> None:
        """Wait until all processes make a pass of this model, and take part in gathering it."""
        self._meet(self.models.index(model) + 1)
        self._open(model)

    def after_pass(self, states: Tensor) -> None:
        """Keep the states of a pass for the loss, see `one_loss`."""
        if self._states is not None:
            self._states.append(states)

    def finish(self) -> None:
        """Make idle passes until all processes are done."""
        while number := self._meet(0):
            model = self.models[number - 1]
            self._open(model)
            self.after_pass(model.idle_pass())
        if self._states is None:  # otherwise the gradient needs what was gathered, and closes it
            self.close()

    def close(self) -> None:
        """Let go of what was gathered; also of a loss whose gradient is not wanted after all."""
        for model in self._opened:
            model.close()
        self._opened = []

    def reopen(self) -> None:
        """Gather again what the gradient of a loss let go of, for another one of the same passes."""
        for model in self._opened:
            model.open()

    @contextmanager
    def one_loss(self) -> Iterator[Callable[[], Tensor]]:
        """The passes within the block belong to one loss.

        Yields:
            A function that finishes and gives what is to be added to the loss, 0, by which every pass is part of it.
        """
        self._states, self._opened = [], []

        def nothing() -> Tensor:
            self.finish()
            assert self._states is not None
            return torch.stack([states.flatten()[:0].sum() for states in self._states]).sum() + 0.0

        try:
            yield nothing
        finally:
            self._states = None

    def _open(self, model: Stepped) -> None:
        if model not in self._opened:
            self._opened.append(model)
        model.open()

    def _meet(self, own: int) -> int:
        """The number of the model of the next pass, 0 where all are done."""
        wanted = {number for number in self.tell(own) if number}
        if len(wanted) > 1:
            raise RuntimeError(f"passes of {len(wanted)} sharded models were begun at the same time")
        return wanted.pop() if wanted else 0
