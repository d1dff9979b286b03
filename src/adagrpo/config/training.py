"""The sections `objective`, `train`, `evaluation` and `compare`: post-training, its arms, and what evaluates them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_serializer,
    model_validator,
)

from adagrpo.config.eligible import EligibleConfig
from adagrpo.config.messages import explain
from adagrpo.config.models import FitConfig
from adagrpo.config.section import NonNegativeFloat, Positive, PositiveFloat, Section, Share
from adagrpo.errors import UserError
from adagrpo.metrics import comparable
from adagrpo.objective.terms import OBJECTIVES, TERMS, RewardTerm

__all__ = ["ArmConfig", "CompareConfig", "EvaluationConfig", "Gate", "LoggedItemGate", "ObjectiveConfig", "TrainConfig"]

Gate = Literal[
    "adagrpo",
    "rollout_miss",
    "all",
    "none",
    "difficulty",
    "discriminability",
    "random",
    "bernoulli",
    "shuffled",
    "inverted",
    "oracle",
]
LoggedItemGate = Literal["adagrpo", "rollout_miss"]  # gates that read the logged item, and have controls

GATES: tuple[Gate, ...] = get_args(Gate)
OPTION_OF: dict[Gate, str] = {"oracle": "oracle_agreement", "bernoulli": "admission_rate"}  # which no other gate reads
THRESHOLDS: dict[LoggedItemGate, tuple[str, ...]] = {
    "adagrpo": ("tau", "tau_reward", "rho", "rho_from"),
    "rollout_miss": ("miss_min", "q_min"),
}
VALIDATION = "validation"  # in place of a number that validation cases are to choose
OWN_NAME = r"[A-Za-z][A-Za-z0-9._-]*"
MATCHED = ("mixture-matched", "mixture-norm-matched")  # to the gate: see `adagrpo.pipeline.matching`
TAKEN = ("sft", "rerank", *MATCHED, "baselines", "exposures", "reward", "counts")  # stages that are no arm
_ARM = re.compile(f"({'|'.join(OBJECTIVES)})(?:-({'|'.join(GATES)}))?(?:-(lambda|pressure)(.+))?")
_RENAMED = {"distill_weight": "reward_weight"}  # options that had no section of their own, by their old names

S = TypeVar("S", bound=Section)


def _number_or_validation(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not number and value != VALIDATION:
        raise ValueError(f"a number of at least 0, or '{VALIDATION}' (found {value!r})")
    return value


class _TermSection(Section):
    """The options of a reward term."""

    @model_validator(mode="before")
    @classmethod
    def _are_its_own(cls, content: Any) -> Any:
        _refuse_misplaced(content, cls.model_fields)
        return content


def _refuse_misplaced(content: Any, own: Mapping[str, Any]) -> None:
    """Say where the option of a reward term is written, if it is written where nothing reads it.

    Raises:
        ValueError: naming the option, the term that reads it, and its place.
    """
    for key in content if isinstance(content, dict) else ():
        option = _RENAMED.get(key, key)
        readers = [term.name for term in TERMS.values() if option in term.options]
        if key not in own and readers:
            places = " or ".join(f"objective.{name}.{option}" for name in readers)
            raise ValueError(
                f"'{key}' is an option of the reward term {' or '.join(readers)}: write {places},"
                f" or options.{readers[0]}.{option} of one arm"
            )


def _section(term: RewardTerm) -> type[_TermSection]:
    """The section of a reward term: the keyword arguments of its loss."""
    chosen = Annotated[float | Literal["validation"], BeforeValidator(_number_or_validation)]
    fields: dict[str, Any] = {
        name: (chosen if name in term.in_spreads else kind, default) for name, (kind, default) in term.options.items()
    }
    return create_model(f"{term.name}_options", __base__=_TermSection, **fields)


def _with_section_per_term(model: type[S]) -> type[S]:
    """A section with a section of its own for each reward term, by the term's name."""
    sections = {name: _section(term) for name, term in TERMS.items()}
    fields: dict[str, Any] = {name: (section, section()) for name, section in sections.items()}
    return create_model(model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields)


@_with_section_per_term
class ObjectiveConfig(Section):
    """NLL + (lambda / B_rl) Σ gate · term; see `adagrpo.trainer.post_training` for what each option does.

    Each reward term has a section of its own beside these keys, `grpo`, `distill` and `best_of_n`: the keyword
    arguments of its loss in `adagrpo.objective.terms`.
    `distill.reward_weight` is in spreads of the reward, the unit of `adagrpo.evaluation.reranking`; where it is
    `validation`, the starting policy's beam on validation cases chooses it (`adagrpo.pipeline.stages.choose_weight`).
    `rl_positions: end` draws groups after each whole training history, which no logged item follows; with
    `exclude_history` a rollout that names an item of the history, also of what `max_history` leaves out, is invalid.
    `tau`, `tau_reward`, `rho` and `rho_from` are thresholds of the gate `adagrpo`, `miss_min` and `q_min` of
    `rollout_miss` (`adagrpo.objective.gate`); `control_of` names the one whose tests the gates `difficulty`,
    `discriminability`, `random`, `inverted` and `shuffled` take. `negatives` is their M.
    The gate `shuffled` permutes the rewards of each group there and admits them all, since what it would decide by
    reads logged items.
    `oracle_agreement` is for the gate `oracle`: the least share of a group's pairs that the reward must order rightly.
    `admission_rate` is for the gate `bernoulli`: the probability with which it admits a group.
    `lambda` weighs the reward term against the anchor that the policy trains on, which for the hybrid policy is a sum
    of two losses with a longer gradient than NLL. `pressure`, where it is given, takes its place: the ratio of the two
    gradients' lengths, measured over `pressure_steps` at the starting policy and turned into a λ once
    (`adagrpo.trainer.pressure`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    lambda_: NonNegativeFloat = Field(1.0, alias="lambda")
    pressure: PositiveFloat | None = None
    pressure_steps: Positive = 16
    num_generations: Annotated[int, Field(ge=2)] = 16
    negatives: Annotated[int, Field(ge=0)] = 5
    temperature: PositiveFloat = 1.0
    num_iterations: Positive = 1
    rollout: Literal["sample", "beam"] = "sample"
    constrained: bool = False
    exclude_history: bool = False
    inject_target: bool = False
    rl_positions: Literal["random", "last", "all", "end"] = "random"
    tau: Share = 0.5
    tau_reward: Share | None = None
    rho: Share = 0.3
    rho_from: Literal["top", "bottom"] = "top"
    miss_min: Share = 0.5
    q_min: Share = 0.95
    control_of: LoggedItemGate = "adagrpo"
    oracle_agreement: Share = 0.75
    admission_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    reward_floor: NonNegativeFloat = 1e-3

    @model_validator(mode="before")
    @classmethod
    def _terms_have_sections(cls, content: Any) -> Any:
        _refuse_misplaced(content, cls.model_fields)
        return content

    def judges(self, gate: Gate) -> LoggedItemGate:
        """The gate whose tests are made of a group: the gate itself, or the one that it is a control of."""
        if gate == "adagrpo" or gate == "rollout_miss":
            return gate
        return self.control_of

    def of_term(self, name: str) -> dict[str, Any]:
        """The options of a reward term, which its loss takes as keyword arguments."""
        section: _TermSection = getattr(self, name)
        return section.model_dump()

    def with_option(self, term: str, name: str, value: float) -> ObjectiveConfig:
        """The same, but for one option of a reward term."""
        section: _TermSection = getattr(self, term)
        return self.model_copy(update={term: section.model_copy(update={name: value})})


# After each whole training history, the policy's own beam takes the order of log-probability + weight · reward;
# validation cases say how much of the reward goes in, and where that is nothing the arm is continued NLL. The beam is
# held to the catalogue, as the one is whose order validation judges, and what it holds of the policy's probability is
# held too: research/small_data says what happens on small data without either.
PRESETS: dict[str, dict[str, Any]] = {
    "distill-tuned": {
        "objective": "distill",
        "lambda": 5,
        "options": {
            "rl_positions": "end",
            "rollout": "beam",
            "num_generations": 32,
            "exclude_history": True,
            "constrained": True,
            "distill": {"reward_weight": VALIDATION, "validity_weight": 0.0, "mass_weight": 1.0},
        },
    }
}


def _known(objective: str) -> str:
    if objective not in OBJECTIVES:
        near = difflib.get_close_matches(objective, OBJECTIVES, n=1)
        raise ValueError(
            f"there is no objective '{objective}'; "
            + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(OBJECTIVES)}")
        )
    return objective


class ArmConfig(Section):
    """One way to post-train from the same starting policy.

    A name alone stands for the arm that has it: `arms: [nll, adagrpo-random-lambda5, distill-tuned]`; the last is of
    `PRESETS`, with settings chosen on validation users of Beauty.
    `options` are keys of the section `objective` that this arm sees otherwise than the others, its own reward term's
    among them; such an arm has a `name` of its own: `{objective: adagrpo, name: rho-0.5, options: {rho: 0.5}}`,
    `{objective: mixture, name: clipped, options: {grpo: {epsilon: 0.1}}}`.
    """

    objective: Annotated[str, AfterValidator(_known)]
    gate: Gate | None = None
    lambda_: NonNegativeFloat | None = Field(None, alias="lambda")
    pressure: PositiveFloat | None = None
    own_name: str | None = Field(None, alias="name")
    options: ObjectiveConfig = ObjectiveConfig()
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    @field_serializer("options")
    def _only_what_is_set(self, options: ObjectiveConfig) -> dict[str, Any]:
        return options.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, content: Any) -> Any:
        return _arm_of(content) if isinstance(content, str) else content

    @model_validator(mode="after")
    def _what_it_takes(self) -> Self:
        entry = OBJECTIVES[self.objective]
        if self.gate is not None and not entry.takes_gate:
            takers = [name for name, other in OBJECTIVES.items() if other.takes_gate]
            raise ValueError(f"objective '{self.objective}' takes no gate; these do: {', '.join(takers)}")
        if self.lambda_ is not None and entry.term is None:
            raise ValueError(f"objective '{self.objective}' takes no lambda: it has no reward to weigh")
        if self.pressure is not None:
            self._takes_pressure()
        for key, name in (("lambda_", "lambda"), ("pressure", "pressure")):
            if key in self.options.model_fields_set:
                raise ValueError(f"options takes no {name}; an arm has a {name} of its own")
        for name in TERMS:
            if name in self.options.model_fields_set and name != self.term:
                reads = f"the term {self.term}" if self.term else "no reward term"
                raise ValueError(f"options.{name}: objective '{self.objective}' has {reads} and would not read it")
        if self.options.model_fields_set and self.own_name is None:
            raise ValueError("an arm with options needs a name")
        if self.own_name is not None and not re.fullmatch(OWN_NAME, self.own_name):
            raise ValueError(f"name '{self.own_name}': letters, digits, '.', '_' and '-', the first a letter")
        if self.own_name in TAKEN or (self.own_name is not None and _ARM.fullmatch(self.own_name)):
            raise ValueError(f"name '{self.own_name}' means something already; take another")
        return self

    def _takes_pressure(self) -> None:
        if self.lambda_ is not None:
            raise ValueError("pressure and lambda: an arm takes one of them, since a pressure gives the lambda")
        if not self._pressed:
            why = "no reward is admitted" if self.admits == "none" else "it lacks a reward term or an anchor"
            raise ValueError(f"objective '{self.objective}' takes no pressure: {why}")

    @property
    def _pressed(self) -> bool:
        """Whether there is a reward term that may be admitted, and an anchor to hold it against."""
        return self.term is not None and OBJECTIVES[self.objective].anchored and self.admits != "none"

    @property
    def term(self) -> str | None:
        """The name of the reward term; None: NLL alone."""
        term = OBJECTIVES[self.objective].term
        return None if term is None else term.name

    def resolved_objective(self, common: ObjectiveConfig) -> ObjectiveConfig:
        """The section `objective` as this arm sees it."""
        seen = common.model_dump(by_alias=False)
        for key, value in self.options.model_dump(by_alias=False, exclude_unset=True).items():
            seen[key] = seen[key] | value if key in TERMS else value
        return ObjectiveConfig.model_validate(seen)

    def weight_of(self, common: ObjectiveConfig) -> float:
        """λ, its own or the common one."""
        return common.lambda_ if self.lambda_ is None else self.lambda_

    def pressure_of(self, common: ObjectiveConfig) -> float | None:
        """The pressure that its λ is to come from, its own or the common one; None where λ is as given.

        An arm's own λ goes before the common pressure. An objective that takes no pressure goes by the common λ.
        """
        if self.pressure is not None or self.lambda_ is not None or not self._pressed:
            return self.pressure
        return common.pressure

    def left_to_validation(self, common: ObjectiveConfig) -> str | None:
        """The option of its term that validation is to choose."""
        if self.term is None:
            return None
        options = self.resolved_objective(common).of_term(self.term)
        return next((name for name in TERMS[self.term].in_spreads if options[name] == VALIDATION), None)

    def settings(self, common: ObjectiveConfig, *, defaults: bool = True) -> dict[str, Any]:
        """All that the arm's training reads of the section `objective`, JSON-able.

        Args:
            common: the section as all arms see it.
            defaults: False leaves out what is as it would be if nobody had said anything.
        """
        resolved = self.resolved_objective(common)
        content: dict[str, Any] = {"objective": self.objective}
        if self.term is None:  # its budget is that of the arms that use each batch so often
            return content | resolved.model_dump(include={"num_iterations"}, exclude_defaults=not defaults)
        others = set(TERMS) - {self.term} | {"lambda_", "pressure"}
        others |= {option for gate, option in OPTION_OF.items() if self.admits != gate}
        judges = resolved.judges(self.admits) if self.admits else None
        others |= {option for gate, options in THRESHOLDS.items() if judges != gate for option in options}
        if self.admits == judges:
            others |= {"control_of"}
        content["gate"], pressure = self.admits, self.pressure_of(common)
        if pressure is None:
            others |= {"pressure_steps"}
            content["lambda"] = self.weight_of(common)
        else:
            content["pressure"] = pressure
        return content | resolved.model_dump(mode="json", by_alias=True, exclude=others, exclude_defaults=not defaults)

    @property
    def own_gate(self) -> Gate | None:
        """The gate where none is named; None for an objective that has no reward to admit."""
        return next((gate for gate in GATES if gate == OBJECTIVES[self.objective].gate), None)

    @property
    def admits(self) -> Gate | None:
        """The gate."""
        return self.gate or self.own_gate

    @property
    def name(self) -> str:
        """In folders and in metrics.json: its own, or `<objective>[-<gate>][-lambda<number> or -pressure<number>]`."""
        if self.own_name is not None:
            return self.own_name
        gate = "" if self.admits == self.own_gate else f"-{self.gate}"
        given = {"lambda": self.lambda_, "pressure": self.pressure}
        numbers = (f"-{name}{value:g}" for name, value in given.items() if value is not None)
        return f"{self.objective}{gate}" + "".join(numbers)

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
        return {"name": name} | PRESETS[name]
    match = _ARM.fullmatch(name)
    if match is None:
        names = [*OBJECTIVES, *PRESETS, *(f"adagrpo-{gate}" for gate in GATES if gate != "adagrpo")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"known: {', '.join(names)}; -lambda<number> or -pressure<number> may follow"
        )
        raise ValueError(f"objective '{name}': there is none of that name; {hint}")
    objective, gate, kind, number = match.groups()
    return {"objective": objective, "gate": gate} | ({} if kind is None else {kind: number})


class TrainConfig(Section):
    """Post-training: every arm starts from the sft policy and sees the same batches.

    `rl_split` is the share of training positions that sft takes no NLL at, the RL term being taken at these alone; with
    `rl_split_nll` they are NLL positions in post-training, in every arm.
    An arm that loses its policy is stopped (`adagrpo.trainer.lost_policy`), unless `stop_lost` is false.
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
    stop_lost: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {', '.join(names)}")
        return self


class EvaluationConfig(Section):
    """Full-catalogue evaluation by beam search, and all lists that a run gives out.

    `precision` is what the policy computes beams in; `auto` is bfloat16 where the processor or GPU has it natively. Two
    machines, or two programs, give the same lists only in the same precision. `eligible` holds the lists that are
    measured to part of the catalogue; what is fitted and selected does not change with it. `validation_users` are as
    many of those with a validation case as are measured, a fixed sample; null is all of them. Test has no such limit.
    """

    beam_width: Annotated[int, Field(ge=10)] = 50
    batch_size: Positive = 256
    mask_history: bool = False
    validation_users: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eligible: EligibleConfig | None = None


def _comparable(name: str) -> str:
    """A metric that a comparison can be planned on."""
    names = comparable()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"no metric '{name}' of each user; {hint}")
    return name


def _all_comparable(margins: dict[str, float]) -> dict[str, float]:
    for name in margins:
        _comparable(name)
    return margins


class CompareConfig(Section):
    """What a comparison is to decide, fixed before its runs: see `adagrpo.evaluation.comparison`.

    `family` holds the arms that claims are made about (null: every arm but sft and the baseline); `margins` say how
    much worse than the baseline an arm may be on other metrics, in the metric's own units. `pairs` names arms that are
    held against each other too, such as a gate and a random one: the first less the second, with an interval.
    """

    baseline: str = "nll"
    family: tuple[str, ...] | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    metric: Annotated[str, AfterValidator(_comparable)] = "hr@10"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    margins: Annotated[dict[str, PositiveFloat], AfterValidator(_all_comparable)] = Field(
        {"hr@50": 0.01, "hallucination@10": 0.005}
    )
    resamples: Annotated[int, Field(ge=200)] = 2000
