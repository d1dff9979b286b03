"""Gates of the studies, registered when this is imported: by `research`, before anything imports `adagrpo.config`.

    rollout_miss    1[miss ≥ miss_min] · 1[q ≥ q_min] · 1[b is not degenerate]
    inverted        as many of the samples that a gate rejects as it admits
    bernoulli       each sample with the same probability
    oracle          samples on which the reward is right, known only in a simulated marketplace

The command line has them with `python -m research compare RECIPE ...`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from adagrpo.objective.advantages import check_shapes
from adagrpo.objective.gates import Gate, GateDecision, by_control, by_first_cause, register, smallest
from adagrpo.types import Share

__all__ = ["bernoulli_gate", "inverted_gate", "oracle_gate", "rollout_miss_gate"]

PositiveShare = Annotated[float, Field(gt=0, le=1)]


def rollout_miss_gate(
    miss: Tensor,  # (B,)
    q: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    miss_min: Share = 0.5,
    q_min: Share = 0.95,
) -> GateDecision:
    """Admit samples whose logged item the rollouts miss and the reward puts above its own negatives.

    Args:
        q: (B,) discriminability; NaN is rejected as undiscriminated.
        miss_min: least share of the rollouts that miss the logged item.
        q_min: least share of rollouts and negatives that the reward puts below the logged item.

    Example:
        >>> miss, q = torch.tensor([0.9, 0.2, 0.9]), torch.tensor([1.0, 1.0, 0.5])
        >>> decision = rollout_miss_gate(miss, q, torch.tensor([False, False, False]), miss_min=0.5, q_min=0.95)
        >>> decision.admitted, decision.easy
        (tensor([ True, False, False]), tensor([False,  True, False]))
    """
    check_shapes(miss=(miss, "B"), q=(q, "B"), degenerate=(degenerate, "B?"))
    return by_first_cause(degenerate, hard=miss >= miss_min, discriminated=q >= q_min)


def bernoulli_gate(
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
    *,
    admission_rate: PositiveShare = 0.1,
) -> GateDecision:
    """Admit each sample with the probability `objective.bernoulli.admission_rate`, whatever the gate would do.

    Args:
        uniforms: (B,) draws from [0, 1); those below the rate are admitted.
        admission_rate: the probability with which a sample is admitted.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> bernoulli_gate(quiet, torch.tensor([0.7, 0.2, 0.5]), admission_rate=0.5).admitted
        tensor([False,  True, False])
    """
    check_shapes(degenerate=(degenerate, "B?"), uniforms=(uniforms, "B"))
    return by_control(~degenerate & (uniforms < admission_rate), degenerate)


def inverted_gate(
    shadow: GateDecision,
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
) -> GateDecision:
    """Admit samples that the gate rejects, as many of them as it admits.

    Args:
        uniforms: (B,) draws from [0, 1); the smallest are admitted, ties by index.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> shadow = by_control(torch.tensor([True, False, False]), quiet)
        >>> inverted_gate(shadow, quiet, torch.tensor([0.1, 0.4, 0.3])).admitted
        tensor([False, False,  True])
    """
    check_shapes(shadow=(shadow.admitted, "B?"), degenerate=(degenerate, "B?"), uniforms=(uniforms, "B"))
    return by_control(smallest(~degenerate & ~shadow.admitted, shadow.admitted.sum(), uniforms), degenerate)


def oracle_gate(
    agreement: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    oracle_agreement: Share = 0.75,
) -> GateDecision:
    """Admit the samples on which the reward is right, known only in a simulated marketplace.

    Args:
        oracle_agreement: share of a group's pairs that the reward must order rightly.

    Example:
        >>> oracle_gate(torch.tensor([0.9, 0.5]), torch.tensor([False, False]), oracle_agreement=0.7).admitted
        tensor([ True, False])
    """
    check_shapes(agreement=(agreement, "B"), degenerate=(degenerate, "B?"))
    return by_control(~degenerate & (agreement >= oracle_agreement), degenerate)


for gate in (
    Gate("rollout_miss", rollout_miss_gate, negatives="targets"),
    Gate("bernoulli", bernoulli_gate, control=True),
    Gate("inverted", inverted_gate, control=True),
    Gate("oracle", oracle_gate),
):
    register(gate)
