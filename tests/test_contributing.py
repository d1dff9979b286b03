"""What the contributing page adds to the program, in the files that it names and in no other, does its work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing.md"
pytestmark = pytest.mark.slow
Command = Callable[..., str]


def code(heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file.name} has no one place for what is added"
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def adagrpo(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command line of a copy of the program to which the page's gate, list, policy kind and command were added."""
    source = tmp_path_factory.mktemp("source")
    package = shutil.copytree(ROOT / "src" / "adagrpo", source / "adagrpo")
    rule, entry = code("Adding a gate")
    table = "GATES: dict[str, Gate] = {"
    edit(package / "objective" / "gates.py", table, f"{rule}\n\n{table}")
    last = '        Gate("variance"'
    edit(package / "objective" / "gates.py", last, f"        {entry.strip()},\n{last}")
    walks, row = code("Adding a list")
    (package / "lists" / "rp3beta.py").write_text(walks, encoding="utf-8")
    edit(package / "lists" / "table.py", "import ease, own, taste", "import ease, own, rp3beta, taste")
    edit(package / "lists" / "table.py", '    "ease": Source(', f'    {row.strip()},\n    "ease": Source(')
    (kind,) = code("Adding a policy kind")
    (package / "policies" / "gru.py").write_text(kind, encoding="utf-8")
    edit(package / "config" / "models.py", 'Literal["compact", "hybrid", "causal_lm"]', 'Literal["compact", "gru"]')
    (command,) = code("Adding a command")
    (package / "cli" / "arms_commands.py").write_text(command, encoding="utf-8")

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "adagrpo", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def run(adagrpo: Command, world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a policy of the page's kind, an arm with its gate, and a control of that."""
    folder = tmp_path_factory.mktemp("run")
    content = world.recipe(
        policy={"kind": "gru"},
        objective={"control_of": "reward_top", "reward_top": {"top": 0.6}},
        train={"arms": ["adagrpo-reward_top", "adagrpo-random"]},
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    adagrpo("run", recipe, "--data", data, "--out", folder / "run", "--quiet")
    return folder / "run"


def test_the_gate_trains_an_arm_and_has_controls(run: Path) -> None:
    stages = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["stages"]
    assert stages["adagrpo-reward_top"]["gate"] == "reward_top"
    assert 0 < stages["adagrpo-reward_top"]["admission"] < 1
    arms = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["arms"]
    assert arms["adagrpo-reward_top"]["reward_top"] == {"top": 0.6} and "adagrpo" not in arms["adagrpo-reward_top"]
    assert arms["adagrpo-random"]["control_of"] == "reward_top"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "adagrpo-reward_top" in page and "adagrpo-random" in page


def test_the_list_is_measured_and_recommended(adagrpo: Command, run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["baselines"]
    assert found["rp3beta"] != found["item_knn"]
    users = run.parent / "one.csv"
    users.write_text("user_id\nu00\n", encoding="utf-8")
    adagrpo("recommend", "--run", run, "--users", users, "--out", run.parent / "walks", "--arm", "rp3beta", "--quiet")
    assert pl.read_parquet(run.parent / "walks" / "*.parquet")["user_id"].to_list() == ["u00"]


def test_the_policy_kind_is_trained_planned_and_served(adagrpo: Command, run: Path) -> None:
    weights = "encoder.gru.weight_ih_l0"
    assert weights.encode() in (run / "sft" / "best" / "model.safetensors").read_bytes()
    plan = json.loads(adagrpo("sft", "--run", run, "--set", "sft.epochs=3", "--dry-run", "--json"))
    assert [row["state"] for row in plan["stages"]] == ["make"]
    users = run.parent / "users.csv"
    users.write_text("user_id\nu00\n", encoding="utf-8")
    lists = run.parent / "lists"
    adagrpo("recommend", "--run", run, "--users", users, "--out", lists, "--quiet")
    assert pl.read_parquet(lists / "*.parquet")["user_id"].to_list() == ["u00"]


def test_the_command_is_in_the_help_and_answers(adagrpo: Command, run: Path) -> None:
    assert "Say which arms a run trains, and what gate each has." in adagrpo("--help")
    answer = json.loads(adagrpo("arms", "--run", run, "--json"))
    assert answer == {"adagrpo-reward_top": "reward_top", "adagrpo-random": "random"}
