"""Gradients of an optimiser step, summed over loss terms, micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from adagrpo.trainer.batches import step_key
from adagrpo.trainer.processes import Processes
from adagrpo.trainer.task import Task

Precision = Callable[[], AbstractContextManager[Any]]


class TermGradients:
    """Gradient of each loss term."""

    def __init__(self, parameters: Sequence[nn.Parameter], shared_by: Processes) -> None:
        self.parameters, self.processes = parameters, shared_by
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradients of a micro-batch, retaining its graph."""
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, self.parameters, retain_graph=True, allow_unused=True)
            sums = self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient

    def norms(self) -> dict[str, float]:
        """Return gradient norms; processes may lack terms."""
        names = dict.fromkeys(name for process_names in self.processes.gather([*self.sums]) for name in process_names)
        for name in names:
            self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
            self.processes.sum_(self.sums[name])
        return {name: float(torch.nn.utils.get_total_norm(self.sums[name])) for name in names}


class Losses:
    """Losses of this process's micro-batches."""

    def __init__(
        self,
        task: Task[Any],
        step: int,
        micros: Sequence[Any],
        processes: Processes,
        *,
        seed: int,
        precision: Precision,
    ) -> None:
        self.task, self.step, self.micros, self.processes = task, step, micros, processes
        self.seed, self.precision = seed, precision
        self.logged: dict[str, float] = {}

    def backward(self, each: Callable[[Tensor], None], norms: TermGradients | None = None) -> None:
        """Accumulate gradients, and values to log in `logged`.

        Args:
            each: runs a backward pass.
            norms: also collects each term's gradient.

        Raises:
            NotFinite: in any loss.
        """
        for index, micro in self.processes.share(self.micros):
            torch.manual_seed(step_key(self.seed, self.step, 2 * index))  # odd keys are left to the task's own draws
            with self.precision():
                terms, logged = self.task.loss(micro)
            for name, value in [*((name, float(term.detach())) for name, term in terms.items()), *logged.items()]:
                self.logged[name] = self.logged.get(name, 0.0) + value
            if norms is not None:
                norms.add(terms)
            each(torch.stack([*terms.values()]).sum())
