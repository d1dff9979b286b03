"""What the site writes from the code: every command with its options, every metric."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))

import generated  # noqa: E402 (after the path)


def section(name: str) -> str:
    return generated.commands().partition(f"## `adagrpo {name}`\n")[2].partition("\n## ")[0]


def test_a_command_has_its_usage_help_options_and_defaults() -> None:
    serve = section("serve")
    assert "Serve lists over HTTP until interrupted" in serve and "adagrpo serve [OPTIONS]\n" in serve
    assert "| `--run` RUN | The run directory. | *required* |" in serve
    assert "| `--port` PORT | 0: a free one. | `8000` |" in serve
    assert "| `--checkpoint` best or final | Which checkpoint of it. | `best` |" in serve
    assert "| `--quiet` | No progress on stderr. |  |" in serve  # a flag takes nothing


def test_every_metric_is_a_row() -> None:
    rows = generated.metrics().splitlines()
    assert "| `hr` | HR | 1, 5, 10, 50 | higher | yes |" in rows
    assert "| `tail_share` | tail share | 10 | neither | no |" in rows  # no better direction, so no claim
    assert len(rows) == 2 + len(generated.METRICS)


def test_every_gate_and_option_is_a_row() -> None:
    assert "| `random` | Admit as many samples of the batch as the gate would, drawn by chance. |" in generated.gates()
    rows = generated.gate_options().splitlines()
    assert len(rows) == sum(len(gate.options) for gate in generated.GATES.values())
    assert not [row for row in rows if row.endswith(":  |")], "each is said in the function's documentation"


def test_pages_ask_for_what_there_is() -> None:
    asked = {name for page in DOCS.rglob("*.md") for name in generated.MARKER.findall(page.read_text(encoding="utf-8"))}
    assert asked == set(generated.GENERATED)
