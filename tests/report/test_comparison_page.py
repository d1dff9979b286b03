"""What the page of a comparison says, from results that were planted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from adagrpo.config import CompareConfig
from adagrpo.evaluation.comparison import ComparisonVerdict, Measured, compare, compare_pairs
from adagrpo.report.comparison_page import (
    comparison_figures,
    comparison_markdown,
    comparison_page,
    comparison_table,
    finding,
    pairs_table,
    read_comparison,
)

HOSTILE = "<script>alert('x')</script>"


def measured(hits: int, *, validation: float = 0.3, invalid: float = 0.0) -> Measured:
    """The first `hits` of 200 users are hits."""
    result = (np.arange(200) < hits).astype(float)
    users = pl.DataFrame({"user_id": range(200), "hr@10": result, "hallucination@10": np.full(200, invalid)})
    means = {"hr@10": hits / 200, "hallucination@10": invalid, "coverage@10": 0.5}
    return Measured(users, means, means | {"hr@10": validation})


def content(seeds: int = 2, **arms: list[Measured]) -> dict[str, Any]:
    options = CompareConfig(margins={"hallucination@10": 0.01}, resamples=500)
    tests = {("sft", "best"): [measured(50)] * seeds, ("nll", "best"): [measured(50)] * seeds}
    tests |= {(name.replace("_", "-"), "best"): entries for name, entries in arms.items()}
    names = [name for name, _ in tests if name != "sft"]
    facts = {"lambda": [1.0] * seeds, "admission": [0.1] * seeds, "weight": [None] * seeds}
    plan = options.model_dump(mode="json") | {"family": names[1:]}
    result = {"name": "tiny", "config_hash": "abc", "seeds": list(range(seeds)), "users": 200, "plan": plan}
    result |= {"arms": dict.fromkeys(names, facts), "rows": compare(tests, range(seeds), options)}
    return result | {"finding": finding(result)}


def test_an_arm_that_lost_its_policy_is_named_with_its_seeds() -> None:
    result = content(adagrpo=[measured(50), measured(51)])
    assert "policy lost" not in comparison_markdown(result)
    lost = {"step": 5, "why": "rollouts that name an item fell from 75.7 % to 0.0 %"}
    result["arms"] = result["arms"] | {"adagrpo": result["arms"]["adagrpo"] | {"lost": [None, lost]}}
    assert "adagrpo lost its policy under seed 1 (step 5)." in finding(result)
    assert " | seed 1 (step 5) |" in comparison_markdown(result)


def test_an_arm_that_validation_gave_no_weight_is_named() -> None:
    result = content(adagrpo=[measured(50), measured(51)], grpo=[measured(50)] * 2)
    said = "Validation gave the reward no weight under any seed: grpo."
    for weights, named in (([0.0, 0.0], True), ([0.0, 0.5], False), ([None, None], False)):
        result["arms"] = result["arms"] | {"grpo": result["arms"]["grpo"] | {"weight": weights}}
        assert (said in finding(result)) == named


def test_a_pair_is_shown_with_its_own_interval() -> None:
    result = content(adagrpo=[measured(60)] * 2, adagrpo_random=[measured(61)] * 2)
    assert "## Arms against each other" not in comparison_markdown(result)
    options = CompareConfig(pairs=(("adagrpo", "adagrpo-random"),), resamples=500)
    entries = {("adagrpo", "best"): [measured(60)] * 2, ("adagrpo-random", "best"): [measured(61)] * 2}
    page = comparison_markdown(result | {"pairs": compare_pairs(entries, options)})
    assert "## Arms against each other" in page
    assert "| adagrpo minus adagrpo-random | best | \N{MINUS SIGN}0.50 |" in page
    table = pairs_table(result | {"pairs": [row | {"p_holm": 0.25} for row in compare_pairs(entries, options)]})
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells.pop("p, Holm") == "0.250"
    intervals = {name.rpartition("over ")[2]: cell for name, cell in cells.items() if "over " in name}
    assert len(intervals) == 3 and all(" … " in cell for cell in intervals.values())


def test_nothing_gained_is_the_first_thing_said() -> None:
    message = finding(content(adagrpo=[measured(50), measured(51)], grpo=[measured(20)] * 2))
    none = "No arm is significantly better than nll on HR@10 (2 seeds, 2 tests), after Holm's correction"
    assert message[0] == f"{none}; the largest gain is +0.25 points, adagrpo (best)."
    assert finding(content(grpo=[measured(20)] * 2))[0] == none.replace("2 tests", "1 test") + "."
    assert message[1].startswith("Significantly worse than nll: grpo (best: −15.00 points, users and seeds −")
    assert message[2] == "Not distinguishable from nll, which does not show equality: adagrpo (best)."


def test_users_without_the_seeds_are_no_claim() -> None:
    message = finding(content(grpo=[measured(100), measured(52)]))
    assert message[0].startswith("No arm is significantly better")
    assert message[1].startswith("Significant over users, but not over users and seeds: grpo (best: +13.00 points")


def test_a_gain_is_said_with_its_intervals() -> None:
    message = finding(content(adagrpo=[measured(80)] * 2))
    assert re.match(
        r"Significantly better than nll on HR@10 \(2 seeds, 1 test\), within the margins: adagrpo \(best: \+15\.00"
        r" points, users and seeds \+1\d\.\d\d … \+\d\d\.\d\d, p < 0\.001\)\.$",
        message[0],
    )


def test_a_gain_at_a_price_is_not_called_better() -> None:
    message = finding(content(grpo=[measured(80, invalid=0.2)] * 2))
    assert message[0].startswith("No arm is significantly better than nll")
    assert message[1].startswith("Significantly better, but beyond the margin on hallucination@10: grpo (best: +15.00")


def test_the_gate_and_its_control_differ_by_an_interval() -> None:
    result = content(adagrpo=[measured(60)] * 2, adagrpo_random=[measured(61)] * 2, mixture_matched=[measured(59)] * 2)
    (told,) = [sentence for sentence in finding(result) if sentence.startswith("The gate")]
    assert told.startswith("The gate is not compared with adagrpo-random, mixture-matched: `compare.pairs: [[adagrpo,")
    against = {"hr@10": {"difference": -0.005, "users": [-0.02, 0.01]}}
    result["pairs"] = [
        {"arm": "adagrpo", "other": "adagrpo-random", "checkpoint": kind, "against": against, "p_holm": 0.5}
        for kind in ("best", "final")
    ]
    (told,) = [sentence for sentence in finding(result) if sentence.startswith("adagrpo minus adagrpo-random")]
    assert told.endswith("HR@10 -0.50 [-2.00, +1.00] points; no difference found.")


def test_validation_chooses_and_test_reports() -> None:
    message = finding(content(adagrpo=[measured(40, validation=0.4)] * 2, grpo=[measured(60)] * 2))
    assert "Validation would choose adagrpo (40.00 % there); on test it has 20.00 %." in message


def test_one_seed_is_called_one_seed() -> None:
    message = finding(content(1, adagrpo=[measured(80)]))
    assert message[0].startswith("Significantly better than nll on HR@10 (1 seed, 1 test)") and "seeds –" in message[0]
    assert message[-1].startswith("All of this is one seed")
    assert not any("one seed" in sentence for sentence in finding(content(2, adagrpo=[measured(80)] * 2)))


def test_the_table_by_hand() -> None:
    table = comparison_table(content(adagrpo=[measured(50), measured(54)]))
    row = dict(zip(table.header, table.rows[-1], strict=True))
    assert table.header[6] == "95 % over users and seeds"
    # two seeds: half the interval is 12.706 times the standard error, 1 point
    assert (row["arm"], row["HR@10"], row["± seeds"]) == ("adagrpo", "26.00 %", "12.71")
    assert (row["vs nll (points)"], row["95 % over seeds"]) == ("+1.00", "−11.71 … +13.71")
    assert table.rows[1][5:10] == ("–", "–", "–", "–", "–") and table.rows[1][2] == "baseline"


def test_the_page_is_offline_escaped_and_repeatable() -> None:
    actual = content(adagrpo=[measured(80)] * 2) | {"name": HOSTILE}
    page = comparison_page(actual)
    assert page == comparison_page(actual)
    assert "<script" not in page and "alert" in page
    links = re.findall(r"""(?:src|href)=(?!"#)|url\(|https?://[^"' ]+""", page)
    assert set(links) == {"http://www.w3.org/2000/svg"}
    assert (
        "Retrieval against validity" in page and "Fixed before the runs: the arm adagrpo is compared with nll" in page
    )


def test_the_page_opens_with_what_validation_chooses_for_a_thousand_users() -> None:
    actual = content(adagrpo=[measured(80)] * 2)
    for row in actual["rows"]:
        row["validation"]["hr@10"] = 0.9 if row["arm"] == "adagrpo" else 0.1
    page = comparison_page(actual)
    assert "Validation chooses adagrpo: serve it, or try it on users beside nll." in page
    hits = {row["arm"]: round(1000 * row["test"]["hr@10"]["mean"]) for row in actual["rows"]}
    said = f"Of 1,000 users {hits['adagrpo']} find their next item in a list of 10 (test cases), with nll {hits['nll']}"
    assert f"{said}; verdict: significantly better." in page
    for row in actual["rows"]:
        row["validation"]["hr@10"] = 0.9 if row["arm"] == "nll" else 0.1
    assert "Keep nll: validation chooses nothing else." in comparison_page(actual)


def test_a_file_of_a_time_before_the_interval_over_both_is_shown_with_the_two_that_it_has() -> None:
    old = content(adagrpo=[measured(50), measured(54)])
    for row in old["rows"]:
        for against in row["against"].values():
            del against["both"]
    assert comparison_table(old).header[6:] == ("95 % over users", "p, Holm", "95 % over seeds")
    assert "intervals over seeds</title>" in comparison_page(old)
    assert "an interval over seeds that excludes zero" in comparison_page(old)


def test_a_file_of_a_time_before_the_present_verdicts_is_read_with_these(tmp_path: Path) -> None:
    present = content(adagrpo=[measured(80)] * 2, grpo=[measured(100), measured(52)])
    earlier = {"significantly better": "better", "significant over users only": "not settled over seeds"}
    rows = [row | {"verdict": earlier.get(row["verdict"], row["verdict"])} for row in present["rows"]]
    assert {row["verdict"] for row in rows} >= set(earlier.values())
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(present | {"rows": rows, "finding": ["adagrpo settled it"]}), encoding="utf-8")
    read = read_comparison(path)
    assert [row["verdict"] for row in read["rows"]] == [row["verdict"] for row in present["rows"]]
    assert read["finding"] == present["finding"]


def test_every_verdict_on_file_has_a_present_name() -> None:
    for path in (Path(__file__).parents[2] / "research").rglob("*.comparison.json"):
        assert {row["verdict"] for row in read_comparison(path)["rows"]} <= set(get_args(ComparisonVerdict)), path


def test_an_arm_that_would_leave_many_others_no_room_is_named_and_not_drawn() -> None:
    near = {f"arm_{i}": [measured(50 + i, invalid=0.001 * i)] * 2 for i in range(5)}
    figure = comparison_figures(content(**near, grpo=[measured(20, invalid=0.3)] * 2))["frontier"]
    assert "test cases, without grpo<" in figure.svg and "Too far off to be drawn: grpo." in figure.caption
    assert figure.svg.partition("</desc>")[0].endswith("arm-4")
    few = dict(list(near.items())[:3])
    figure = comparison_figures(content(**few, grpo=[measured(20, invalid=0.3)] * 2))["frontier"]
    assert ">grpo<" in figure.svg and "without" not in figure.svg
