"""Pages and charts of studies that write them themselves are what their rows say; others: `test_documents`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from adagrpo.report import read_rows, to_markdown
from adagrpo.report.canvas import standalone
from research.closed_loop import tables as closed_loop
from research.exposure_bias import tables as exposure_bias
from research.gate_best_case import tables as gate_best_case
from research.interleaving import measure as interleaving
from research.learned_trust import tables as learned_trust
from research.off_policy_logs import measure as off_policy_logs
from research.random_exposure import propensity
from research.tokenizers import measure as tokenizers

STUDIES = Path(__file__).parents[2] / "research"


def page(study: str) -> str:
    return (STUDIES / study / "README.md").read_text(encoding="utf-8")


def rows(study: str, name: str = "rows") -> list[dict[str, object]]:
    return [dict(row) for row in read_rows(STUDIES / study / f"{name}.jsonl")]


def of_tokenizers() -> Iterable[str]:
    found = rows("tokenizers", "tokenizers")
    names = list(dict.fromkeys(str(row["tokenizer"]) for row in found))
    yield from to_markdown(tokenizers.audit_table(found, names)).splitlines()
    for line in to_markdown(tokenizers.policy_table(STUDIES / "nowhere", found, names)).splitlines():
        yield " | ".join(line.split(" | ")[:4])  # the differences need the users' ranks, which are not kept


PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "exposure_bias": lambda: map(to_markdown, exposure_bias.tables(rows("exposure_bias", "exposure-bias")).values()),
    "gate_best_case": lambda: [gate_best_case.written(page("gate_best_case"), rows("gate_best_case", "gates"))],
    "interleaving": lambda: [interleaving.table(rows("interleaving"))],
    "learned_trust": lambda: [
        learned_trust.written(page("learned_trust"), rows("learned_trust", "trust"), rows("learned_trust", "real"))
    ],
    "off_policy_logs": lambda: off_policy_logs.tables(rows("off_policy_logs")).values(),
    "random_exposure": lambda: (
        f"| {' | '.join(cells[3:])} |\n" for cells in propensity.table(rows("random_exposure", "propensity")).rows
    ),
    "tokenizers": of_tokenizers,
}


@pytest.mark.parametrize("study", PARTS)
def test_a_page_says_what_its_rows_say(study: str) -> None:
    parts = list(PARTS[study]())
    assert parts and all(part in page(study) for part in parts)


@pytest.mark.slow  # draws charts anew
def test_files_of_studies_are_those_of_their_rows() -> None:
    for path, text in closed_loop.written().items():
        assert path.read_text(encoding="utf-8") == text, path.name
    drawn = exposure_bias.charts(rows("exposure_bias", "exposure-bias"))
    folder = STUDIES / "exposure_bias" / "figures" / "exposure-bias"
    files = {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert files == {name: standalone(svg) for name, svg in drawn.items()}
