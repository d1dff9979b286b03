"""Arms that are given a pressure, through the stages: what is kept, said and counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare_arms import matched_arm
from adagrpo.pipeline.factories import Models
from adagrpo.trainer import pressure as pressure_module
from adagrpo.trainer.pressure import mean_pressure

EASY = {"objective": {"tau": 0.0, "tau_reward": 1.0, "rho": 0.0, "pressure_steps": 2}}


def arms(run: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in (run / "train").glob("*/pressure.json")}


def test_an_arm_is_trained_at_the_lambda_of_its_pressure(copied: Path, data: Path, world: Any) -> None:
    pressed = {"objective": "mixture", "pressure": 0.5}
    run: Run = world.run(copied, data, train={"arms": [{"objective": "nll"}, pressed]}, **EASY)
    run.train()
    (found,) = arms(copied).values()
    assert found["pressure"] == 0.5 and found["steps"] == 2 == len(found["term_norms"])
    assert found["lambda_"] == pytest.approx(0.5 / found["ratio"], rel=5e-4)
    said = [json.loads(line)["event"] for line in run.path("events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(f"pressure 0.5 is lambda {found['lambda_']:g}" in event for event in said) == 1
    # the same λ, written down, is the same arm
    given = {"objective": "mixture", "name": "given", "lambda": found["lambda_"]}
    world.run(copied, data, train={"arms": [given]}, **EASY).train()
    weights = [
        (copied / "train" / name / "final/model.safetensors").read_bytes() for name in ("mixture-pressure0.5", "given")
    ]
    assert weights[0] == weights[1]
    run.evaluate()
    stages = run.results["stages"]
    entry = stages["mixture-pressure0.5"]
    assert entry["lambda"] == found["lambda_"] and stages["nll"]["pressure"] is None
    rows = [json.loads(line) for line in run.path("train/mixture-pressure0.5/steps.jsonl").read_text().splitlines()]
    assert entry["pressure"] == mean_pressure(rows) > 0
    rows = [json.loads(line) for line in run.path("results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["pressure"] for row in rows if row["arm"] == "mixture-pressure0.5"} == {entry["pressure"]}


@pytest.mark.slow
def test_arms_of_one_run_repeat_nothing_and_are_what_they_are_alone(
    copied: Path, data: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The common start is validated once, and the norms of an arm hold for its other pressures."""
    counts: Counter[str] = Counter()

    def counted(where: Any, name: str) -> None:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: (counts.update([name]), real(*a, **k))[1])

    counted(Models, "predict")
    counted(pressure_module, "TermGradients")  # one a measured step
    shutil.rmtree(copied / "train")
    alone = shutil.copytree(copied, tmp_path / "alone")
    listed = [{"objective": "mixture", "pressure": 0.5}, {"objective": "mixture", "pressure": 2}]
    listed += [{"objective": "adagrpo", "pressure": 1}, {"objective": "nll"}]
    together: Run = world.run(copied, data, train={"arms": listed}, **EASY)
    together.train()
    validations = [len(path.read_text().splitlines()) for path in copied.glob("train/*/validation.jsonl")]
    assert counts == {"predict": sum(validations) - 3, "TermGradients": 2 * 2}
    for one in listed:
        world.run(alone, data, train={"arms": [one]}, **EASY).train()
    assert counts["predict"] == 2 * sum(validations) - 3 and counts["TermGradients"] == 2 * 2 + 3 * 2
    for name in ("validation.jsonl", "steps.jsonl", "pressure.json", "final/model.safetensors"):
        files = sorted(path.relative_to(copied) for path in copied.glob(f"train/*/{name}"))
        assert len(files) == (3 if name == "pressure.json" else 4)
        assert all((copied / file).read_bytes() == (alone / file).read_bytes() for file in files)


def test_a_matched_mixture_goes_by_the_lambda_that_was_used(copied: Path, data: Path, world: Any) -> None:
    stages = {"adagrpo": {"lambda": 8.0, "admission": 0.25}}
    run: Run = world.run(copied, data, objective={"pressure": 0.5})
    assert matched_arm("mixture-matched", run, {"stages": stages}).lambda_ == 2.0


def test_a_gate_that_admits_nothing_is_refused_in_one_line(copied: Path, data: Path, world: Any) -> None:
    options = {"objective": {"tau_reward": 0.0, "pressure_steps": 2}}
    pressed = {"objective": "adagrpo", "pressure": 0.5}
    with pytest.raises(UserError, match=r"objective\.pressure 0\.5: the reward term has no gradient in 2 steps"):
        world.run(copied, data, train={"arms": [pressed]}, **options).train()


def test_a_beam_longer_than_the_catalogue_is_refused_under_grpo(copied: Path, data: Path, world: Any) -> None:
    longer = {"rollout": "beam", "constrained": True, "num_generations": 1000, "exclude_history": True}
    arm = {"objective": "mixture", "name": "long", "options": longer}
    with pytest.raises(UserError, match=r"arm long: a beam of 1000 .* is longer than the catalogue, which has \d+"):
        world.run(copied, data, train={"arms": [arm]}, **EASY).train()
    arm["options"] = {"rollout": "beam", "num_generations": 5000}  # free: as long as there are sequences
    with pytest.raises(UserError, match=r"arm long: a beam of 5000 .* is longer than all code sequences, .* are \d+; "):
        world.run(copied, data, train={"arms": [arm]}, **EASY).train()
