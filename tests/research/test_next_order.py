"""The study of what a shop asks: its page is made of its rows, and its primary test by hand."""

from __future__ import annotations

import pytest

from adagrpo.report.page import read_rows
from research.next_order import __main__ as study


def test_the_page_is_made_of_the_rows() -> None:
    page = (study.HERE / "README.md").read_text(encoding="utf-8")
    assert study.with_rows(page, "\n\n".join(study.tables(list(read_rows(study.ROWS))))) == page


def test_the_primary_test_is_over_users_and_seeds() -> None:
    rows = [
        {
            "set": study.PRIMARY[0],
            "asked": study.PRIMARY[1],
            "seed": seed,
            "chosen": "fuse",
            "cases": 3,
            "test": {name: dict.fromkeys(study.SHOWN, 0.5) for name in ("fuse", "own")},
            "values": {
                "fuse": {"hr@10": [1.0, 1.0, 0.0], "recall@10": [0.5, 0.25, 0.0]},
                "own": {"hr@10": [1.0, 0.0, 0.0], "recall@10": [0.25, 0.0, 0.0]},
            },
        }
        for seed in (1, 2)
    ]
    (found,) = study.primary(rows)
    # equal seeds: intervals over users; a gain of a quarter for two of three
    assert found.splitlines()[0] == "chosen: fuse, fuse"
    assert found.splitlines()[1].startswith("recall@10, chosen less own: +0.1667 (")
    assert float(found.splitlines()[2].split()[4]) == pytest.approx(1 / 3, abs=1e-4)
