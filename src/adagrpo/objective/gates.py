"""The gates: each decides, per sample, whether the reward may move the policy, and gives the cause of a rejection.

    adagrpo    1[above_π(y) ≥ τ] · 1[above_RM(y) < τ] · 1[above_RM(n) ≥ ρ for all M negatives n]

times 1[group b is not degenerate]. `above` is a share of the group's rollouts (`adagrpo.objective.share_above`).
Source of `adagrpo`: AdaGRPO (Xu et al. 2026, arXiv 2606.08480), from a summary of its full text, which leaves open
whether one τ serves both sides and how ρ counts, so both are options; its negatives are generated for other samples of
the batch. A new gate is a function here with its entry in `GATES`, or is added by `register`.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_shapes
from adagrpo.types import Share


@cache  # called again and again by configurations
def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each option, by name.

    >>> from adagrpo.objective.terms import TERMS
    >>> options = options_of(TERMS["grpo"].loss)
    >>> list(options), options["beta"][1]
    (['epsilon', 'epsilon_high', 'beta', 'invalid_penalty', 'scale_rewards'], 0.0)
    """
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {one.name: (hints[one.name], one.default) for one in parameters if one.kind is one.KEYWORD_ONLY}


NegativeSource = Literal["rollouts", "targets"]  # generated or logged items of other samples


class Evidence(NamedTuple):
    """Diagnostics of `B` groups; all but the last two are NaN at the ends of histories."""

    above_policy: Tensor  # (B,) share of the rollouts that the policy ranks above the logged item; NaN if not scored
    above_reward: Tensor  # (B,) the same by the reward
    negatives_above: Tensor  # (B, M) share of the rollouts that the reward ranks above each negative, NaN where absent
    miss: Tensor  # (B,) share of the rollouts that are not the logged item
    q: Tensor  # (B,) share of rollouts and negatives that the reward ranks below the logged item
    degenerate: Tensor  # (B,) bool, the group's rewards define no order
    reward_std: Tensor  # (B,) standard deviation of the valid rollouts' rewards, 0 where there is none


class GateDecision(NamedTuple):
    """The decision on each sample; every sample is True in exactly one field.

    The first applicable cause counts: degenerate, easy, undiscriminated. `closed` marks rejection by a control.
    """

    admitted: Tensor  # (B,) bool
    easy: Tensor  # (B,) bool, the policy already ranks the logged item high
    undiscriminated: Tensor  # (B,) bool, the reward does not rank the logged item high
    degenerate: Tensor  # (B,) bool, the group's rewards define no order
    closed: Tensor  # (B,) bool, rejected by a control


@dataclass(frozen=True)
class Gate:
    """A gate.

    The positional parameters of its function are its inputs: fields of `Evidence`, or

        uniforms         (B,) independent draws from [0, 1)
        agreement        (B,) share of a group's pairs that the reward orders as the true utility does
        shadow           the decision of the gate that it is a control of
        shadow_if_hard   the same decision if the policy knew no logged item, so that only the reward is tested

    Its keyword-only parameters are the keys of section `objective.<gate>` of a recipe. The first line of its docstring
    is its row in the docs.
    """

    name: str
    rule: Callable[..., GateDecision]
    negatives: NegativeSource = "rollouts"  # the source of items that the reward should rank low
    shuffled: bool = False  # permute rewards within each group, for the gate and the reward term
    control: bool = False  # a baseline that a good gate should beat
    by_admission: bool = False  # whether an option `admit` finds its `tau` and `rho`

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of its inputs."""
        parameters = inspect.signature(self.rule).parameters.values()
        return tuple(one.name for one in parameters if one.kind is not one.KEYWORD_ONLY)

    @property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of each option, by name."""
        return options_of(self.rule)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.rule) or "").partition("\n")[0]

    @property
    def tests_logged_item(self) -> bool:
        """Whether it tests the logged item itself."""
        return not {"degenerate", "reward_std", "uniforms", "agreement", *SHADOWS}.issuperset(self.reads)

    @property
    def is_shadowed(self) -> bool:
        """Whether it is a control of a gate that tests the logged item."""
        return not set(self.reads).isdisjoint(SHADOWS)

    @property
    def reads_tests(self) -> bool:
        """Whether it depends on tests of the logged item."""
        return self.tests_logged_item or self.is_shadowed

    @property
    def reads_truth(self) -> bool:
        """Whether it needs true utilities, known only in simulation."""
        return "agreement" in self.reads

    @property
    def reads_logged_item(self) -> bool:
        """Whether it cannot decide at the ends of histories."""
        return self.reads_tests or self.reads_truth

    def decide(self, known: Mapping[str, Any], options: Mapping[str, Any]) -> GateDecision:
        """Return the decision on `B` groups, by named inputs and options.

        ValueError if an input is missing or None.
        """
        missing = [name for name in self.reads if known.get(name) is None]
        if missing:
            raise ValueError(f"gate '{self.name}' is not decided without {' and '.join(missing)}")
        given = {name: options[name] for name in self.options}
        return self.rule(**{name: known[name] for name in self.reads}, **given)


SHADOWS = ("shadow", "shadow_if_hard")


def by_first_cause(
    degenerate: Tensor,  # (B,) bool
    *,
    hard: Tensor,  # (B,) bool, the policy ranks the logged item low
    discriminated: Tensor,  # (B,) bool, the reward ranks it high
) -> GateDecision:
    """Return the decision of a gate that tests the logged item."""
    sound = ~degenerate
    return GateDecision(
        admitted=sound & hard & discriminated,
        easy=sound & ~hard,
        undiscriminated=sound & hard & ~discriminated,
        degenerate=degenerate,
        closed=torch.zeros_like(degenerate),
    )


def by_control(
    admitted: Tensor,  # (B,) bool, nowhere True where `degenerate` is
    degenerate: Tensor,  # (B,) bool
) -> GateDecision:
    """Return the decision of a gate that tests nothing of the logged item."""
    nothing = torch.zeros_like(degenerate)
    return GateDecision(admitted, nothing, nothing, degenerate, closed=~degenerate & ~admitted)


# candidates (B,) bool, count () int64, keys (B,)
def smallest(candidates: Tensor, count: Tensor, keys: Tensor) -> Tensor:
    """Return (B,) bool: the `count` candidates with the smallest keys, or all if fewer, ties by index."""
    order = keys.masked_fill(~candidates, torch.inf).argsort(stable=True)
    return candidates & (order.argsort() < count)


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

    `tau=0`, `tau_reward=1` and `rho=0` each disable their test. A NaN of `above_policy` is rejected as easy, one of
    `above_reward` or a sample without negatives as undiscriminated.

    Args:
        tau: the logged item must be outside the policy's top `tau` of the group's rollouts.
        tau_reward: it must be inside the reward's top `tau_reward`; `null` takes `tau`.
        rho: each item of another sample must be outside the reward's top `rho`.
        rho_from: `bottom`: outside its bottom `rho` instead.

    >>> above = torch.tensor([0.75, 0.25, 0.75, 0.75]), torch.tensor([0.25, 0.25, 0.50, 0.25])
    >>> negatives = torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.0]])
    >>> decision = adagrpo_gate(*above, negatives, torch.zeros(4, dtype=torch.bool), tau=0.5, rho=0.25)
    >>> decision.admitted, decision.easy
    (tensor([ True, False, False, False]), tensor([False,  True, False, False]))
    """
    check_shapes(
        above_policy=(above_policy, "B"),
        above_reward=(above_reward, "B"),
        negatives_above=(negatives_above, "BM"),
        degenerate=(degenerate, "B?"),
    )
    within = tau if tau_reward is None else tau_reward
    absent = negatives_above.isnan()
    far = negatives_above >= rho if rho_from == "top" else negatives_above <= 1 - rho
    known = (above_reward < within) | (~above_reward.isnan() & (within >= 1))
    suppressed = (far | absent).all(dim=1) & ~absent.all(dim=1)
    return by_first_cause(degenerate, hard=above_policy >= tau, discriminated=known & suppressed)


def difficulty_gate(shadow: GateDecision) -> GateDecision:
    """Admit what the test of the policy alone admits: every sample that the gate does not call easy."""
    nothing = torch.zeros_like(shadow.degenerate)
    return shadow._replace(admitted=shadow.admitted | shadow.undiscriminated, undiscriminated=nothing)


def discriminability_gate(shadow_if_hard: GateDecision) -> GateDecision:
    """Admit what the tests of the reward alone admit."""
    return shadow_if_hard


def shuffled_gate(shadow: GateDecision) -> GateDecision:
    """Admit what the gate would admit if the rewards were permuted within each sample, and train on those."""
    return shadow


def all_gate(degenerate: Tensor) -> GateDecision:  # (B,)
    """Admit everything, which is the mixture."""
    check_shapes(degenerate=(degenerate, "B?"))
    return by_control(~degenerate, degenerate)


def none_gate(degenerate: Tensor) -> GateDecision:  # (B,)
    """Admit nothing, which is continued NLL."""
    check_shapes(degenerate=(degenerate, "B?"))
    return by_control(torch.zeros_like(degenerate), degenerate)


# degenerate and uniforms (B,)
def random_gate(shadow: GateDecision, degenerate: Tensor, uniforms: Tensor) -> GateDecision:
    """Admit as many samples of the batch as the gate would, drawn by chance."""
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
    check_shapes(shadow=(shadow.admitted, "B?"), degenerate=(degenerate, "B?"), **named)


GATES: dict[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("adagrpo", adagrpo_gate, by_admission=True),
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
    """Add a gate before `adagrpo.config`, which reads them, is imported; ValueError if late, or the name is taken."""
    if gate.name in GATES:
        raise ValueError(f"gate '{gate.name}': another has that name")
    if "adagrpo.config" in sys.modules:
        raise ValueError(f"gate '{gate.name}': register it before adagrpo.config is imported")
    GATES[gate.name] = gate
