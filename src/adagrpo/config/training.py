"""The section `train` and its arms."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from adagrpo.config.models import FitConfig
from adagrpo.config.objective import PLUGIN, THRESHOLDS, VALIDATION, GateName, ObjectiveConfig
from adagrpo.config.section import NonNegativeFloat, Positive, PositiveFloat, Section, explain, nearest
from adagrpo.errors import UserError
from adagrpo.objective import GATES
from adagrpo.objective.terms import OBJECTIVES, TERMS

OWN_NAME = r"[A-Za-z][A-Za-z0-9._-]*"
MATCHED = ("mixture-matched", "mixture-norm-matched")  # to the gate: see `adagrpo.pipeline.compare_arms`
# stages that are no arm; names of sources (`adagrpo.lists.table`) are refused where a run is opened
TAKEN = ("sft", "rerank", "fuse", "fuse-without-reward", *MATCHED, "baselines", "exposures", "reward", "counts")
_ARM = re.compile(f"({'|'.join(OBJECTIVES)})(?:-({'|'.join(GATES)}))?(?:-(lambda|pressure)(.+))?")
_GATED = re.compile(
    rf"(?:{'|'.join(name for name, one in OBJECTIVES.items() if one.takes_gate)})-(\w+)(?:-(?:lambda|pressure).+)?"
)
_TAKEN = re.compile(rf"reward-\d+|{_ARM.pattern}")

# After each whole training history, the policy's own beam is distilled in the order of log-probability + weight ·
# reward. The weight is chosen on validation cases; at 0 the arm is continued NLL. The beam is constrained to the
# catalogue, as in validation, and its probability mass is kept: see research/small_data for small data without either.
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
        raise ValueError(f"there is no objective '{objective}'; {nearest(objective, OBJECTIVES)}")
    return objective


class ArmConfig(Section):
    """A way to post-train from the starting policy.

    An arm is given by name, `arms: [nll, adagrpo-random-lambda5, distill-tuned]`, the last from `PRESETS`, or as a
    mapping. `options` override keys of `objective` and need a `name`: `{objective: adagrpo, name: rho-0.5, options:
    {adagrpo: {rho: 0.5}}}`.
    """

    objective: Annotated[str, AfterValidator(_known)]
    gate: GateName | None = None
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
        if self.pressure is not None and self.lambda_ is not None:
            raise ValueError("pressure and lambda: an arm takes one of them, since a pressure gives the lambda")
        if self.pressure is not None and not self._takes_pressure:
            why = "no reward is admitted" if self.admits == "none" else "it lacks a reward term or an anchor"
            raise ValueError(f"objective '{self.objective}' takes no pressure: {why}")
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
        if self.own_name is not None and (self.own_name in TAKEN or _TAKEN.fullmatch(self.own_name)):
            raise ValueError(f"name '{self.own_name}' means something already; take another")
        return self

    @property
    def _takes_pressure(self) -> bool:
        return self.learns_from_reward and OBJECTIVES[self.objective].anchored

    @property
    def learns_from_reward(self) -> bool:
        """True if there is a reward term that the gate may admit."""
        return self.term is not None and self.admits != "none"

    @property
    def term(self) -> str | None:
        """Name of the reward term; None for NLL only."""
        term = OBJECTIVES[self.objective].term
        return None if term is None else term.name

    def resolved_objective(self, common: ObjectiveConfig) -> ObjectiveConfig:
        """Return the section `objective` with the arm's options."""
        seen = common.model_dump(by_alias=False)
        for key, value in self.options.model_dump(by_alias=False, exclude_unset=True).items():
            if isinstance(value, dict):
                found = {"admit": None} if not value.keys().isdisjoint(THRESHOLDS) and "admit" in seen[key] else {}
                value = seen[key] | found | value  # an arm's own thresholds are not found by the common admission
            seen[key] = value
        return ObjectiveConfig.model_validate(seen)

    def weight_of(self, common: ObjectiveConfig) -> float:
        """Return λ, the arm's own or the common one."""
        return common.lambda_ if self.lambda_ is None else self.lambda_

    def pressure_of(self, common: ObjectiveConfig) -> float | None:
        """Return the pressure, the arm's own, or the common one if it has no λ of its own; None if λ is used."""
        if self.pressure is not None or self.lambda_ is not None or not self._takes_pressure:
            return self.pressure
        return common.pressure

    def left_to_validation(self, common: ObjectiveConfig) -> str | None:
        """Return the option of the term that validation chooses, if any."""
        if self.term is None:
            return None
        options = self.resolved_objective(common).of_term(self.term)
        return next((name for name in TERMS[self.term].in_list_stds if options[name] == VALIDATION), None)

    def settings(self, common: ObjectiveConfig, *, defaults: bool = True) -> dict[str, Any]:
        """Return the settings of `objective` that the arm's training reads, JSON-able; `defaults` also usual ones."""
        resolved = self.resolved_objective(common)
        content: dict[str, Any] = {"objective": self.objective}
        if self.term is None:  # its budget is that of the arms that use each batch so often
            return content | resolved.model_dump(include={"num_iterations"}, exclude_defaults=not defaults)
        others = set(TERMS) - {self.term} | {"lambda_", "pressure"}
        if self.admits is not None:
            tested = resolved.tested_by(self.admits)
            others |= {name for name, gate in GATES.items() if gate.options} - {self.admits, tested}
            others |= {"control_of"} if self.admits == tested else set()
        content["gate"], pressure = self.admits, self.pressure_of(common)
        if pressure is None:
            others |= {"pressure_steps"}
            content["lambda"] = self.weight_of(common)
        else:
            content["pressure"] = pressure
        return content | resolved.model_dump(mode="json", by_alias=True, exclude=others, exclude_defaults=not defaults)

    @property
    def admits(self) -> str | None:
        """The gate, by default the objective's; None without a reward."""
        return self.gate or OBJECTIVES[self.objective].gate

    @property
    def reads_truth(self) -> bool:
        """True if the gate needs the true utility."""
        return self.admits is not None and GATES[self.admits].reads_truth

    @property
    def name(self) -> str:
        """Own name, or `<objective>[-<gate>][-lambda<number> or -pressure<number>]`."""
        if self.own_name is not None:
            return self.own_name
        gate = "" if self.admits == OBJECTIVES[self.objective].gate else f"-{self.gate}"
        given = {"lambda": self.lambda_, "pressure": self.pressure}
        numbers = (f"-{name}{value:g}" for name, value in given.items() if value is not None)
        return f"{self.objective}{gate}" + "".join(numbers)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the arm with a `name`; UserError, with the nearest one, if there is none."""
        try:
            return cls.model_validate(_arm_of(name))
        except ValidationError as error:
            raise UserError(f"objective '{name}': {explain(error, cls)}") from error
        except ValueError as error:
            raise UserError(str(error)) from error


def _arm_of(name: str) -> dict[str, Any]:
    if name in PRESETS:
        return {"name": name} | PRESETS[name]
    match = _ARM.fullmatch(name)
    if match is None:
        gated = _GATED.fullmatch(name)
        if gated and not get_close_matches(gated[1], GATES) and not get_close_matches(name, PRESETS, cutoff=0.8):
            raise ValueError(f"objective '{name}': there is no gate '{gated[1]}'; known: {', '.join(GATES)}{PLUGIN}")
        names = [*OBJECTIVES, *PRESETS, *(f"adagrpo-{gate}" for gate in GATES if gate != "adagrpo")]
        hint = nearest(name, names, "; -lambda<number> or -pressure<number> may follow")
        raise ValueError(f"objective '{name}': there is none of that name; {hint}")
    objective, gate, kind, number = match.groups()
    return {"objective": objective, "gate": gate} | ({} if kind is None else {kind: number})


class TrainConfig(Section):
    """Post-training: all arms start from the SFT policy and see the same batches."""

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
