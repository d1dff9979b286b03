"""Configuration: YAML in and out, unknown keys and wrong values named in one line, `--set`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adagrpo.config import ArmConfig, Config, ObjectiveConfig, dump_config, load_config, resolve_config
from adagrpo.config.reward import SequentialOptions
from adagrpo.config.training import PRESETS
from adagrpo.config.yaml_text import dump_yaml
from adagrpo.errors import UserError
from adagrpo.objective import GATES
from adagrpo.objective.terms import OBJECTIVES

MINIMAL = {"data": {"logs": ["logs.csv"]}}
CHECKPOINT = {"checkpoint": "a"}


@pytest.fixture
def recipe(tmp_path: Path):
    """Write a recipe and return its path."""

    def write(content: object) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_defaults_survive_a_file(recipe):
    config = load_config(recipe(MINIMAL))
    assert load_config(recipe(dump_config(config))) == config
    assert "lambda" in dump_config(config)["objective"]


def written(folder: Path, **recipes: object) -> Path:
    """Recipes by name; returns the path of the first one."""
    for name, content in recipes.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return folder / f"{next(iter(recipes)).replace('__', '/')}.yaml"


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        study__own={"base": "../mine.yaml", "seed": 7, "train": {"arms": ["nll"]}, "data": {"logs": ["b.csv"]}},
        mine={"base": "plain.yaml", "sft": {"epochs": 3}, "data": {"columns": {"user": "u"}}, "threads": None},
        plain={
            "name": "plain",
            "seed": 1,
            "data": {"logs": ["a.csv", "c.csv"], "columns": {"user": "x", "item": "i"}},
            "sft": {"epochs": 9, "batch_size": 8},
            "train": {"arms": ["nll", "mixture"], "fit": {"epochs": 2}},
            "threads": 2,
        },
    )
    whole = {
        "name": "plain",
        "seed": 7,  # the file's own
        "data": {"logs": ["b.csv"], "columns": {"user": "u", "item": "i"}},  # a list replaces, mappings merge
        "sft": {"epochs": 3, "batch_size": 8},
        "train": {"arms": ["nll"], "fit": {"epochs": 2}},
        "threads": None,  # and so does nothing
    }
    config = load_config(path)
    assert config == Config.model_validate(whole) and "base" not in dump_config(config)
    assert load_config(path, ["sft.epochs=5"]).sft.epochs == 5  # --set comes last
    assert "unknown key 'base'" in refused(path, "base=plain.yaml")


def test_a_reward_of_another_kind_leaves_the_keys_of_its_bases_behind(tmp_path: Path) -> None:
    noise = {"kind": "weighted", "weights": [1.0, 2.0], "members": [{"kind": "lambdarank"}, {"kind": "noise"}]}
    path = written(tmp_path, own={"base": "mine.yaml", "reward": {"kind": "noise"}}, mine=MINIMAL | {"reward": noise})
    assert dump_config(load_config(path))["reward"]["kind"] == "noise"
    path = written(
        tmp_path, own={"base": "mine.yaml", "reward": {"weights": [1.0, 3.0]}}, mine=MINIMAL | {"reward": noise}
    )
    assert dump_config(load_config(path))["reward"]["weights"] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        ({"own": {"base": "no.yaml"}}, "no.yaml: no such recipe (base of"),
        ({"own": {"base": ["no.yaml"]}}, "own.yaml: base is the path of one recipe, relative to this file"),
        (
            {"own": {"base": "other.yaml"}, "other": "[1]"},
            "other.yaml: a recipe is a mapping of sections",
        ),
        ({"own": {"base": "other.yaml"}, "other": "a: [1"}, "other.yaml: not a YAML file"),
        ({"own": {"base": "."}}, "not a YAML file"),
        ({"own": {"base": "own.yaml"}}, "own.yaml: base comes back to itself: "),
        ({"own": {"base": "b.yaml"}, "b": {"base": "../{}/own.yaml"}}, "b.yaml: base comes back to itself: "),
        ({"own": {"base": "other.yaml"}, "other": {"sede": 1}}, "own.yaml: unknown key 'sede'; did you mean 'seed'?"),
    ],
)
def test_a_base_that_is_none_is_refused_in_one_line(tmp_path: Path, recipes: dict[str, object], said: str) -> None:
    if isinstance(content := recipes.get("b"), dict):
        recipes = recipes | {"b": {"base": content["base"].format(tmp_path.name)}}
    assert said in refused(written(tmp_path, **recipes))


def test_bases_are_not_stacked_without_end(tmp_path: Path) -> None:
    recipes: dict[str, object] = {f"r{number}": {"base": f"r{number + 1}.yaml"} for number in range(8)}
    assert load_config(written(tmp_path, **recipes, r8=MINIMAL)).data.logs == ("logs.csv",)
    path = written(tmp_path, **recipes, r8={"base": "r9.yaml"}, r9=MINIMAL)
    assert "r0.yaml: more than 8 recipes, each the base of another" in refused(path)


def test_the_configuration_is_frozen(recipe):
    with pytest.raises(ValidationError):
        load_config(recipe(MINIMAL)).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "found", "hint"),
    [
        ("sede=1", "'sede'", "'seed'"),
        ("objective.num_generation=4", "'objective.num_generation'", "'num_generations'"),
        ("objective.lamda=4", "'objective.lamda'", "'lambda'"),
        ("train.fit.learning_rat=4", "'train.fit.learning_rat'", "'learning_rate'"),
        ("data.columns.users=u", "'data.columns.users'", "'user'"),
        ("data.split.test_form=4", "'data.split.test_form'", "'test_from'"),
        ("data.items={path: p, textt: [a]}", "'data.items.textt'", "'text'"),
        ("ranker.fit.epoch=4", "'ranker.fit.epoch'", "'epochs'"),
        ("tokenizer.published={path: p, colum: c}", "'tokenizer.published.colum'", "'column'"),
        ("train.arms=[{objective: nll}, {objective: grpo, lamda: 2}]", "'train.arms.1.lamda'", "'lambda'"),
        ("train.arms=[{objectiv: nll}]", "'train.arms.0.objectiv'", "'objective'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(recipe, override, found, hint):
    path = recipe(MINIMAL)
    message = refused(path, override)
    assert message.startswith(f"{path}: unknown key {found}; did you mean {hint}?")


def test_an_unknown_key_of_the_marketplace_is_named(recipe):
    message = refused(recipe({"data": {"marketplace": {"user": 5}}}))
    assert "unknown key 'data.marketplace.user'; did you mean 'users'?" in message


def test_the_former_name_of_the_history_switch_is_refused_with_the_present_one(recipe):
    message = refused(recipe(MINIMAL), "evaluation.mask_history=true")
    assert "unknown key 'evaluation.mask_history'; did you mean 'exclude_history'?" in message


def test_an_unknown_key_without_a_near_one_lists_the_valid_keys(recipe):
    message = refused(recipe(MINIMAL), "evaluation.zzz=1")
    assert "unknown key 'evaluation.zzz'; valid keys here: beam_width, batch_size, exclude_history" in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=-1", ["seed", "greater than or equal to 0", "-1"]),
        ("seed=2147483648", ["seed", "less than 2147483648"]),
        ("objective.tau=.nan", ["objective.adagrpo.tau", "nan"]),
        ("objective.rollout_miss.q_min=1.5", ["objective.rollout_miss.q_min", "1.5"]),
        ("objective.lambda=-1", ["objective.lambda", "-1"]),
        ("data.min_rating=.nan", ["data.min_rating", "finite"]),
        ("objective.grpo.beta=.inf", ["objective.grpo.beta", "finite"]),
        ("objective.num_generations=1", ["objective.num_generations", "2"]),
        ("objective.rollout=gumbell", ["objective.rollout", "'sample'", "gumbell"]),
        ("objective.grpo.epsilonn=1", ["unknown key 'objective.grpo.epsilonn'; did you mean 'epsilon'?"]),
        ("objective.reward_weight=2", ["an option of the reward term distill: write objective.distill.reward_weight"]),
        ("objective.best_of_n.x=0.1", ["unknown key 'objective.best_of_n.x'; valid keys here: none"]),
        ("train.fit.epochs=0", ["train.fit.epochs", "greater than 0"]),
        ("train.fit.batch_size=two", ["train.fit.batch_size", "integer", "two"]),
        ("policy.dropout=1", ["policy.dropout", "less than 1"]),
        ("tokenizer.vectors={pixels: 1}", ["tokenizer.vectors.pixels", "'attributes'"]),
        ("evaluation.beam_width=5", ["evaluation.beam_width", "10"]),
        ("compare.metric=ndgc@10", ["compare.metric", "no metric 'ndgc@10'", "did you mean 'ndcg@10'?"]),
        ("compare.margins={hr@500: 0.1}", ["compare.margins", "no metric 'hr@500'", "did you mean 'hr@50'?"]),
        ("objective=3", ["objective", "3"]),
        ("train.arms=[{objective: mixture, gate: random}]", ["train.arms.0", "'mixture' takes no gate"]),
        ("train.arms=[{objective: adagrpo}, {objective: adagrpo, gate: adagrpo}]", ["same name"]),
        ("train.arms=[{gate: all}]", ["train.arms.0.objective", "required"]),
        (
            "data.split={kind: temporal, validation_from: 2024-02-01, test_from: 2024-01-31}",
            ["validation_from (2024-02-01)", "(2024-01-31)"],
        ),
        ("data.split={kind: temporal, validation_from: 2024-02-01, test_from: 3}", ["two dates or two numbers"]),
        ("data.split={kind: temporal, validation_from: today, test_from: 3}", ["'today' is neither a number"]),
        ("data.split={kind: temporal, validation_from: 5, test_from: 3}", ["data.split: validation_from (5)", "(3)"]),
        ("policy.width=97", ["policy: width (97) must be a multiple of heads (4)"]),
        ("ranker.heads=3", ["ranker: width (128) must be a multiple of heads (3)"]),
        ("tokenizer.vectors={}", ["tokenizer.vectors", "at least 1"]),
        ("sft.batch_size=yes", ["sft.batch_size: is a number", "True"]),
        ("threads=on", ["threads: is a number"]),
        ("tokenizer.vectors={text: true}", ["tokenizer.vectors: is a number"]),
        ("evaluation.eligible={include: {price: 1.5}}", ["evaluation.eligible.include.price.0", "string", "1.5"]),
        (f"objective.distill.reward_weight=1{'0' * 400}", ["objective.distill.reward_weight: Input should be"]),
        ("data.split={2024: temporal}", ["data.split.2024: Keys should be strings"]),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(recipe, override, parts):
    path = recipe(MINIMAL)
    message = refused(path, override)
    assert message.startswith(f"{path}: {parts[0]}") or parts[0] in message
    for part in parts:
        assert part in message


def test_set_reaches_nested_keys_and_makes_missing_sections(recipe):
    config = load_config(
        recipe(MINIMAL | {"train": {"fit": {"epochs": 3}}}),
        [
            "objective.lambda=0.5",
            "objective.constrained=true",
            "train.fit.learning_rate=1e-3",
            "data.columns.timestamp=when",
            "data.keep_events=[buy, view]",
            "threads=null",
            "objective.lambda=0.25",
            "name=a=b",
        ],
    )
    assert config.objective.lambda_ == 0.25 and config.objective.constrained
    assert config.train.fit.learning_rate == 1e-3 and config.train.fit.epochs == 3
    assert config.data.columns.timestamp == "when" and config.data.keep_events == ("buy", "view")
    assert config.name == "a=b" and config.data.logs == ("logs.csv",)


@pytest.mark.parametrize("name", ["0", "User #", "user: id", "*user", "on", "1e6", "[a", "2026-01-01"])
def test_the_name_of_a_column_is_no_yaml(recipe, name):
    for text in (name, json.dumps(name)):
        config = load_config(recipe(MINIMAL), [f"data.columns.user={text}"])
        assert config.data.columns.user == name
        assert load_config(recipe(dump_yaml(dump_config(config)))) == config
    columns = load_config(recipe(MINIMAL), ["data.columns.timestamp=null", "data.columns.event="]).data.columns
    assert columns.timestamp is None and columns.event is None


def test_a_number_without_a_point_is_no_text(recipe):
    path = recipe(MINIMAL | {"policy": {"kind": "causal_lm"}})
    config = load_config(path, ["policy.lm.config={model_type: qwen3, rms_norm_eps: 1e-6, scale: 2E+3, of: 1e}"])
    assert config.policy.lm.config == {"model_type": "qwen3", "rms_norm_eps": 1e-6, "scale": 2000.0, "of": "1e"}


@pytest.mark.parametrize("override", ["objective.lambda", "=3", "objective..tau=1", ".tau=1", "objective.=1"])
def test_a_malformed_override_is_refused(recipe, override):
    assert refused(recipe(MINIMAL), override).startswith(f"--set {override}: write key=value")


def test_an_override_through_a_value_or_of_bad_yaml_is_refused(recipe):
    assert "'seed' is not a section" in refused(recipe(MINIMAL | {"seed": 1}), "seed.x=1")
    assert "'arms' is not a section" in refused(recipe(MINIMAL | {"train": {"arms": []}}), "train.arms.0=1")
    assert "is not YAML" in refused(recipe(MINIMAL), "name=[a")


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: [", "not a YAML file"), ("- a\n", "this is list"), ("", "this is NoneType"), ("3", "this is int")],
)
def test_a_file_that_is_no_recipe_is_refused(recipe, text, part):
    path = recipe(text)
    message = refused(path)
    assert str(path) in message and part in message


def test_a_key_that_is_given_twice_is_refused(recipe):
    sections = "tokenizer: {levels: 2}\nseed: 3\ntokenizer: {codes: 16}\n"
    assert "line 3: the key 'tokenizer' is given twice, first in line 1" in refused(recipe(sections))
    assert "the key 'levels' is given twice" in refused(recipe("tokenizer:\n  levels: 2\n  levels: 3\n"))
    assert "the key 'a' is given twice" in refused(recipe("arms: [{objective: nll}, {a: 1, a: 1}]\n"))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    assert "no such recipe" in refused(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a YAML file" in refused(tmp_path / "binary.yaml")
    assert "not a YAML file" in refused(tmp_path)


def test_names_of_arms(recipe):
    arms = (
        "[{objective: nll}, {objective: adagrpo}, {objective: adagrpo, gate: random}, {objective: mixture, lambda: 2}]"
    )
    config = load_config(recipe(MINIMAL), [f"train.arms={arms}"])
    names = ["nll", "adagrpo", "adagrpo-random", "mixture-lambda2"]
    assert [arm.name for arm in config.train.arms] == names
    assert load_config(recipe(MINIMAL), [f"train.arms=[{', '.join(names)}]"]).train.arms == config.train.arms


def test_a_preset_says_what_it_is(recipe):
    config = load_config(recipe(MINIMAL), ["train.arms=[distill-tuned]", "objective.adagrpo.tau=0.7"])
    (arm,) = config.train.arms
    assert arm == ArmConfig.parse("distill-tuned") and (arm.objective, arm.name) == ("distill", "distill-tuned")
    assert arm.left_to_validation(ObjectiveConfig()) == "reward_weight"
    assert dump_config(config)["train"]["arms"][0] == {
        "objective": "distill",
        "gate": None,
        "lambda": 5.0,
        "pressure": None,
        "name": "distill-tuned",
        "options": {
            "num_generations": 32,
            "rollout": "beam",
            "exclude_history": True,
            "constrained": True,
            "rl_positions": "end",
            "distill": {"reward_weight": "validation", "validity_weight": 0.0, "mass_weight": 1.0},
        },
    }
    (settings,) = config.settings_of_arms().values()
    assert (settings["gate"], settings["lambda"], settings["adagrpo"]["tau"]) == ("all", 5.0, 0.7)
    assert (
        settings["distill"] == {"reward_weight": "validation", "validity_weight": 0.0, "mass_weight": 1.0}
        and "grpo" not in settings
    )
    text = "train.arms.0: objective 'distil-tuned': there is none of that name; did you mean 'distill-tuned'?"
    assert text in refused(recipe(MINIMAL), "train.arms=[distil-tuned]")


def test_the_settings_of_an_arm_are_what_its_term_reads(recipe):
    own = "{objective: mixture, name: a, lambda: 2, options: {grpo: {epsilon: 0.1}}}"
    arms = f"[nll, {own}, adagrpo-oracle, adagrpo-bernoulli]"
    changes = ["objective.grpo.beta=0.5", "objective.distill.reward_weight=3", "objective.num_iterations=2"]
    config = load_config(recipe(MINIMAL), [f"train.arms={arms}", *changes])
    nll, mixture, oracle, rate = (arm.settings(config.objective, defaults=False) for arm in config.train.arms)
    assert nll == {"objective": "nll", "num_iterations": 2}
    common = {"num_iterations": 2, "grpo": {"beta": 0.5}}
    given = {"objective": "mixture", "gate": "all", "lambda": 2.0, "grpo": {"epsilon": 0.1, "beta": 0.5}}
    assert mixture == common | given
    assert oracle == common | {"objective": "adagrpo", "gate": "oracle", "lambda": 1.0}
    full = config.settings_of_arms()
    assert full["a"]["grpo"] == {
        "epsilon": 0.1,
        "epsilon_high": 0.2,
        "beta": 0.5,
        "invalid_penalty": 1.0,
        "scale_rewards": True,
    }
    assert rate == oracle | {"gate": "bernoulli"}
    read = {name: {"oracle", "bernoulli"} & set(settings) for name, settings in full.items()}
    assert read["adagrpo-oracle"] == {"oracle"} and read["adagrpo-bernoulli"] == {"bernoulli"}
    assert not read["a"] and not read["nll"]
    assert not {"distill", "best_of_n"} & set(full["a"])


def test_a_pressure_takes_the_place_of_lambda_where_there_is_something_to_press(recipe):
    names = "nll, grpo, adagrpo, adagrpo-none, mixture-lambda2, mixture-pressure0.5, adagrpo-random-pressure2"
    config = load_config(recipe(MINIMAL), [f"train.arms=[{names}]", "objective.pressure=0.3", "objective.lambda=4"])
    wanted = [arm.pressure_of(config.objective) for arm in config.train.arms]
    assert wanted == [None, None, 0.3, None, None, 0.5, 2.0]
    assert [arm.name for arm in config.train.arms] == names.split(", ")
    settings = [arm.settings(config.objective, defaults=False) for arm in config.train.arms]
    weights = [(entry.get("lambda"), entry.get("pressure")) for entry in settings]
    assert weights == [(None, None), (4.0, None), (None, 0.3), (4.0, None), (2.0, None), (None, 0.5), (None, 2.0)]
    # how many steps it is measured on is read where it is measured, and nowhere else
    config = load_config(recipe(MINIMAL), ["train.arms=[mixture, mixture-pressure1]", "objective.pressure_steps=4"])
    given, pressed = (arm.settings(config.objective, defaults=False) for arm in config.train.arms)
    assert "pressure_steps" not in given and pressed["pressure_steps"] == 4


def test_another_kind_of_reward_takes_no_keys_of_the_one_before(recipe):
    written = MINIMAL | {"reward": {"kind": "sequential", "checkpoint": None}}  # as run.yaml has it
    assert load_config(recipe(written), ["reward.kind=lambdarank"]).reward.kind == "lambdarank"
    kept = load_config(recipe(written), ["reward.checkpoint=a", "reward.kind=sequential"]).reward
    assert isinstance(kept, SequentialOptions) and kept.checkpoint == "a"


@pytest.mark.parametrize("whole", [False, True])
def test_keys_of_a_reward_may_be_set_before_its_kind(recipe, whole):
    """In whatever order they are given: those of the recipe's own reward go, those of the command stay."""
    path = recipe(MINIMAL | {"reward": {"kind": "shuffled", "seed": 3, "members": [{"kind": "lambdarank"}]}})
    settings = ["reward={seed: 5}"] if whole else ["reward.seed=5"]
    reward = load_config(path, [*settings, "reward.kind=noise"]).reward
    assert reward.model_dump() == {"kind": "noise", "seed": 5}


def test_a_reward_that_names_no_kind_is_a_sequential_one(tmp_path: Path):
    path = written(
        tmp_path, own={"base": "b.yaml", "reward": {"kind": "sequential"}}, b=MINIMAL | {"reward": CHECKPOINT}
    )
    for kept in (load_config(path), load_config(tmp_path / "b.yaml", ["reward.kind=sequential"])):
        assert kept.reward == SequentialOptions(checkpoint="a")


OF_ADAGRPO = {"tau": 0.3, "tau_reward": 0.4, "rho": 0.2, "rho_from": "bottom"}
EARLIER = OF_ADAGRPO | {"miss_min": 0.1, "q_min": 0.6, "admission_rate": 0.7, "oracle_agreement": 0.8}


def test_options_of_gates_are_read_where_earlier_recipes_have_them(recipe):
    arm = {"objective": "adagrpo", "name": "own", "options": {"rho": 0.9}}
    config = load_config(recipe(MINIMAL | {"objective": EARLIER, "train": {"arms": [arm]}}))
    assert config.objective.of_gate("adagrpo") == OF_ADAGRPO
    assert config.objective.of_gate("rollout_miss") == {"miss_min": 0.1, "q_min": 0.6}
    assert config.objective.of_gate("bernoulli") == {"admission_rate": 0.7}
    assert config.objective.of_gate("oracle") == {"oracle_agreement": 0.8}
    assert config.objective.of_gate("random") == {}
    own = config.train.arms[0]
    assert own.resolved_objective(config.objective).of_gate("adagrpo") == OF_ADAGRPO | {"rho": 0.9}
    assert dump_config(config)["train"]["arms"][0]["options"] == {"adagrpo": {"rho": 0.9}}


@pytest.mark.parametrize(
    ("written", "overrides", "tau"),
    [
        ({"tau": 0.3}, ["objective.adagrpo.tau=0.4"], 0.4),
        ({"adagrpo": {"tau": 0.3}}, ["objective.tau=0.4"], 0.4),
        ({}, ["objective.tau=0.3", "objective.adagrpo.tau=0.4"], 0.4),
        ({}, ["objective.adagrpo.tau=0.3", "objective.tau=0.4"], 0.4),
        ({}, ["objective={tau: 0.3}", "objective.adagrpo.tau=0.4"], 0.4),
        ({"tau": 0.3}, ["objective.adagrpo.rho=0.1"], 0.3),
    ],
)
def test_what_is_set_last_counts_however_it_is_written(recipe, written, overrides, tau):
    assert load_config(recipe(MINIMAL | {"objective": written}), overrides).objective.adagrpo.tau == tau


@pytest.mark.parametrize(
    ("base", "own"), [({"tau": 0.3}, {"adagrpo": {"tau": 0.4}}), ({"adagrpo": {"tau": 0.3}}, {"tau": 0.4})]
)
def test_a_recipe_holds_over_its_base_however_either_writes_a_gate_s_option(tmp_path: Path, base, own):
    path = written(tmp_path, own={"base": "b.yaml", "objective": own}, b=MINIMAL | {"objective": base})
    assert load_config(path).objective.adagrpo.tau == 0.4


def test_an_arm_with_options_of_its_own(recipe):
    arms = "[{objective: distill, name: taught, lambda: 2, options: {rollout: beam, num_generations: 32}}]"
    config = load_config(
        recipe(MINIMAL), [f"train.arms={arms}", "objective.adagrpo.tau=0.7", "objective.num_generations=4"]
    )
    arm = config.train.arms[0]
    assert (arm.name, arm.lambda_) == ("taught", 2.0)
    seen = arm.resolved_objective(config.objective)
    assert seen == config.objective.model_copy(update={"rollout": "beam", "num_generations": 32})
    assert seen.adagrpo.tau == 0.7 and config.objective.rollout == "sample"
    written = dump_config(config)
    assert written["train"]["arms"][0]["options"] == {"rollout": "beam", "num_generations": 32}
    assert Config.model_validate(written).train.arms[0].resolved_objective(config.objective) == seen


@pytest.mark.parametrize(
    ("arm", "text"),
    [
        ("{objective: adagrpo, options: {tau: 1}}", "an arm with options needs a name"),
        ("{objective: adagrpo, name: a, options: {adagrpo: {tua: 1}}}", "options.adagrpo.tua'; did you mean 'tau'?"),
        (
            "{objective: adagrpo, name: a, options: {tau: -1}}",
            "train.arms.0.options.adagrpo.tau: Input should be greater",
        ),
        ("{objective: distill, name: a, options: {distill: {reward_weight: -1}}}", "or 'validation' (found -1)"),
        (
            "{objective: distill, name: a, options: {distill: {reward_weight: test}}}",
            "reward_weight: a number",
        ),
        ("{objective: adagrpo, name: a, options: {lambda: 1}}", "an arm has a lambda of its own"),
        ("{objective: adagrpo, name: a, options: {pressure: 1}}", "an arm has a pressure of its own"),
        ("{objective: adagrpo, lambda: 1, pressure: 1}", "an arm takes one of them"),
        ("{objective: adagrpo, pressure: 0}", "pressure: Input should be greater than 0 (found 0)"),
        ("{objective: grpo, pressure: 1}", "objective 'grpo' takes no pressure: it lacks a reward term or an anchor"),
        ("{objective: nll, pressure: 1}", "objective 'nll' takes no pressure: it lacks a reward term or an anchor"),
        ("{objective: adagrpo, gate: none, pressure: 1}", "takes no pressure: no reward is admitted"),
        (
            "{objective: adagrpo, name: a, options: {admission_rate: 0}}",
            "admission_rate: Input should be greater than 0",
        ),
        ("{objective: adagrpo, name: ../a}", "name '../a': letters, digits"),
        ("{objective: adagrpo, name: sft}", "name 'sft' means something already"),
        ("{objective: adagrpo, name: mixture-lambda2}", "name 'mixture-lambda2' means something already"),
        ("{objective: adagrpo, name: a, options: {rl_positions: end}}", "the gate 'adagrpo' reads logged items"),
        ("{objective: adagrp}", "objective: there is no objective 'adagrp'; did you mean 'adagrpo'?"),
        (
            "{objective: adagrpo, name: a, options: {epsilon: 1}}",
            "write objective.grpo.epsilon, or options.grpo",
        ),
        (
            "{objective: adagrpo, name: a, options: {distill: {reward_weight: 2}}}",
            "options.distill: objective 'adagrpo' has the term grpo and would not read it",
        ),
        (
            "{objective: nll, name: a, options: {grpo: {beta: 1}}}",
            "options.grpo: objective 'nll' has no reward term and would not read it",
        ),
        ("{objective: distill, gate: random, name: a, options: {rl_positions: end}}", "'random' reads logged items"),
        (
            "{objective: mixture, name: a, options: {rl_positions: end, inject_target: true}}",
            "inject_target reads logged items; rl_positions: end has none",
        ),
    ],
)
def test_arms_that_mean_nothing_are_refused(recipe, arm, text):
    assert text in refused(recipe(MINIMAL), f"train.arms=[{arm}]")


finite = st.floats(min_value=1e-12, max_value=1e6)


@given(
    kind=st.sampled_from(
        [("nll", None), ("grpo", None), ("mixture", None), ("adagrpo", None), ("distill", None), ("distill", "adagrpo")]
    )
    | st.sampled_from(["all", "none", "difficulty", "random", "shuffled"]).map(lambda gate: ("adagrpo", gate)),
    weight=st.none() | finite,
)
def test_an_arms_name_leads_back_to_the_arm(kind, weight):
    objective, gate = kind
    weight = None if objective == "nll" else weight
    arm = ArmConfig.model_validate({"objective": objective, "gate": gate, "lambda": weight})
    again = ArmConfig.parse(arm.name)
    assert (again.objective, again.gate, again.name) == (objective, gate, arm.name)
    assert again.lambda_ == (None if weight is None else float(f"{weight:g}"))
    if objective not in ("nll", "grpo") and gate != "none":
        pressed = ArmConfig.model_validate({"objective": objective, "gate": gate, "pressure": weight})
        again = ArmConfig.parse(pressed.name)
        assert again.lambda_ is None and again.pressure == (None if weight is None else float(f"{weight:g}"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adagrpo-randm", "objective 'adagrpo-randm': there is none of that name; did you mean 'adagrpo-random'?"),
        (
            "",
            f"known: {', '.join([*OBJECTIVES, *PRESETS, *(f'adagrpo-{gate}' for gate in GATES if gate != 'adagrpo')])}",
        ),
        (
            "distill-best-pressure2",
            f"objective 'distill-best-pressure2': there is no gate 'best'; known: {', '.join(GATES)}"
            "; `adagrpo --plugin MODULE` registers yours",
        ),
        ("grpo-random", "objective 'grpo' takes no gate; these do: adagrpo, distill, best_of_n"),
        ("nll-lambda2", "objective 'nll' takes no lambda"),
        ("mixture-lambdax", "lambda: Input should be a valid number"),
        ("mixture-lambda-1", "lambda: Input should be greater than or equal to 0 (found '-1')"),
        ("mixture-lambdainf", "lambda: Input should be a finite number"),
        ("ADAGRPO\nnll", "there is none of that name"),
    ],
)
def test_a_name_that_no_arm_has(name, text):
    with pytest.raises(UserError) as error:
        ArmConfig.parse(name)
    assert text in str(error.value)


def test_a_fit_of_which_some_keys_are_given_keeps_the_defaults_of_its_place(recipe):
    config = load_config(recipe(MINIMAL), ["train.fit.epochs=4", "ranker.fit.batch_size=32", "sft.learning_rate=0.01"])
    assert (config.train.fit.epochs, config.train.fit.learning_rate, config.train.fit.validations) == (4, 2e-4, 8)
    assert (config.ranker.fit.epochs, config.ranker.fit.learning_rate) == (20, 2e-3)
    assert (config.sft.epochs, config.sft.learning_rate) == (60, 0.01)


@pytest.mark.parametrize(("given", "message"), [("noise", "write {kind: noise}"), ([1], "write {kind: lambdarank}")])
def test_a_reward_that_is_no_section_is_shown_how_to_be_one(given: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_config({"name": "a", "data": {"logs": ["a.csv"]}, "reward": given}, (), "r.yaml")
    assert str(error.value) == f"r.yaml: reward: is a section; {message}"
