r"""The gates: each decides, sample by sample, whether the reward may move the policy, and names the cause where not.

    adagrpo         1[above_π(y) ≥ τ] · 1[above_RM(y) < τ] · 1[above_RM(n) ≥ ρ for all M negatives n]
    rollout_miss    1[miss ≥ miss_min] · 1[q ≥ q_min]

each times 1[group b is not degenerate]. `above` is a share of the group's rollouts (`adagrpo.objective.share_above`).
Source of `adagrpo`: AdaGRPO (Xu et al. 2026, arXiv 2606.08480), by a summary of its full text; its negatives are items
generated for other samples of the batch. The summary leaves open whether one τ serves both sides and how ρ counts, so
both are options. `rollout_miss` is the gate of this project before that summary was known; its negatives are the
group's own rollouts and logged items of other samples.
We add counts of rejections by cause, each sample under one cause only, and the controls that a gate must beat: its
difficulty test alone, all, none, a random choice of as many samples, one of a fixed rate, a choice among the samples
that the gate rejects, the groups whose rewards vary most and, where the truth is known, the choice of the samples on
which the reward is right.

A new gate is a function here and its entry in `GATES`, see `adagrpo.objective.gate.Gate`, and its test; one that is to
stay outside the package is added by `register`.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_masks, check_shapes
from adagrpo.objective.gate import Gate, GateDecision, by_first_cause
from adagrpo.ranges import PositiveShare, Share


def adagrpo_gate(
    above_policy: Tensor,  # (B,)
    above_reward: Tensor,  # (B,)
    negatives_above: Tensor,  # (B, M)
    degenerate: Tensor,  # (B,)
    *,
    tau: Share = 0.5,
    tau_reward: Share | None = None,
    rho: Share = 0.3,
    rho_from: Literal["top", "bottom"] = "top",
) -> GateDecision:
    """Admit samples whose logged item the policy ranks low and the reward high, above items of other samples.

    A threshold that lets every value pass leaves its test out: `tau=0`, `tau_reward=1`, `rho=0`.

    Args:
        above_policy: (B,) share of the rollouts that the policy puts above the logged item; NaN is rejected as easy.
        above_reward: (B,) the same by the reward; NaN is rejected as undiscriminated.
        negatives_above: (B, M) share of the rollouts that the reward puts above each item of another sample, NaN where
            there is none. A sample without any is undiscriminated.
        degenerate: (B,) bool, True where the group's rewards give no order.
        tau: the logged item must be outside the policy's top `tau` of the group's rollouts.
        tau_reward: it must be inside the reward's top `tau_reward`; `null` takes `tau`.
        rho: each item of another sample must be outside the reward's top `rho`.
        rho_from: `bottom`: outside its bottom `rho` instead.

    Returns:
        The decision; `closed` is nowhere True.

    Example:
        >>> decision = adagrpo_gate(
        ...     above_policy=torch.tensor([0.75, 0.25, 0.75, 0.75]),
        ...     above_reward=torch.tensor([0.25, 0.25, 0.50, 0.25]),
        ...     negatives_above=torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.0]]),
        ...     degenerate=torch.zeros(4, dtype=torch.bool),
        ...     tau=0.5,
        ...     rho=0.25,
        ... )
        >>> decision.admitted, decision.easy
        (tensor([ True, False, False, False]), tensor([False,  True, False, False]))
    """
    check_shapes(
        above_policy=(above_policy, "B"),
        above_reward=(above_reward, "B"),
        negatives_above=(negatives_above, "BM"),
        degenerate=(degenerate, "B"),
    )
    check_masks(degenerate=degenerate)
    within = tau if tau_reward is None else tau_reward
    absent = negatives_above.isnan()
    far = negatives_above >= rho if rho_from == "top" else negatives_above <= 1 - rho
    known = (above_reward < within) | (~above_reward.isnan() & (within >= 1))
    suppressed = (far | absent).all(dim=1) & ~absent.all(dim=1)
    return by_first_cause(degenerate, hard=above_policy >= tau, discriminated=known & suppressed)


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
        miss: (B,) share of the rollouts that are not the logged item; NaN is rejected as easy.
        q: (B,) discriminability; NaN is rejected as undiscriminated.
        degenerate: (B,) bool, True where the group's rewards give no order.
        miss_min: least share of the rollouts that miss the logged item.
        q_min: least share of rollouts and negatives that the reward puts below the logged item.

    Returns:
        The decision; `closed` is nowhere True.

    Example:
        >>> miss, q = torch.tensor([0.9, 0.2, 0.9]), torch.tensor([1.0, 1.0, 0.5])
        >>> decision = rollout_miss_gate(miss, q, torch.tensor([False, False, False]), miss_min=0.5, q_min=0.95)
        >>> decision.admitted, decision.easy
        (tensor([ True, False, False]), tensor([False,  True, False]))
    """
    check_shapes(miss=(miss, "B"), q=(q, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return by_first_cause(degenerate, hard=miss >= miss_min, discriminated=q >= q_min)


def difficulty_gate(shadow: GateDecision) -> GateDecision:
    """Admit what the test of the policy alone admits: every sample that the gate does not call easy.

    Example:
        >>> quiet = torch.tensor([False, False])
        >>> both = rollout_miss_gate(torch.tensor([0.9, 0.4]), torch.zeros(2), quiet, miss_min=0.5, q_min=0.9)
        >>> difficulty_gate(both).admitted
        tensor([ True, False])
    """
    nothing = torch.zeros_like(shadow.degenerate)
    return shadow._replace(admitted=shadow.admitted | shadow.undiscriminated, undiscriminated=nothing)


def discriminability_gate(shadow_if_hard: GateDecision) -> GateDecision:
    """Admit what the tests of the reward alone admit."""
    return shadow_if_hard


def shuffled_gate(shadow: GateDecision) -> GateDecision:
    """Admit what the gate would admit if the rewards were permuted within each sample, and train on those."""
    return shadow


def all_gate(
    degenerate: Tensor,  # (B,)
) -> GateDecision:
    """Admit everything, which is the mixture.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.

    Returns:
        The decision; only `admitted` and `degenerate` occur.

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
    """Admit nothing, which is continued NLL.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.

    Returns:
        The decision; only `closed` and `degenerate` occur.

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
    """Admit as many samples of the batch as the gate would, drawn by chance.

    All that are not degenerate, if those are fewer. So the control receives as much reward signal as the gate, without
    its selection.

    Args:
        shadow: the decision of the gate to be matched, on the same `B` samples.
        degenerate: (B,) bool, of this control's own groups.
        uniforms: (B,) independent draws from [0, 1); the smallest are admitted, ties in order of place.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> shadow = rollout_miss_gate(torch.tensor([0.9, 0.1, 0.1]), torch.ones(3), quiet, miss_min=0.5, q_min=0.9)
        >>> random_gate(shadow, quiet, torch.tensor([0.7, 0.2, 0.5])).admitted
        tensor([False,  True, False])
    """
    _check_control(shadow, degenerate, uniforms=uniforms)
    return _control(_draw(~degenerate, shadow.admitted.sum(), uniforms), degenerate)


def bernoulli_gate(
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
    *,
    admission_rate: PositiveShare = 0.1,
) -> GateDecision:
    """Admit each sample with the probability `objective.bernoulli.admission_rate`, whatever the gate would do.

    Beside `random_gate`, which learns from the gate how much of each batch to admit, it learns nothing.

    Args:
        degenerate: (B,) bool, True where the group's rewards give no order.
        uniforms: (B,) independent draws from [0, 1); those below the rate are admitted.
        admission_rate: the probability with which a sample is admitted.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> bernoulli_gate(quiet, torch.tensor([0.7, 0.2, 0.5]), admission_rate=0.5).admitted
        tensor([False,  True, False])
    """
    check_shapes(degenerate=(degenerate, "B"), uniforms=(uniforms, "B"))
    check_masks(degenerate=degenerate)
    return _control(~degenerate & (uniforms < admission_rate), degenerate)


def inverted_gate(
    shadow: GateDecision,
    degenerate: Tensor,  # (B,)
    uniforms: Tensor,  # (B,)
) -> GateDecision:
    """Admit samples that the gate rejects, as many of them as it admits.

    Where it admits more samples than it leaves, all that it leaves are admitted.

    Args:
        shadow: the decision of the gate to be inverted, on the same `B` samples.
        degenerate: (B,) bool, of this control's own groups.
        uniforms: (B,) independent draws from [0, 1); the smallest are admitted, ties in order of place.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Example:
        >>> quiet = torch.tensor([False, False, False])
        >>> shadow = rollout_miss_gate(torch.tensor([0.9, 0.1, 0.1]), torch.ones(3), quiet, miss_min=0.5, q_min=0.9)
        >>> inverted_gate(shadow, quiet, torch.tensor([0.1, 0.4, 0.3])).admitted
        tensor([False, False,  True])
    """
    _check_control(shadow, degenerate, uniforms=uniforms)
    return _control(_draw(~degenerate & ~shadow.admitted, shadow.admitted.sum(), uniforms), degenerate)


def variance_gate(
    shadow: GateDecision,
    degenerate: Tensor,  # (B,)
    reward_std: Tensor,  # (B,)
) -> GateDecision:
    """Admit as many samples of the batch as the gate would, those whose groups' rewards vary most.

    Source: RAGEN-2 (arXiv 2604.06268), which keeps the groups of largest reward variance. It reads no logged item.

    Args:
        shadow: the decision of the gate to be matched, on the same `B` samples.
        degenerate: (B,) bool, of this control's own groups.
        reward_std: (B,) standard deviation of each group's rewards; the largest are admitted, ties in order of place.

    Returns:
        The decision; samples that are neither admitted nor degenerate are `closed`.

    Example:
        >>> quiet = torch.tensor([False, False, True])
        >>> shadow = rollout_miss_gate(torch.tensor([0.9, 0.1, 0.1]), torch.ones(3), quiet, miss_min=0.5, q_min=0.9)
        >>> variance_gate(shadow, quiet, torch.tensor([0.2, 0.5, 0.7])).admitted
        tensor([False,  True, False])
    """
    _check_control(shadow, degenerate, reward_std=reward_std)
    return _control(_draw(~degenerate, shadow.admitted.sum(), -reward_std), degenerate)


def oracle_gate(
    agreement: Tensor,  # (B,)
    degenerate: Tensor,  # (B,)
    *,
    oracle_agreement: Share = 0.75,
) -> GateDecision:
    """Admit the samples on which the reward is right, known only in a simulated marketplace.

    Args:
        agreement: (B,) share of the pairs in the right order, see `adagrpo.objective.pairwise_agreement`.
        degenerate: (B,) bool, True where the group's rewards give no order.
        oracle_agreement: share of a group's pairs that the reward must order rightly.

    Returns:
        The decision; what is neither admitted nor degenerate is `closed`.

    Example:
        >>> oracle_gate(torch.tensor([0.9, 0.5]), torch.tensor([False, False]), oracle_agreement=0.7).admitted
        tensor([ True, False])
    """
    check_shapes(agreement=(agreement, "B"), degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return _control(~degenerate & (agreement >= oracle_agreement), degenerate)


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
    keys: Tensor,  # (B,)
) -> Tensor:
    """(B,) bool: the `count` candidates with the smallest keys, or all of them if they are fewer."""
    order = keys.masked_fill(~candidates, torch.inf).argsort(stable=True)
    return candidates & (order.argsort() < count)


def _check_control(shadow: GateDecision, degenerate: Tensor, **keys: Tensor) -> None:
    """Check what controls that admit a number of samples are given."""
    named = {name: (values, "B") for name, values in keys.items()}
    check_shapes(shadow=(shadow.admitted, "B"), degenerate=(degenerate, "B"), **named)
    check_masks(shadow=shadow.admitted, degenerate=degenerate)


GATES: dict[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("adagrpo", adagrpo_gate),
        Gate("rollout_miss", rollout_miss_gate, negatives="targets"),
        Gate("all", all_gate),
        Gate("none", none_gate, control=True),
        Gate("difficulty", difficulty_gate),
        Gate("discriminability", discriminability_gate),
        Gate("random", random_gate, control=True),
        Gate("bernoulli", bernoulli_gate, control=True),
        Gate("shuffled", shuffled_gate, shuffled=True, control=True),
        Gate("inverted", inverted_gate, control=True),
        Gate("variance", variance_gate, control=True),
        Gate("oracle", oracle_gate),
    )
}


def register(gate: Gate) -> None:
    """Add a gate to the table of this process.

    The sections of a recipe are made of the table when `adagrpo.config` is first imported, so a program registers
    before it imports that, or anything that reads recipes.

    Raises:
        ValueError: the name is taken, or `adagrpo.config` has been imported.
    """
    if gate.name in GATES:
        raise ValueError(f"gate '{gate.name}': another has that name")
    if "adagrpo.config" in sys.modules:
        raise ValueError(f"gate '{gate.name}': register it before adagrpo.config is imported")
    GATES[gate.name] = gate
