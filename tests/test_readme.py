"""The README's example runs, and its commands name verbs that exist."""

import re
from pathlib import Path

import torch

from adagrpo.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs():
    names: dict[str, object] = {}
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    exec(code.group(1), names)  # the project's own README
    assert torch.equal(names["decision"].admitted, torch.tensor([True, False]))  # type: ignore[attr-defined]


def test_the_verbs_exist():
    verbs = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback is not None
    }
    named = set(re.findall(r"^(?:.*&& )?adagrpo ([a-z]+)", README, re.MULTILINE))
    assert named >= {"prepare", "run", "train"}
    assert named <= verbs
