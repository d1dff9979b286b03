"""Off-policy estimates on public logs of uniform exposure, where what they should say is known.

    python -m research.off_policy_logs.measure --data ../shared/data [--logs 500]

Open Bandit has a uniform policy and Thompson sampling side by side. Each log estimates the other policy, which has a
log of its own to be held against. Thompson's propensities change with time and are logged for the item that was shown
alone; as a target it is the mean policy, by how often it showed each item.

KuaiRand has videos that were shown at random. Small logs of a policy that prefers what the feed showed often are drawn
from it, an item by the policy and then a row of that item, so that the truth of every target is a sum over items. The
model of the doubly robust estimate is the click rate of each video in the feed, which is biased.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.off_policy import Estimate, doubly_robust, effective_size, ips, overlap, snips
from research.command import run
from research.rows import add_row

__all__ = ["Videos", "kuairand", "open_bandit", "small_logs", "softmax", "tables"]

ROWS = Path(__file__).with_name("rows.jsonl")
Floats = NDArray[np.float64]
ANSWERS = 10_000  # of a small log
SHARPNESS = {"near": 0.5, "far": 3.0}  # of the target; the log is drawn at 0.5


def open_bandit(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of both campaigns and both directions."""
    table = pl.read_parquet(path)
    for (campaign,), part in table.group_by("campaign", maintain_order=True):
        size = int(part["item_id"].max()) + 1  # type: ignore[arg-type]
        logs = {str(name): rows for (name,), rows in part.group_by("policy")}
        clicks = {name: rows["click"].to_numpy().astype(float) for name, rows in logs.items()}
        shown = np.bincount(logs["bts"]["item_id"].to_numpy(), minlength=size) / len(logs["bts"])
        weights = {
            "uniform": (clicks["bts"], 1 / size / logs["bts"]["propensity"].to_numpy().astype(float)),
            "thompson": (clicks["random"], shown[logs["random"]["item_id"].to_numpy()] * size),
        }
        for target, (other, weight) in weights.items():
            own = clicks["random" if target == "uniform" else "bts"]
            seen = overlap(weight)
            yield {
                "data": "open-bandit", "campaign": campaign, "target": target,
                "as_it_was": _values(ips(own, np.ones(len(own)))),
                "ips": _values(ips(other, weight)), "snips": _values(snips(other, weight)),
                "effective": seen.effective_size, "mean_weight": seen.mean, "refused": seen.problem,
            }  # fmt: skip


class Videos(NamedTuple):
    """What is known of the V videos that were shown at random."""

    rows: NDArray[np.int64]  # (N,) video of each random exposure, ascending
    clicked: Floats  # (N,)
    first: NDArray[np.int64]  # (V,) row of the first exposure of each
    counts: NDArray[np.int64]  # (V,)
    shown: Floats  # (V,) how often the feed showed each, logarithm, standardised
    feed_rate: Floats  # (V,) click rate in the feed, drawn towards the mean of all

    def truth(self, policy: Floats) -> float:
        """The click rate of a policy that ignores users: Σ_a π(a) times the click rate of a when shown at random."""
        return float(policy @ (np.add.reduceat(self.clicked, self.first) / self.counts))


def softmax(scores: Floats, sharpness: float) -> Floats:
    """(V,) probabilities."""
    found = np.exp(sharpness * (scores - scores.max()))
    return np.asarray(found / found.sum())


def small_logs(videos: Videos, logs: int, seed: int = 0, answers: int = ANSWERS) -> Iterator[dict[str, Any]]:
    """Bias, RMSE and coverage of each estimator over logs of a policy that prefers what the feed showed often."""
    logging = softmax(videos.shown, 0.5)
    wanted = (videos.feed_rate - videos.feed_rate.mean()) / videos.feed_rate.std()
    draw = np.random.default_rng(seed)
    for name, sharpness in SHARPNESS.items():
        target = softmax(wanted, sharpness)
        truth, expected = videos.truth(target), float(target @ videos.feed_rate)
        found: dict[str, list[Estimate]] = {"ips": [], "snips": [], "dr": []}
        refused = 0
        for _ in range(logs):
            shown = draw.choice(len(logging), size=answers, p=logging)
            rows = videos.first[shown] + (draw.random(answers) * videos.counts[shown]).astype(int)
            clicks, weights = videos.clicked[rows], target[shown] / logging[shown]
            refused += overlap(weights).problem is not None
            found["ips"].append(ips(clicks, weights))
            found["snips"].append(snips(clicks, weights))
            model = videos.feed_rate[shown]
            found["dr"].append(doubly_robust(clicks, weights, model, np.full(answers, expected)))
        for estimator, estimates in found.items():
            errors = np.array([one.value - truth for one in estimates])
            inside = np.mean([one.low <= truth <= one.high for one in estimates])
            yield {
                "data": "kuairand", "part": "small logs", "target": name, "estimator": estimator, "truth": truth,
                "logging": videos.truth(logging), "bias": float(errors.mean()),
                "bias_error": float(errors.std(ddof=1) / np.sqrt(logs)),
                "rmse": float(np.sqrt(np.square(errors).mean())), "coverage": float(inside), "refused": refused / logs,
                "effective": float(np.mean([one.effective_size for one in estimates])), "logs": logs,
                "answers": answers,
            }  # fmt: skip


def kuairand(folder: Path) -> tuple[Videos, dict[str, Any]]:
    """The videos, and what the random log says of the feed's choice of videos."""
    random = pl.read_parquet(folder / "random_exposures.parquet").sort("item_id")
    feed = pl.read_parquet(folder / "train_exposures.parquet").drop_nulls("clicked")
    later = pl.read_parquet(folder / "impressions.parquet", columns=["item_id", "clicked"])
    names, first, counts = np.unique(random["item_id"].to_numpy(), return_index=True, return_counts=True)
    numbers = pl.DataFrame({"item_id": names})
    by_item = numbers.join(feed.group_by("item_id").agg(pl.len(), pl.col("clicked").mean()), "item_id", "left")
    shown = np.log1p(by_item["len"].fill_null(0).to_numpy())
    rate = float(feed["clicked"].mean())  # type: ignore[arg-type]
    seen = by_item["len"].fill_null(0).to_numpy()
    rates = (seen * by_item["clicked"].fill_null(0.0).to_numpy() + 20 * rate) / (seen + 20)
    clicked = random["clicked"].to_numpy().astype(float)
    rows = np.searchsorted(names, random["item_id"].to_numpy())
    videos = Videos(rows, clicked, first, counts, (shown - shown.mean()) / shown.std(), rates)
    known = later.filter(pl.col("item_id").is_in(names.tolist()))
    places = np.searchsorted(names, known["item_id"].to_numpy())
    policy = np.bincount(places, minlength=len(names)) / len(places)
    # a random exposure is of a video with the share that the video has of all of them
    weights = policy[rows] / (counts / len(rows))[rows]
    user_ids = random["user_id"].to_numpy()
    own = ips(known["clicked"].to_numpy().astype(float), np.ones(len(known)))
    return videos, {
        "data": "kuairand", "part": "feed", "as_it_was": _values(own),
        "random": _values(ips(clicked, np.ones(len(clicked)), users=user_ids)),
        "snips": _values(snips(clicked, weights, users=user_ids)), "effective": effective_size(weights),
        "covered": len(known) / len(later), "answers": len(clicked),
    }  # fmt: skip


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The tables of the page, by what they are of."""
    found = {
        "open-bandit": [
            "| campaign | policy | as it was | IPS from the other log | SNIPS | effective answers |",
            "|---|---|--:|--:|--:|--:|",
        ],
        "kuairand": [
            "| target | truth | estimator | bias, points | RMSE, points | coverage of 95 % | refused |",
            "|---|--:|---|--:|--:|--:|--:|",
        ],
    }
    for row in rows:
        if row["data"] == "open-bandit":
            cells = [_span(row[name]) for name in ("as_it_was", "ips", "snips")]
            found["open-bandit"].append(
                f"| {row['campaign']} | {row['target']} | {' | '.join(cells)} | {row['effective']:,.0f} of 10,000 |"
            )
        elif row["part"] == "small logs":
            bias = f"{100 * row['bias']:+.2f} ± {100 * row['bias_error']:.2f}"
            found["kuairand"].append(
                f"| {row['target']} | {100 * row['truth']:.2f} % | {row['estimator'].upper()} | {bias} |"
                f" {100 * row['rmse']:.2f} | {row['coverage']:.1%} | {row['refused']:.0%} |"
            )
    return {name: "\n".join(lines) for name, lines in found.items()}


def _values(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high]


def _span(values: list[float]) -> str:
    value, low, high = (100 * one for one in values)
    return f"{value:.3f} % ({low:.3f} to {high:.3f})"


def main() -> None:
    """Measure, write the rows anew and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--logs", type=int, default=500)
    options = parser.parse_args()
    videos, feed = kuairand(options.data / "kuairand-pure-log")
    rows = [*open_bandit(options.data / "open-bandit" / "logs.parquet"), feed, *small_logs(videos, options.logs)]
    ROWS.unlink(missing_ok=True)
    for row in rows:
        add_row(ROWS, row)
    for text in tables(rows).values():
        print(text, end="\n\n")
    print(feed)


if __name__ == "__main__":
    run(main)
