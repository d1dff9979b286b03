"""Gates: a function of the evidence on groups, and a record of all else about it.

The gates themselves, and their table, are in `adagrpo.objective.gates`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adagrpo.objective.function_options import options_of

NegativeSource = Literal["rollouts", "targets"]  # of other samples: items that were generated, or that were logged


class Evidence(NamedTuple):
    """Diagnostics of `B` groups; all but the last two are NaN at the ends of histories."""

    above_policy: Tensor  # (B,) share of the rollouts that the policy puts above the logged item; NaN if not scored
    above_reward: Tensor  # (B,) the same by the reward
    negatives_above: Tensor  # (B, M) share of the rollouts that the reward puts above each negative, NaN where absent
    miss: Tensor  # (B,) share of the rollouts that are not the logged item
    q: Tensor  # (B,) share of rollouts and negatives that the reward puts below the logged item
    degenerate: Tensor  # (B,) bool, the group's rewards give no order
    reward_std: Tensor  # (B,) standard deviation of the valid rollouts' rewards, 0 where there is none


class GateDecision(NamedTuple):
    """The decision on each sample: every sample is True in exactly one field.

    The first cause that holds is the one that counts, in the order degenerate, easy, undiscriminated. `closed` is for
    samples that no diagnostic rejects: the control itself (none, random, bernoulli, inverted, oracle) leaves them out.
    """

    admitted: Tensor  # (B,) bool
    easy: Tensor  # (B,) bool, the policy is sure enough
    undiscriminated: Tensor  # (B,) bool, the reward does not know the target
    degenerate: Tensor  # (B,) bool, the group's rewards give no order
    closed: Tensor  # (B,) bool, rejected by a control


@dataclass(frozen=True)
class Gate:
    """A gate, and what training, recipes, reports and documents ask about it.

    The parameters of its function say what it reads: fields of `Evidence`, or

        uniforms         (B,) independent draws from [0, 1)
        agreement        (B,) share of a group's pairs that the reward orders as the true utility does
        shadow           the decision of the gate that it is a control of
        shadow_if_hard   that decision if the policy knew no logged item, so that the reward's tests alone decide

    Its keyword-only parameters are its options: keys of the section `objective.<gate>` of a recipe, with the ranges and
    defaults that stand there. The first line of its documentation is its row in the table of the documents.

    Attributes:
        name: in recipes, in the names of arms and in results.
        rule: the function.
        negatives: where the items come from that the reward is to rank low.
        shuffled: the rewards of each group are permuted, for the gate and for the reward term.
        control: it does not choose by the logged item, so a gate that chooses well beats it.
    """

    name: str
    rule: Callable[..., GateDecision]
    negatives: NegativeSource = "rollouts"
    shuffled: bool = False
    control: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the evidence that its function reads."""
        return tuple(one.name for one in self._parameters if one.kind is not one.KEYWORD_ONLY)

    @property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of each option, by name."""
        return options_of(self.rule)

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.rule) or "").partition("\n")[0]

    @property
    def tests_logged_item(self) -> bool:
        """It makes tests of its own, by which other gates can be its controls."""
        return not {"degenerate", "reward_std", "uniforms", "agreement", *SHADOWS}.issuperset(self.reads)

    @property
    def is_shadowed(self) -> bool:
        """It is a control of a gate that tests the logged item."""
        return not set(self.reads).isdisjoint(SHADOWS)

    @property
    def reads_tests(self) -> bool:
        """It decides by tests of the logged item, its own or those of the gate that it is a control of."""
        return self.tests_logged_item or self.is_shadowed

    @property
    def draws(self) -> bool:
        """It draws by chance."""
        return "uniforms" in self.reads

    @property
    def reads_truth(self) -> bool:
        """It needs the true utility, which only a simulated marketplace knows."""
        return "agreement" in self.reads

    @property
    def reads_logged_item(self) -> bool:
        """It cannot decide at the ends of histories, which no logged item follows."""
        return self.reads_tests or self.reads_truth

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.rule).parameters.values())

    def decide(self, known: Mapping[str, Any], options: Mapping[str, Any]) -> GateDecision:
        """The decision of the gate.

        Args:
            known: what it reads of `B` groups, and perhaps more.
            options: its options, and perhaps more.

        Raises:
            ValueError: something that it reads is not there, or None.
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
    hard: Tensor,  # (B,) bool
    discriminated: Tensor,  # (B,) bool
) -> GateDecision:
    """The decision of a gate that tests the logged item: each sample is rejected by the first cause that holds.

    Args:
        degenerate: (B,) bool, the group's rewards give no order.
        hard: (B,) bool, the policy does not know the logged item.
        discriminated: (B,) bool, the reward does.
    """
    sound = ~degenerate
    return GateDecision(
        admitted=sound & hard & discriminated,
        easy=sound & ~hard,
        undiscriminated=sound & hard & ~discriminated,
        degenerate=degenerate,
        closed=torch.zeros_like(degenerate),
    )
