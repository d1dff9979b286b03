"""The demo in a tiny world: both rewards, every number against the runs that it came from, and a second time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.config import Config
from adagrpo.pipeline.demo import GOOD, WRONG, run_demo
from adagrpo.report.reward_trial import trial_sentences, trial_table

pytest.importorskip("lightgbm")

CHANGES: dict[str, Any] = {
    "data": {"logs": None, "marketplace": {"users": 120, "items": 90}},
    "reward": {"kind": "lambdarank"},
    "train": {"arms": ["nll", "grpo"]},
}


class Events:
    """Notes what happens to each stage."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def stage(self, name: str, event: str, seconds: float) -> None:
        self.seen.append((name, event))

    def note(self, text: str) -> None: ...

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None: ...


@pytest.mark.slow
def test_both_rewards_are_tried_and_nothing_is_done_twice(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(**CHANGES)
    del recipe["data"]["logs"]
    config = Config.model_validate(recipe)
    first, second = Events(), Events()
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
        assert result.pages[reward] == run / "report.html"
    assert not (tmp_path / "demo-wrong-reward" / "sft").exists()  # the starting policy is that of the other run

    assert run_demo(tmp_path / "demo", config, second).rewards == result.rewards
    assert {event for _, event in second.seen} == {"skip"}


def _hits(run: Path, arm: str) -> float:
    """HR@10 of an arm, from its lists."""
    lists = pl.read_parquet(run / "evaluate" / arm / "final" / "predictions.parquet").filter(pl.col("rank") <= 10)
    targets = pl.read_parquet(run / "prepare" / "test.parquet")
    users, items = (pl.read_parquet(run / "prepare" / f"{name}.parquet") for name in ("users", "items"))
    wanted = targets.join(users, on="user").join(items, on="item")
    return wanted.join(lists, on=["user_id", "item_id"], how="semi").height / wanted.height


def test_the_table_and_the_sentences() -> None:
    def row(arm: str, hits: float, utility: float, against: Any = None) -> dict[str, Any]:
        values = {"hr@10": hits, "hallucination@10": 0.02, "true_utility@10": utility}
        differences = {} if against is None else dict(zip(("hr@10", "true_utility@10"), against, strict=True))
        return {"arm": arm, "test": {name: {"mean": value} for name, value in values.items()}, "against": differences}

    def change(mean: float, low: float, high: float) -> dict[str, Any]:
        return {"difference": mean, "users": [low, high]}

    content = {
        "rewards": {GOOD: {"decision": "use"}, WRONG: {"decision": "do_not_use"}},
        "rows": [
            row("nll", 0.4, 0.25),
            row(f"{GOOD}: mixture", 0.42, 0.26, (change(0.02, -0.01, 0.05), change(0.01, 0.005, 0.015))),
            row(f"{WRONG}: mixture", 0.39, 0.2, (change(-0.01, -0.02, 0.0), change(-0.05, -0.06, -0.04))),
            row(f"{WRONG}: adagrpo", 0.4, 0.25, (change(0.0, 0.0, 0.0), change(0.0, -0.01, 0.01))),
        ],
    }
    table = trial_table(content)
    assert table.rows[0] == ("–", "–", "nll", "40.00 %", "–", "2.00 %", "0.2500", "–")
    assert table.rows[1][:3] == (GOOD, "use", "mixture")
    assert table.rows[1][4] == "+2.00 (−1.00 … +5.00)" and table.rows[1][7] == "+0.0100 (+0.0050 … +0.0150)"
    assert trial_sentences(content) == [
        f"{GOOD}: before training diagnose said use. True utility against nll: mixture raised it.",
        f"{WRONG}: before training diagnose said do_not_use. True utility against nll: mixture lowered it;"
        " no change shows for adagrpo.",
    ]
