"""Tables and charts of studies are what their results say, and their pages quote them; more in `test_documents`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from adagrpo.report import read_rows, to_markdown
from research.closed_loop import tables as closed_loop
from research.decisions import tables as decisions
from research.exposed_feed import fused
from research.exposure_bias import tables as exposure_bias
from research.gate_best_case import tables as gate_best_case
from research.interleaving import measure as interleaving
from research.off_policy_logs import measure as off_policy_logs
from research.paper_gate import random_exposures
from research.random_exposure import propensity
from research.small_data import table as small_data
from research.tokenizers import measure as tokenizers

STUDIES = Path(__file__).parents[2] / "research"


INTERVAL = re.compile(r"[+−-]?[\d.]+(?: %)? \([+−-]?[\d.]+ (?:…|to) [+−-]?[\d.]+(?:; [^)]*)?\)")
MARKS = re.compile(r"<!-- (?:end of )?\w+(?:: [^>]*)? -->")


def tables() -> list[Path]:
    return [*STUDIES.glob("*/tables.md"), *STUDIES.glob("*/tables/*.md")]


def page(study: str) -> str:
    return (STUDIES / study / "tables.md").read_text(encoding="utf-8")


def rows(study: str, name: str = "rows") -> list[dict[str, object]]:
    return [dict(row) for row in read_rows(STUDIES / study / f"{name}.jsonl")]


def of_tokenizers() -> Iterable[str]:
    found = rows("tokenizers", "tokenizers")
    names = list(dict.fromkeys(str(row["tokenizer"]) for row in found))
    yield from to_markdown(tokenizers.audit_table(found, names)).splitlines()
    for line in to_markdown(tokenizers.policy_table(STUDIES / "nowhere", found, names)).splitlines():
        yield " | ".join(line.split(" | ")[:4])  # the differences need the users' ranks, which are not kept


PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "decisions": lambda: [decisions.written()],
    "exposed_feed": lambda: [fused.table(rows("exposed_feed", "fused"))],
    "exposure_bias": lambda: map(to_markdown, exposure_bias.tables(rows("exposure_bias", "exposure-bias")).values()),
    "gate_best_case": lambda: [
        gate_best_case.written(page("gate_best_case"), rows("gate_best_case", group), group)
        for group in ("gates", "paper")
    ],
    "interleaving": lambda: [interleaving.table(rows("interleaving"))],
    "off_policy_logs": lambda: off_policy_logs.tables(rows("off_policy_logs")).values(),
    "paper_gate": lambda: [random_exposures.table(rows("paper_gate", "random-kuairand-clicks"))],
    "random_exposure": lambda: (
        f"| {' | '.join(cells[3:])} |\n" for cells in propensity.table(rows("random_exposure", "propensity")).rows
    ),
    "small_data": lambda: [to_markdown(small_data.table(read_rows(STUDIES / "small_data" / "small-data.jsonl")))],
    "tokenizers": of_tokenizers,
}


@pytest.mark.parametrize("study", PARTS)
def test_tables_say_what_their_results_say(study: str) -> None:
    parts = list(PARTS[study]())
    assert parts and all(part in page(study) for part in parts)


def test_intervals_that_a_page_quotes_stand_in_a_table() -> None:
    known = "".join(path.read_text(encoding="utf-8") for path in tables())
    folders = {STUDIES, *(path.parent for path in STUDIES.glob("*/tables*"))}
    pages = [folder / "README.md" for folder in folders if (folder / "README.md").is_file()]
    quoted = {path.parent.name: INTERVAL.findall(path.read_text(encoding="utf-8")) for path in pages}
    assert len(pages) >= 9 and sum(map(len, quoted.values())) > 100
    assert [(name, text) for name, found in quoted.items() for text in found if text not in known] == []


@pytest.mark.parametrize("path", tables(), ids=lambda path: path.relative_to(STUDIES).as_posix())
def test_files_of_tables_hold_headings_commands_and_tables_alone(path: Path) -> None:
    text = re.sub(r"^```\n.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in MARKS.sub("", text).splitlines() if line and not line.startswith(("#", "|"))] == []


@pytest.mark.slow  # draws charts anew
def test_files_of_studies_are_those_of_their_rows() -> None:
    for path, text in closed_loop.written().items():
        assert path.read_text(encoding="utf-8") == text, path.name
