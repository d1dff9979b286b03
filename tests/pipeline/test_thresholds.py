"""Arms whose thresholds are found by admission, through the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.config import ArmConfig, ObjectiveConfig
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.trainer import thresholds as module
from adagrpo.trainer.thresholds import FILE

DEFAULT = {"tau": 0.5, "tau_reward": None, "rho": 0.3}  # where the world's recipe has tests switched off
ARMS = [{"objective": "adagrpo"}, {"objective": "adagrpo", "gate": "random"}]


def test_arms_have_the_thresholds_that_admit_the_share(
    copied: Path, data: Path, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = module.starting_evidence
    monkeypatch.setattr(module, "starting_evidence", lambda *a: (measured.append(1), real(*a))[1])
    asked = {"objective": {"adagrpo": {**DEFAULT, "admit": 0.065}}}
    run: Run = world.run(copied, data, train={"arms": [{"objective": "nll"}, *ARMS]}, **asked)
    run.train()
    one, other = (json.loads(run.path("train", name, FILE).read_text()) for name in ("adagrpo", "adagrpo-random"))
    assert one == other and measured == [1]
    assert not run.path("train", "nll", FILE).exists()
    assert abs(one["tests"]["gate"][0] - 0.065) <= 0.25 * 0.065
    assert [one["tau"], one["rho"], *one["tests"]["gate"]] in one["grid"]
    events = run.path("events.jsonl").read_text(encoding="utf-8")
    assert events.count(f"admit 0.065 is tau {one['tau']:g} and rho {one['rho']:g}") == 2
    # the same pair, written down, is the same arm
    options = {"adagrpo": {**DEFAULT, "tau": one["tau"], "rho": one["rho"]}}
    world.run(copied, data, train={"arms": [{"objective": "adagrpo", "name": "given", "options": options}]}).train()
    weights = [(copied / "train" / name / "final/model.safetensors").read_bytes() for name in ("adagrpo", "given")]
    assert weights[0] == weights[1]


def test_a_share_that_no_pair_admits_is_refused(copied: Path, data: Path, world: Any) -> None:
    run: Run = world.run(copied, data, train={"arms": ARMS[:1]}, objective={"adagrpo": {**DEFAULT, "admit": 0.98}})
    with pytest.raises(UserError, match=r"admit 0\.98: no pair of tau and rho admits that share of [\d,]+ samples"):
        run.train()


def test_thresholds_are_given_or_found() -> None:
    with pytest.raises(
        ValueError, match=r"tau 0\.7 and admit 0\.12: admit finds it; admit: null keeps yours, tau: 0\.5"
    ):
        ObjectiveConfig.model_validate({"adagrpo": {"admit": 0.12, "tau": 0.7}})
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="admit"):
            ObjectiveConfig.model_validate({"adagrpo": {"admit": wrong}})
    common = ObjectiveConfig.model_validate({"adagrpo": {"admit": 0.12}})
    arm = {"objective": "adagrpo", "name": "own", "options": {"adagrpo": {"tau": 0.7}}}
    own = ArmConfig.model_validate(arm).resolved_objective(common)
    assert own.of_gate("adagrpo")["tau"] == 0.7 and not own.finds_thresholds("adagrpo")
    assert common.finds_thresholds("random") and not common.finds_thresholds("all")
