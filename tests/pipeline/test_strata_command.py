"""`adagrpo diagnose --strata` on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.config import Config
from adagrpo.pipeline.stages.strata import gated_arms

from ..command_line import Answer
from ..command_line import command as adagrpo

GATED = ["objective.adagrpo.tau=0.5", "objective.adagrpo.tau_reward=null", "objective.adagrpo.rho=0.3"]


def refused(answer: Answer, *texts: str) -> None:
    assert answer.status == 2 and answer.out == "" and answer.err.count("\n") == 1, answer
    assert all(text in answer.err for text in texts), answer.err


def test_strata_of_a_finished_run(copied: Path, tmp_path: Path) -> None:
    reply = adagrpo("diagnose", "--strata", "--run", copied)
    assert reply.status == 0 and "Thresholds of the recipe: tau 0 and rho 0, tau_reward 1." in reply.out
    assert reply.out.endswith(f"page: {copied / 'strata.html'}\n") and (copied / "strata.html").is_file()
    assert "strata.html" in (copied / "report.html").read_text(encoding="utf-8")
    content = json.loads(adagrpo("diagnose", "--strata", "--run", copied, "--quiet", "--json").out)
    assert content == json.loads((copied / "strata" / "strata.json").read_text(encoding="utf-8"))
    rows = {row["stratum"]: row for row in content["rows"]}
    assert content["settings"]["beam_width"] == 30  # all items
    assert rows["all"]["cases"] == content["settings"]["cases"] == 60
    assert sum(rows[f"difficulty, fifth {fifth}"]["cases"] for fifth in range(1, 6)) == 60
    assert rows["all"]["gain_hr@10_half"] > 0 and rows["difficulty, fifth 1"]["gain_hr@10_half"] is None
    planned = json.loads(adagrpo("diagnose", "--strata", "--run", copied, "--dry-run", "--json").out)
    assert [(row["stage"], row["state"]) for row in planned["stages"] if row["stage"] == "strata"] == [
        ("strata", "unchanged")
    ]
    assert not (copied / "diagnose").exists()

    change = [word for text in GATED for word in ("--set", text)]
    refused(
        adagrpo("diagnose", "--strata", "--run", copied, "--quiet", *change), "train/adagrpo", f"--out {copied}-strata"
    )
    other = json.loads(
        adagrpo("diagnose", "--strata", "--run", copied, "--out", tmp_path / "other", *change, "--json").out
    )
    assert (other["settings"]["tau"], other["settings"]["rho"]) == (0.5, 0.3)
    strata = {row["stratum"]: row["cases"] for row in other["rows"]}
    assert strata["hard"] + strata["not hard"] == 60 and 0 < strata["hard"] < 60


def test_thresholds_are_found_by_admission(copied: Path, world: Any, data: Path) -> None:
    objective = {"adagrpo": {"tau": 0.5, "tau_reward": 1.0, "rho": 0.3, "admit": 0.3}}
    run = world.run(copied, data, objective=objective)
    settings = run.strata()["settings"]
    assert settings["thresholds_from"] == "admission of 0.3 on these cases"
    rows = {row["stratum"]: row["cases"] for row in run.strata()["rows"]}
    assert rows["admitted"] / 60 == pytest.approx(0.3, rel=0.25)
    run = world.run(copied, data, objective={"adagrpo": objective["adagrpo"] | {"admit": 0.15}})
    run.train()
    found = json.loads((copied / "train" / "adagrpo" / "thresholds.json").read_text(encoding="utf-8"))
    settings = run.strata()["settings"]
    assert settings["thresholds_from"] == "train/adagrpo"
    assert (settings["tau"], settings["rho"]) == (found["tau"], found["rho"])


def test_a_run_without_a_policy_says_what_makes_it(data: Path, tmp_path: Path) -> None:
    assert adagrpo("prepare", data / "log.csv", "--out", tmp_path / "run", "--quiet").status == 0
    reply = adagrpo("diagnose", "--strata", "--run", tmp_path / "run", "--quiet")
    refused(reply, "adagrpo tokenize")


def test_the_arm_of_beams_is_read_first() -> None:
    beams = {"objective": "adagrpo", "name": "beams", "options": {"rollout": "beam", "adagrpo": {"tau": 0.2}}}
    arms = ["nll", "mixture", "adagrpo-random", beams]
    config = Config.model_validate({"data": {"logs": ["log.csv"]}, "train": {"arms": arms}})
    assert [*gated_arms(config)] == ["beams", "adagrpo-random"]
    assert gated_arms(config)["beams"].of_gate("adagrpo")["tau"] == 0.2
