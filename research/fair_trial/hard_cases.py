"""Whether a gate gains where the paper says that it does: in cases that are hard for the policy.

    python -m research.fair_trial.hard_cases --out runs/fair --comparisons alike-lastfm-p1

Reads the runs of a finished comparison and trains nothing. A test case is in one of three strata, by the starting
policy of its seed alone, which all arms begin with:

    found           the first ten of its list hold the logged item
    hard, told      they do not, and the reward puts the logged item above 95 % of the other items of that list of fifty
    hard, not told  they do not, and it does not

The last two are after the paper's strata: samples that are hard for the policy, with and without a ranker that can tell
the target from negatives. `told` is defined by the score that arms are trained with, so any arm may look better there
than elsewhere; what says something of a gate is its difference from another gate in the same stratum.

Kept as `hard-<comparison>.jsonl` beside this file: a row a stratum and pair of arms, with the pairs of the plan and
each arm against its baseline `of`, at the last step. `share` is the metric of that baseline in the stratum; `p_holm` is
corrected over all rows of the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.config import CompareConfig
from adagrpo.data.columns import USER_ID
from adagrpo.data.prepared import load_user_ids
from adagrpo.data.sequences import pad
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import Measured, compare_pairs, corrected_pairs, reported
from adagrpo.metrics import target_rank_in
from adagrpo.objective.diagnostics import discriminability
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare_arms import evaluation_folder
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.evaluate import read_lists
from adagrpo.pipeline.stages.ranker_report import read_measured
from adagrpo.rewards import Reward
from adagrpo.rewards.protocol import ask_reward
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases
from research.command import run
from research.fair_trial.tune import HERE

__all__ = ["STRATA", "rows_of", "strata_of", "told"]

STRATA = ("found", "hard, told", "hard, not told")
FOUND, TOLD, BATCH = 10, 0.95, 256


def told(
    reward: Reward,
    cases: Cases,
    lists: NDArray[np.int64],  # (N, W)
    max_history: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """Share of the other items of each list that the reward puts below the logged one; a tie counts one half.

    Args:
        reward: the reward that arms are trained with.
        cases: `N` cases.
        lists: items, -1 where a list is shorter.
        max_history: items of a history that the reward sees.
        device: of the reward.

    Returns:
        (N,) in [0, 1], as the gate's q is without in-batch negatives.
    """
    shares = np.zeros(len(cases))
    for first in range(0, len(cases), BATCH):
        rows = np.arange(first, min(first + BATCH, len(cases)))
        targets = torch.from_numpy(cases.targets[rows].astype(np.int64)).to(device)
        items = torch.from_numpy(lists[rows]).to(device)
        histories = pad(cases.histories, rows, max_history).to(device)
        scores = ask_reward(reward, histories, torch.cat([targets[:, None], items], 1))
        none = torch.empty(len(rows), 0, device=device)
        found = discriminability(scores[:, 0], scores[:, 1:], items, none, none.long(), targets)
        shares[rows] = found.q.cpu().numpy()
    return shares


def strata_of(
    ranks: NDArray[np.int64],  # (N,)
    shares: NDArray[np.float64],  # (N,)
) -> NDArray[np.int64]:
    """(N,) places in `STRATA`.

    Args:
        ranks: of the logged item in the starting policy's list, from 1; 0 where it is not in it.
        shares: of `told`.

    Example:
        >>> strata_of(np.array([10, 11, 0]), np.array([0.0, 0.95, 0.5])).tolist()
        [0, 1, 2]
    """
    return np.where((ranks > 0) & (ranks <= FOUND), 0, np.where(shares >= TOLD, 1, 2))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row a stratum and pair of arms of a finished comparison; none of a stratum without two users under each seed.

    Raises:
        UserError: there is no such comparison, or its runs have been measured otherwise since then.
    """
    path = folder / "comparison.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; --out is that of the trial, and the comparison is to be finished")
    content = json.loads(path.read_text(encoding="utf-8"))
    arms, baseline = list(content["arms"]), content["plan"]["baseline"]
    held = [*content["plan"]["pairs"], *([arm, baseline] for arm in arms if arm != baseline)]
    options = CompareConfig.model_validate(content["plan"] | {"pairs": held})
    measured: dict[str, list[Measured]] = {arm: [] for arm in arms}
    strata: list[pl.DataFrame] = []
    for seed in content["seeds"]:
        data = RunData(Run.open(folder / f"seed-{seed}"))
        strata.append(_users(data))
        for arm in arms:
            measured[arm].append(read_measured(data, evaluation_folder(data.run, arm, "final")))
    _check(path, content, {arm: _means(entries, options.metric) for arm, entries in measured.items()}, options.metric)
    rows = []
    for place, stratum in enumerate(STRATA):
        sizes = [int((users["stratum"] == place).sum()) for users in strata]
        if min(sizes) < 2:
            continue
        within = {
            (arm, "final"): [_within(entry, users, place) for entry, users in zip(entries, strata, strict=True)]
            for arm, entries in measured.items()
        }
        base = float(np.mean(_means(within[baseline, "final"], options.metric)))
        about = {
            "comparison": folder.name,
            "stratum": stratum,
            "users": sizes,
            "of": baseline,
            "share": {options.metric: base},
        }
        rows += [about | _kept(row, options.metric) for row in compare_pairs(within, options)]
    return corrected_pairs(rows, options)


def _users(data: RunData) -> pl.DataFrame:
    """The stratum of every test user of a run."""
    cases, width = data.measured_cases("test"), data.config.evaluation.beam_width
    lists = read_lists(data, cases, data.run.path("evaluate", "sft"), width)
    ranks = target_rank_in(lists, cases.targets.astype(np.int64))
    shares = told(Models(data).reward(), cases, lists, data.config.max_history, data.device)
    users = load_user_ids(data.prepared).gather(cases.users)
    return pl.DataFrame([users.alias(USER_ID), pl.Series("stratum", strata_of(ranks, shares))])


def _means(entries: Sequence[Measured], metric: str) -> list[float]:
    """A metric of all users, one a seed."""
    return [float(entry.users[metric].to_numpy().mean()) for entry in entries]


def _check(path: Path, content: Mapping[str, Any], found: Mapping[str, Sequence[float]], metric: str) -> None:
    """Refuse runs whose last steps are not those that the comparison has."""
    known = {row["arm"]: row["test"][metric]["by_seed"] for row in content["rows"]}  # the last step comes last
    for arm, means in found.items():
        if not np.allclose(means, known[arm]):
            raise UserError(f"{path}: {arm} has another {metric} in its runs by now; carry the comparison out again")


def _within(entry: Measured, users: pl.DataFrame, place: int) -> Measured:
    kept = users.filter(pl.col("stratum") == place).select(USER_ID)
    return entry._replace(users=entry.users.join(kept, on=USER_ID, how="semi"))


def _kept(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What is kept of a row of `compare_pairs`."""
    whole = row["against"][metric]
    against = {key: whole[key] for key in ("difference", "p", "by_seed")} | {"interval": list(reported(whole))}
    return {key: row[key] for key in ("arm", "other", "checkpoint")} | {"against": {metric: against}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the rows of each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="of the trial")
    parser.add_argument("--comparisons", nargs="+", required=True, help="folders in it")
    given = parser.parse_args(arguments)
    for name in given.comparisons:
        lines = [json.dumps(row) + "\n" for row in rows_of(given.out / name)]
        write_file(HERE / f"hard-{name}.jsonl", "".join(lines))


if __name__ == "__main__":
    run(main)
