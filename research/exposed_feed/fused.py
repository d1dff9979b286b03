"""KuaiRand: does the fused list mislead where chance chose what was shown, and do exposure weights prevent it?

    python -m research.exposed_feed.fused --data DIR/kuairand-pure-log --out runs/exposed-feed
    python -m research.exposed_feed.fused --table

`adagrpo decide` on the platform's log, policy, ranker and reward (the ranker's last step) those of `recipe.yaml`; the
lists then order what the judges of `research.exposed_feed.measure` hold. A row of `fused.jsonl` is one power p: each
validation case counts (1 / times shown) ** p, see `adagrpo.rewards.reranking`; 0.5 is what ships. AUC has
intervals over users, and the difference from the starting policy. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.data.prepared import load_until_test
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, START, ListName
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.report.page import read_rows
from research.command import run
from research.decisions.exposure_weights import POWERS, decided
from research.decisions.teacher import FusedScores
from research.exposed_feed.judges import Judges
from research.exposed_feed.measure import HERE, JUDGES
from research.exposed_feed.orders import differences, judge_order, means, policy_scores, reward_scores
from research.rows import add_row

RESULTS = HERE / "fused.jsonl"
LISTS = (START, RERANK, FUSE_WITHOUT_REWARD, FUSE)
Floats = NDArray[np.float64]


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/exposed-feed"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table alone")
    given = parser.parse_args()
    if not given.table:
        for power in POWERS:
            _measure(given.data, given.out / f"seed-{given.seed}-fused", given.seed, power)
    print(table(read_rows(RESULTS)))


def _measure(data: Path, out: Path, seed: int, power: float) -> None:
    key = {"seed": seed, "power": power}
    if any(all(row[name] == value for name, value in key.items()) for row in read_rows(RESULTS)):
        return
    config = load_config(
        HERE / "recipe.yaml",
        [
            f"seed={seed}",
            "train.arms=[]",
            f"reward={{kind: sequential, checkpoint: {(out / 'ranker/final').resolve()}}}",
        ],
    )
    made = Run(out, config, data, StderrConsole())
    content = decided(made, power)
    judges = Judges(made, JUDGES)
    judges.exposures()
    contenders = {row["list"]: row["test"] for row in content["contenders"]}
    add_row(RESULTS, key | {"chosen": content["chosen"], "contenders": contenders, "judges": _judged(made, judges)})


def _judged(made: Run, judges: Judges) -> dict[str, Any]:
    """What each list is worth by each judge and label, and less the starting policy."""
    data = RunData(made)
    report: dict[str, Any] = {}
    for name, judged in judges.load().items():
        scores = _scores(made, data, judged.users, judged.items)
        for label, chosen in judged.labels.items():
            users = {order: judge_order(values, chosen, judged.users).users for order, values in scores.items()}
            report.setdefault(name, {})[label] = {
                order: {"auc": means(table)["auc"], "difference": differences(table, users[START])["auc"]}
                for order, table in users.items()
            }
    return report


@torch.no_grad()
def _scores(made: Run, data: RunData, users: NDArray[np.int64], items: NDArray[np.int64]) -> dict[str, Floats]:
    """(N,) the score of each exposure under each list."""
    maker, seen, longest = ListMaker(Models(data)), load_until_test(data.prepared), made.config.max_history
    policy = maker.models.policy(made.path(START, "best")).eval().frozen()
    log_probs = policy_scores(policy, data.catalog, seen, users, items, max_history=longest)
    known = json.loads(made.path("reranking", "weight.json").read_text(encoding="utf-8"))
    where: dict[str, Any] = {"max_history": longest, "device": data.device}
    rewards = reward_scores(maker.reward, seen, users, items, **where)
    found = {START: log_probs, RERANK: log_probs + known["rerank"] / known["spread"] * rewards}
    for order in (FUSE_WITHOUT_REWARD, FUSE):
        name = ListName(START, order)
        fusion = maker.fusion(name, maker.fitted(name))
        added = FusedScores(policy, fusion, data.catalog, maker.reward if fusion.rewards else None)
        found[order] = log_probs + reward_scores(added, seen, users, items, **where)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Test HR@10, and AUC points that each list has more than the starting policy, by judge and label."""
    names = [(judge, label) for judge, of in JUDGES.items() for label in of.labels]
    lines = ["| power | list | HR@10 | " + " | ".join(f"{judge}, {label}" for judge, label in names) + " |"]
    lines.append("|--:|---|--:|" + "--:|" * len(names))
    for row in rows:
        for order in LISTS:
            cells = [_points(row["judges"][judge][label][order], order) for judge, label in names]
            chosen = f"**{order}**" if order == row["chosen"] else order
            hits = f"{row['contenders'][order]['hr@10']:.4f}"
            lines.append(f"| {row['power']:g} | {chosen} | {hits} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _points(said: Mapping[str, Any], order: str) -> str:
    if order == START:
        return f"AUC {said['auc']['mean']:.3f}"
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * said["difference"][key] for key in ("mean", "low", "high")))


if __name__ == "__main__":
    run(main)
