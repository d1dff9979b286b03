"""The notebook `examples/first_hour.ipynb`: its cells run in order in a fresh process, and it is stored clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_hour.ipynb"

SMALLER = '"users": 1500, "items": 200', '"users": 250, "items": 90'

# As a kernel does: cells share their names, and the value of a last expression is shown as rich as it can be.
KERNEL = """
import ast, json, sys
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin)):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        rich = next((getattr(value, name) for name in ("_repr_svg_", "_repr_html_") if hasattr(value, name)), None)
        print(json.dumps({"cell": number, "shown": str(value) if rich is None else rich()}))
"""


def cells() -> list[dict[str, Any]]:
    return list(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


def test_it_is_stored_without_outputs_and_paths():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4 and content["metadata"]["kernelspec"]["name"] == "python3"
    assert not [cell for cell in cells() if cell.get("outputs") or cell.get("execution_count") is not None]
    assert not [line for cell in cells() for line in cell["source"] if "/home" in line or "/tmp" in line]


@pytest.mark.slow
def test_its_cells_run_and_end_with_the_plot_of_the_diagnosis():
    whole = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    sources = [source.replace(*SMALLER) for source in whole]
    assert sources != whole
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"cell"')]
    assert shown[-1]["cell"] == len(sources) - 1 and shown[-1]["shown"].startswith("<svg")
    assert any(verdict in done.stdout for verdict in ("use", "do_not_use"))
    assert "no-such-item" in next(one["shown"] for one in shown if "[[]," in one["shown"])
