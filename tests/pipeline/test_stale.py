"""What is out of date is read by no verb: each is refused with the stage, why, and the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo.config import Config
from adagrpo.pipeline import Run, Silent
from adagrpo.pipeline.directory import hashes_of, label_of, locked, remake_command
from adagrpo.pipeline.stage import MadeFrom
from adagrpo.pipeline.stage_table import STAGES
from adagrpo.pipeline.staleness import made_again, parts_of
from adagrpo.pipeline.status import status, status_tables
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.marks import claim

from ..command_line import Answer, command

Command = Callable[..., Answer]


@pytest.fixture
def adagrpo() -> Command:
    return lambda *arguments: command(*arguments, "--quiet")


def refused(answer: Answer, *texts: str) -> None:
    assert answer.status == 2 and answer.out == "" and answer.err.count("\n") == 1, answer
    for text in texts:
        assert text in answer.err


def states(run: Path) -> dict[str, str]:
    return {row["stage"]: row["state"] for row in status(run)["stages"]}


def settings(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["config"])


@pytest.fixture
def other(world: Any, tmp_path: Path) -> Path:
    """A log of as many users, items and cases, of which one interaction is another one."""
    user = next(iter(world.sequences))
    first, second = world.sequences[user][:2]
    return Path(world.changed(user, 0, second if first != second else first + 10).write(tmp_path / "other"))


def test_other_logs_in_the_same_run(adagrpo: Command, copied: Path, other: Path) -> None:
    """As many items: sft would be trained on the Semantic IDs of the logs before."""
    columns = ("--set", "data.columns.timestamp=timestamp")
    before = (copied / "sft/best/model.safetensors").read_bytes()
    assert adagrpo("prepare", other, "--out", copied, "--replace", *columns).status == 0
    assert settings(copied)["tokenizer"]["codes"] == 8, "what was set for other stages is kept"
    reply = adagrpo("sft", "--run", copied)
    hint = f"`adagrpo tokenize --run {copied}`"
    refused(reply, f"{copied}: vectors is stale: made from another prepare/train.parquet than is there now; run {hint}")
    for verb in ("train", "evaluate", "diagnose", "serve"):
        refused(adagrpo(verb, "--run", copied), hint)
    refused(
        adagrpo("report", "--run", copied), "metrics.json is stale: prepare was made again since; run `adagrpo eval"
    )
    refused(adagrpo("export", "--run", copied, "--to", copied.parent / "to"), hint)
    assert (copied / "sft/best/model.safetensors").read_bytes() == before
    found = states(copied)
    assert found.pop("prepare") == "done" and set(found.values()) == {"stale"}
    assert adagrpo("tokenize", "--run", copied).status == 0
    assert adagrpo("sft", "--run", copied).status == 0
    assert (copied / "sft/best/model.safetensors").read_bytes() != before
    refused(adagrpo("train", "--run", copied), "ranker is stale: made from another prepare/train.parquet")


def test_a_setting_of_another_stage(adagrpo: Command, copied: Path) -> None:
    before = (copied / "run.yaml").read_bytes()
    hint = f"run `adagrpo tokenize --run {copied} --set tokenizer.codes=16` first"
    reply = adagrpo("sft", "--run", copied, "--set", "tokenizer.codes=16")
    refused(reply, "--set tokenizer.codes: tokenize reads it too, and was made with tokenizer.codes=8", hint)
    reply = adagrpo("sft", "--run", copied, "--set", "reward.kind=noise")
    refused(reply, "--set reward.kind: sft does not read it; `adagrpo ranker`, `adagrpo diagnose`, `adagrpo decide`")
    refused(adagrpo("ranker", "--run", copied, "--set", "reward.kind=noise"), "ranker does not read it")
    refused(adagrpo("train", "--run", copied, "--set", "compare.level=0.9"), "no command of a run does")
    assert adagrpo("sft", "--run", copied, "--set", "tokenizer.codes=8", "--set", "reward.kind=sequential").status == 0
    assert (copied / "run.yaml").read_bytes() == before
    assert adagrpo("tokenize", "--run", copied, "--set", "tokenizer.codes=16").status == 0
    assert settings(copied)["tokenizer"]["codes"] == 16
    refused(adagrpo("train", "--run", copied), "sft is stale: made from another tokenize/")


def test_arms_of_another_reward_are_not_evaluated_by_this_one(adagrpo: Command, copied: Path) -> None:
    before = (copied / "run.yaml").read_bytes()
    change = ("--set", "reward={kind: noise}")
    reply = adagrpo("evaluate", "--run", copied, *change)
    refused(reply, "--set reward: train/adagrpo was made with another one", "`adagrpo train --run", "--out")
    refused(adagrpo("diagnose", "--run", copied, *change), "--set reward: train/adagrpo", f"--out {copied}-diagnose")
    assert (copied / "run.yaml").read_bytes() == before
    assert adagrpo("report", "--run", copied).status == 0
    # elsewhere it is evaluated, and the arm is left out by name and reason
    out = copied.parent / "elsewhere"
    assert adagrpo("evaluate", "--run", copied, "--out", out, *change, "--json").status == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["stages"]) == ["sft", "nll"] and metrics["reward"]["kind"] == "noise"
    why = "made with reward.kind=sequential, run.yaml says noise"
    assert metrics["left_out"] == {"adagrpo": why.replace("run.yaml", "--set")}
    assert adagrpo("report", "--run", out).status == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"train/adagrpo is left out, it is stale: {why}." in page
    assert (copied / "run.yaml").read_bytes() == before and "left out" not in (copied / "report.html").read_text()


def test_a_command_that_fails_leaves_no_setting_behind(
    adagrpo: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **options: Any) -> None:
        raise ValueError("no such model")

    before = (copied / "run.yaml").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("adagrpo.pipeline.stages.fit_policy.fit_model", fails)
        reply = adagrpo("sft", "--run", copied, "--set", "sft.learning_rate=0.5")
    assert reply.status == 1 and "no such model" in reply.err
    assert (copied / "run.yaml").read_bytes() == before
    assert (
        "an attempt with other settings was interrupted"
        in {r["stage"]: r["why"] for r in status(copied)["stages"]}["sft"]
    )
    assert adagrpo("train", "--run", copied).status == 0


def test_what_is_missing_is_made_by_the_command_that_is_named(adagrpo: Command, copied: Path) -> None:
    """The ranker is there, and its second family is not: the bare verb would say that nothing has changed."""
    reply = adagrpo("train", "--run", copied, "--set", "reward.kind=lambdarank")
    hint = f"run `adagrpo ranker --run {copied} --set reward.kind=lambdarank` first"
    refused(reply, "ranker/lambdarank/model.txt: missing", hint)
    reply = adagrpo("train", "--run", copied, "--set", "ranker.folds=2")
    refused(
        reply, f"ranker/fold-0/best/model.safetensors: missing; run `adagrpo ranker --run {copied} --set ranker.folds"
    )
    run = Run.open(copied)
    for place, words in {
        "prepare": "`adagrpo prepare LOGS --out",
        "encode": "`adagrpo tokenize --run",
        "reranking": "`adagrpo diagnose --run",
        "ranker/report": "`adagrpo evaluate --run",
        "evaluate/rerank": "`adagrpo decide --run",
        "metrics.json": "`adagrpo evaluate --run",
        "simulate": "`adagrpo run RECIPE --out",
    }.items():
        assert remake_command(run, place).startswith(words), place
    assert remake_command(run, "train/mixture").endswith("--set 'train.arms=[mixture]'`")


def test_every_key_that_a_stage_declares_is_one_of_its_command(copied: Path) -> None:
    for name in parts_of(Run.open(copied)):
        content, row = manifest(copied / name), STAGES.row(name)
        made_from = MadeFrom.of(content or {}, STAGES)
        assert content is not None and made_from is not None and made_from.hashes and row is not None, name
        for key in content["made_from"]["keys"]:
            assert STAGES.reads_key(row.command, key), (name, key)


def test_logs_that_are_gone_or_changed_make_nothing_stale(copied: Path, world: Any, tmp_path: Path) -> None:
    log = world.write(tmp_path / "logs")
    run = world.run(tmp_path / "run", tmp_path / "logs")
    run.prepare()
    log.write_text(log.read_text(encoding="utf-8") + "u00,3,9999\n", encoding="utf-8")
    row = status(tmp_path / "run")["stages"][0]
    assert (row["stage"], row["state"], row["why"]) == ("prepare", "done", "log.csv changed after it was read")
    assert status(tmp_path / "run")["next"] == f"adagrpo run RECIPE --out {tmp_path / 'run'}"
    log.unlink()
    assert states(tmp_path / "run")["prepare"] == "done"
    Run.open(tmp_path / "run").tokenize()


def test_what_the_diagnosis_refuses_is_not_trained_next(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("train", "evaluate"):
        shutil.rmtree(copied / stage)
    Run.open(copied).diagnose()
    for refused, following in ((None, "train"), ("it leaks", "decide")):
        monkeypatch.setattr("adagrpo.pipeline.status.why_refused", lambda content, refused=refused: refused)
        assert status(copied)["next"] == f"adagrpo {following} --run {copied}"


def test_status_of_a_new_run_a_source_and_a_comparison(adagrpo: Command, copied: Path, tmp_path: Path) -> None:
    content = json.loads(adagrpo("status", "--run", copied, "--json").out)
    assert content["next"] == f"adagrpo decide --run {copied}" and set(content["arms"].values()) == {"done"}
    wrong = adagrpo("train", "--run", copied, "--set", "foo.bar=1")
    assert wrong.status == 2 and wrong.err.startswith("adagrpo: --set: ") and "'foo'" in wrong.err
    unknown = adagrpo("train", "--run", copied, "--anywhere")
    assert unknown.status == 2 and "`adagrpo train --help`" in unknown.err
    assert set(content["checkpoints"]) == {"sft", "ranker", "nll", "adagrpo"}
    assert all(row["made"] and row["seconds"] >= 0 for row in content["stages"])
    for stage in ("train", "evaluate"):
        shutil.rmtree(copied / stage)
    # whether to train on the reward is asked before it is done
    assert status(copied)["next"] == f"adagrpo diagnose --run {copied}"
    for stage in ("sft", "ranker"):
        shutil.rmtree(copied / stage)
    found = states(copied)
    assert (found["tokenize"], found["sft"], found["train/nll"]) == ("done", "missing", "missing")
    assert f"next: adagrpo sft --run {copied}" in adagrpo("status", "--run", copied).out
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    claim(tmp_path / "over", "run", source=str(copied))
    over = status(tmp_path / "over")
    assert over["goes_on_from"] == str(copied) and over["stages"][0]["state"] == "done"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    claim(tmp_path / "many", "comparison")
    (tmp_path / "many" / "seed-3").mkdir()
    (tmp_path / "many" / "seed-3" / "run.yaml").touch()
    table, lines = status_tables(status(tmp_path / "many"))
    assert table is None and "holds a comparison, not a run; its runs: seed-3" in lines[0]
    assert "the `adagrpo compare` that began it, with the same arguments, goes on with it" in lines[1]
    refused(adagrpo("report", "--run", tmp_path / "many"), "comparison.json is not written yet", "adagrpo status --run")
    refused(adagrpo("status", "--run", tmp_path / "none"), "not a run")


def test_what_is_being_made_is_not_called_interrupted_alone(copied: Path) -> None:
    """The next command would be turned away while another one is at work."""
    with locked(Run.open(copied, console=Silent())):
        busy = status(copied)
        assert busy["at_work"] == str(os.getpid())
        assert status_tables(busy)[1][-1].startswith(f"process {os.getpid()} is at work here; ")
    free = status(copied)
    assert free["at_work"] is None and status_tables(free)[1][-1].startswith("next: ")


def test_two_logs_of_one_name_are_both_read(world: Any, tmp_path: Path) -> None:
    """Outside the data folder a file is known by its name, which two of them may share."""
    run = world.run(tmp_path / "run", tmp_path / "data")
    paths = []
    for name in ("one", "two"):
        paths.append(tmp_path / name / "log.csv")
        paths[-1].parent.mkdir()
        paths[-1].write_text(name, encoding="utf-8")
    hashes = hashes_of(run, paths)
    assert list(hashes) == ["log.csv", "log.csv (2)"] and len(set(hashes.values())) == 2


def test_what_is_written_elsewhere_is_not_written_into_another_run(
    adagrpo: Command, copied: Path, finished: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    """A run of its own, and one that goes on from a third: neither is taken for this run's."""
    before = contents(copied)
    for verb in ("evaluate", "diagnose", "report"):
        refused(adagrpo(verb, "--run", finished, "--out", copied), f"--out: {copied} is a run of its own")
    assert contents(copied) == before
    third = copied.parent / "third"
    assert adagrpo("report", "--run", copied, "--out", third).status == 0
    assert adagrpo("report", "--run", copied, "--out", third).status == 0  # as often as one likes
    refused(adagrpo("report", "--run", finished, "--out", third), f"what goes on from {copied}")


@pytest.mark.parametrize("file", ["sft/best/model.safetensors", "tokenize/codes.parquet", "train/nll/steps.jsonl"])
def test_a_stage_whose_file_is_gone_says_so_and_how_to_mend_it(adagrpo: Command, copied: Path, file: str) -> None:
    (copied / file).unlink()
    stage = "train/nll" if file.startswith("train") else file.partition("/")[0]
    says = f"{copied / file}: missing; delete {copied / stage} to have it made again"
    (row,) = (row for row in status(copied)["stages"] if row["stage"] == stage)
    assert (row["state"], row["why"]) == ("damaged", says)
    refused(adagrpo("train" if stage == "train/nll" else "evaluate", "--run", copied), says)
    shutil.rmtree(copied / stage)
    assert states(copied)[stage] == "missing"


@pytest.mark.parametrize(
    ("verb", "setting"), [("train", "sft.epochs=9"), ("train", "tokenizer.codes=4"), ("evaluate", "compare.level=0.9")]
)
def test_a_plan_is_refused_with_what_its_verb_is_refused_with(
    adagrpo: Command, copied: Path, verb: str, setting: str
) -> None:
    options = (verb, "--run", copied, "--set", setting)
    alone, planned = adagrpo(*options), adagrpo(*options, "--dry-run")
    refused(planned, "--set")
    assert planned == alone


def test_a_file_of_the_prepared_data_that_is_gone_damages_them(adagrpo: Command, copied: Path, data: Path) -> None:
    (copied / "prepare/train.parquet").unlink()
    says = f"{copied / 'prepare/train.parquet'}: missing; delete {copied / 'prepare'} to have it made again"
    found = status(copied)
    assert states(copied)["prepare"] == "damaged" and found["next"].startswith(
        f"{says}, then run `adagrpo prepare LOGS"
    )
    refused(adagrpo("tokenize", "--run", copied), says)
    shutil.rmtree(copied / "prepare")
    assert adagrpo("prepare", data / "log.csv", "--out", copied).status == 0
    assert set(states(copied).values()) == {"done"}


def test_test_cases_that_are_put_away_are_missed_by_evaluation_alone(adagrpo: Command, copied: Path) -> None:
    (copied / "prepare/test.parquet").unlink()
    says = f"{copied / 'prepare/test.parquet'}: missing; put it back, or delete {copied / 'prepare'}"
    rows = {row["stage"]: row for row in status(copied)["stages"]}
    assert rows["prepare"]["state"] == "damaged" and rows["prepare"]["why"].startswith(says)
    assert rows["evaluate/sft"]["why"] == "prepare/test.parquet is gone" and rows["sft"]["state"] == "done"
    assert adagrpo("tokenize", "--run", copied).status == 0


def test_a_run_whose_data_have_settings_is_prepared_again_by_its_recipe(world: Any, data: Path, tmp_path: Path) -> None:
    split = {"kind": "temporal", "validation_from": 1050, "test_from": 1060}
    world.run(tmp_path / "run", data, data={"columns": {"timestamp": "timestamp"}, "split": split}).prepare()
    first = remake_command(Run.open(tmp_path / "run"), "prepare")
    assert first.startswith(f"`adagrpo run RECIPE --out {tmp_path / 'run'}` or `adagrpo prepare LOGS --out")
    assert "--set data.columns.timestamp=... --set data.split.kind=..." in first


def test_prepare_names_the_settings_of_the_data_that_it_resets(world: Any, data: Path, tmp_path: Path) -> None:
    out, split = tmp_path / "run", {"users": 40}
    world.run(out, data, data={"columns": {"timestamp": "timestamp"}, "split": split}).prepare()
    kept = ["--set", "data.columns.timestamp=timestamp"]
    for given, named in ([], "data.columns.timestamp, data.split.users of run.yaml are"), (kept, None):
        world.run(out, data, data={"columns": {"timestamp": "timestamp"}, "split": split}).prepare()
        more = [] if named else ["--set", "data.split.users=40"]
        said = command("prepare", data / "log.csv", "--out", out, *given, *more).err
        lines = [line for line in said.splitlines() if " of run.yaml " in line]
        assert len(lines) == (1 if named else 0) and (not named or lines[0].startswith(f"note: {named} as by default"))


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_reads_a_damaged_stage_says_at_once_what_to_delete(
    adagrpo: Command, copied: Path, tmp_path: Path, goes_on: bool
) -> None:
    run = tmp_path / "over" if goes_on else copied
    if goes_on:
        claim(run, "run", source=str(copied))
    (copied / "sft/best/model.safetensors").unlink()
    (tmp_path / "users.csv").write_text("user_id\nu00\n", encoding="utf-8")
    says = f"{copied / 'sft/best/model.safetensors'}: missing; delete {copied / 'sft'} to have it made again"
    refused(adagrpo("serve", "--run", run, "--arm", "sft"), says)
    refused(
        adagrpo(
            "recommend", "--run", run, "--arm", "sft", "--users", tmp_path / "users.csv", "--out", tmp_path / "lists"
        ),
        says,
    )
    shutil.rmtree(copied / "sft")
    refused(adagrpo("serve", "--run", run, "--arm", "sft"), f"missing; run `adagrpo sft --run {run}` first")
    if not goes_on:
        assert adagrpo("sft", "--run", run).status == 0


class Notes(Silent):
    """Keeps what is noted, and stops before the first stage."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, name: str, event: str, seconds: float) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["leave_one_out", "impressions"])
def test_run_says_that_logs_which_have_grown_make_everything_again(world: Any, tmp_path: Path, kind: str) -> None:
    log = world.write(tmp_path / "logs")
    ordered = kind == "leave_one_out"
    changes = {} if ordered else {"split": {"kind": kind}, "columns": {"clicked": "clicked"}}
    arms: dict[str, Any] = {} if ordered else {"train": {"arms": []}}
    if not ordered:
        header, *rows = log.read_text(encoding="utf-8").splitlines()
        rows = [f"{row},{place % 2}" for place, row in enumerate(rows)]
        log.write_text("\n".join([f"{header},clicked", *rows, ""]), encoding="utf-8")
    world.run(tmp_path / "run", tmp_path / "logs", data=changes, **arms).prepare()
    with log.open("a", encoding="utf-8") as file:
        file.write("u00,3,9999\n" if ordered else "u00,3,9999,1\n")
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path / "run", tmp_path / "logs", notes, data=changes, **arms).complete()
    again = "note: prepare is made again, with what is made from it: log.csv changed after it was read"
    assert notes.lines == [again]


def test_a_log_that_was_added_is_not_called_a_changed_one(world: Any, tmp_path: Path) -> None:
    log = world.write(tmp_path / "logs")
    world.run(tmp_path / "run", tmp_path / "logs").prepare()
    shutil.copy(log, log.with_name("more.csv"))
    run = world.run(tmp_path / "run", tmp_path / "logs", data={"logs": ["log.csv", "more.csv"]})
    part = parts_of(run, logs=True)["prepare"]
    assert (part.state, part.outdated, part.why) == ("done", True, "made without more.csv")


def test_a_log_below_the_working_directory_is_the_same_file_however_data_is_given(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.write(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    world.run(Path("run"), Path(), data={"logs": [str(log)]}).prepare()  # as without --data, by a recipe of `init`
    row = status(Path("run"))["stages"][0]
    assert (row["stage"], row["state"], row["why"]) == ("prepare", "done", "")
    run = Run.open(Path("run"))
    assert run.data == tmp_path and label_of(run, log) == "logs/log.csv"


def test_evaluations_of_arms_that_are_not_asked_for_any_more_are_unused(adagrpo: Command, copied: Path) -> None:
    assert adagrpo("train", "--run", copied, "--set", "train.arms=[nll]").status == 0
    assert adagrpo("evaluate", "--run", copied, "--set", "evaluation.validation_users=5").status == 0
    found = states(copied)
    assert found["train/adagrpo"] == found["evaluate/adagrpo/best"] == found["evaluate/adagrpo/final"] == "unused"
    assert found["evaluate/nll/best"] == "done"
    assert status(copied)["next"] == f"adagrpo report --run {copied}"


@pytest.mark.parametrize("key", ["objective.adagrpo.tau", "objective.tau"])
def test_an_option_of_a_gate_that_makes_an_arm_stale_is_named(copied: Path, key: str) -> None:
    part = parts_of(Run.open(copied, [f"{key}=0.6"]))["train/adagrpo"]
    assert (part.state, part.why) == ("stale", "made with objective.adagrpo.tau=0, --set says 0.6")


def test_what_run_does_not_make_is_not_said_to_be_made_again(copied: Path) -> None:
    Run.open(copied).diagnose()
    assert made_again(Run.open(copied, ["objective.tau=0.6", "train.arms=[nll]"])) == []


@pytest.mark.parametrize(
    ("stage", "settings", "why"),
    [
        ("ranker/fold-1", {"ranker": {"folds": 2}}, ""),
        ("ranker/fold-2", {"ranker": {"folds": 2}}, "ranker.folds is 2"),
        ("ranker/fold-0", {}, "ranker.folds is 0"),
        ("ranker/lambdarank", {"reward": {"kind": "lambdarank"}}, ""),
        ("ranker/lambdarank", {}, "the reward has no such trees"),
        ("reward", {}, "the reward is the run's own"),
        ("evaluate/nll+rerank/best", {}, ""),
        ("evaluate/grpo+rerank/best", {}, "'grpo' is not among train.arms"),
        ("evaluate/rerank", {}, ""),
        ("ranker/exposures", {}, ""),
    ],
)
def test_what_a_change_of_settings_leaves_behind_is_unused(stage: str, settings: dict[str, Any], why: str) -> None:
    config = Config.model_validate({"name": "x", "data": {"logs": ["x.csv"]}} | settings)
    row = STAGES.row(stage)
    assert row is not None and row.why_unused(stage, config) == why
