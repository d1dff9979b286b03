"""The section `objective`: sampling and gating of groups, and options of reward terms and gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator

from adagrpo.config.section import NonNegativeFloat, Positive, PositiveFloat, Section, nearest
from adagrpo.objective import GATES, Gate
from adagrpo.objective.terms import TERMS, RewardTerm

PLUGIN = "; `adagrpo --plugin MODULE` registers yours"
THRESHOLDS = ("tau", "rho")  # which `admit` finds
VALIDATION = "validation"  # instead of a number: chosen on validation cases
# options of gates that were keys of `objective` itself, and the gate of each, which may not be registered any more
EARLIER_KEYS = {
    "tau": "adagrpo",
    "tau_reward": "adagrpo",
    "rho": "adagrpo",
    "rho_from": "adagrpo",
    "miss_min": "rollout_miss",
    "q_min": "rollout_miss",
    "admission_rate": "bernoulli",
    "oracle_agreement": "oracle",
}

if TYPE_CHECKING:
    GateName = str
    TestName = str  # of a gate that tests the logged item, and has controls
else:
    GateName = Literal[tuple(GATES)]
    TestName = Literal[tuple(name for name, gate in GATES.items() if gate.tests_logged_item)]

S = TypeVar("S", bound=Section)


def _number_or_validation(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not number and value != VALIDATION:
        raise ValueError(f"a number of at least 0, or '{VALIDATION}' (found {value!r})")
    return value


def in_sections(content: Mapping[str, Any]) -> dict[str, Any]:
    """Move `EARLIER_KEYS` to the sections of their gates, replacing values there.

    >>> in_sections({"lambda": 2, "rho": 0.1, "tau": 0.3, "adagrpo": {"tau": 0.4}})
    {'lambda': 2, 'adagrpo': {'tau': 0.3, 'rho': 0.1}}
    """
    moved = dict(content)
    for key, gate in EARLIER_KEYS.items():
        if key in moved and isinstance(section := moved.get(gate, {}), Mapping):
            moved[gate] = {**section, key: moved.pop(key)}
    return moved


def in_section(override: str) -> str:
    """Rewrite an override of one of the `EARLIER_KEYS`.

    >>> in_section("objective.tau=0.3"), in_section("objective.lambda=2")
    ('objective.adagrpo.tau=0.3', 'objective.lambda=2')
    """
    key, equals, value = override.partition("=")
    name = key.removeprefix("objective.")
    moved = key == f"objective.{name}" and name in EARLIER_KEYS
    return f"objective.{EARLIER_KEYS[name]}.{name}{equals}{value}" if moved else override


def without_sections(content: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `in_sections`."""
    moved = dict(content)
    for key, gate in EARLIER_KEYS.items():
        if key in moved.get(gate, {}):
            moved[key] = moved[gate][key]
            moved[gate] = {name: value for name, value in moved[gate].items() if name != key}
    return {key: value for key, value in moved.items() if value != {} or key not in EARLIER_KEYS.values()}


def without_unregistered(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop the sections of gates and reward terms that are not registered, and return their names too.

    >>> without_unregistered({"lambda": 2, "tau": 0.4, "earlier": {"least": 0.9}})
    ({'lambda': 2, 'adagrpo': {'tau': 0.4}}, ['earlier'])
    """
    moved = in_sections(content)
    dropped = [
        key for key, value in moved.items() if isinstance(value, Mapping) and key not in ObjectiveConfig.model_fields
    ]
    return {key: value for key, value in moved.items() if key not in dropped}, dropped


class _Options(Section):
    @model_validator(mode="before")
    @classmethod
    def _are_its_own(cls, content: Any) -> Any:
        _refuse_misplaced(content, cls.model_fields)
        return content

    @model_validator(mode="after")
    def _by_one_of_both(self) -> Self:
        admit = getattr(self, "admit", None)
        for name in THRESHOLDS if admit is not None else ():
            given, default = getattr(self, name), type(self).model_fields[name].default
            if given != default:
                raise ValueError(
                    f"{name} {given:g} and admit {admit:g}: admit finds it; admit: null keeps yours, {name}:"
                    f" {default:g} leaves it to admit"
                )
        return self


def _refuse_misplaced(content: Any, own: Mapping[str, Any]) -> None:
    for key in content if isinstance(content, dict) else ():
        readers = {name: f"the reward term {name}" for name, term in TERMS.items() if key in term.options}
        readers |= {name: f"the gate {name}" for name, gate in GATES.items() if key in gate.options}
        if key not in own and readers:
            keys = " or ".join(f"objective.{name}.{key}" for name in readers)
            raise ValueError(
                f"'{key}' is an option of {' or '.join(readers.values())}: write {keys},"
                f" or options.{next(iter(readers))}.{key} of one arm"
            )


def _with_options(model: type[S]) -> type[S]:
    """Add a section for the options of each reward term and gate."""
    chosen = Annotated[float | Literal["validation"], BeforeValidator(_number_or_validation)]
    readers: list[RewardTerm | Gate] = [*TERMS.values(), *(gate for gate in GATES.values() if gate.options)]
    fields: dict[str, Any] = {}
    for reader in readers:
        if reader.name in {*model.model_fields, *fields}:
            raise ValueError(f"'{reader.name}': a key of objective has that name; take another for the gate or term")
        weights = reader.in_list_stds if isinstance(reader, RewardTerm) else ()
        options: dict[str, Any] = {
            name: (chosen if name in weights else kind, default) for name, (kind, default) in reader.options.items()
        }
        if isinstance(reader, Gate) and reader.by_admission:
            options["admit"] = (Annotated[float, Field(gt=0, lt=1)] | None, None)
        section = create_model(f"{reader.name}_options", __base__=_Options, **options)
        fields[reader.name] = (section, section())
    return create_model(model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields)


@_with_options
class ObjectiveConfig(Section):
    """NLL + (lambda / B_rl) Σ gate · term; see `adagrpo.trainer.post_training`.

    Subsections of reward terms and gates hold the keyword arguments of their functions in `adagrpo.objective`. For the
    hybrid policy `lambda` is relative to a sum of two losses. With `rl_positions: end` the gate `shuffled` permutes the
    rewards of each group and admits all.
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
    control_of: TestName = "adagrpo"
    reward_floor: NonNegativeFloat = 1e-3

    @model_validator(mode="before")
    @classmethod
    def _options_have_sections(cls, content: Any) -> Any:
        if isinstance(content, Mapping):
            content = in_sections(content)
            for name in without_unregistered(content)[1]:
                holds = f" ({', '.join(map(str, content[name]))})" if content[name] else ""
                known = nearest(name, [*TERMS, *GATES])
                raise ValueError(
                    f"'{name}'{holds} is the section of no registered reward term or gate; {known}{PLUGIN}"
                )
        _refuse_misplaced(content, cls.model_fields)
        return content

    def tested_by(self, gate: str) -> str:
        """Return the gate whose tests a group undergoes: `gate`, or the one it is a control of."""
        return gate if GATES[gate].tests_logged_item else self.control_of

    def of_gate(self, name: str) -> dict[str, Any]:
        """Return the keyword arguments of a gate."""
        return getattr(self, name).model_dump(include=set(GATES[name].options)) if GATES[name].options else {}

    def finds_thresholds(self, gate: str | None) -> bool:
        """Return whether `admit` finds the thresholds by which an arm's groups are tested."""
        if gate is None or not GATES[gate].reads_tests:
            return False
        tested = GATES[self.tested_by(gate)]
        return tested.by_admission and getattr(self, tested.name).admit is not None

    def of_term(self, name: str) -> dict[str, Any]:
        """Return the keyword arguments of a reward term's loss."""
        section: _Options = getattr(self, name)
        return section.model_dump()

    def with_options(self, reader: str, **values: float | None) -> ObjectiveConfig:
        """Return a copy with options of a reward term or gate changed."""
        section: _Options = getattr(self, reader)
        return self.model_copy(update={reader: section.model_copy(update=values)})
