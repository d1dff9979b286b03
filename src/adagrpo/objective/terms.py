r"""The table of objectives and their reward terms, for training, recipes and reports.

    loss = NLL + (λ / B_rl) Σ_b gate_b · term_b

The keyword arguments of a term are the keys of section `objective.<term>` of a recipe. A new objective is an entry in
`OBJECTIVES`, or is added by `register`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from adagrpo.objective.advantages import group_advantages
from adagrpo.objective.distillation import best_of_n_loss, group_mass, listwise_distillation, validity_margin
from adagrpo.objective.gates import options_of
from adagrpo.objective.losses import clipped_surrogate, group_loss, kl_k3
from adagrpo.types import NonNegativeFloat, PositiveFloat


class TermInputs(NamedTuple):
    """Inputs of a term for `A` admitted groups; only `log_probs` has a gradient."""

    log_probs: Tensor  # (A, G, L) under the trained policy
    old_log_probs: Tensor  # (A, G, L) under the sampling distribution
    rewards: Tensor  # (A, G), NaN where the rollout is invalid
    items: Tensor  # (A, G) int64, -1 where the rollout is invalid
    codes: Tensor  # (A, G, L) int64
    in_catalog: Tensor  # (A, G) bool, the codes name an item, even if it was excluded as invalid
    reference: Tensor | None = None  # (A, G, L) log-probabilities under the starting policy, where the term needs them
    targets: Tensor | None = None  # (A,) int64 logged items, -1 at the ends of histories


class TermLoss(NamedTuple):
    """The loss of each group, and means over the groups to log."""

    losses: Tensor  # (A,)
    logged: Mapping[str, Tensor] = {}  # (), by name; their gradients are not used


def grpo(
    groups: TermInputs,
    *,
    epsilon: PositiveFloat = 0.2,
    epsilon_high: PositiveFloat = 0.2,
    beta: NonNegativeFloat = 0.0,
    invalid_penalty: NonNegativeFloat = 1.0,
    scale_rewards: bool = True,
) -> TermLoss:
    """GRPO of each group, with `reference` if `beta` is above 0; logs `clip_fraction`, the share of clipped codes."""
    advantages = group_advantages(
        groups.rewards, groups.items >= 0, invalid_penalty=invalid_penalty, scale_rewards=scale_rewards
    )
    surrogate = clipped_surrogate(
        groups.log_probs, groups.old_log_probs, advantages, epsilon=epsilon, epsilon_high=epsilon_high
    )
    losses = surrogate.loss
    if beta > 0:
        losses = losses + beta * kl_k3(groups.log_probs, _needed(groups.reference))
    return TermLoss(group_loss(losses), {"clip_fraction": surrogate.clipped.float().mean()})


def distill(
    groups: TermInputs,
    *,
    reward_weight: NonNegativeFloat = 1.0,
    validity_weight: NonNegativeFloat = 0.0,
    mass_weight: NonNegativeFloat = 0.0,  # weight of `group_mass`; 1 makes the loss a divergence of whole distributions
) -> TermLoss:
    """Distillation of the starting policy's log-probability + `reward_weight` · reward.

    With a `mass_weight` it logs a group's probability, `mass`, and the starting policy's, `start_mass`. Invalid
    rollouts that name an item are ignored.

    Args:
        reward_weight: multiplies the reward; in a recipe, in units of its within-list standard deviation.
    """
    reference = _needed(groups.reference)
    target_logits = reference.sum(-1) + reward_weight * groups.rewards
    excluded = groups.in_catalog & (groups.items < 0)
    losses = listwise_distillation(groups.log_probs, target_logits, groups.items, groups.codes, excluded)
    if validity_weight:
        losses = losses + validity_weight * validity_margin(groups.log_probs, groups.in_catalog)
    if not mass_weight:
        return TermLoss(losses)
    kept = group_mass(groups.log_probs, reference, groups.items, groups.codes, excluded)
    logged = {"mass": kept.mass.mean(), "start_mass": kept.start.mean()}
    return TermLoss(losses + mass_weight * kept.losses, logged)


def best_of_n(groups: TermInputs) -> TermLoss:
    """NLL of the valid rollout of the highest reward."""
    return TermLoss(best_of_n_loss(groups.log_probs, groups.rewards, groups.items >= 0))


@dataclass(frozen=True)
class RewardTerm:
    """A reward term: its loss and its requirements."""

    name: str
    loss: Callable[..., TermLoss]
    # whether it reads the starting policy's log-probabilities, given its options
    needs_reference: Callable[[Mapping[str, Any]], bool] = lambda options: False
    in_list_stds: frozenset[str] = frozenset()  # options in units of the reward's within-list std, or `validation`

    @property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of each option, by name."""
        return options_of(self.loss)


@dataclass(frozen=True)
class Objective:
    """The training objective of an arm."""

    name: str
    term: RewardTerm | None = None  # the reward term; None: NLL alone
    anchored: bool = True  # whether NLL on the logged item is added to the term
    gate: str | None = "all"  # the default gate; None without a term
    takes_gate: bool = False


_GRPO = RewardTerm("grpo", grpo, lambda options: options["beta"] > 0)
_DISTILL = RewardTerm("distill", distill, lambda options: True, frozenset({"reward_weight"}))
_BEST_OF_N = RewardTerm("best_of_n", best_of_n)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("nll", gate=None),
        Objective("grpo", _GRPO, anchored=False),
        Objective("mixture", _GRPO),
        Objective("adagrpo", _GRPO, gate="adagrpo", takes_gate=True),
        Objective("distill", _DISTILL, takes_gate=True),
        Objective("best_of_n", _BEST_OF_N, takes_gate=True),
    )
}
TERMS: dict[str, RewardTerm] = {
    objective.term.name: objective.term for objective in OBJECTIVES.values() if objective.term is not None
}


def register(objective: Objective) -> None:
    """Add an objective and its term before `adagrpo.config` is imported; ValueError if late, or a name is taken."""
    term = objective.term
    if objective.name in OBJECTIVES or (term is not None and TERMS.get(term.name, term) is not term):
        raise ValueError(f"objective '{objective.name}': it or its term has the name of another")
    if "adagrpo.config" in sys.modules:
        raise ValueError(f"objective '{objective.name}': register it before adagrpo.config is imported")
    OBJECTIVES[objective.name] = objective
    if term is not None:
        TERMS[term.name] = term


def _needed(reference: Tensor | None) -> Tensor:
    if reference is None:
        raise ValueError("reference: the term needs the starting policy's log-probabilities, found None")
    return reference
