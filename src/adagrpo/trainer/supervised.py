"""NLL on the NLL positions of every history: sft, and continued NLL as the control of post-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adagrpo.policies.policy import Context, Policy
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch


class SupervisedMicro(NamedTuple):
    """A micro-batch, and how many NLL positions its optimiser step has."""

    batch: TrainingBatch
    total: int


def nll_term(policy: Policy[Any, Any], batch: TrainingBatch, total: int, context: Context | None = None) -> Tensor:
    """The micro-batch's part of the mean NLL over all positions of the step, nats a code.

    Args:
        policy: in training mode, so that dropout is on.
        batch: `N` samples, of which those with `nll` count.
        total: NLL positions in the whole step.
        context: of all `N` samples, where they have been encoded already.
    """
    if context is None:
        context = policy.encode(batch.histories, batch.rows[batch.nll], batch.positions[batch.nll])
    else:
        context = context[batch.nll]
    return policy.supervised_loss(context, batch.targets[batch.nll]).sum() / total


class Supervised:
    """A `Task` that minimises the NLL alone."""

    monitor = "ndcg@10"
    term_norms_every = 0
    stride = 1

    def __init__(
        self,
        policy: Policy[Any, Any],
        codes: Tensor,
        schedule: BatchSchedule,
        *,
        steps: int,
        validate: Callable[[], dict[str, float]],
    ) -> None:
        """Say what is fitted.

        Args:
            policy: changed in place.
            codes: (V, L) of the catalogue.
            schedule: of the batches.
            steps: optimiser steps in all.
            validate: metrics on validation data.
        """
        self.policy = policy
        self.codes = codes
        self.schedule = schedule
        self.steps = steps
        self.validate = validate

    def users(self, step: int) -> list[int]:
        """Rows of the users of a step."""
        return [int(user) for batch in self.schedule.batches(step) for user in batch.users]

    def begin(self, step: int) -> tuple[Sequence[SupervisedMicro], dict[str, float]]:
        """Micro-batches of a step."""
        batches = [batch.to(self.codes.device) for batch in self.schedule.batches(step)]
        total = max(1, sum(int(batch.nll.sum()) for batch in batches))
        return [SupervisedMicro(batch, total) for batch in batches], {}

    def loss(self, micro: SupervisedMicro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The one term `nll`."""
        self.policy.train()
        return {"nll": nll_term(self.policy, micro.batch, micro.total)}, {}

    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Nothing."""
