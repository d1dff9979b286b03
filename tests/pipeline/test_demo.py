"""The demo in a tiny world: both rewards, every number against the runs that it came from, and a second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.config import Config
from adagrpo.pipeline.demo import GOOD, WRONG, _rows, demo_runs, run_demo
from adagrpo.report.decision import RANKER, contenders_table, trial_sentences

from ..consoles import Heard

pytest.importorskip("lightgbm")

CHANGES: dict[str, Any] = {
    "decide": {"refit": False},  # as in the recipe of the demo
    "data": {"logs": None, "marketplace": {"users": 120, "items": 90}},
    "reward": {"kind": "lambdarank"},
    "ranker": {"lambdarank": {"trees": 20}},
    "train": {"arms": ["nll", "grpo"]},
}


@pytest.mark.slow
def test_both_rewards_are_tried_and_nothing_is_done_twice(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(**CHANGES)
    del recipe["data"]["logs"]
    config = Config.model_validate(recipe)
    first, second = Heard(), Heard()
    result = run_demo(tmp_path / "demo", config, first)

    arms = [row["arm"] for row in result.rewards["rows"]]
    assert arms == ["sft", "nll", f"{GOOD}: grpo", f"{WRONG}: grpo"]
    for reward, folder in ((GOOD, "demo"), (WRONG, "demo-wrong-reward")):
        run = tmp_path / folder
        row = result.rewards["rows"][arms.index(f"{reward}: grpo")]
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
    assert again["rows"] == result.rewards["rows"]
    assert {name: one["chosen"] for name, one in again["decisions"].items()} == {
        name: one["chosen"] for name, one in result.rewards["decisions"].items()
    }
    assert {event for _, event in second.stages} == {"skip"}

    alone = config.model_copy(update={"train": config.train.model_copy(update={"arms": ()})})
    untrained = run_demo(tmp_path / "demo", alone, Heard()).rewards
    assert untrained["rows"] == [] and untrained["rewards"] == result.rewards["rewards"]
    assert all("nll" not in {row["list"] for row in one["contenders"]} for one in untrained["decisions"].values())
    assert not any("training alone" in text for text in trial_sentences(untrained))


def test_arms_without_the_one_that_they_are_compared_with_have_no_rows(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(**CHANGES | {"train": {"arms": ["grpo"]}})
    del recipe["data"]["logs"]
    assert _rows(demo_runs(tmp_path / "demo", Config.model_validate(recipe), Heard())) == []


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

    def row(arm: str, low: float, high: float) -> dict[str, Any]:
        return {"arm": arm, "against": {"true_utility@10": {"difference": (low + high) / 2, "users": [low, high]}}}

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
        "rows": [
            row(f"{GOOD}: mixture", 0.01, 0.02),
            row(f"{WRONG}: mixture", -0.02, -0.01),
            row(f"{WRONG}: nll", -1, 1),
        ],
    }
    assert contenders_table(content).rows == (
        ("–", "ease", "20.00 %", "0.1000", "0.1000", "", "2.5"),  # the better one of the two without a policy
        ("–", "sft", "40.00 %", "0.2000", "0.2500", WRONG, "2.5"),
        (GOOD, "fuse", "50.00 %", "0.2500", "0.2500", GOOD, "2.5"),
        (WRONG, "fuse", "30.00 %", "0.1500", "0.1500", "", "2.5"),
    )
    assert trial_sentences(content) == [
        f"{GOOD}: diagnose says use. Strong. decide serves fuse, with true utility 0.2500 and HR@10 50.00 %; sft has"
        " 0.2500 and 40.00 %. In fuse the reward has weight 0.84 and the policy 0.65, in spreads. True utility of"
        " training alone, last step against nll: mixture raised it.",
        f"{WRONG}: diagnose says do_not_use. It gains at most 0.0005 NDCG@10. decide serves sft, with true utility"
        " 0.2500 and HR@10 40.00 %; sft has 0.2500 and 40.00 %. In fuse the reward has weight -0.00 and the policy"
        " 0.83, in spreads. True utility of training alone, last step against nll: mixture lowered it; nll did not"
        " change it.",
        RANKER,
    ]
