from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import typer
import yaml

from adagrpo import __version__, cli, console, pipeline
from adagrpo.data.simulation.marketplace import Marketplace

from .command_line import Answer, command

VERBS = list(cli.options.COMMANDS)
PROGRAM = "import sys; from adagrpo.cli import main; sys.argv[0] = 'adagrpo'; main()"


Command = Callable[..., Answer]


@pytest.fixture
def adagrpo() -> Command:
    return command


@pytest.fixture
def recipe(tmp_path: Path, world: Any) -> Callable[..., Path]:
    """Write a recipe whose sections are changed key by key."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(world.recipe(**changes)), encoding="utf-8")
        return path

    return write


def refused(answer: Answer, *texts: str) -> None:
    """Exit 2, nothing on stdout, one line on stderr that holds the texts, no traceback."""
    assert answer.status == 2, answer
    assert answer.out == "" and answer.err.startswith("adagrpo: ")
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n")
    assert "Traceback" not in answer.err and "Error:" not in answer.err
    for text in texts:
        assert text in answer.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_has_the_common_options(adagrpo: Command, verb: str) -> None:
    reply = adagrpo(verb, "--help")
    assert reply.status == 0 and reply.err == ""
    assert all(option in reply.out for option in ("Usage:", "--seed", "--json", "--quiet"))


def test_every_option_says_what_it_is() -> None:
    verbs = typer.main.get_command(cli.app).commands
    options = [(verb, one.name, one.help) for verb, command in verbs.items() for one in command.params]
    assert [(verb, name) for verb, name, told in options if not told] == []


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_verb_by_what_it_is_for(adagrpo: Command, arguments: list[str]) -> None:
    reply = adagrpo(*arguments)
    assert reply.status == 0 and reply.err == "" and all(f"\n  {verb} " in reply.out for verb in VERBS)
    assert all(f"\n{purpose}:\n" in reply.out for purpose in get_args(cli.options.Purpose))
    assert reply.out.index("your logs:") < reply.out.index("  prepare ") < reply.out.index("stages:")


def test_version(adagrpo: Command) -> None:
    assert adagrpo("--version") == Answer(0, f"adagrpo {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["simulate", "--help"]])
def test_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    program = f"import sys; from adagrpo.__main__ import main; sys.argv = ['adagrpo', *{arguments}]\ntry: main()\n"
    slow = {"matplotlib", "numpy", "polars", "scipy", "torch", "transformers"}
    program += f"finally: print(sorted({slow} & {{*sys.modules}}))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert output.stdout.endswith("\n[]\n") and output.stderr == ""


def test_the_defaults_of_simulate_are_those_of_the_marketplace() -> None:
    world = Marketplace()
    shown = (cli.log_commands.USERS, cli.log_commands.ITEMS, cli.log_commands.EXPOSURE_BIAS)
    assert shown == (world.users, world.items, world.exposure_bias)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tain"], "No such command 'tain'"),
        (["run"], "Missing argument"),
        (["run", "x.yaml"], "Missing option '--out'"),
        (["doctor", "--jsn"], "No such option"),
        (["simulate", "--out", "x", "--users", "many"], "--users"),
        (["demo", "--seed", "-1"], "seed"),
        (["serve", "--run", "nowhere", "--reward-weight", "inf"], "--reward-weight: inf is no weight"),
        (["serve", "--run", "nowhere", "--explore-share", "0.5"], "draw nothing without --explore"),
        (["tokenize", "--run", "nowhere"], "nowhere: not a run (it has no file .adagrpo)"),
        (["report", "--run", "nowhere"], "nowhere: not a run (it has no file .adagrpo)"),
        (["report"], "Missing option '--run'"),
    ],
)
def test_usage_errors(
    adagrpo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(adagrpo(*arguments), text)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_recipe_or_data_folder(adagrpo: Command, tmp_path: Path, recipe: Any) -> None:
    out = tmp_path / "out"
    refused(adagrpo("run", tmp_path / "no.yaml", "--out", out), "no.yaml: no such recipe")
    refused(adagrpo("run", recipe(), "--out", out, "--data", tmp_path / "no"), "no: no such folder (--data)")
    assert not out.exists()


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("objective.lamda=1", ["objective.lamda", "did you mean 'lambda'?"]),
        ("objective.lambda=[", ["is not YAML"]),
        ("evaluation.beam_width=5", ["evaluation.beam_width", "10"]),
    ],
)
def test_bad_settings(adagrpo: Command, tmp_path: Path, recipe: Any, setting: str, texts: list[str]) -> None:
    refused(adagrpo("run", recipe(), "--out", tmp_path / "out", "--set", setting), *texts)
    assert not (tmp_path / "out").exists()


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("log", "texts"),
    [
        (None, ["log.csv: no such file"]),
        ("", ["log.csv", "empty"]),
        (HEADER, ["log.csv", "no rows"]),
        ("user_id,itm_id,timestamp\na,1,1\n", ["log.csv", "'item_id'", "did you mean 'itm_id'?"]),
        (HEADER + "a,1,1\na,2,2\na,3,3\n", ["1 users", "two of each are needed"]),
        (HEADER + "a,1,1\nb,1,2\nc,1,3\n", ["1 items", "two of each are needed"]),
        (HEADER + "a,1,1\na,2,soon\nb,1,1\n", ["log.csv", "row 2", "'soon'"]),
    ],
    ids=["missing", "empty", "header only", "unknown column", "one user", "one item", "bad row"],
)
def test_logs_that_cannot_be_used(
    adagrpo: Command, tmp_path: Path, recipe: Any, log: str | None, texts: list[str]
) -> None:
    if log is not None:
        (tmp_path / "log.csv").write_text(log, encoding="utf-8")
    refused(adagrpo("run", recipe(), "--data", tmp_path, "--out", tmp_path / "a"), *texts)
    refused(adagrpo("prepare", tmp_path / "log.csv", "--out", tmp_path / "b"), *texts)


@pytest.mark.parametrize(
    ("items", "texts"),
    [
        ("items.csv", ["data.items: is a path alone; write {path: items.csv, id_column: NAME"]),
        ("{path: items.csv}", ["no column 'item_id'", "data.items.id_column says which it is", "sku, title"]),
    ],
)
def test_an_item_table_that_is_not_described(
    adagrpo: Command, tmp_path: Path, recipe: Any, world: Any, items: str, texts: list[str]
) -> None:
    world.write(tmp_path)
    (tmp_path / "items.csv").write_text("sku,title\n3,x\n", encoding="utf-8")
    where = ("--data", tmp_path, "--out", tmp_path / "out")
    refused(adagrpo("run", recipe(), *where, "--set", f"data.items={items}"), *texts)


def test_a_duplicate_item_row(adagrpo: Command, tmp_path: Path, recipe: Any, world: Any) -> None:
    world.write(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title\n3,x\n13,y\n3,z\n", encoding="utf-8")
    path = recipe(data={"items": {"path": "items.csv", "text": ["title"]}})
    refused(adagrpo("run", path, "--data", tmp_path, "--out", tmp_path / "out"), "items.csv, rows 1 and 3", "'3'")


@pytest.mark.parametrize("verb", ["prepare", "run", "simulate"])
def test_an_out_that_is_a_file(adagrpo: Command, tmp_path: Path, recipe: Any, data: Path, verb: str) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    arguments = {"prepare": [data / "log.csv"], "run": [recipe(), "--data", data], "simulate": []}[verb]
    refused(adagrpo(verb, *arguments, "--out", tmp_path / "out"), "out: is a file")


def test_a_stage_before_its_inputs(adagrpo: Command, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    prepared = adagrpo("prepare", data / "log.csv", "--out", out)
    assert prepared.status == 0 and prepared.err.count("`adagrpo init` chooses 2 levels of") == 1
    for verb in ("sft", "train", "evaluate"):
        refused(adagrpo(verb, "--run", out), "missing; run `adagrpo tokenize --run")
    refused(adagrpo("report", "--run", out), "metrics.json: missing", "run `adagrpo evaluate --run")
    assert adagrpo("tokenize", "--run", out, "--set", "tokenizer.codes=8", "--quiet").err == ""
    refused(adagrpo("train", "--run", out), "sft/best/model.safetensors: missing; run `adagrpo sft")


def test_whatever_else_goes_wrong_is_one_line_and_status_1(
    adagrpo: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(pipeline.Run, "report", fail)
    reply = adagrpo("report", "--run", copied)
    assert reply.status == 1 and reply.err.startswith("adagrpo: RuntimeError: two lines (ADAGRPO_TRACEBACK=1")
    monkeypatch.setenv("ADAGRPO_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["adagrpo", "report", "--run", str(copied)])
    with pytest.raises(RuntimeError, match="two"):
        cli.main()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transformers.cache_utils", "transformers is not installed; pip install -e '.[hf]'"),
        ("sentence_transformers", "pip install -e '.[text]'"),
        ("my.reward", "module 'my.reward' is neither installed nor a file my/reward.py in /"),
    ],
)
def test_a_module_that_is_not_there_is_named_with_what_to_do(
    adagrpo: Command, copied: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    def fail(path: Path) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(pipeline.Run, "report", fail)
    refused(adagrpo("report", "--run", copied), said)


def test_every_extra_that_is_named_exists() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert {*cli.EXTRAS.values()} <= tomllib.loads(text)["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_a_shell(shell: str) -> None:
    program = "import sys; from adagrpo.__main__ import main; sys.argv[0] = 'adagrpo'; main()"
    asked = {"_ADAGRPO_COMPLETE": f"complete_{shell}", "COMP_WORDS": "adagrpo tok", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "adagrpo tok"}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, env=os.environ | asked, check=True)
    assert "tokenize" in output.stdout and "train" not in output.stdout and output.stderr == ""


def test_an_interrupt_says_how_to_go_on(adagrpo: Command, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Run, "report", interrupt)
    reply = adagrpo("report", "--run", copied)
    assert reply.status == 130 and reply.err.strip() == "adagrpo: interrupted; the same command continues"


def test_a_recipe_is_carried_out(adagrpo: Command, tmp_path: Path, data: Path, finished: Path) -> None:
    arguments = ["run", data / "recipe.yaml", "--data", data, "--out", tmp_path / "run"]
    reply = adagrpo(*arguments)
    assert reply.status == 0
    assert "adagrpo" in reply.out and f"report: {tmp_path / 'run' / 'report.html'}" in reply.out
    assert "train/adagrpo: done in" in reply.err
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    again = adagrpo(*arguments, "--json")
    assert again.status == 0 and again.err.count("unchanged, skipped") == again.err.count("\n") == 20
    content = json.loads(again.out)
    assert again.out.count("\n") == 1 and content.pop("report") == str(tmp_path / "run" / "report.html")
    assert content == json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert adagrpo(*arguments, "--quiet").err == ""


def test_what_is_made_again_is_said_with_the_reason(
    adagrpo: Command, copied: Path, data: Path, recipe: Any, world: Any
) -> None:
    arguments = ("run", recipe(), "--data", data, "--out", copied, "--set", "train.arms=[]")
    assert "made again" not in adagrpo(*arguments).err
    again = adagrpo(*arguments, "--set", "tokenizer.width=9")
    (note,) = (line for line in again.err.splitlines() if line.startswith("note: "))
    assert note.startswith("note: vectors is made again, with what is made from it: made with tokenizer.width=")


def test_dry_run_prints_and_does_nothing(adagrpo: Command, tmp_path: Path, recipe: Any, world: Any, data: Path) -> None:
    path, before = recipe(), set(tmp_path.iterdir())
    arguments = [
        "run",
        path,
        "--out",
        tmp_path / "out",
        "--data",
        data,
        "--dry-run",
        "--set",
        "objective.lambda=0.5",
    ]
    reply = adagrpo(*arguments)
    assert reply.status == 0 and reply.err == ""
    content = yaml.safe_load(reply.out)
    assert content["objective"]["lambda"] == 0.5 and content["sft"]["epochs"] == world.recipe()["sft"]["epochs"]
    actual = json.loads(adagrpo(*arguments, "--json").out)
    arms, plan = actual.pop("arms"), actual.pop("plan")
    assert {row["stage"]: row["steps"] for row in plan["stages"]}["tokenize"] is None and plan["data"]["items"] == 30
    assert actual == content and arms["adagrpo"]["lambda"] == 0.5 and arms["adagrpo"]["grpo"]["epsilon"] == 0.2
    comment = "\n".join(line[2:] for line in reply.out.splitlines() if line.startswith("#"))
    arms_text, plan_text = comment.split("\n\n", 1)
    assert yaml.safe_load(arms_text) == {"arms": arms} and plan_text.startswith("stage ")
    assert adagrpo(*arguments, "--seed", 5).out != reply.out
    assert set(tmp_path.iterdir()) == before | {path}


def test_a_recipe_without_arms_says_that_nothing_is_trained(adagrpo: Command, copied: Path) -> None:
    reply = adagrpo("train", "--run", copied, "--set", "train.arms=[]")
    assert reply.status == 0 and "note: train.arms is empty, so no arm was trained; --set 'train.arms=[nll" in reply.err
    evaluated = adagrpo("evaluate", "--run", copied)
    assert "train/nll: left out: 'nll' is not among train.arms" in evaluated.err and "date" not in evaluated.err


def test_each_stage_says_what_came_out_of_it(adagrpo: Command, copied: Path) -> None:
    audit = json.loads((copied / "tokenize" / "audit.json").read_text(encoding="utf-8"))
    reply = adagrpo("tokenize", "--run", copied)
    line = next(line for line in reply.out.splitlines() if line.startswith("codes of each level"))
    assert line.split()[4:] == [str(level["size"]) for level in audit["per_level"]]
    rows = read_rows(copied / "sft" / "validation.jsonl")
    best = json.loads((copied / "sft" / "best" / "checkpoint.json").read_text(encoding="utf-8"))["step"]
    metrics = next(row for row in rows if row["step"] == best)
    sft = adagrpo("sft", "--run", copied).out
    assert sft.startswith("fit  steps ") and f"{metrics['ndcg@10']:.4f}" in sft
    content = json.loads(adagrpo("sft", "--run", copied, "--json").out)
    assert content["best_step"] == best and content["validation"]["ndcg@10"] == metrics["ndcg@10"]
    trained = json.loads(adagrpo("train", "--run", copied, "--json").out)
    assert list(trained["fits"]) == ["sft", "nll", "adagrpo"]
    lines = adagrpo("train", "--run", copied).out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["sft", "nll", "adagrpo"]
    assert "NDCG@10" in adagrpo("ranker", "--run", copied).out
    evaluated = adagrpo("evaluate", "--run", copied).out
    assert evaluated.startswith("validation\narm ") and "\ntest\narm " in evaluated and "{" not in evaluated


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_steps_are_tracked(adagrpo: Command, copied: Path, tmp_path: Path) -> None:
    """Each fit is a run of TensorBoard; its values are those of steps.jsonl, and those of validation."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    reply = adagrpo("train", "--run", copied, "--set", "train.fit.epochs=2", "--track", f"tensorboard:{board}")
    assert reply.status == 0, reply
    for arm in ("nll", "adagrpo"):
        read = EventAccumulator(str(board / arm))
        read.Reload()
        steps, rows = (read_rows(copied / "train" / arm / f"{name}.jsonl") for name in ("steps", "validation"))
        logged = {event.step: event.value for event in read.Scalars("nll")}
        assert logged == pytest.approx({row["step"]: row["nll"] for row in steps}, rel=1e-6)
        validated = {event.step: event.value for event in read.Scalars("validation/ndcg@10")}
        assert validated == pytest.approx({row["step"]: row["ndcg@10"] for row in rows if row["step"]}, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [("tensorbord", "--track tensorbord: no such tracker; there are"), ("dvclive", "pip install dvclive")],
)
def test_a_tracker_that_is_not_there(adagrpo: Command, copied: Path, name: str, said: str) -> None:
    refused(adagrpo("train", "--run", copied, "--track", name), said)


def test_a_tracker_that_is_not_installed_names_the_extra(
    adagrpo: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("adagrpo.cli.tracking"), "get_available_trackers", lambda: [])
    refused(adagrpo("sft", "--run", copied, "--track", "tensorboard"), "pip install -e '.[track]'")


@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        ("tokenize", "tokenizer.codes=9"),
        ("sft", "sft.learning_rate=0.5"),
        ("ranker", "ranker.fit.learning_rate=0.5"),
        ("train", "train.fit.learning_rate=0.5"),
        ("evaluate", None),
        ("diagnose", None),
    ],
)
def test_dry_run_of_a_verb_on_a_finished_run(adagrpo: Command, copied: Path, verb: str, setting: str | None) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    command = [verb, "--run", copied, "--dry-run", *(["--set", setting] if setting else [])]
    content = json.loads(adagrpo(*command, "--json").out)
    others = {"evaluate": {"item_knn", "ranker", "report", "reranking"}, "diagnose": {"reranking"}}.get(verb, set())
    others |= {"vectors"} if verb in ("tokenize", "ranker") else set()
    assert {row["stage"].split("/")[0] for row in content["stages"]} == {verb} | others
    state = "unchanged" if verb == "evaluate" else "make"
    found = [row["state"] for row in content["stages"] if row["stage"] not in ("ranker/report", "reranking", "vectors")]
    assert set(found) == {state}
    reply = adagrpo(*command)
    assert reply.err == "" and "data: 62 users, 30 items" in reply.out and "\ntime: " in reply.out
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_dry_run_of_prepare_and_demo(adagrpo: Command, tmp_path: Path, data: Path) -> None:
    for words in (["prepare", data / "log.csv"], ["demo", "--small"]):
        reply = adagrpo(*words, "--out", tmp_path / "out", "--dry-run")
        assert reply.status == 0 and "prepare" in reply.out and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_trains_the_arms_that_a_setting_names(adagrpo: Command, tmp_path: Path) -> None:
    for given in ([], ["--set", "train.arms=[nll]"], ["--set", "train={arms: [nll]}"]):
        reply = adagrpo("demo", "--small", "--out", tmp_path / "out", "--dry-run", *given)
        assert reply.status == 0 and "train/nll" in reply.out
        assert ("train/adagrpo-random" in reply.out) == (not given)


def test_a_folder_of_parts_is_one_log(adagrpo: Command, tmp_path: Path, data: Path) -> None:
    header, *lines = (data / "log.csv").read_text().splitlines(keepends=True)
    for number in range(3):
        (tmp_path / "logs" / f"part={number}").mkdir(parents=True)
        (tmp_path / "logs" / f"part={number}" / "x.csv").write_text("".join([header, *lines[number::3]]))
    whole = adagrpo("prepare", data / "log.csv", "--out", tmp_path / "whole")
    parts = adagrpo("prepare", tmp_path / "logs", "--out", tmp_path / "parts")
    assert whole.status == parts.status == 0 and f"note: 3 files are read of {tmp_path / 'logs'}" in parts.err
    first, second = (pl.read_parquet(tmp_path / run / "prepare" / "train.parquet") for run in ("whole", "parts"))
    assert first.equals(second)


def test_one_verb_after_the_other(adagrpo: Command, tmp_path: Path, world: Any, finished: Path) -> None:
    """On a log with columns of other names; the settings given on the way are kept, and the result is that of `run`."""
    world.write(tmp_path, header=("Wer", "was genau", "t"))
    out = tmp_path / "tiny"
    columns = [f"data.columns.{name}" for name in ("user=Wer", "item=was genau", "timestamp=t")]
    settings = [part for column in columns for part in ("--set", column)]
    prepared = adagrpo("prepare", tmp_path / "log.csv", "--out", out, *settings, "--set", "threads=1", "--json")
    assert prepared.status == 0 and prepared.out.count("\n") == 1
    assert json.loads(prepared.out)["users"] == 62 and json.loads(prepared.out)["items"] == 30
    recipe, arguments = world.recipe(), {}
    for verb, sections in {
        "tokenize": ["tokenizer"],
        "sft": ["policy", "sft", "evaluation", "max_history"],
        "ranker": ["ranker"],
        "train": ["objective", "train"],
    }.items():
        arguments[verb] = [part for key in sections for part in ("--set", f"{key}={json.dumps(recipe[key])}")]
        reply = adagrpo(verb, "--run", out, *arguments[verb], "--json", "--quiet")
        assert reply.status == 0 and reply.err == "", reply
        content = json.loads(reply.out)
        assert content.items() >= {"stage": verb, "folder": str(out / verb)}.items()
        assert {"tokenize": "density", "train": "fits"}.get(verb, "best_step") in content
    evaluated = adagrpo("evaluate", "--run", out, "--json")
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert json.loads(evaluated.out) == content
    output = adagrpo("report", "--run", out)
    assert output.status == 0 and output.out == f"report: {out / 'report.html'}\n" and (out / "report.html").is_file()
    expected = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert {name: content[name] for name in expected if name != "config_hash"} == {
        name: expected[name] for name in expected if name != "config_hash"
    }
    repeated = adagrpo("sft", "--run", out)
    assert repeated.err == "sft: unchanged, skipped\n"


def test_a_reward_is_diagnosed(adagrpo: Command, copied: Path) -> None:
    reply = adagrpo("diagnose", "--run", copied, "--quiet")
    assert reply.status == 0 and reply.err == ""
    content = json.loads(adagrpo("diagnose", "--run", copied, "--quiet", "--json").out)
    assert f"verdict: {content['verdict']['decision']}\n{content['verdict']['sentences'][0]}" in reply.out
    # what to serve is the answer of `decide`, which has not been asked
    assert f"`adagrpo decide --run {copied}` compares all lists" in reply.out and "adagrpo serve" not in reply.out
    assert reply.out.endswith(f"page: {copied / 'diagnose.html'}\n") and (copied / "diagnose.html").is_file()


def test_a_policy_that_transformers_cannot_open_is_not_exported(adagrpo: Command, copied: Path, tmp_path: Path) -> None:
    reply = adagrpo("export", "--run", copied, "--to", tmp_path / "out", "--arm", "nll", "--checkpoint", "final")
    refused(reply, "the policy is 'compact', which no other program opens", "train/nll/final/model.safetensors")


@pytest.mark.slow  # a run
def test_a_simulated_marketplace_can_be_run_on(adagrpo: Command, tmp_path: Path, recipe: Any) -> None:
    world = tmp_path / "world"
    reply = adagrpo("simulate", "--out", world, "--users", 80, "--items", 100, "--seed", 1, "--json", "--quiet")
    assert reply.status == 0 and reply.err == "" and json.loads(reply.out)["interactions"] > 0
    assert (world / "logs.parquet").is_file() and (world / "items.parquet").is_file()
    path = recipe(
        data={
            "logs": ["logs.parquet"],
            "columns": {"timestamp": "timestamp", "clicked": "clicked", "slot": "slot", "propensity": "propensity"},
            "items": {"path": "items.parquet", "text": ["title"], "attributes": ["attributes"]},
        },
        tokenizer={"vectors": {"attributes": 1.0, "text": 0.5, "cooccurrence": 1.0}},
        train={"arms": [{"objective": "adagrpo"}]},
    )
    done = adagrpo("run", path, "--data", world, "--out", tmp_path / "run", "--json", "--quiet")
    assert done.status == 0 and done.err == ""
    assert json.loads(done.out)["ranker"]["loss"] == "impressions"


@pytest.mark.slow
def test_compare_writes_a_page_and_says_what_it_found(
    adagrpo: Command, tmp_path: Path, data: Path, recipe: Any
) -> None:
    out = tmp_path / "out"
    path = recipe(compare={"margins": {}, "resamples": 200})
    command = ["compare", path, "--data", data, "--out", out, "--objectives", "nll, rerank", "--seeds", "3"]
    planned = adagrpo(*command, "--dry-run", "--json")
    assert planned.status == 0 and not out.exists()
    assert json.loads(planned.out)["plan"]["family"] == ["rerank"] and json.loads(planned.out)["seeds"] == [3]
    output = adagrpo(*command, "--only", "3")
    assert output.status == 0 and "seed-3/train/nll: done in" in output.err
    assert output.out == f"run: {out / 'seed-3'}\n" and not (out / "comparison.json").exists()
    output = adagrpo(*command)
    assert output.status == 0 and "done in" not in output.err
    assert output.out.startswith("arm ") and output.out.endswith(f"\npage: {out / 'comparison.html'}\n")
    assert "All of this is one seed" in output.out
    again = adagrpo(*command, "--json", "--quiet")
    assert again.err == "" and again.out.count("\n") == 1
    content = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    del content["sha256"]
    assert json.loads(again.out) == content | {"page": str(out / "comparison.html")}
    assert adagrpo("report", "--run", out / "seed-3", "--quiet").status == 0
    pages = {path: path.read_bytes() for path in (out / "comparison.html", out / "comparison.md")}
    for path in pages:
        path.unlink()
    output = adagrpo("report", "--run", out, "--figures", tmp_path / "charts", "--json")
    charts = [path.name for path in (tmp_path / "charts").iterdir()]
    assert charts == ["frontier.svg"]
    assert json.loads(output.out) == {"report": str(out / "comparison.html"), "figures": 1}
    assert {path: path.read_bytes() for path in pages} == pages
    (out / "comparison.json").write_text("[]", encoding="utf-8")
    refused(adagrpo("report", "--run", out), "comparison.json: not the comparison.json of a comparison")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--seeds", "0,x", "--seeds: 'x' is no seed"),
        ("--seeds", "", "--seeds: '' is no seed"),
        ("--only", "0;1", "--only: '0;1' is no seed"),
        ("--objectives", "nll,adagrpo-randm", "did you mean 'adagrpo-random'?"),
        ("--objectives", "nll,rerank,rerank", "--objectives: rerank is there twice"),
        ("--data", "nowhere", "nowhere: no such folder (--data)"),
    ],
)
def test_compare_refuses_in_one_line(
    adagrpo: Command, tmp_path: Path, recipe: Any, option: str, value: str, text: str
) -> None:
    refused(adagrpo("compare", recipe(), "--out", tmp_path / "out", option, value), text)
    assert not (tmp_path / "out").exists()


def test_several_recipes_are_compared_below_their_names(
    adagrpo: Command, tmp_path: Path, world: Any, data: Path
) -> None:
    for name in ("one", "two"):
        content = world.recipe(name=name, compare={"margins": {}})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    recipes = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    command = ["compare", *recipes, "--out", tmp_path / "out", "--dry-run", "--json"]
    reply = adagrpo(*command, "--data", data, "--seeds", "0,1")
    plans = [(plan["config"]["name"], plan["seeds"]) for plan in json.loads(reply.out)]
    assert plans == [("one", [0, 1]), ("two", [0, 1])]
    refused(adagrpo(*command, *["--data", data] * 3), "--data: 3 folders for 2 recipes")
    refused(adagrpo(*command, "--set", "name=three"), "name: 'three' cannot name a folder of its own")


def test_seed_changes_the_run(adagrpo: Command, tmp_path: Path, data: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    reply = adagrpo("tokenize", "--run", tmp_path / "run", "--seed", 1)
    assert reply.err.startswith("vectors: done in") and "\ntokenize: done in" in reply.err


@pytest.mark.parametrize(
    "arguments",
    [["report"], ["catalog", "list"], ["catalog", "update", "--delist", "3"], ["recommend", "--users", "USERS"]],
)
def test_seed_changes_nothing_where_nothing_is_drawn(
    adagrpo: Command, tmp_path: Path, copied: Path, arguments: list[str]
) -> None:
    (tmp_path / "users.csv").write_text("user_id\nnobody\n", encoding="utf-8")
    words = [str(tmp_path / "users.csv") if word == "USERS" else word for word in arguments]
    words += ["--out", str(tmp_path / "lists")] if words[0] == "recommend" else []
    reply = adagrpo(*words, "--run", copied, "--seed", 5)
    assert reply.status == 0
    assert reply.err.startswith(f"{words[0]}: --seed changes nothing, since nothing in it is drawn\n")


def test_what_is_served_is_drawn_by_another_seed(adagrpo: Command, copied: Path) -> None:
    reply = adagrpo("serve", "--run", copied, "--seed", 5, "--explore", 1)
    assert reply.err.startswith("serve: --seed changes nothing, since --explore-seed decides what is drawn\nadagrpo: ")
    assert "--explore: needs --exposures" in reply.err


def test_doctor(adagrpo: Command) -> None:
    actual = json.loads(adagrpo("doctor", "--json").out)
    assert {"adagrpo", "python", "torch", "polars", "threads", "processors", "device", "mixed_precision"} <= set(actual)
    assert "torch: " in adagrpo("doctor").out


@pytest.mark.slow  # a run
def test_a_real_process(tmp_path: Path, data: Path) -> None:
    """Warnings of libraries would only be seen here."""
    with (data / "log.csv").open(encoding="utf-8") as file:
        users = len({row["user_id"] for row in csv.DictReader(file)})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", PROGRAM, "run", str(data / "recipe.yaml"), "--data", str(data)]
    command += ["--out", str(tmp_path / "run"), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["dataset"]["users"] == users


def test_plain_lines_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    shown = console.StderrConsole()
    shown.stage("sft", "start", 0.0)
    for done in (10, 20, 30):
        shown.progress("sft", done, 130, {"nll": 1.25, "other": 3.0})
    shown.stage("sft", "end", 12.34)
    out, err = capsys.readouterr()
    assert out == "" and err == "sft: 30/130, 1.0/s, 100 s left nll 1.25\nsft: done in 12.3 s\n"


def test_a_bar_on_a_terminal_is_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = console.StderrConsole()
    shown.progress("sft", 1, 10, {})
    shown.progress("sft", 2, 10, {"nll": 1.0})
    bar = shown.bar
    assert bar is not None and not bar.finished and bar.tasks[0].completed == 2 and bar.live.is_started
    shown.close()
    assert shown.bar is None and not bar.live.is_started


def test_a_report_of_a_damaged_run_is_refused(adagrpo: Command, copied: Path) -> None:
    path = copied / "train" / "nll" / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    refused(adagrpo("report", "--run", copied), f"{path}: content differs from the manifest")


def test_figures_go_into_a_folder(adagrpo: Command, tmp_path: Path) -> None:
    (tmp_path / "charts").write_text("mine")
    refused(adagrpo("report", "--run", tmp_path, "--figures", tmp_path / "charts"), "is a file; --figures takes")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that takes no files")
def test_a_path_that_cannot_be_used_is_bad_input(adagrpo: Command, tmp_path: Path) -> None:
    refused(adagrpo("report", "--run", "x" * 300), "xxx", "file name too long")
    refused(adagrpo("simulate", "--out", "/proc/x"), "/proc/", "no such file or directory")
