"""What is measured of an arm in a round: what its lists were worth, and what an evaluation on the log would have said.

Of the truth         utility and value of what was shown, the error of the ranker by exposure
Of the log           clicks, coverage, concentration, what the ranker predicted
Of the policy        the share of freely written codes that name no item
Of the log, offline  hit rate and predicted reward of the new policy against the one before, on held-out clicks
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo.data.prepared import load_impressions
from adagrpo.evaluation.predictions import sample_cases, summarise
from adagrpo.monitoring import gini
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.watch import batch_of, predicted_clicks
from adagrpo.rewards.sequential import SequentialRanker
from research.closed_loop.beginnings import Beginning
from research.closed_loop.plan import LoopPlan
from research.closed_loop.population import Population

__all__ = ["ServedLists", "measure", "ranker_errors"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STRATA = 4  # quarters of the catalogue by how often items were shown
DRAWN = 10  # items of each stratum that a user's error is taken over


class ServedLists:
    """The lists of an arm in a round, and what came of them; items by their place in the catalogue of the run."""

    def __init__(self, item_ids: Sequence[str], population: Population) -> None:
        self.place = np.empty(len(item_ids), np.int64)  # of the simulation's items in the catalogue
        self.place[[int(name[1:]) for name in item_ids]] = np.arange(len(item_ids))
        self.population = population
        self.histories: list[Ints] = []
        self._items: list[Ints] = []
        self._parts: list[dict[str, Any]] = []

    def add(self, day: int, rows: Ints, items: Ints, histories: Sequence[Sequence[str]]) -> None:
        """The lists of a day."""
        self._items.append(items)
        self.histories += [self.place[[int(name[1:]) for name in history]] for history in histories]
        self._parts.append({"day": np.full(len(rows), day), "user": rows, "items": items.tolist()})

    def outcomes(self, clicked: NDArray[np.bool_], dwell: Floats, utility: Floats, value: Floats) -> None:
        """What came of the lists that were added last."""
        self._parts[-1] |= {"clicked": clicked.any(axis=1), "utility": utility.mean(axis=1), "value": value}
        self._parts[-1] |= {"dwell": dwell}

    @property
    def items(self) -> Ints:
        """(N, k) what was shown, in the simulation's numbers."""
        return np.concatenate(self._items)

    @property
    def table(self) -> pl.DataFrame:
        """A row a list."""
        return pl.concat([pl.DataFrame(part) for part in self._parts], how="vertical_relaxed")  # nobody came: no types

    def note(self, name: str, values: Floats) -> None:
        """A column more of `table`."""
        starts = np.cumsum([0, *(len(part["user"]) for part in self._parts)])
        for part, start in zip(self._parts, starts, strict=False):
            part[name] = values[start : start + len(part["user"])]


def measure(
    plan: LoopPlan,
    run: Run,
    weights: Path,
    before: Path,
    shown: ServedLists,
    population: Population,
    beginning: Beginning,
    number: int,
) -> dict[str, Any]:
    """The values of an arm in a round, None where it had no list to have one of.

    `shown.table` has the ranker's prediction of each list from then on.
    """
    data = RunData(run)
    models = Models(data)
    ranker = models.ranker(run.path("ranker", "best"))
    predicted = predicted_clicks(ranker, shown.histories, shown.place[shown.items], run.config.max_history)
    shown.note("predicted", predicted)
    table, items = shown.table, shown.items
    listed = data.catalog.read(beginning.catalogue(number)[0]).listed.numpy()
    counts = np.bincount(shown.place[items.ravel()], minlength=data.num_items)
    values: dict[str, Any] = {
        "lists": len(table),
        "users": table["user"].n_unique(),
        "listed": int(listed.sum()),
        "coverage": float((counts[listed] > 0).mean()),
        "gini": gini(counts[listed]),
    }
    names = ("utility", "value", "clicked", "dwell", "predicted")
    values |= {name: table[name].cast(pl.Float64).drop_nans().mean() for name in names}
    values |= ranker_errors(plan, data, ranker, population, shown.place, listed, number)
    return values | _offline(plan, models, data, weights, before)


@torch.no_grad()
def ranker_errors(
    plan: LoopPlan,
    data: RunData,
    ranker: SequentialRanker,
    population: Population,
    place: Ints,  # (V,) of the simulation's items in the catalogue
    listed: NDArray[np.bool_],  # (V,) by the catalogue
    number: int,
) -> dict[str, float]:
    """How wrong the ranker is about items that were shown often and seldom, against the truth of now.

    Returns:
        For each quarter of the listed items, `q1` being shown least: `bias_`, the mean of predicted minus true
        probability at the top of a list, and `misordered_`, the share of a user's pairs within the quarter that the
        ranker has the wrong way round.
    """
    rng = np.random.default_rng([population.world.seed, 1_000_003, number])
    owners = np.flatnonzero(population.users.bought > 0)
    rows = np.sort(rng.choice(owners, min(plan.probes, len(owners)), replace=False))
    taste = population.tastes(rows)
    histories = [place[[int(name[1:]) for name in population.history(row)]] for row in rows]
    batch = batch_of(histories, data.config.max_history).to(data.device)
    impressions = load_impressions(data.prepared)
    assert impressions is not None, "an exposure log has impressions"
    counts = np.bincount(impressions["item"].to_numpy(), minlength=data.num_items)
    original = np.argsort(place)  # the simulation's number of each item of the catalogue
    order = np.flatnonzero(listed)[np.argsort(counts[listed], kind="stable")]
    values: dict[str, float] = {}
    for quarter, members in enumerate(np.array_split(order, STRATA), 1):
        items = rng.choice(members, (len(rows), DRAWN))
        truth = population.utility(rows, taste, original[items])
        scores = ranker.score(batch, torch.from_numpy(items).to(data.device)) + ranker.slot_bias.weight[0, 0]
        predicted = torch.sigmoid(scores).cpu().numpy()
        open_ = truth > 0  # what a user owns is not shown to them
        values[f"bias_q{quarter}"] = float((predicted - truth)[open_].mean())
        pairs = open_[:, :, None] & open_[:, None, :] & (truth[:, :, None] > truth[:, None, :])
        values[f"misordered_q{quarter}"] = float((predicted[:, :, None] < predicted[:, None, :])[pairs].mean())
        values[f"shown_q{quarter}"] = float(counts[members].mean())
    return values


def _offline(plan: LoopPlan, models: Models, data: RunData, weights: Path, before: Path) -> dict[str, float]:
    """What an evaluation on the log claims of the new policy and of the one before, on the same held-out clicks."""
    cases = sample_cases(data.cases("test"), plan.probes, data.config.seed)
    claims: dict[str, float] = {}
    summary = partial(summarise, tail=data.tail)
    for name, path in (("new", weights), ("old", before)):
        if name == "old" and before == weights:
            claims |= {f"old_{key.removeprefix('new_')}": value for key, value in claims.items()}
            break
        values = summary(models.predict(models.policy(path), cases, models.reward()), cases)
        claims |= {f"{name}_{key}": values[key] for key in ("hr@10", "ndcg@10", "hallucination@10", "mean_reward@10")}
        claims[f"{name}_invalid_samples"] = values["invalid_samples"]
    return claims
