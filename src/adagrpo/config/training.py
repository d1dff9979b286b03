"""The sections `objective`, `train`, `evaluation` and `compare`: post-training, its arms, and what judges them."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from adagrpo.config.models import FitConfig
from adagrpo.config.problems import explain
from adagrpo.config.values import NonNegativeFloat, Positive, PositiveFloat, Section, Share
from adagrpo.errors import UserError

__all__ = ["ArmConfig", "CompareConfig", "EvaluationConfig", "Gate", "ObjectiveConfig", "TrainConfig"]

Gate = Literal[
    "adagrpo", "all", "none", "difficulty", "discriminability", "random", "shuffled", "inverted", "oracle", "agreement"
]
Objective = Literal["nll", "grpo", "mixture", "adagrpo", "distill", "best_of_n"]
UserMetric = Literal["hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "hallucination@10"]

OBJECTIVES, GATES = get_args(Objective), get_args(Gate)
OWN_NAME = r"[A-Za-z][A-Za-z0-9._-]*"
MATCHED = ("mixture-matched", "mixture-norm-matched")  # to the gate: see `adagrpo.pipeline.matching`
TAKEN = ("sft", "rerank", *MATCHED, "baselines")  # stages and arms that are no objective
_ARM = re.compile(f"({'|'.join(OBJECTIVES)})(?:-({'|'.join(GATES)}))?(?:-lambda(.+))?")


def _weight(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not number and value != "validation":
        raise ValueError(f"a number of at least 0, or 'validation' (found {value!r})")
    return value


class ObjectiveConfig(Section):
    """NLL + (lambda / B_rl) Σ gate · GRPO; see `adagrpo.trainer.post_training` for what each option does.

    `rollout: gumbel` draws different rollouts, which count by their probability; `adagrpo.groups.draw` has all three.
    `rl_positions: end` draws groups after each whole training history, which no logged item follows; with
    `exclude_history` a rollout that names an item of the history is invalid. The gate `shuffled` permutes the rewards
    of each group there and admits them all, since what it would decide by reads logged items.
    With `target_only` GRPO has a gradient on the logged item alone, where a group holds it: NLL at the weight that its
    advantage gives it, which with `inject_target` is what injection does by itself.
    With `target_admission` q_min is only where the threshold starts: it runs so that the gate admits that share of the
    samples in the long run, whatever the reward. A quota is then no evidence that the reward knows anything; what
    shuffled rewards would have had admitted at the same threshold is logged beside it.
    `oracle_agreement` is for the gate `oracle`: the least share of a group's pairs that the reward must order rightly;
    `agreement` for the gate of that name: the least share that it must order as `second_reward` does.
    `distill_weight` is for `distill`: the weight of the reward beside the starting policy's log-probability, chosen by
    the starting policy's beam on validation cases where it is `validation` (`adagrpo.pipeline.teacher`).
    `validity_weight` is for any reward term: the weight beside it of `adagrpo.objective.validity_margin`, which keeps
    what names no item below all items of a group or, with `validity_depth`, below the so many most probable ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    lambda_: NonNegativeFloat = Field(1.0, alias="lambda")
    num_generations: Annotated[int, Field(ge=2)] = 16
    negatives: Annotated[int, Field(ge=0)] = 5
    temperature: PositiveFloat = 1.0
    epsilon: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.2
    beta: NonNegativeFloat = 0.0
    num_iterations: Positive = 1
    rollout: Literal["sample", "beam", "gumbel"] = "sample"
    constrained: bool = False
    exclude_history: bool = False
    inject_target: bool = False
    target_only: bool = False
    rl_positions: Literal["random", "last", "all", "end"] = "random"
    difficulty: Literal["rollout_miss", "target_rank", "target_nll", "entropy"] = "rollout_miss"
    tau: NonNegativeFloat = 0.5
    q_min: Share = 0.95
    target_admission: Annotated[float, Field(gt=0, lt=1)] | None = None
    invalid_penalty: NonNegativeFloat = 1.0
    scale_rewards: bool = True
    reward_floor: NonNegativeFloat = 1e-3
    oracle_agreement: Share = 0.75
    agreement: Share = 0.75
    distill_weight: Annotated[float | Literal["validation"], BeforeValidator(_weight)] = 1.0
    validity_weight: NonNegativeFloat = 0.0
    validity_depth: Positive | None = None


# after each whole training history: the policy's own beam, in the order of log-probability + weight · reward
_ENDS = {"rl_positions": "end", "rollout": "beam", "num_generations": 32, "exclude_history": True}
PRESETS: dict[str, dict[str, Any]] = {
    "distill-ends": _ENDS | {"distill_weight": 2.0},
    # and what names no item is kept below what does
    "distill-valid": _ENDS | {"distill_weight": 2.0, "validity_weight": 5.0},
    # and validation says how much of the reward goes in; nothing: continued NLL
    "distill-chosen": _ENDS | {"distill_weight": "validation", "validity_weight": 5.0},
    # and the margin is below the first ten items of a group alone
    "distill-top10": _ENDS | {"distill_weight": "validation", "validity_weight": 5.0, "validity_depth": 10},
}


class ArmConfig(Section):
    """One way to post-train from the same starting policy.

    A name alone stands for the arm that has it: `arms: [nll, adagrpo-random-lambda5, distill-chosen]`; the last is of
    `PRESETS`, with settings chosen on validation users of Beauty and, the margin, of Scientific and a marketplace.
    `options` are keys of the section `objective` that this arm sees otherwise than the others; such an arm has a `name`
    of its own: `{objective: adagrpo, name: tau-0.8, options: {tau: 0.8}}`.
    """

    objective: Objective
    gate: Gate | None = None
    lambda_: NonNegativeFloat | None = Field(None, alias="lambda")
    own_name: str | None = Field(None, alias="name")
    options: ObjectiveConfig = ObjectiveConfig()
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    @field_serializer("options")
    def _only_what_is_set(self, options: ObjectiveConfig) -> dict[str, Any]:
        return options.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return _arm_of(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _what_it_takes(self) -> Self:
        if self.gate is not None and self.objective in ("nll", "grpo", "mixture"):
            raise ValueError(f"objective '{self.objective}' takes no gate; adagrpo, distill and best_of_n do")
        if self.lambda_ is not None and self.objective == "nll":
            raise ValueError("objective 'nll' takes no lambda: it has no reward to weigh")
        if "lambda_" in self.options.model_fields_set:
            raise ValueError("options takes no lambda; an arm has a lambda of its own")
        if self.options.model_fields_set and self.own_name is None:
            raise ValueError("an arm with options needs a name")
        if self.own_name is not None and not re.fullmatch(OWN_NAME, self.own_name):
            raise ValueError(f"name '{self.own_name}': letters, digits, '.', '_' and '-', the first a letter")
        if self.own_name in TAKEN or (self.own_name is not None and _ARM.fullmatch(self.own_name)):
            raise ValueError(f"name '{self.own_name}' means something already; take another")
        return self

    def seen_by(self, common: ObjectiveConfig) -> ObjectiveConfig:
        """The section `objective` as this arm sees it."""
        own = {key: getattr(self.options, key) for key in self.options.model_fields_set}
        return ObjectiveConfig.model_validate(common.model_dump(by_alias=False) | own)

    def chooses_weight(self, common: ObjectiveConfig) -> bool:
        """Validation says how much of the reward it teaches."""
        return self.objective == "distill" and self.seen_by(common).distill_weight == "validation"

    @property
    def own_gate(self) -> Gate | None:
        """The gate where none is named: all samples, but for `adagrpo`; `nll` has no reward to admit."""
        return {"adagrpo": "adagrpo", "nll": None}.get(self.objective, "all")

    @property
    def admits(self) -> Gate | None:
        """The gate."""
        return self.gate or self.own_gate

    @property
    def name(self) -> str:
        """In folders and in metrics.json: its own name, or `<objective>[-<gate>][-lambda<number>]`."""
        if self.own_name is not None:
            return self.own_name
        gate = "" if self.admits == self.own_gate else f"-{self.gate}"
        return f"{self.objective}{gate}" + ("" if self.lambda_ is None else f"-lambda{self.lambda_:g}")

    @classmethod
    def parse(cls, name: str) -> Self:
        """The arm that has a name; the other way round from `name`.

        Raises:
            UserError: no arm is called that; the nearest name is said.

        Example:
            >>> arm = ArmConfig.parse("adagrpo-random-lambda5")
            >>> arm.objective, arm.gate, arm.lambda_, arm.name
            ('adagrpo', 'random', 5.0, 'adagrpo-random-lambda5')
        """
        try:
            return cls.model_validate(_arm_of(name))
        except ValidationError as error:
            raise UserError(f"objective '{name}': {explain(error, cls)}") from error
        except ValueError as error:
            raise UserError(str(error)) from error


def _arm_of(name: str) -> dict[str, Any]:
    """The fields of the arm that has a name.

    Raises:
        ValueError: there is none; the nearest name is said.
    """
    if name in PRESETS:
        return {"objective": "distill", "name": name, "lambda": 5, "options": PRESETS[name]}
    found = _ARM.fullmatch(name)
    if found is None:
        names = [*OBJECTIVES, *PRESETS, *(f"adagrpo-{gate}" for gate in GATES if gate != "adagrpo")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}; -lambda<number> may follow"
        raise ValueError(f"objective '{name}': there is none of that name; {hint}")
    objective, gate, weight = found.groups()
    return {"objective": objective, "gate": gate, "lambda": weight}


class TrainConfig(Section):
    """Post-training: every arm starts from the sft policy and sees the same batches.

    `rl_split` is the share of training positions that sft takes no NLL at, the RL term being taken at these alone; with
    `rl_split_nll` they are NLL positions in post-training, in every arm.
    """

    arms: tuple[ArmConfig, ...] = (
        ArmConfig(objective="nll"),
        ArmConfig(objective="mixture"),
        ArmConfig(objective="adagrpo"),
    )
    fit: FitConfig = FitConfig(epochs=2, learning_rate=2e-4, validations=8)
    gradient_norms_every: Positive = 20
    rl_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rl_split_nll: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {', '.join(names)}")
        return self


class EvaluationConfig(Section):
    """Full-catalogue evaluation by beam search."""

    beam_width: Annotated[int, Field(ge=10)] = 50
    batch_size: Positive = 256
    mask_history: bool = False


class CompareConfig(Section):
    """What a comparison is to decide, fixed before its runs: see `adagrpo.comparison`.

    `family` holds the arms that claims are made about (null: every arm but sft and the baseline); `margins` say how
    much worse than the baseline an arm may be on other metrics, in the metric's own units.
    """

    baseline: str = "nll"
    family: tuple[str, ...] | None = None
    metric: UserMetric = "hr@10"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    margins: dict[UserMetric, PositiveFloat] = Field({"hr@50": 0.01, "hallucination@10": 0.005})
    resamples: Annotated[int, Field(ge=200)] = 2000
