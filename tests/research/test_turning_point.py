"""The study of KL from the policy: its page is made of its rows, and what it says of them holds."""

from __future__ import annotations

from adagrpo.report.page import read_rows
from research.turning_point import __main__ as study


def test_the_page_is_made_of_the_rows_and_says_what_they_say() -> None:
    rows, text = list(read_rows(study.RESULTS)), study.PAGE.read_text(encoding="utf-8")
    assert study.page(rows, text) == text
    past = {row[0]: row[1:] for row in study.past_validation(rows).rows}
    bad, all_of = (
        (past["shown"][column].split(" of ")[0] for column in (0, 2)),
        [r for row in past.values() for r in row],
    )
    lost = sum(int(cell.split(" of ")[0]) for cell in all_of if " of " in cell)
    assert f"{sum(map(int, bad))} of the {lost} arms that lost had the bad reward" in text
    assert past["noisy"][0] == "0 of 10" and past["noisy"][1] > past["noisy"][3]
