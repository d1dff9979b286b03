"""Gates of one's own on the command line: by `--plugin`, and by the entry points of an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from adagrpo.cli import plugins

from .command_line import Answer, command

GATE = '''
from torch import Tensor
from adagrpo.objective.gates import Gate, GateDecision, by_control, register

def gate(degenerate: Tensor, reward_std: Tensor, *, least: float = 0.1) -> GateDecision:
    """Admit groups whose rewards vary."""
    return by_control(~degenerate & (reward_std > least), degenerate)

register(Gate("{name}", gate))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_gate_of_a_plugin_and_of_an_entry_point_is_an_arm(data: Path, tmp_path: Path) -> None:
    """In a process of its own: within this one the configuration is imported already."""
    work, site = tmp_path / "work", tmp_path / "site"
    about = site / "theirs-1.dist-info"
    about.mkdir(parents=True)
    work.mkdir()
    (work / "mygate.py").write_text(GATE.format(name="mine"), encoding="utf-8")
    (site / "theirs.py").write_text(GATE.format(name="theirs"), encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\ntheirs = theirs\n", encoding="utf-8")
    program = "import sys; sys.path.pop(0); from adagrpo.__main__ import main; main()"  # as the script: no folder of it
    given = ["--plugin", "mygate", "run", data / "recipe.yaml", "--data", data, "--out", "run", "--dry-run"]
    arms = ["--set", "train.arms=[adagrpo-mine, adagrpo-theirs]", "--set", "objective.mine.least=0.2"]
    path = os.pathsep.join([str(site), str(Path(plugins.__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, given), *arms],
        cwd=work,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "train/adagrpo-mine" in ran.stdout and "train/adagrpo-theirs" in ran.stdout


@pytest.mark.parametrize(
    ("content", "asked", "said"),
    [
        (None, "mygate", "--plugin mygate: neither an installed module nor a file mygate.py in {folder}"),
        (None, "own.gates", "--plugin own.gates: neither an installed module nor a file own/gates.py in {folder}"),
        ("", "mygate.py", "--plugin mygate.py: give the name of a module, mygate, and not its path"),
        (GATE, "mygate", "--plugin mygate: gate 'mine': register it before adagrpo.config is imported"),
        (GATE.replace("{name}", "all"), "mygate", "--plugin mygate: gate 'all': another has that name"),
        ("import no_such", "mygate", "--plugin mygate: ModuleNotFoundError: No module named 'no_such'"),
    ],
)
def test_one_that_does_not_load_is_one_line(folder: Path, content: str | None, asked: str, said: str) -> None:
    if content is not None:
        (folder / "mygate.py").write_text(content.format(name="mine"), encoding="utf-8")
    answer = command("--plugin", asked, "status", "--run", "nowhere")
    assert answer == Answer(2, "", f"adagrpo: {said.format(folder=folder)}\n")


def test_an_entry_point_that_does_not_load_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("shop", "shop_gates", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: found if group == plugins.GROUP else [])
    answer = command("status", "--run", "nowhere")
    assert answer.status == 2 and answer.err.count("\n") == 1
    assert "plug-in shop (shop_gates) of the entry points adagrpo.plugins: neither" in answer.err
    (folder / "shop_gates.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    assert "nowhere: not a run" in command("status", "--run", "nowhere").err
