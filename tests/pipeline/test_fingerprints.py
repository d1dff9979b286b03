"""Which stages are made again when a key of the configuration changes: those that declare to read it, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from adagrpo.config import Config, read_settings
from adagrpo.config.evaluation import EvaluationConfig
from adagrpo.lists.table import baselines
from adagrpo.pipeline import (
    Run,
)
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import RUN, Declaration
from adagrpo.storage.hashes import hash_json

BESIDE: list[tuple[dict[str, Any], set[str]]] = [
    ({"kind": "noise"}, set()),
    ({"kind": "sequential"}, set()),
    ({"kind": "sequential", "checkpoint": "elsewhere"}, {"ranker.heads"}),
    ({"kind": "feature"}, {"ranker.user_share"}),
    ({"kind": "weighted", "weights": [1], "members": [{"kind": "feature"}]}, {"ranker.user_share"}),
    ({"kind": "factory", "function": "m:f"}, {"policy", "ranker.user_share"}),
]
TRAINED = {"train/nll", "train/adagrpo"}
ALONE = {f"evaluate/{name}" for name in baselines(Config.model_validate({"data": {"logs": ["log.csv"]}}))}
EVALUATED = {"evaluate/sft"} | {f"evaluate/{arm}/{kind}" for arm in ("nll", "adagrpo") for kind in ("best", "final")}
JUDGED = {"diagnose"}  # what reads the beams of validation cases
DECODED = {"sft", "reranking", *TRAINED, *EVALUATED, *JUDGED}

CHANGES: list[tuple[str, Any, set[str]]] = [
    ("name", "other", set()),
    ("compare.level", 0.9, set()),
    ("data.max_expansion", 7, set()),
    ("sft.checkpoint_seconds", 7, set()),
    ("train.fit.checkpoint_seconds", 7, set()),
    ("ranker.fit.checkpoint_seconds", 7, set()),
    ("ranker.lambdarank.trees", 7, set()),
    ("seed", 1, {"vectors", "tokenize", "sft", "ranker", *TRAINED, "ranker/report", *JUDGED, *ALONE}),
    ("max_history", 7, {*DECODED, "ranker", *ALONE, "ranker/report"}),
    ("data.min_user_interactions", 2, {"prepare"}),
    ("tokenizer.window", 7, {"vectors", "tokenize", "ranker"}),
    ("policy.dropout", 0.3, {*DECODED, "ranker/report"}),
    ("sft.learning_rate", 0.5, {"sft"}),
    ("ranker.dropout", 0.4, {"ranker", "diagnose"}),
    ("ranker.fit.learning_rate", 0.5, {"ranker", "diagnose"}),
    ("objective.adagrpo.tau", 0.7, {"train/adagrpo"}),
    ("objective.lambda", 7, {"train/adagrpo"}),
    ("objective.grpo.epsilon", 0.7, {"train/adagrpo"}),
    ("objective.distill.reward_weight", 7, set()),
    ("objective.oracle.oracle_agreement", 0.5, set()),
    ("objective.bernoulli.admission_rate", 0.5, set()),
    ("train.fit.learning_rate", 0.5, TRAINED),
    ("train.fit.batch_size", 7, TRAINED),
    ("train.rl_split", 0.5, {"sft", *TRAINED}),
    ("train.gradient_norms_every", 7, {"train/adagrpo"}),
    ("decide.exposure_power", 0.0, {"reranking", *JUDGED}),
    ("decide.refit", False, set()),
    ("decide.control", "today.csv", set()),
    ("evaluation.beam_width", 12, {*DECODED, *ALONE, "report/paired"}),
    ("evaluation.exclude_history", True, {*DECODED, "ranker", *ALONE}),
]


@pytest.fixture(scope="module")
def walk(finished: Path, data: Path, world: Any) -> Any:
    """What decides each stage of the tiny world beside its inputs, by its name; nothing is made."""

    def stages(changes: Mapping[str, Any]) -> dict[str, str]:
        run, result = world.run(finished, data, **changes), {}

        for name, declare in run.stages.declared(run.config, [*RUN, "diagnose"]).items():
            wanted = declare(run)
            settings = read_settings(run.config, wanted.settings, wanted.but)
            result[name] = hash_json({"settings": settings, "also": wanted.also})
        return result

    unchanged = stages({})
    return lambda changes: stages(changes) if changes else unchanged


def nested(key: str, value: Any) -> dict[str, Any]:
    *above, name = key.split(".")
    content = {name: value}
    for part in reversed(above):
        content = {part: content}
    return content


@pytest.mark.parametrize(("key", "value", "again"), CHANGES, ids=[key for key, _, _ in CHANGES])
def test_a_key_makes_the_stages_again_that_declare_it(walk: Any, key: str, value: Any, again: set[str]) -> None:
    before, after = walk({}), walk(nested(key, value))
    assert {name for name in before if before[name] != after[name]} == again


def test_a_default_that_is_written_down_changes_nothing(walk: Any) -> None:
    written = {
        "data": {"split": {"kind": "leave_one_out"}, "min_rating": None},
        "tokenizer": {"window": 3, "rq_vae": {"epochs": 100}},
        "policy": {"kind": "compact", "lm": None},
        "sft": {"warmup": 0.02},
        "ranker": {"folds": 0, "propensity_floor": 0.01},
        "reward": {"kind": "sequential"},
        "objective": {"lambda": 1.0, "grpo": {"beta": 0.0}, "adagrpo": {"rho_from": "top"}, "miss_min": 0.5},
        "train": {"rl_split": 0.0},
        "evaluation": {"exclude_history": False},
    }
    assert walk(written) == walk({})


def test_an_option_of_a_gate_counts_as_when_it_had_no_section(world: Any, finished: Path, data: Path) -> None:
    """So an arm that was trained then is not trained again."""
    objective = {"adagrpo": {"tau": 0.7}, "bernoulli": {"admission_rate": 0.2}}
    run = world.run(finished, data, objective=objective, train={"arms": ["adagrpo", "adagrpo-bernoulli"]})
    arms = run.stages.declared(run.config, ["train"])
    also = {name: declare(run).also for name, declare in arms.items() if name.startswith("train/")}
    common = {"objective": "adagrpo", "lambda": 1.0, "num_generations": 4, "tau": 0.7, "tau_reward": 1.0, "rho": 0.0}
    assert also["train/adagrpo"] == {"arm": common | {"gate": "adagrpo"}}
    assert also["train/adagrpo-bernoulli"] == {"arm": common | {"gate": "bernoulli", "admission_rate": 0.2}}


class Wider(EvaluationConfig):
    """The section after an option more."""

    added: Literal["no", "yes"] = "no"


class Later(Config):
    """A configuration that has it."""

    evaluation: Wider = Wider()


@pytest.mark.parametrize("given", [{}, {"exclude_history": True}, {"beam_width": 50}])
def test_a_new_option_with_a_default_changes_nothing(given: dict[str, Any]) -> None:
    content = {"data": {"logs": ["log.csv"]}, "evaluation": given}
    now, later = Config.model_validate(content), Later.model_validate(content)
    for reads in (["evaluation"], ["evaluation.beam_width"]):
        assert read_settings(now, reads) == read_settings(later, reads)
    chosen = Later.model_validate(content | {"evaluation": {**given, "added": "yes"}})
    assert read_settings(chosen, ["evaluation"]) == {
        "evaluation": {**{key: value for key, value in given.items() if value != 50}, "added": "yes"}
    }


def config(**sections: Any) -> Config:
    return Config.model_validate({"data": {"logs": ["log.csv"]}, **sections})


def test_a_section_is_held_against_the_default_of_its_place() -> None:
    """sft has 60 epochs where the recipe does not say, though a fit has one by default."""
    assert read_settings(config(), ["sft"]) == {}
    assert read_settings(config(sft={}), ["sft"]) == {}
    assert read_settings(config(sft={"epochs": 1}), ["sft"]) == {
        "sft": {"patience": 3}
    }  # as the class has it, not the place
    assert read_settings(config(sft={"epochs": 60}), ["sft", "seed"]) == {}
    assert read_settings(config(sft={"epochs": 3, "checkpoint_seconds": 1}), ["sft"]) == {
        "sft": {"epochs": 3.0, "patience": 3}
    }


def test_rewards_are_told_apart_by_their_kind() -> None:
    def read(reward: dict[str, Any]) -> dict[str, Any]:
        return read_settings(config(reward=reward), ["reward"])

    assert read({"kind": "sequential"}) == {}
    assert read({"kind": "noise", "seed": 0}) == {"reward": {"kind": "noise"}}
    members = [{"kind": "lambdarank"}, {"kind": "http", "url": "http://a/b", "retries": 9}]
    assert read({"kind": "weighted", "weights": [1, 2], "members": members}) == {
        "reward": {
            "kind": "weighted",
            "weights": [1, 2],
            "members": [{"kind": "lambdarank"}, {"kind": "http", "url": "http://a/b"}],
        }
    }


def test_what_is_not_read_below_a_section() -> None:
    arguments = config(ranker={"folds": 3, "width": 8, "fit": {"epochs": 2}})
    assert read_settings(arguments, ["ranker"], ["ranker.folds", "ranker.fit"]) == {"ranker": {"width": 8}}
    assert read_settings(arguments, ["ranker.folds", "ranker.fit.epochs"]) == {
        "ranker.folds": 3,
        "ranker.fit.epochs": 2.0,
    }


@pytest.mark.parametrize("key", ["sftt", "sft.epoch", "sfft.epochs", "objective.lambda"])
def test_a_key_that_names_nothing_is_an_error(key: str) -> None:
    with pytest.raises(KeyError, match=f"no key '{key}'"):
        read_settings(config(), [key])


@pytest.mark.parametrize("key", ["threads", "name", "compare", "sft.checkpoint_seconds", "data.max_expansion"])
def test_a_key_that_decides_no_result_is_read_by_no_stage(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' decides no result"):
        read_settings(config(), [key])


def test_the_version_makes_a_stage_again(tmp_path: Path) -> None:
    run, made = Run(tmp_path / "run", config(), tmp_path), []

    def build(work: Path) -> None:
        made.append(work)
        (work / "report.json").write_text("{}", encoding="utf-8")

    for version in (1, 1, 2):
        make(run, "a", Declaration(build, [], ["report.json"], settings=("seed",), version=version))
    assert len(made) == 2


@pytest.mark.parametrize(("reward", "keys"), BESIDE)
def test_what_a_reward_reads_of_other_sections_is_declared(reward: dict[str, Any], keys: set[str]) -> None:
    config = Config.model_validate({"data": {"logs": ["a.csv"]}, "reward": reward})
    assert config.reward.read_beside == keys
    assert read_settings(config, sorted(keys)) == {}  # each names a key, here as by default


def test_a_reward_that_counts_other_users_is_another_one(copied: Path, world: Any, data: Path) -> None:
    run = world.run(copied, data, reward={"kind": "feature"})
    run.stage(f"train/{run.config.train.arms[1].name}")
    for share, made in ((1.0, set()), (0.3, {"train/adagrpo"})):
        run = world.run(copied, data, reward={"kind": "feature"}, ranker={"user_share": share})
        run.stage(f"train/{run.config.train.arms[1].name}")
        assert {name for name in run.made if name.startswith("train")} == made
