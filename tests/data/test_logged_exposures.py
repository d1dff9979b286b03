from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.exposures import impressions_of
from adagrpo.exposures.exposure_store import EXPOSURE_SCHEMA, FEEDBACK_SCHEMA


def answers(*rows: dict[str, Any]) -> pl.DataFrame:
    whole = []
    for row in rows:
        fixed = {"user_hash": "u", "time": 100.0, "positions": list(range(len(row["slate"])))}
        whole.append(dict.fromkeys(EXPOSURE_SCHEMA) | fixed | row)
    return pl.DataFrame(whole, schema=EXPOSURE_SCHEMA)


def said(*rows: tuple[str, str, str, float, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=FEEDBACK_SCHEMA, orient="row")


def test_each_item_is_a_row_with_its_click_and_its_propensity() -> None:
    shown = answers(
        {"request_id": "a", "slate": ["1", "2"], "log_inclusions": [math.log(0.5), math.log(0.25)]},
        {"request_id": "b", "slate": ["2"], "user_hash": "v", "time": 200.0, "positions": [7]},
    )
    table, counts = impressions_of(shown, said(("a", "2", "click", 130.0, 1.0)), clicks=["click"])
    assert table.drop("propensity", "request_id").rows() == [
        ("u", "1", 100.0, 0, 0, None),
        ("u", "2", 100.0, 1, 1, 130.0),
        ("v", "2", 200.0, 0, 7, None),
    ]
    np.testing.assert_allclose(table["propensity"][:2], [0.5, 0.25], rtol=1e-12)
    assert table["propensity"][2] is None
    assert (counts["answers"], counts["impressions"], counts["clicks"], counts["feedback"]) == (2, 3, 1, 1)


def test_what_is_left_out_is_counted_once_each() -> None:
    shown = answers(
        {"request_id": "a", "slate": ["1", "2"]},
        {"request_id": "a", "slate": ["9"]},
        {"request_id": "b", "slate": ["1"], "user_hash": None},
        {"request_id": "c", "slate": []},
    )
    feedback = said(
        ("a", "1", "click", 101.0, 1.0),
        ("a", "1", "click", 102.0, 1.0),  # repeated
        ("a", "1", "dwell", 103.0, 8.0),  # another kind
        ("a", "2", "click", 999.0, 1.0),  # late
        ("a", "2", "purchase", 94.0, 1.0),  # before the list was there
        ("a", "2", "dwell", 96.0, 1.0),  # by a clock that is behind; another kind
        ("a", "9", "click", 101.0, 1.0),  # of the list that is left out
        ("z", "1", "click", 101.0, 1.0),  # unknown
        ("b", "1", "click", 101.0, 1.0),  # of nobody
        ("c", "1", "purchase", 101.0, 0.0),  # not shown
    )
    table, counts = impressions_of(shown, feedback, clicks=["click", "purchase"], within_seconds=60.0)
    assert table.select("request_id", "item_id", "clicked").rows() == [("a", "1", 1), ("a", "2", 0)]
    assert counts == {
        "answers": 4,
        "answers_repeated": 1,
        "answers_without_user": 1,
        "answers_not_sampled": 0,
        "impressions": 2,
        "clicks": 1,
        "feedback": 10,
        "feedback_repeated": 1,
        "feedback_of_unknown_requests": 1,
        "feedback_of_items_not_shown": 2,
        "feedback_early": 1,
        "feedback_late": 1,
        "feedback_of_other_kinds": 2,
    }


def test_only_drawn_lists_are_kept_if_wanted() -> None:
    shown = answers({"request_id": "a", "slate": ["1"]}, {"request_id": "b", "slate": ["1"], "log_inclusions": [-1.0]})
    table, counts = impressions_of(shown, said(("b", "1", "click", 101.0, 1.0)), clicks=["click"], only_sampled=True)
    assert table["request_id"].to_list() == ["b"] and (counts["answers_not_sampled"], counts["clicks"]) == (1, 1)


def test_the_join_is_what_a_loop_finds() -> None:
    rng = np.random.default_rng(0)
    shown = answers(
        *(
            {
                "request_id": f"r{rng.integers(40)}",
                "slate": [str(item) for item in rng.permutation(12)[: rng.integers(1, 6)]],
                "time": float(rng.integers(100)),
                "user_hash": None if rng.random() < 0.2 else f"u{rng.integers(5)}",
            }
            for _ in range(60)
        )
    )
    feedback = said(
        *(
            (f"r{rng.integers(50)}", str(rng.integers(12)), str(rng.choice(["click", "dwell"])), float(time), 1.0)
            for time in rng.integers(0, 200, 300)
        )
    )
    table, counts = impressions_of(shown, feedback, clicks=["click"], within_seconds=80.0)
    expected, seen = [], set()
    for row in shown.to_dicts():
        if row["request_id"] in seen:
            continue
        seen.add(row["request_id"])
        if row["user_hash"] is None:
            continue
        for item in row["slate"]:
            first = {}
            for one in feedback.to_dicts():
                if (one["request_id"], one["item"]) == (row["request_id"], item):
                    first.setdefault(one["kind"], one["time"])
            clicked = "click" in first and -5.0 <= first["click"] - row["time"] <= 80.0
            expected.append((row["request_id"], item, int(clicked)))
    assert table.select("request_id", "item_id", "clicked").rows() == expected
    assert counts["clicks"] == sum(clicked for _, _, clicked in expected) > 3
