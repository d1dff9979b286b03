"""The page of the study of learned trust says what its rows say."""

from __future__ import annotations

from adagrpo.report import read_rows
from research.learned_trust.tables import HERE, arms_table, rerank_table, written


def test_the_page_is_what_its_rows_say() -> None:
    text, rows = (HERE / "README.md").read_text(encoding="utf-8"), read_rows(HERE / "trust.jsonl")
    assert rerank_table(rows).rows and arms_table(rows).rows
    assert written(text, rows) == text
    first = next(row for row in rows if "arms" not in row)
    mean = first["trusted_minus_one_weight"]["true_utility@10"][0]
    assert f"{mean:+.4f}".replace("-", "\N{MINUS SIGN}") in text
