"""How far trained arms are from the starting policy, beside where more of the reward stops to help.

    python -m research.turning_point --out runs/turning-point
    python -m research.turning_point --table

`plan.yaml` was written before the first row. A row of `rows.jsonl` is a simulated shop: the curve of re-ranking
weights, KL from the policy and expected true utility, and both of each arm, on test cases. What has its row is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy import stats

from adagrpo.decoding import score_sequences
from adagrpo.evaluation.predictions import Predictions, batches
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table
from adagrpo.rewards.reranking import WEIGHTS
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases
from research.command import run
from research.decisions.shops import World, read_plan, shop, worlds
from research.marked_tables import with_marked
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "rows.jsonl", HERE / "README.md"
NLL, DRAWS = "nll", 10_000
Values = NDArray[np.float64]


def main() -> None:
    """Measure the shops that have no row yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where runs are made; each goes when its row is written")
    parser.add_argument("--table", action="store_true", help="write the tables of README.md alone")
    given = parser.parse_args()
    if not given.table:
        plan, shops = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8")), read_plan()
        for world in worlds(shops):
            if world.number % shops["worlds"] < plan["worlds"]:
                measure(plan, shops, world, given.out)
    write_file(PAGE, page(list(read_rows(RESULTS)), PAGE.read_text(encoding="utf-8")))


def page(rows: Sequence[Mapping[str, Any]], text: str) -> str:
    """The page with the tables of the rows."""
    tables = {"separation": separation(rows), "past": past_validation(rows), "places": places(rows)}
    return with_marked(text, "turning", tables)


def measure(plan: Mapping[str, Any], shops: Mapping[str, Any], world: World, out: Path) -> None:
    """Train the arms of a shop and write its row, unless it is there."""
    if any(row["world"] == world.number for row in read_rows(RESULTS)):
        return
    folder = out / f"shop-{world.number}"
    settings = [*plan["settings"], f"train.arms={json.dumps([NLL, *plan['arms']])}"]
    seeds = f"data.marketplace.seed={world.number}", f"seed={plan['seed']}"
    made = shop(shops, world.bias, world.reward, folder, *settings, *seeds)
    with locked(made):
        for make in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
            make(made)
    made.train(anyway=True)
    data = RunData(made)
    models = Models(data)
    policy, reward, cases = models.policy(made.path("sft", "best")).eval(), models.reward(), data.measured_cases("test")
    found = models.predict(policy, cases, reward)
    utility = data.utility_at(cases)
    assert utility is not None and found.rewards is not None, "a simulated shop with a reward"
    gained = utility(found.items)
    known = made.content("reranking", "weight.json")  # chosen weight and within-list deviation
    start = probabilities(found.items, found.scores)
    curve = []
    for weight in WEIGHTS:
        tilted = probabilities(found.items, found.scores + weight / known["spread"] * np.nan_to_num(found.rewards))
        curve.append({"weight": weight, **about(tilted, start, gained)})
    arms = {}
    for arm in (NLL, *(one if isinstance(one, str) else one["name"] for one in plan["arms"])):
        trained = models.policy(made.path("train", arm, "final")).eval()
        scores = scored(trained, data, cases, found, made.config.max_history)
        arms[arm] = about(probabilities(found.items, scores), start, gained)
    row = {"world": world.number, "exposure_bias": world.bias, "reward": world.reward, "curve": curve, "arms": arms}
    row["chosen_weight"] = known["rerank"]
    add_row(RESULTS, row)
    shutil.rmtree(folder)
    print(f"{folder.name}: " + ", ".join(f"{arm} {found['kl']:.3f}" for arm, found in arms.items()), flush=True)


def probabilities(items: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> Values:
    """Scores (N, W) of items (N, W) as a distribution over each list, 0 where there is no item.

    >>> probabilities(np.array([[3, 1, -1]]), np.log([[0.2, 0.6, 1.0]])).round(2).tolist()
    [[0.25, 0.75, 0.0]]
    """
    logits = np.where(items < 0, -np.inf, scores.astype(np.float64))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def about(moved: Values, start: Values, gained: Values) -> dict[str, float]:
    """Means over lists: KL(moved || start) in nats, and the utility that is expected of one draw.

    Args:
        moved: (N, W) probabilities.
        start: (N, W) those of the starting policy.
        gained: (N, W) utility of the items.
    """
    kl = np.where(moved > 0, moved * np.log(np.maximum(moved, 1e-300) / np.maximum(start, 1e-300)), 0.0)
    return {"kl": float(kl.sum(1).mean()), "utility": float((moved * gained).sum(1).mean())}


@torch.no_grad()
def scored(policy: Any, data: RunData, cases: Cases, found: Predictions, max_history: int) -> NDArray[np.float32]:
    """(N, W) log-probabilities by a policy of the items of lists."""
    scores = np.zeros(found.items.shape, dtype=np.float32)
    codes = data.catalog.codes
    for rows, histories in batches(cases, 128, max_history, codes.device):
        context = policy.encode(histories)
        items = torch.from_numpy(np.maximum(found.items[rows], 0)).to(codes.device)
        scores[rows] = score_sequences(policy, context, codes[items]).sum(-1).cpu().numpy()
    return scores


def separation(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Does KL beyond a place on the curve say which arm loses? Area under the ROC curve, with 95 % over worlds.

    Args:
        rows: of the study.
    """
    lines = []
    for said, place in (("turning point, by truth", turning_point), ("weight of validation", validated)):
        beyond, lost = zip(*(_arms(row, place(row)) for row in rows), strict=True)
        area, low, high = bootstrap_area(np.array(beyond), np.array(lost))
        shares = [f"{np.array(lost)[(np.array(beyond) > 0) == past].mean():.0%}" for past in (True, False)]
        counts = f"{(np.array(beyond) > 0).sum()} of {np.size(beyond)}"
        lines.append((said, f"{len(rows)}", counts, *shares, f"{area:.2f} ({low:.2f} to {high:.2f})"))
    return Table.of(("place", "worlds", "arms past it", "of these lost", "of the others lost", "area"), lines)


def past_validation(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a reward: arms past the weight of validation and before it, how many lost, and mean utility over NLL.

    Args:
        rows: of the study.
    """
    lines = []
    for reward in dict.fromkeys(row["reward"] for row in rows):
        cells = []
        for past in (True, False):
            gains = [
                found["utility"] - row["arms"][NLL]["utility"]
                for row in rows
                for arm, found in row["arms"].items()
                if row["reward"] == reward and arm != NLL and (found["kl"] > validated(row)) == past
            ]
            mean = f"{np.mean(gains):+.4f}" if gains else MISSING
            cells += [f"{sum(gain < 0 for gain in gains)} of {len(gains)}", mean]
        lines.append((reward, *cells))
    return Table.of(("reward", "past it, lost", "utility over NLL", "before it, lost", "utility over NLL"), lines)


def turning_point(row: Mapping[str, Any]) -> float:
    """The KL at which expected true utility is highest along the weights."""
    return float(max(row["curve"], key=lambda one: one["utility"])["kl"])


def validated(row: Mapping[str, Any]) -> float:
    """The KL at the weight that validation chooses."""
    return next(float(one["kl"]) for one in row["curve"] if one["weight"] == row["chosen_weight"])


def _arms(row: Mapping[str, Any], place: float) -> tuple[list[float], list[bool]]:
    """Of each arm but NLL, log(KL / place), and whether its utility is below NLL's."""
    arms = {arm: found for arm, found in row["arms"].items() if arm != NLL}
    beyond = [float(np.log(max(found["kl"], 1e-9) / max(place, 1e-9))) for found in arms.values()]
    return beyond, [found["utility"] < row["arms"][NLL]["utility"] for found in arms.values()]


def bootstrap_area(beyond: Values, lost: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The area under the ROC curve of (N, A) values for (N, A) labels, and its percentile interval over the N worlds.

    >>> bootstrap_area(np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([[True, False], [True, False]]))
    (1.0, 1.0, 1.0)
    """
    draws = np.random.default_rng(0).integers(0, len(beyond), (DRAWS, len(beyond)))
    areas = [_area(beyond[draw].ravel(), lost[draw].ravel()) for draw in draws]
    low, high = np.nanquantile(areas, [0.025, 0.975])
    return _area(beyond.ravel(), lost.ravel()), float(low), float(high)


def _area(values: Values, positive: NDArray[np.bool_]) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    found = stats.mannwhitneyu(values[positive], values[~positive])
    return float(found.statistic / (positive.sum() * (~positive).sum()))


def places(rows: Sequence[Mapping[str, Any]]) -> Table:
    """By exposure bias and reward, means over worlds: where the curve turns, what validation chooses, where arms are.

    Args:
        rows: of the study.
    """
    lines = []
    arms = list(rows[0]["arms"]) if rows else []
    for kind in dict.fromkeys((row["exposure_bias"], row["reward"]) for row in rows):
        own = [row for row in rows if (row["exposure_bias"], row["reward"]) == kind]
        turned = sum(max(row["curve"], key=lambda one: one["utility"]) != row["curve"][-1] for row in own)
        kls = [np.mean([place(row) for row in own]) for place in (turning_point, validated)]
        kls += [np.mean([row["arms"][arm]["kl"] for row in own]) for arm in arms]
        lines.append((f"{kind[0]:g}", kind[1], f"{turned} of {len(own)}", *(f"{kl:.2f}" for kl in kls)))
    heads = ("exposure bias", "reward", "turns", "KL at the turning point", "KL of validation's weight")
    return Table.of((*heads, *(f"KL of {arm}" for arm in arms)), lines, 2)


if __name__ == "__main__":
    run(main)
