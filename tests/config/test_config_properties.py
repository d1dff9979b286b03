"""Any valid configuration survives YAML, any unknown key is refused by its path, contradictions are refused.

What is valid is drawn from the models themselves, so that a new field is tested without a line here.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from adagrpo.config import ArmConfig, Config, ObjectiveConfig, dump_config, load_config
from adagrpo.config.data import DataConfig, ItemTable, MarketplaceConfig, SplitConfig
from adagrpo.config.evaluation import CompareConfig
from adagrpo.config.models import LanguageModelConfig, PolicyConfig, PublishedIds, RankerConfig
from adagrpo.config.reward import CallableOptions, FactoryOptions, HttpOptions, WeightedOptions
from adagrpo.config.rules import BoostConfig, RangeConfig, RulesConfig
from adagrpo.config.section import Section
from adagrpo.config.training import TrainConfig
from adagrpo.config.yaml_text import dump_yaml
from adagrpo.errors import UserError
from adagrpo.objective import GATES
from adagrpo.objective.terms import OBJECTIVES, TERMS

Content = dict[str, Any]
Strategy = st.SearchStrategy[Any]

words = st.text(max_size=5) | st.sampled_from(
    ["null", "yes", "1e3", "0x1F", "~", "", " a", "a: b", "2026-01-01", "1_0"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
known: dict[Any, Strategy] = {
    str: words,
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.none() | st.booleans() | st.integers() | words | finite,
}


# ---------------------------------------------------------------- valid configurations, drawn from the models


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that they have in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def accepted(model: type[BaseModel], content: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(content)
    except ValidationError:
        return False
    return True


@st.composite
def sections(draw: st.DrawFn, model: type[BaseModel], rewards: int = 0) -> Content:
    """What a section needs, and of its other keys any that go with those before them."""
    content: Content = copy.deepcopy(draw(starts.get(model, st.just({}))))
    fields = fields_of(model)
    needed = {name for name, field in fields.items() if field.is_required() or tells_kinds_apart(field)}
    chosen = draw(st.sets(st.sampled_from([*fields]), max_size=6)) if fields else set()
    for name in [name for name in fields if name in needed - content.keys()] + sorted(chosen - needed - content.keys()):
        field = fields[name]
        value = draw(values(field.annotation, tuple(field.metadata), rewards + (name == "members")))
        if name in needed or accepted(model, content | {name: value}):
            content[name] = value
    model.model_validate(content)  # one that is refused needs a line in `starts`
    return content


def tells_kinds_apart(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


@cache  # strategies check themselves once
def values(annotation: Any, constraints: tuple[Any, ...], rewards: int) -> Strategy:
    """Values of a type, as a recipe writes them; `rewards` is how many rewards one is within."""
    parts = get_args(annotation)
    match get_origin(annotation):
        case None if annotation in (int, float):
            return numbers(annotation, constraints)
        case None if annotation in known:
            return known[annotation]
        case None:
            return sections(annotation, rewards)
        case origin if origin is Annotated:
            inner = [one for part in parts[1:] for one in (part.metadata if isinstance(part, FieldInfo) else [part])]
            return values(parts[0], (*constraints, *inner), rewards)
        case origin if origin is Literal:
            return st.sampled_from(parts)
        case origin if origin in (Union, UnionType):
            parts = [part for part in parts if rewards < 2 or "members" not in plain(part)]
            return st.one_of([values(part, constraints, rewards) for part in parts])
        case origin if origin is dict:
            fewest = max((one.min_length for one in constraints if isinstance(one, MinLen)), default=0)
            return st.dictionaries(*(values(part, (), rewards) for part in parts), min_size=fewest, max_size=2)
        case origin if origin is tuple:
            fewest = max((one.min_length for one in constraints if isinstance(one, MinLen)), default=0)
            most = min((one.max_length for one in constraints if isinstance(one, MaxLen)), default=max(2, fewest))
            return st.lists(values(parts[0], (), rewards), min_size=fewest, max_size=most)
    raise NotImplementedError(f"no values of {annotation}")


def plain(annotation: Any) -> dict[str, FieldInfo]:
    """The fields of a kind of reward; none of anything else."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return getattr(inner, "model_fields", {})


def numbers(kind: type, constraints: tuple[Any, ...]) -> Strategy:
    """Integers or floats that the constraints let through; without any, NaN and infinity too."""
    ge, gt, le, lt = (
        next((getattr(one, name) for one in constraints if isinstance(one, bound)), None)
        for name, bound in (("ge", Ge), ("gt", Gt), ("le", Le), ("lt", Lt))
    )
    low, high = ge if gt is None else gt, le if lt is None else lt
    if kind is int:
        return st.integers(low, None if high is None else high - (lt is not None))
    open_ends = {"exclude_min": gt is not None, "exclude_max": lt is not None}
    free = not constraints
    return st.floats(low, high, allow_nan=free, allow_infinity=free, **open_ends)


# where a section begins whose defaults alone are not valid, whose keys come in pairs, or where a text has a form
starts: dict[type[BaseModel], Strategy] = {
    Config: sections(DataConfig).map(lambda data: {"data": data}).filter(lambda content: accepted(Config, content)),
    ArmConfig: st.builds(dict, objective=st.sampled_from([*OBJECTIVES])),
    DataConfig: st.just({"logs": ["a.csv"]}) | st.builds(dict, marketplace=sections(MarketplaceConfig)),
    SplitConfig: st.sampled_from([{}, {"kind": "temporal", "validation_from": -5, "test_from": 10**12}]),
    PolicyConfig: st.just({}) | st.builds(dict, kind=st.just("causal_lm"), lm=sections(LanguageModelConfig)),
    LanguageModelConfig: st.sampled_from([{"checkpoint": "folder"}, {"config": {"model_type": "gpt2", "n_layer": 2}}]),
    PublishedIds: st.sampled_from([{"path": "a.json"}, {"path": "a.parquet", "column": "sid"}]),
    CompareConfig: st.sampled_from([{}, {"metric": "ndcg@10"}, {"margins": {"hr@5": 0.25, "ndcg@50": 1e-3}}]),
    BoostConfig: st.sampled_from([{"where": {"a": ["b"]}, "by": 0.5}, {"range": {"c": {"below": 3}}, "by": -1}]),
    RangeConfig: st.sampled_from([{"at_least": 1.5}, {"below": 0}, {"at_least": -1, "below": 2}]),
    CallableOptions: st.sampled_from([{"function": "module:score"}, {"function": "a.b_2:f"}]),
    FactoryOptions: st.sampled_from([{"function": "module:make"}, {"function": "a:f", "options": {"by": "x"}}]),
    HttpOptions: st.sampled_from([{"url": "http://host/score"}, {"url": "https://host:8080/"}]),
    WeightedOptions: st.sampled_from([{"members": [{}], "weights": [-2.5]}, {"members": [{}, {}], "weights": [1, 0]}]),
}
configurations = sections(Config)
thorough = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Content], Config]:
    """Write content to a file as run.yaml is written, and read it."""
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"

    def through_a_file(content: Content) -> Config:
        path.write_text(dump_yaml(content), encoding="utf-8")
        return load_config(path)

    return through_a_file


def refused(load: Callable[[Content], Config], content: Content) -> str:
    with pytest.raises(UserError) as error:
        load(content)
    message = str(error.value)
    assert "\n" not in message
    return message.partition("recipe.yaml: ")[2]


@thorough
@given(content=configurations)
def test_any_valid_configuration_survives_yaml(load, content):
    config = load(content)
    again = load(dump_config(config))
    assert again == config
    assert dump_config(again) == dump_config(config)


def parts_of(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], BaseModel]]:
    """Every section below one, itself included, with its path."""
    if isinstance(part, tuple):
        for place, member in enumerate(part):
            yield from parts_of(member, (*path, place))
    elif isinstance(part, BaseModel):
        yield path, part
        for name, field in fields_of(type(part)).items():
            attribute = next(key for key, own in type(part).model_fields.items() if own is field)
            yield from parts_of(getattr(part, attribute), (*path, name))


def models() -> list[type[BaseModel]]:
    """Every model that a configuration can hold."""
    result: list[type[BaseModel]] = []

    def look(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in result:
            result.append(annotation)
            for field in annotation.model_fields.values():
                look(field.annotation)
        for part in get_args(annotation):
            look(part)

    look(Config)
    return result


# ---------------------------------------------------------------- unknown keys


@thorough
@given(data=st.data())
def test_an_unknown_key_anywhere_is_refused_with_its_path_and_the_nearest_name(load, data):
    config = Config.model_validate(data.draw(configurations))
    content = dump_config(config)
    path, section = data.draw(st.sampled_from([part for part in parts_of(config) if fields_of(type(part[1]))]))
    valid = [*fields_of(type(section))]
    right = data.draw(st.sampled_from(valid))
    cut = data.draw(st.integers(0, len(right) - 1))
    wrong = data.draw(st.sampled_from([right[:cut] + right[cut + 1 :], right[:cut] + "q" + right[cut:], right + "_2"]))
    if wrong in valid or not wrong:
        return
    place: Any = content
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    there = right in place and right != "kind"  # an arm's options hold what was given, and no more
    place[wrong] = place.pop(right) if there and data.draw(st.booleans()) else 1
    message = refused(load, content)
    dotted = ".".join(map(str, [*path, wrong]))
    nearest = max(valid, key=lambda name: difflib.SequenceMatcher(None, name, wrong).ratio())
    if len(right) > 3:  # one letter more or less of two or three leaves no likeness
        assert message == f"unknown key '{dotted}'; did you mean '{nearest}'?"
    assert message.startswith(f"unknown key '{dotted}'; ")


# ---------------------------------------------------------------- contradictions

# what is put into a valid configuration, at which path, and what is said of it
Contradiction = tuple[type[BaseModel], str, Content, str]
LM = {"checkpoint": "folder", "config": None, "preamble": None, "suffix": None, "lora_rank": 0}
LM |= {"frozen_body": False}
TERM_SECTIONS: dict[str, Any] = {name: ObjectiveConfig.model_fields[name].annotation for name in TERMS}
CONTRADICTIONS: list[Contradiction] = [
    (ObjectiveConfig, "objective", {"epsilon": 0.1}, "'epsilon' is an option of the reward term grpo"),
    (TERM_SECTIONS["grpo"], "objective.grpo", {"reward_weight": 1}, "of the reward term distill"),
    (TERM_SECTIONS["distill"], "objective.distill", {"beta": 1}, "write objective.grpo.beta"),
    *(
        (ObjectiveConfig.model_fields[name].annotation, f"objective.{name}", {"beta": 1}, "write objective.grpo.beta")
        for name, gate in GATES.items()
        if gate.options
    ),
    *(
        (section, f"objective.{name}", {"tau": 1}, "of the gate adagrpo: write objective.adagrpo.tau")
        for name, section in TERM_SECTIONS.items()
    ),
    (Config, "", {"ranker": {"folds": 2}, "reward": {"kind": "lambdarank"}}, "ranker.folds cross-fits"),
    (DataConfig, "data", {"logs": ["a"], "marketplace": {}}, "either logs or marketplace"),
    (
        DataConfig,
        "data",
        {"logs": ["a.csv", "b.csv", "./a.csv"], "marketplace": None, "exposures": None},
        "'a.csv' is named twice",
    ),
    (RangeConfig, "rules", {"boosts": [{"range": {"price": {}}, "by": 1}]}, "a range has at_least, below or both"),
    (BoostConfig, "rules", {"boosts": [{"by": 1}]}, "a boost has where, range or both"),
    (
        RulesConfig,
        "rules",
        {"pins": [{"item": "a", "rank": 2}, {"item": "b", "rank": 2}]},
        "pins: rank 2 is there twice",
    ),
    (ItemTable, "data", {"items": "a.csv"}, "data.items: is a path alone"),
    (DataConfig, "data", {"logs": [], "marketplace": None}, "either logs or marketplace"),
    (DataConfig, "data", {"items": None, "shuffle_ties": {"sorted_by": "asin"}}, "give items"),
    (
        DataConfig,
        "data",
        {"logs": ["a"], "marketplace": None, "items": None, "shuffle_ties": None, "refuse": {"unknown_items": True}},
        "give items",
    ),
    (
        DataConfig,
        "data",
        {
            "items": {"path": "a.csv"},
            "shuffle_ties": {"sorted_by": "asin"},
            "split": {"kind": "temporal", "validation_from": 1, "test_from": 2},
        },
        "equal ones are ties: write shuffle_ties: {}",
    ),
    (SplitConfig, "data.split", {"kind": "temporal", "test_from": None}, "validation_from and test_from"),
    (LanguageModelConfig, "policy.lm", LM | {"config": {"model_type": "gpt2"}}, "either config or checkpoint"),
    (LanguageModelConfig, "policy.lm", LM | {"checkpoint": None}, "either config or checkpoint"),
    (
        LanguageModelConfig,
        "policy.lm",
        LM | {"checkpoint": None, "config": {"model_type": "gpt2"}, "preamble": "a"},
        "a preamble or suffix needs",
    ),
    (LanguageModelConfig, "policy.lm", LM | {"dtype": "bfloat16"}, "set frozen_body or lora_rank"),
    (LanguageModelConfig, "policy.lm", LM | {"tokens": ["<a_7>"]}, "has no place for the number"),
    (LanguageModelConfig, "policy.lm", LM | {"tokens": [], "separator": ","}, "tokens that the checkpoint has"),
    (PublishedIds, "tokenizer.published", {"path": "a.json", "column": "sid"}, "a path that ends in .json or .txt"),
    (PublishedIds, "tokenizer.published", {"path": "a.parquet", "column": None}, "the list column of a Parquet file"),
    (PolicyConfig, "policy", {"kind": "causal_lm", "lm": None}, "needs lm"),
    (PolicyConfig, "policy", {"kind": "hybrid", "lm": {"checkpoint": "folder"}}, "no other kind takes it"),
    (RankerConfig, "ranker", {"loss": "sampled", "negatives": 0}, "needs negatives of at least 1"),
    (ArmConfig, "train.arms.0", {"objective": "nll", "gate": "all", "lambda": None}, "takes no gate"),
    (ArmConfig, "train.arms.0", {"objective": "nll", "gate": None, "lambda": 1.0}, "takes no lambda"),
    (TrainConfig, "train", {"arms": [{"objective": "grpo"}, {"objective": "grpo"}]}, "two arms have the same name"),
    (WeightedOptions, "reward", {"kind": "weighted", "members": [{}], "weights": [1, 2]}, "2 weights for 1 members"),
]


@pytest.mark.parametrize(("model", "path", "changes", "said"), CONTRADICTIONS)
@settings(thorough, max_examples=2)
@given(content=configurations)
def test_keys_that_contradict_each_other_are_refused_wherever_they_stand(load, model, path, changes, said, content):
    content = dump_config(Config.model_validate(content))
    content["train"]["arms"] = [{"objective": "distill"}]
    content["ranker"]["folds"] = 0
    content.setdefault("rules", {})
    place: Any = content
    for part in [int(part) if part.isdigit() else part for part in path.split(".") if part]:
        if place[part] is None or model is WeightedOptions:
            place[part] = {}
        place = place[part]
    place.update(changes)
    message = refused(load, content)
    assert message.startswith((f"{path}: ", f"{path}.") if path else said) and said in message


def test_every_rule_between_keys_has_a_contradiction():
    of_every_section = set(Section.__pydantic_decorators__.model_validators)
    ruled = {model for model in models() if model.__pydantic_decorators__.model_validators.keys() - of_every_section}
    assert ruled == {model for model, *_ in CONTRADICTIONS}
