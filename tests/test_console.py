"""What a person sees while a run goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from adagrpo import console
from adagrpo.objective.terms import TERMS


@pytest.mark.parametrize("term", TERMS)
def test_the_progress_line_has_the_reward_term_whatever_it_is_called(monkeypatch: Any, term: str) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", -1.0)
    shown = console.StderrConsole()
    shown.console = Console(file=io.StringIO(), soft_wrap=True)
    for step in (1, 2):
        shown.progress("train/arm", step, 10, {"nll": 2.5, term: 0.25, "grad_norm": 9.0})
    assert f"left nll 2.5 {term} 0.25" in shown.console.file.getvalue()
