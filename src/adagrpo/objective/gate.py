r"""Decides, sample by sample, whether the reward may move the policy, and names the cause where it may not.

    gate_b = 1[d_b >= tau] · 1[q_b >= q_min] · 1[group b is not degenerate]

Source: AdaGRPO (Xu et al. 2026, arXiv 2606.08480), which writes ρ for `q_min`. We depart by counting rejections by
cause, each sample under one cause only, and by adding the controls that the gate must beat: either test alone, all,
none, a random choice of as many samples, one of a fixed rate, a choice among the samples that the gate rejects and,
where the truth is known, the choice of the samples on which the reward is right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_masks, check_shapes

__all__ = [
    "GateDecision",
    "adagrpo_gate",
    "agreement_gate",
    "all_gate",
    "bernoulli_gate",
    "difficulty_gate",
    "discriminability_gate",
    "inverted_gate",
    "none_gate",
    "random_gate",
]


class GateDecision(NamedTuple):
    """What became of each sample: every sample is True in exactly one field.

    The first cause that holds is the one that counts, in the order degenerate, easy, undiscriminated. `closed` is for
    samples that no diagnostic rejects: the control itself (none, random, bernoulli, inverted, oracle) leaves them out.
    """

    admitted: Tensor  # (B,) bool
    easy: Tensor  # (B,) bool, the policy is sure enough
    undiscriminated: Tensor  # (B,) bool, the reward does not know the target
    degenerate: Tensor  # (B,) bool, the group's rewards give no order
    closed: Tensor  # (B,) bool, rejected by a control


def adagrpo_gate(
    difficulty: Tensor,  # (B,)
    q: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    tau: float | Tensor,
    q_min: float | Tensor,
) -> GateDecision:
    """Admit samples that are hard for the policy and on which the reward knows the target.

    Args:
        difficulty: (B,) any difficulty diagnostic, larger is harder; NaN is rejected as easy.
        q: (B,) discriminability; NaN is rejected as undiscriminated.
        degenerate: (B,) bool, True where the group's rewards give no order.
        tau: least difficulty admitted, in the units of `difficulty`; a scalar tensor may be given.
        q_min: least discriminability admitted; a scalar tensor may be given.

    Returns:
        The decision; `closed` is nowhere True.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> difficulty, q = torch.tensor([0.9, 0.2, 0.9]), torch.tensor([1.0, 1.0, 0.5])
        >>> decision = adagrpo_gate(difficulty, q, torch.tensor([False, False, False]), tau=0.5, q_min=0.95)
        >>> decision.admitted, decision.easy
        (tensor([ True, False, False]), tensor([False,  True, False]))
    """
    check_shapes(difficulty=(difficulty, "B"), q=(q, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    _check_threshold("tau", tau)
    _check_threshold("q_min", q_min)
    return _decide(degenerate, hard=difficulty >= tau, discriminated=q >= q_min)


def difficulty_gate(
    difficulty: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    tau: float | Tensor,
) -> GateDecision:
    """The difficulty test alone: `adagrpo_gate` with every sample taken as discriminated.

    Args:
        difficulty: (B,) any difficulty diagnostic, larger is harder; NaN is rejected as easy.
        degenerate: (B,) bool, True where the group's rewards give no order.
        tau: least difficulty admitted, in the units of `difficulty`; a scalar tensor may be given.

    Returns:
        The decision; `undiscriminated` and `closed` are nowhere True.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> difficulty_gate(torch.tensor([0.5, 0.4]), torch.tensor([False, False]), tau=0.5).admitted
        tensor([ True, False])
    """
    check_shapes(difficulty=(difficulty, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    _check_threshold("tau", tau)
    return _decide(degenerate, hard=difficulty >= tau, discriminated=torch.ones_like(degenerate))


def discriminability_gate(
    q: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    q_min: float | Tensor,
) -> GateDecision:
    """The discriminability test alone: `adagrpo_gate` with every sample taken as hard.

    Args:
        q: (B,) discriminability; NaN is rejected as undiscriminated.
        degenerate: (B,) bool, True where the group's rewards give no order.
        q_min: least discriminability admitted; a scalar tensor may be given.

    Returns:
        The decision; `easy` and `closed` are nowhere True.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> discriminability_gate(torch.tensor([1.0, 0.4]), torch.tensor([False, False]), q_min=0.9).admitted
        tensor([ True, False])
    """
    check_shapes(q=(q, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    _check_threshold("q_min", q_min)
    return _decide(degenerate, hard=torch.ones_like(degenerate), discriminated=q >= q_min)


def all_gate(
    degenerate: Tensor,  # (B,)
) -> GateDecision:
    """Uniform GRPO: admit every group that is not degenerate.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.

    Returns:
        The decision; only `admitted` and `degenerate` occur.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> all_gate(torch.tensor([False, True])).admitted
        tensor([ True, False])
    """
    check_shapes(degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return _control(~degenerate, degenerate)


def none_gate(
    degenerate: Tensor,  # (B,)
) -> GateDecision:
    """Pure NLL: admit nothing; what is not degenerate is `closed`.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.

    Returns:
        The decision; only `closed` and `degenerate` occur.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> none_gate(torch.tensor([False, True])).closed
        tensor([ True, False])
    """
    check_shapes(degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return _control(torch.zeros_like(degenerate), degenerate)


def random_gate(
    shadow: GateDecision,
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
) -> GateDecision:
    """Permute the admissions of a shadow gate at random among the groups that are not degenerate.

    As many are admitted as the shadow admits in this batch, or all that are not degenerate if those are fewer. So the
    control receives as much reward signal as the gate, without its selection.

    Args:
        shadow: the decision of the gate to be matched, on the same `B` samples.
        degenerate: (B,) bool, of this control's own groups.
        uniforms: (B,) independent draws from [0, 1); the smallest are admitted, ties in order of place.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Raises:
        ValueError: if a shape does not fit or a mask is not bool.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> shadow = difficulty_gate(torch.tensor([0.9, 0.1, 0.1]), quiet, tau=0.5)
        >>> random_gate(shadow, quiet, torch.tensor([0.7, 0.2, 0.5])).admitted
        tensor([False,  True, False])
    """
    _check_control(shadow, degenerate, uniforms)
    return _control(_draw(~degenerate, shadow.admitted.sum(), uniforms), degenerate)


def bernoulli_gate(
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
    *,
    rate: float,
) -> GateDecision:
    """Admit each group that is not degenerate with one probability, whatever is known of it.

    Beside `random_gate`, which learns from the gate how much of each batch to admit, it learns nothing.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.
        uniforms: (B,) independent draws from [0, 1); those below the rate are admitted.
        rate: the probability.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> bernoulli_gate(quiet, torch.tensor([0.7, 0.2, 0.5]), rate=0.5).admitted
        tensor([False,  True, False])
    """
    check_shapes(degenerate=(degenerate, "B"), uniforms=(uniforms, "B"))
    check_masks(degenerate=degenerate)
    return _control(~degenerate & (uniforms < rate), degenerate)


def inverted_gate(
    shadow: GateDecision,
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
) -> GateDecision:
    """Admit, among the groups that are not degenerate, those that a shadow gate rejects, thinned to its count.

    Where the shadow admits more samples than it leaves, all that it leaves are admitted, which is fewer than its
    count.

    Args:
        shadow: the decision of the gate to be inverted, on the same `B` samples.
        degenerate: (B,) bool, of this control's own groups.
        uniforms: (B,) independent draws from [0, 1); the smallest are admitted, ties in order of place.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Raises:
        ValueError: if a shape does not fit or a mask is not bool.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> shadow = difficulty_gate(torch.tensor([0.9, 0.1, 0.1]), quiet, tau=0.5)
        >>> inverted_gate(shadow, quiet, torch.tensor([0.1, 0.4, 0.3])).admitted
        tensor([False, False,  True])
    """
    _check_control(shadow, degenerate, uniforms)
    return _control(_draw(~degenerate & ~shadow.admitted, shadow.admitted.sum(), uniforms), degenerate)


def agreement_gate(
    agreement: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    minimum: float,
) -> GateDecision:
    """Admit the groups whose rollouts the reward orders as something else does.

    With the true utility it is the oracle, the best that any gate could do.

    Args:
        agreement: (B,) share of the pairs in the right order, see `adagrpo.objective.pairwise_agreement`.
        degenerate: (B,) bool, True where the group's rewards give no order.
        minimum: least agreement admitted.

    Returns:
        The decision; what is neither admitted nor degenerate is `closed`.

    Raises:
        ValueError: if a shape does not fit or `degenerate` is not bool.

    Example:
        >>> agreement_gate(torch.tensor([0.9, 0.5]), torch.tensor([False, False]), minimum=0.7).admitted
        tensor([ True, False])
    """
    check_shapes(agreement=(agreement, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return _control(~degenerate & (agreement >= minimum), degenerate)


def _decide(
    degenerate: Tensor,  # (B,) bool
    *,
    hard: Tensor,  # (B,) bool
    discriminated: Tensor,  # (B,) bool
) -> GateDecision:
    """Give each sample the first cause that holds."""
    sound = ~degenerate
    return GateDecision(
        admitted=sound & hard & discriminated,
        easy=sound & ~hard,
        undiscriminated=sound & hard & ~discriminated,
        degenerate=degenerate,
        closed=torch.zeros_like(degenerate),
    )


def _control(
    admitted: Tensor,  # (B,) bool, nowhere True where `degenerate` is
    degenerate: Tensor,  # (B,) bool
) -> GateDecision:
    """The decision of a control that looks at no diagnostic."""
    nothing = torch.zeros_like(degenerate)
    return GateDecision(admitted, nothing, nothing, degenerate, closed=~degenerate & ~admitted)


def _draw(
    candidates: Tensor,  # (B,) bool
    count: Tensor,  # () int64
    uniforms: Tensor,  # (B,)
) -> Tensor:
    """(B,) bool: the `count` candidates with the smallest uniforms, or all of them if they are fewer."""
    order = uniforms.masked_fill(~candidates, torch.inf).argsort(stable=True)
    return candidates & (order.argsort() < count)


def _check_control(shadow: GateDecision, degenerate: Tensor, uniforms: Tensor) -> None:
    """Check what random and inverted controls are given."""
    check_shapes(shadow=(shadow.admitted, "B"), degenerate=(degenerate, "B"), uniforms=(uniforms, "B"))
    check_masks(shadow=shadow.admitted, degenerate=degenerate)


def _check_threshold(name: str, threshold: float | Tensor) -> None:
    """Check that a threshold given as a tensor is a scalar."""
    if isinstance(threshold, Tensor):
        check_shapes(**{name: (threshold, "")})
