"""The interface of gates, which are defined in `adagrpo.objective.gates`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


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
        """Whether it depends on tests of the logged item, its own or another gate's."""
        return self.tests_logged_item or self.is_shadowed

    @property
    def draws(self) -> bool:
        """Whether it is random."""
        return "uniforms" in self.reads

    @property
    def reads_truth(self) -> bool:
        """Whether it needs true utilities, known only in simulation."""
        return "agreement" in self.reads

    @property
    def reads_logged_item(self) -> bool:
        """Whether it cannot decide at the ends of histories."""
        return self.reads_tests or self.reads_truth

    def decide(self, known: Mapping[str, Any], options: Mapping[str, Any]) -> GateDecision:
        """Return the decision on `B` groups, from inputs and options by name.

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
    """Return (B,) bool: the `count` candidates with the smallest keys, ties by index, or all if they are fewer."""
    order = keys.masked_fill(~candidates, torch.inf).argsort(stable=True)
    return candidates & (order.argsort() < count)
