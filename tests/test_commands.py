"""Every command that the README and the pages show is run here, or says beside it why not.

A block of commands (```` ```sh ````) follows one of these comments:

    <!-- run -->                       run here, in the order of the page, in a folder of the page's own
    <!-- not run: why -->              needs what a test has not: other data, other machines, a person
    <!-- measured once: 2026-11-26 --> carried out by hand on that day; the page shows what came out

A block of Python behind `<!-- run -->` is run in a process of its own. `SMALLER` says by what a page's sizes are
replaced.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from adagrpo.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [page for page in PAGES if "decisions" not in page.parts]
MARKER = re.compile(r"run|not run: .+|measured once: \d{4}-\d\d-\d\d")
COMMAND = re.compile(r"^(?:adagrpo|pip|python|make|curl|accelerate) \S", re.MULTILINE)
SHELL = ("sh", "bash", "console", "shell")
SHORT = {"adagrpo decide ": "adagrpo decide --set sft.epochs=3 --set ranker.fit.epochs=2 "}
SHOP = {"--users 1000 --items 400": "--users 120 --items 100"}
SMALLER = {
    "README.md": SHORT,
    "docs/how-to/own-loop.md": {},
    "docs/how-to/rules.md": SHORT | SHOP,
    "docs/tutorial/first-hour.md": SHORT | SHOP,
}
VERB = re.compile(r"\badagrpo ([a-z]+)(?= |$)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    marker: str  # of the comment before it, "" without one
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    before, language, text = "", None, list[str]()
    for line in page.split("\n"):
        if line.startswith("```") and language is None:
            language, text = line.removeprefix("```").strip(), []
        elif line.startswith("```") and language is not None:
            marker = before.removeprefix("<!-- ").removesuffix(" -->") if before.startswith("<!-- ") else ""
            yield Block(marker, language, "".join(f"{one}\n" for one in text))
            before, language = "", None
        elif language is not None:
            text.append(line)
        elif line.strip():
            before = line


def unmarked(page: str) -> list[str]:
    """The blocks of commands that say nothing of being run."""
    found = [b for b in blocks(page) if b.language in SHELL or (not b.language and COMMAND.search(b.text))]
    return [block.text for block in found if not MARKER.fullmatch(block.marker)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_is_run_or_says_why_not(page: Path) -> None:
    assert unmarked(page.read_text(encoding="utf-8")) == []


def test_every_page_with_commands_to_run_has_its_sizes() -> None:
    run = {
        name_of(page) for page in PAGES for block in blocks(page.read_text(encoding="utf-8")) if block.marker == "run"
    }
    assert run == set(SMALLER)


def test_every_verb_that_is_shown_is_one() -> None:
    known = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None}
    shell = [b for page in PAGES for b in blocks(page.read_text(encoding="utf-8")) if b.language != "python"]
    shown = {verb for block in shell for verb in VERB.findall(block.text)}
    assert {"inspect", "init", "run", "diagnose", "serve", "recommend", "compare", "export"} <= shown <= known


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which `adagrpo` and `python` are those of the tests, with one thread."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, more in (("adagrpo", " -m adagrpo"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{more} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }


def shop(path: Path, separator: str = ",") -> None:
    """A shop's log of orders: who buys an item buys the next ones, now and then another."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerow(["customer_id", "sku", "created_at"])
        for user in range(60):
            for step in range(5 + user % 4):
                item = (7 * user + step * (1 if user % 5 else 3)) % 30
                rows.writerow([f"c{user:03d}", f"s{item:02d}", f"2026-0{1 + step}-{1 + user % 28:02d}T12:00:00"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def carry_out(block: Block, folder: Path, tools: dict[str, str]) -> None:
    """Run a block: commands of `adagrpo` alone within this process, which imports once, and others by bash."""
    lines = [["python"]] if block.language == "python" else shlex_lines(block.text)
    if all(line[0] == "adagrpo" and not {"&", "|", ">"} & set(line) for line in lines):
        for line in lines:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
                patch.chdir(folder)
                patch.setattr(sys, "argv", line)
                main()
            assert end.value.code == 0, " ".join(line)
        return
    # a service that the block began ends with it, or its output would be waited for
    shell = ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{block.text}"]
    done = subprocess.run(
        ["python", "-c", block.text] if block.language == "python" else shell,
        cwd=folder,
        env=tools,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


def shlex_lines(text: str) -> list[list[str]]:
    """The commands of a block, each in words, as a shell sees them; comments are none."""
    lines = text.replace("\\\n", " ").split("\n")
    return [found for line in lines if (found := shlex.split(line, comments=True))]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_the_commands_of_a_page_run_in_order(name: str, tmp_path: Path, tools: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    shop(folder / "clicks.csv")
    shop(folder / "orders.csv", ";")
    page = (ROOT / name).read_text(encoding="utf-8")
    for large, small in (SMALLER[name] | ({"8000": str(free_port())} if "curl" in page else {})).items():
        assert large in page, f"{name} has no {large} any more"
        page = page.replace(large, small)
    commands = [block for block in blocks(page) if block.marker == "run"]
    assert commands
    for block in commands:
        carry_out(block, folder, tools)


def test_the_loop_of_the_page_is_the_example() -> None:
    page = (ROOT / "docs" / "how-to" / "own-loop.md").read_text(encoding="utf-8")
    loop = next(block.text for block in blocks(page) if block.language == "python")
    assert loop == (ROOT / "examples" / "own_loop.py").read_text(encoding="utf-8")
