"""The demo in a tiny world: both rewards, every number against the runs that it came from, and a second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.config import Config
from adagrpo.pipeline.demo import GOOD, WRONG, demo_runs, run_demo, trained
from adagrpo.report.decision import RANKER, contenders_table, trial_sentences
from adagrpo.report.training import training_sentences, training_table

from ..consoles import Heard

pytest.importorskip("lightgbm")

CHANGES: dict[str, Any] = {
    "decide": {"refit": False},  # as in the recipe of the demo
    "data": {"logs": None, "marketplace": {"users": 120, "items": 90}},
    "reward": {"kind": "lambdarank"},
    "ranker": {"lambdarank": {"trees": 20}},
    "train": {"arms": ["nll", "grpo", "adagrpo", "adagrpo-random"]},
}


@pytest.mark.slow
def test_both_rewards_are_tried_and_nothing_is_done_twice(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(**CHANGES)
    del recipe["data"]["logs"]
    config = Config.model_validate(recipe)
    first, second = Heard(), Heard()
    result = run_demo(tmp_path / "demo", config, first)

    assert list(result.rewards["training"]) == [GOOD, WRONG]
    for reward, folder in ((GOOD, "demo"), (WRONG, "demo-wrong-reward")):
        run = tmp_path / folder
        told = result.rewards["training"][reward]
        rows = {row["arm"]: row for row in told["rows"]}
        assert list(rows) == ["sft", "nll", "grpo", "adagrpo", "adagrpo-random"]
        row = rows["grpo"]
        (pair,) = told["pairs"]
        assert (pair["arm"], pair["other"]) == ("adagrpo", "adagrpo-random")
        gap = rows["adagrpo"]["test"]["hr@10"]["mean"] - rows["adagrpo-random"]["test"]["hr@10"]["mean"]
        assert pair["against"]["hr@10"]["difference"] == pytest.approx(gap)
        steps = pl.read_ndjson(run / "train" / "adagrpo" / "steps.jsonl")
        shares = [steps["admission"].mean(), steps["shuffled_admission"].mean()]
        assert told["admission"]["adagrpo"] == pytest.approx(shares)
        stages = json.loads((run / "metrics.json").read_text())["stages"]
        value = stages["grpo"]["final"]["test"]["hr@10"]
        assert row["test"]["hr@10"]["mean"] == value
        assert row["against"]["hr@10"]["difference"] == pytest.approx(value - _hits(tmp_path / "demo", "nll"))
        said = json.loads((run / "diagnose" / "diagnose.json").read_text())["verdict"]
        assert result.rewards["rewards"][reward] == said
        assert result.rewards["decisions"][reward] == json.loads((run / "decision.json").read_text())
        assert result.pages[reward] == run / "report.html"
        chosen = result.rewards["decisions"][reward]["chosen"]
        pages = [(run / page).read_text(encoding="utf-8") for page in ("report.html", "diagnose.html")]
        assert all(f"Serve {chosen}, which adagrpo decide chose" in page for page in pages)
    assert not (tmp_path / "demo-wrong-reward" / "sft").exists()  # the starting policy is that of the other run

    again = run_demo(tmp_path / "demo", config, second).rewards
    assert again["training"] == result.rewards["training"]
    assert {name: one["chosen"] for name, one in again["decisions"].items()} == {
        name: one["chosen"] for name, one in result.rewards["decisions"].items()
    }
    assert {event for _, event in second.stages} == {"skip"}

    alone = config.model_copy(update={"train": config.train.model_copy(update={"arms": ()})})
    untrained = run_demo(tmp_path / "demo", alone, Heard()).rewards
    assert untrained["training"][GOOD]["rows"] == [] and untrained["rewards"] == result.rewards["rewards"]
    assert all("nll" not in {row["list"] for row in one["contenders"]} for one in untrained["decisions"].values())


def test_arms_without_the_one_that_they_are_compared_with_have_no_rows(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(**CHANGES | {"train": {"arms": ["grpo"]}})
    del recipe["data"]["logs"]
    run = demo_runs(tmp_path / "demo", Config.model_validate(recipe), Heard())[GOOD]
    assert trained(run) == {"rows": [], "pairs": [], "admission": {}}


def _hits(run: Path, arm: str) -> float:
    """HR@10 of an arm, from its lists."""
    lists = pl.read_parquet(run / "evaluate" / arm / "final" / "predictions.parquet").filter(pl.col("rank") <= 10)
    targets = pl.read_parquet(run / "prepare" / "test.parquet")
    users, items = (pl.read_parquet(run / "prepare" / f"{name}.parquet") for name in ("users", "items"))
    wanted = targets.join(users, on="user").join(items, on="item")
    return wanted.join(lists, on=["user_id", "item_id"], how="semi").height / wanted.height


def test_the_table_and_the_sentences() -> None:
    def contender(name: str, hits: float, utility: float) -> dict[str, Any]:
        test = {"hr@10": hits, "ndcg@10": hits / 2, "true_utility@10": utility}
        return {"list": name, "test": test, "validation": {"ndcg@10": hits / 2}, "milliseconds": 2.5}

    def decision(chosen: str, fused: float) -> dict[str, Any]:
        rows = [contender("popularity", 0.1, 0.1), contender("ease", 0.2, 0.1), contender("sft", 0.4, 0.25)]
        rows += [contender("rerank", 0.4, 0.25), contender("fuse", fused, fused / 2)]
        return {"chosen": chosen, "control": "sft", "contenders": rows}

    content = {
        "rewards": {
            GOOD: {"decision": "use", "sentences": ["It helps.", "Strong."]},
            WRONG: {"decision": "do_not_use", "sentences": ["No.", "It gains at most 0.0005 NDCG@10."]},
        },
        "fused_weights": {GOOD: {"policy": 0.65, "reward": 0.84}, WRONG: {"policy": 0.83, "reward": -0.004}},
        "decisions": {GOOD: decision("fuse", 0.5), WRONG: decision("sft", 0.3)},
    }
    assert contenders_table(content).rows == (
        ("–", "ease", "20.00 %", "0.1000", "0.1000", "", "2.5"),  # the better one of the two without a policy
        ("–", "sft", "40.00 %", "0.2000", "0.2500", WRONG, "2.5"),
        (GOOD, "fuse", "50.00 %", "0.2500", "0.2500", GOOD, "2.5"),
        (WRONG, "fuse", "30.00 %", "0.1500", "0.1500", "", "2.5"),
    )
    assert trial_sentences(content) == [
        f"{GOOD}: diagnose says use. Strong. decide serves fuse, with true utility 0.2500 and HR@10 50.00 %; sft has"
        " 0.2500 and 40.00 %. In fuse the reward has weight 0.84 and the policy 0.65, in spreads.",
        f"{WRONG}: diagnose says do_not_use. It gains at most 0.0005 NDCG@10. decide serves sft, with true utility"
        " 0.2500 and HR@10 40.00 %; sft has 0.2500 and 40.00 %. In fuse the reward has weight -0.00 and the policy"
        " 0.83, in spreads.",
        RANKER,
    ]


def test_the_table_and_the_sentences_of_training() -> None:
    def against(low: float, high: float) -> dict[str, Any]:
        one = {"difference": (low + high) / 2, "users": [low, high]}
        return {"hr@10": one, "true_utility@10": one}

    def row(arm: str, hits: float, ends: tuple[float, float] | None) -> dict[str, Any]:
        test = {"hr@10": {"mean": hits}, "hallucination@10": {"mean": 0.01}, "true_utility@10": {"mean": 0.25}}
        return {"arm": arm, "test": test, "against": against(*ends) if ends else {}}

    rows = [row("sft", 0.38, (-0.01, 0.01)), row("nll", 0.39, None), row("grpo", 0.3, (-0.2, -0.1))]
    rows += [row("adagrpo", 0.4, (0.005, 0.015)), row("adagrpo-random", 0.4, (-0.001, 0.021))]
    pair = {"arm": "adagrpo", "other": "adagrpo-random", "against": against(-0.002, 0.004)}
    content = {"rows": rows, "pairs": [pair], "admission": {"adagrpo": [0.12, 0.04]}}
    table = training_table(content)
    assert table.header[-2:] == ("admission", "shuffled")
    assert table.rows[3] == (
        *("adagrpo", "40.00 %", "+1.00 [+0.50, +1.50] points", "1.00 %"),
        *("0.2500", "+0.0100 [+0.0050, +0.0150]", "12.0 %", "4.0 %"),
    )
    moved, gates, seeds = training_sentences(content)
    assert moved.endswith("raised by adagrpo; lowered by grpo; no difference found for adagrpo-random.")
    assert "+0.10 [-0.20, +0.40] points" in gates and gates.endswith("no difference found.")
    assert "one seed" in seeds
    assert training_sentences({"rows": [], "pairs": []}) == []
