r"""The gates: each decides, per sample, whether the reward may move the policy, and gives the cause of a rejection.

    adagrpo    1[above_π(y) ≥ τ] · 1[above_RM(y) < τ] · 1[above_RM(n) ≥ ρ for all M negatives n]

times 1[group b is not degenerate]. `above` is a share of the group's rollouts (`adagrpo.objective.share_above`).
Source of `adagrpo`: AdaGRPO (Xu et al. 2026, arXiv 2606.08480), from a summary of its full text, which leaves open
whether one τ serves both sides and how ρ counts, so both are options; its negatives are generated for other samples of
the batch.

A new gate is a function here with its entry in `GATES`, or is added by `register`.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_masks, check_shapes
from adagrpo.objective.gate import Gate, GateDecision, by_control, by_first_cause, smallest
from adagrpo.ranges import Share


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

    `tau=0`, `tau_reward=1` and `rho=0` each disable their test.

    Args:
        above_policy: (B,) see `Evidence`; NaN is rejected as easy.
        above_reward: (B,) NaN is rejected as undiscriminated.
        negatives_above: (B, M) NaN for absent ones; a sample without negatives is undiscriminated.
        tau: the logged item must be outside the policy's top `tau` of the group's rollouts.
        tau_reward: it must be inside the reward's top `tau_reward`; `null` takes `tau`.
        rho: each item of another sample must be outside the reward's top `rho`.
        rho_from: `bottom`: outside its bottom `rho` instead.

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


def difficulty_gate(shadow: GateDecision) -> GateDecision:
    """Admit what the test of the policy alone admits: every sample that the gate does not call easy.

    >>> quiet = torch.tensor([False, False])
    >>> both = by_first_cause(quiet, hard=torch.tensor([True, False]), discriminated=quiet)
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


def all_gate(degenerate: Tensor) -> GateDecision:  # (B,)
    """Admit everything, which is the mixture.

    >>> all_gate(torch.tensor([False, True])).admitted
    tensor([ True, False])
    """
    check_shapes(degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return by_control(~degenerate, degenerate)


def none_gate(degenerate: Tensor) -> GateDecision:  # (B,)
    """Admit nothing, which is continued NLL.

    >>> none_gate(torch.tensor([False, True])).closed
    tensor([ True, False])
    """
    check_shapes(degenerate=(degenerate, "B"))
    check_masks(degenerate=degenerate)
    return by_control(torch.zeros_like(degenerate), degenerate)


# degenerate and uniforms (B,)
def random_gate(shadow: GateDecision, degenerate: Tensor, uniforms: Tensor) -> GateDecision:
    """Admit as many samples of the batch as the gate would, drawn by chance.

    >>> quiet = torch.tensor([False, False, False])
    >>> shadow = by_control(torch.tensor([True, False, False]), quiet)
    >>> random_gate(shadow, quiet, torch.tensor([0.7, 0.2, 0.5])).admitted
    tensor([False,  True, False])
    """
    _check_control(shadow, degenerate, uniforms=uniforms)
    return by_control(smallest(~degenerate, shadow.admitted.sum(), uniforms), degenerate)


# degenerate and reward_std (B,)
def variance_gate(shadow: GateDecision, degenerate: Tensor, reward_std: Tensor) -> GateDecision:
    """Admit as many samples of the batch as the gate would, those whose groups' rewards vary most.

    Source: RAGEN-2 (arXiv 2604.06268).

    >>> quiet = torch.tensor([False, False, True])
    >>> shadow = by_control(torch.tensor([True, False, False]), quiet)
    >>> variance_gate(shadow, quiet, torch.tensor([0.2, 0.5, 0.7])).admitted
    tensor([False,  True, False])
    """
    _check_control(shadow, degenerate, reward_std=reward_std)
    return by_control(smallest(~degenerate, shadow.admitted.sum(), -reward_std), degenerate)


def _check_control(shadow: GateDecision, degenerate: Tensor, **keys: Tensor) -> None:
    named = {name: (values, "B") for name, values in keys.items()}
    check_shapes(shadow=(shadow.admitted, "B"), degenerate=(degenerate, "B"), **named)
    check_masks(shadow=shadow.admitted, degenerate=degenerate)


GATES: dict[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("adagrpo", adagrpo_gate),
        Gate("all", all_gate),
        Gate("none", none_gate, control=True),
        Gate("difficulty", difficulty_gate),
        Gate("discriminability", discriminability_gate),
        Gate("random", random_gate, control=True),
        Gate("shuffled", shuffled_gate, shuffled=True, control=True),
        Gate("variance", variance_gate, control=True),
    )
}


def register(gate: Gate) -> None:
    """Add a gate to the table of this process, before anything imports `adagrpo.config`, which reads it.

    ValueError if the name is taken, or `adagrpo.config` has been imported.
    """
    if gate.name in GATES:
        raise ValueError(f"gate '{gate.name}': another has that name")
    if "adagrpo.config" in sys.modules:
        raise ValueError(f"gate '{gate.name}': register it before adagrpo.config is imported")
    GATES[gate.name] = gate
