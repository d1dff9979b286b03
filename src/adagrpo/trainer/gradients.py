"""The gradient of an optimiser step, over its micro-batches and over the processes that share them.

    gradient = Σ over micro-batches and terms of ∇ term

Each process computes those of its own micro-batches. Where weights are whole, the sums over the processes come last.
Where they are sharded (`adagrpo.trainer.sharding`), every backward pass sums over the processes, and leaves each with
its part of the sum; so all make as many passes, of micro-batches or of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from adagrpo.errors import NotFinite
from adagrpo.trainer.batches import step_key
from adagrpo.trainer.divided import is_divided
from adagrpo.trainer.processes import Processes
from adagrpo.trainer.task import Task

__all__ = ["Losses", "TermGradients", "as_number"]

Precision = Callable[[], AbstractContextManager[Any]]


class TermGradients:
    """Each loss term's own gradient, over the micro-batches of an optimiser step and over the processes."""

    def __init__(self, parameters: Sequence[nn.Parameter], shared_by: Processes) -> None:
        self.parameters, self.processes = parameters, shared_by
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradients of a micro-batch's terms; their graphs are kept."""
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, self.parameters, retain_graph=True, allow_unused=True)
            self._add(name, gradients)

    def add_together(self, terms: Mapping[str, Tensor], names: Sequence[str], nothing: Tensor) -> None:
        """The same of sharded weights.

        Args:
            terms: of this process.
            names: those of all processes.
            nothing: 0, by which every pass is part of the loss.
        """
        before = [parameter.grad for parameter in self.parameters]
        for name in names:
            for parameter in self.parameters:
                parameter.grad = None
            parts = [term * float(one == name) for one, term in terms.items()]  # the same passes for each term
            torch.stack([nothing, *parts]).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            self._add(name, [parameter.grad for parameter in self.parameters])
            if self.processes.lockstep is not None:
                self.processes.lockstep.reopen()
        for parameter, gradient in zip(self.parameters, before, strict=True):
            parameter.grad = gradient

    def norms(self) -> dict[str, float]:
        """The length of each term's gradient, by its name; a process may lack a term."""
        names = dict.fromkeys(name for process_names in self.processes.gather([*self.sums]) for name in process_names)
        for name in names:
            self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
            if self.processes.lockstep is None:  # otherwise they are sums already
                self.processes.sum_(self.sums[name])
        return {name: as_number(torch.nn.utils.get_total_norm(self.sums[name])) for name in names}

    def _add(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        sums = self.sums.setdefault(name, [torch.zeros_like(p) for p in self.parameters])
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient


class Losses:
    """The losses of the micro-batches of a step that are this process's, one after another."""

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

    def backward(self, each: Callable[[Tensor], None] | None, norms: TermGradients | None = None) -> None:
        """Add the gradient of every loss to those before it, and what it logs to `logged`.

        Args:
            each: begins the backward pass of a loss; None where the gradients of the terms alone are wanted.
            norms: takes each term's gradient too.

        Raises:
            NotFinite: in one of them; of sharded weights all processes raise it.
        """
        if self.processes.lockstep is not None:
            self._backward_together(each, norms)
            return
        for index, micro in self.processes.share(self.micros):
            terms = self._terms(index, micro)
            if norms is not None:
                norms.add(terms)
            if each is not None:
                each(torch.stack([*terms.values()]).sum())

    def _backward_together(self, each: Callable[[Tensor], None] | None, norms: TermGradients | None) -> None:
        """The same of sharded weights: as often as the process does it that has most to do."""
        lockstep = self.processes.lockstep
        assert lockstep is not None
        for own in self._rounds():
            terms: dict[str, Tensor] = {}
            problem: list[str] | None = None
            with lockstep.one_loss() as finish:
                try:
                    if own is not None:
                        terms = self._terms(*own)
                except NotFinite as error:
                    problem = [error.what, str(error)]
                nothing = finish()
            told = self.processes.gather([[*terms], problem])
            met = next((one for _, one in told if one is not None), None)
            if met is not None:
                lockstep.close()
                raise NotFinite(*met)
            if norms is not None:
                norms.add_together(terms, [*dict.fromkeys(name for names, _ in told for name in names)], nothing)
            if each is not None:
                each(torch.stack([nothing, *terms.values()]).sum())
            lockstep.close()

    def _rounds(self) -> Iterator[tuple[int, Any] | None]:
        own = [*self.processes.share(self.micros)]
        for index in range(-(-len(self.micros) // self.processes.count)):
            yield own[index] if index < len(own) else None

    def _terms(self, index: int, micro: Any) -> dict[str, Tensor]:
        torch.manual_seed(step_key(self.seed, self.step, 2 * index))  # odd keys are left to the task's own draws
        with self.precision():
            terms, logged = self.task.loss(micro)
        for name, value in [*((name, float(term.detach())) for name, term in terms.items()), *logged.items()]:
            self.logged[name] = self.logged.get(name, 0.0) + value
        return terms


def as_number(norm: Tensor) -> float:
    """The length of a gradient; of a divided one all processes call it."""
    return float(norm.full_tensor() if is_divided(norm) else norm)
