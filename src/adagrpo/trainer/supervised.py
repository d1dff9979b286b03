"""NLL on logged histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adagrpo.policies.policy import Context, Policy
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch


class SupervisedMicro(NamedTuple):
    """A micro-batch, and the number of NLL positions of its optimiser step."""

    batch: TrainingBatch
    total: int


def nll_term(policy: Policy[Any, Any], batch: TrainingBatch, total: int, context: Context | None = None) -> Tensor:
    """Return the share of the step's mean NLL, in nats per code.

    Args:
        policy: in training mode, for dropout.
        total: NLL positions of the step.
        context: of all samples; None encodes them.
    """
    if context is None:
        context = policy.encode(batch.histories, batch.rows[batch.nll], batch.positions[batch.nll])
    else:
        context = context[batch.nll]
    return policy.supervised_loss(context, batch.targets[batch.nll]).sum() / total


class Supervised:
    """A `Task` that minimises NLL."""

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
        """Take a policy, changed in place, and the catalogue's (V, L) codes."""
        self.policy = policy
        self.codes = codes
        self.schedule = schedule
        self.steps = steps
        self.validate = validate

    def users(self, step: int) -> list[int]:
        """Return the rows of the users of a step."""
        return [int(user) for batch in self.schedule.batches(step) for user in batch.users]

    def begin(self, step: int) -> tuple[Sequence[SupervisedMicro], dict[str, float]]:
        """Return the micro-batches of a step."""
        batches = [batch.to(self.codes.device) for batch in self.schedule.batches(step)]
        total = max(1, sum(int(batch.nll.sum()) for batch in batches))
        return [SupervisedMicro(batch, total) for batch in batches], {}

    def loss(self, micro: SupervisedMicro) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the term `nll`."""
        self.policy.train()
        return {"nll": nll_term(self.policy, micro.batch, micro.total)}, {}

    def state(self) -> dict[str, float]:
        """Return an empty state."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Do nothing."""
