"""The stages of sources, such as `item_knn`, and `fuse/<arm>`.

Sources are fitted on training interactions, fusion weights on validation interactions too. weights.json holds, for
`fuse` and `fuse-without-reward`, `weights` (in σ), `spreads` (σ), and `shrinkage` λ and the network's `epochs`, both
chosen by held-out likelihood. validation.parquet has each case's `weight` and the logged item's rank by each order of
the policy's lists: from 1, 0 if absent, cross-fitted for fused lists. Where items were shown at random (`data.random`)
and the recipe sets no `decide.exposure_power`, exposure_power.json of `fuse/sft` has the power of `POWERS` whose fused
list orders their clicks best, each power's mean AUC over users, and its interval less the chosen one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ATTRIBUTES
from adagrpo.data.exposures import RANDOM
from adagrpo.data.prepared import ITEM_COLUMNS, load_items
from adagrpo.evaluation.predictions import ranks_in, sample_cases
from adagrpo.lists import ListOrder, Recommender
from adagrpo.lists.fit_fusion import FOLDS, SHRINKAGE, Choices, Fit, fit_weights
from adagrpo.lists.fusion import FittedWeights, Fusion, Weights
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, START, ListName, parse_list
from adagrpo.lists.table import SOURCES, Shown, fused
from adagrpo.lists.taste import descriptions
from adagrpo.metrics import ndcg
from adagrpo.pipeline.directory import RunDirectory, model_of, weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.list_makers import (
    CORRECTIONS,
    WEIGHTS,
    ListMaker,
    batches_of,
    files_of_source,
    save_corrections,
    save_fitted,
)
from adagrpo.pipeline.random_judge import random_order
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import copy_equal
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.pipeline.stages.tokenize import VECTOR_FILE, vectors_at_hand
from adagrpo.storage.writing import naming
from adagrpo.types import Cases

VALIDATION, WEIGHT = "validation.parquet", "weight"
POWER, POWERS = "exposure_power.json", (0.5, 0.0, 1.0)  # the default, which wins ties, first
MOST_CASES = 50_000  # validation cases to fit weights on, sampled if there are more


def fit_sources(run: RunDirectory, stage: str) -> Declaration:
    """Declare the fit of the sources of a stage of `adagrpo.lists.table.FITTED`."""
    data = RunData(run)
    rows = [source for source in SOURCES.values() if source.stage == stage]

    def build(work: Path) -> None:
        for source in rows:
            assert source.fit is not None, "a stage of sources fits each of them"
            save_fitted(source.fit(_FittedOn(data)), work.joinpath(*source.file))

    asked = {kind for source in rows for kind in source.reads}
    reads = [*data.training_files[:2], *([VECTOR_FILE] if "vectors" in asked else [])]
    reads += data.shown_files if "impressions" in asked else []
    if "descriptions" in asked and run.path("prepare", ITEM_COLUMNS).is_file():
        reads.append(f"prepare:{ITEM_COLUMNS}")
    return Declaration(build, reads, tuple("/".join(source.file) for source in rows), version=3)


class _FittedOn:
    def __init__(self, data: RunData) -> None:
        self._data, self.training, self.num_items = data, data.training, data.num_items

    def descriptions(self) -> NDArray[np.float32]:
        items, path = load_items(self._data.prepared), self._data.run.path("prepare", ITEM_COLUMNS)
        columns = pl.read_parquet(path) if path.is_file() else pl.DataFrame()
        return descriptions(vectors_at_hand(self._data.run), items[ATTRIBUTES].to_list(), columns)

    def shown(self) -> Shown:
        return self._data.shown


def fuse(run: RunDirectory, arm: str = START) -> Declaration:
    """Declare the fit of a policy's fused lists."""
    data = RunData(run)
    models, name = Models(data), ListName(arm, FUSE)
    weights = run.path(*weights_of(arm))
    maker = ListMaker(models)
    reads = [*data.training_files, *data.catalog_files, model_of(arm)]
    reads += [file for name in fused(run.config) for file in files_of_source(name)]
    reads += [*models.reward_files, *data.shown_files]
    judged = chooses_power(data)
    if judged:
        reads += [f"prepare:{RANDOM}"] if arm == START else [f"{FUSE}/{START}:{POWER}"]

    def build(work: Path) -> None:
        if copy_equal(run, declared, work, FUSE):  # many a trained policy is the starting one at its best step
            return
        cases = validation_cases(data)
        fusion = maker.fusion(name)
        order = ListOrder(maker.reward if fusion.rewards else None, fusion=fusion)
        served = maker.recommender(name, weights, order)
        choices = choices_of(served, data, cases, progress(run, f"{FUSE}/{arm}"))

        optional = [name for name in fusion.sources if SOURCES[name].optional]

        def fit(order: str, used: Sequence[str]) -> Fit:
            shown = progress(run, f"{FUSE}/{arm}, fits of {order}")
            return fit_weights(choices, fusion.features, used, run.config.seed, shown, optional=optional)

        def weighted(power: float) -> Choices:
            return choices._replace(case_weights=data.case_weights(cases, power))

        if judged:
            if arm == START:
                fitted = {
                    power: fit_weights(
                        weighted(power), fusion.features, fusion.features, run.config.seed, optional=optional
                    ).weights
                    for power in POWERS
                }
                write_json(work / POWER, _power(data, served, fitted))
            choices = weighted(read_json(work / POWER if arm == START else run.checked(FUSE, START, POWER))["power"])
        without = [feature for feature in fusion.features if feature not in fusion.rewards]
        fits = {FUSE_WITHOUT_REWARD: fit(FUSE_WITHOUT_REWARD, without)}
        fits[FUSE] = fits[FUSE_WITHOUT_REWARD]
        if fusion.rewards:
            fits[FUSE] = fit(FUSE, fusion.features)
        ranks = {"policy": ranks_in(choices.items[:, : served.width], cases)}
        ranks |= {order: fit.ranks for order, fit in fits.items()}
        content = {
            order: {
                "weights": dict(fit.weights.weights),
                "spreads": dict(fit.weights.stds),
                "shrinkage": fit.shrinkage,
                "epochs": fit.epochs,
                "ndcg@10": float(ndcg(fit.ranks, 10, cases.sizes).mean()),
            }
            for order, fit in fits.items()
        }
        write_json(work / WEIGHTS, content)
        save_corrections({order: fit.weights for order, fit in fits.items()}, work / CORRECTIONS)
        about = data.ids_of(cases.users).with_columns(pl.Series(WEIGHT, choices.case_weights))
        write_ranks(work, ranks, about, cases.sizes)

    declared = Declaration(
        build,
        reads,
        files=(WEIGHTS, CORRECTIONS, VALIDATION, *([POWER] if judged and arm == START else [])),
        settings=(*DECODING, *models.reward_reads, "decide", "seed"),
        also={"folds": FOLDS, "shrinkage": list(SHRINKAGE), "cases": MOST_CASES},
        version=8,
    )
    return declared


def chooses_power(data: RunData) -> bool:
    """Return whether items shown at random choose the power of exposure."""
    given = data.config.decide.exposure_power is not None
    return not given and bool(data.shown_files) and (data.prepared / RANDOM).is_file()


def _power(data: RunData, served: Recommender, fitted: Mapping[float, Weights]) -> dict[str, Any]:
    assert served.fusion is not None
    lists, parts = {}, (served.fusion.sources, served.fusion.rewards, served.fusion.width)
    for power, weights in fitted.items():
        fusion = Fusion(*parts, FittedWeights(weights, weights))
        lists[str(power)] = served.ordered(ListOrder(reward=served.reward, fusion=fusion))
    found = random_order(data, lists.items())
    if found is None:
        return {"power": POWERS[0], "auc": {}, "against": {}}
    auc = {name: float(values.mean()) for name, values in found.auc.items()}
    best = max(auc, key=lambda name: auc[name])
    against = {name: list(found.against(name, best)[:3]) for name in auc if name != best}
    return {"power": float(best), "auc": auc, "against": against}


def validation_cases(data: RunData) -> Cases:
    """Return the cases for comparing lists and fitting weights."""
    return sample_cases(data.measured_cases("validation"), MOST_CASES, data.config.seed)


def choices_of(served: Recommender, data: RunData, cases: Cases, report: Any) -> Choices:
    """Return the candidates of every case."""
    assert served.fusion is not None
    parts, widest, done = [], 0, 0
    for rows, queries in batches_of(served, data, cases):
        found = served.candidates(queries)
        parts.append((rows, found.items.cpu().numpy(), found.features.cpu().numpy()))
        widest, done = max(widest, found.items.shape[1]), done + len(rows)
        report(done, len(cases))
    items = np.full((len(cases), widest), -1, dtype=np.int64)
    features = np.zeros((len(cases), widest, len(served.fusion.features)), dtype=np.float32)
    for rows, found_items, said in parts:
        items[rows, : found_items.shape[1]], features[rows, : said.shape[1]] = found_items, said
    return Choices(items, features, cases.logged, cases.users, data.case_weights(cases))


def write_ranks(
    folder: Path,
    ranks: dict[str, NDArray[np.int64]],
    cases: pl.DataFrame,
    sizes: NDArray[np.int64] | None = None,  # (N,) of baskets, where ranks are (N, R)
) -> None:
    """Write `validation.parquet`: by order the rank of each logged item; of baskets, a list of their items' ranks."""
    columns = [pl.Series(name, column.astype(np.int32)) for name, column in ranks.items()]
    if sizes is not None:
        kept = np.arange(int(sizes.max(initial=1))) < sizes[:, None]
        grouped = pl.Series(np.repeat(np.arange(len(sizes)), sizes))
        columns = [
            pl.DataFrame({"case": grouped, "rank": column[kept].astype(np.int32)})
            .group_by("case", maintain_order=True)
            .agg("rank")["rank"]
            .alias(name)
            for name, column in ranks.items()
        ]
    with naming(folder):
        cases.with_columns(columns).write_parquet(folder / VALIDATION)


def read_ranks(file: Path, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Read a list's ranks: (N,), or (N, R) with the (N,) sizes of baskets."""
    order = parse_list(name).order
    column = pl.read_parquet(file, columns=[order])[order]
    if column.dtype != pl.List(pl.Int32):
        return column.to_numpy().astype(np.int64), None
    sizes = column.list.len().to_numpy().astype(np.int64)
    ranks = np.zeros((len(sizes), int(sizes.max())), np.int64)
    ranks[np.arange(ranks.shape[1]) < sizes[:, None]] = column.explode().to_numpy()
    return ranks, sizes
