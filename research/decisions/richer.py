"""What does a part of the fused list give, and what would another? On validation cases alone.

    python -m research.decisions.richer --data DIR --out runs/decisions --sets amazon-beauty
    python -m research.decisions.richer --table

The runs of `research.decisions.sets` are taken from `--out`. An order is cross-fitted over users as in the package; a
row has HR@10 and NDCG@10 of each, and the difference from `fuse` with its 95 % interval over users:

    weights alone        without the network
    without successors   five features in weights and network
    content              one more feature: cosine of the candidate's vector and the decayed sum of those of the history
    second ranker        of another seed; its best items are candidates too
    own best             the reward's best items of the whole catalogue are candidates too (`--whole`, slow)
    trees                LambdaRank on what the network reads, in place of weights and network; one setting, not tuned
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.lists import ListOrder
from adagrpo.lists.correction import inputs_of
from adagrpo.lists.fit_fusion import FOLDS, Choices, fit_weights, folds_of
from adagrpo.lists.fusion import Fusion
from adagrpo.lists.names import FUSE, START, ListName
from adagrpo.lists.sources import DECAY, CandidateSource, RankerScores
from adagrpo.metrics import ndcg, target_rank_in
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import weights_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.stages.fit_ranker import ranker
from adagrpo.pipeline.stages.fuse import choices_of, validation_cases
from adagrpo.pipeline.stages.tokenize import item_vectors
from adagrpo.rewards import Reward
from adagrpo.rewards.protocol import ask_catalogue
from adagrpo.statistics import mean_interval
from adagrpo.types import Cases, Histories
from research.command import run
from research.decisions.network import weights_alone
from research.decisions.sets import arguments, measured

RESULTS = Path(__file__).with_name("richer.jsonl")
TREES = {"objective": "lambdarank", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 200, "verbose": -1}
TREES |= {"lambdarank_truncation_level": 20, "feature_fraction": 0.8, "bagging_fraction": 0.5, "bagging_freq": 1}
COUNT = 150  # trees

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class WholeReward:
    """The reward over the whole catalogue, as a source."""

    reward: Reward
    items: int

    def scores(self, histories: Histories) -> Tensor:
        """(B, V) rewards."""
        every = torch.arange(self.items).expand(len(histories.lengths), -1)
        return ask_catalogue(self.reward, histories, every).float()

    def feature(self, scores: Tensor) -> Tensor:
        """The reward, as it is."""
        return scores


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = arguments(__doc__)
    parser.add_argument("--whole", action="store_true", help="the reward scores the whole catalogue")
    given = parser.parse_args()
    runs = given.out
    print(table(measured(RESULTS, given, lambda name, seed: _measure(Run.open(runs / f"{name}-{seed}"), given.whole))))


def _measure(made: Run, whole: bool) -> dict[str, Any]:
    data = RunData(made)
    cases, maker = validation_cases(data), ListMaker(Models(data))
    fusion = maker.fusion(ListName(START, FUSE))
    plain = choices_in(maker, fusion, data, cases)
    seed, names = made.config.seed, list(fusion.features)
    orders = {
        FUSE: _fitted(plain, seed),
        "without successors": fit_weights(plain, names, [name for name in names if name != "successors"], seed).ranks,
        "content": _fitted(_with(plain, _content(made, cases, plain)), seed),
        "trees": trees(plain, seed),
    }
    with weights_alone():
        orders["weights alone"] = _fitted(plain, seed)
    more: dict[str, CandidateSource] = {"second ranker": RankerScores(_second_ranker(made))}
    if whole:
        more["own best"] = WholeReward(maker.reward, data.num_items)
    for name, source in more.items():
        wider = Fusion({**fusion.sources, name: source}, fusion.rewards, fusion.width)
        orders[name] = _fitted(choices_in(maker, wider, data, cases), seed)
    values = {name: ndcg(found, 10) for name, found in orders.items()}
    return {
        name: {
            "hr@10": float(((found > 0) & (found <= 10)).mean()),
            "ndcg@10": float(values[name].mean()),
            "gained": list(mean_interval(values[name] - values[FUSE])[:3]),
        }
        for name, found in orders.items()
    }


def choices_in(maker: ListMaker, fusion: Fusion, data: RunData, cases: Cases) -> Choices:
    """The candidates of the cases, with the features of a fusion."""
    name, weights = ListName(START, FUSE), maker.models.run.path(*weights_of(START))
    order = ListOrder(maker.reward if fusion.rewards else None, fusion=fusion)
    served = maker.recommender(name, weights, order)
    return choices_of(served, data, cases, lambda done, total: None)


def _second_ranker(made: Run) -> Any:
    config = made.config.model_copy(update={"seed": made.config.seed + 100})
    other = Run(made.directory, config, made.data)
    with tempfile.TemporaryDirectory() as folder:
        ranker(other).build(Path(folder))
        return Models(RunData(other)).ranker(Path(folder) / "best")


def _with(choices: Choices, column: Numbers) -> Choices:
    return choices._replace(features=np.concatenate([choices.features, column[..., None]], axis=-1))


def _fitted(choices: Choices, seed: int) -> NDArray[np.int64]:
    """(N,) ranks in the cross-fitted order."""
    names = ["policy", *map(str, range(1, choices.features.shape[-1]))]
    return fit_weights(choices, names, names, seed).ranks


def _content(made: Run, cases: Cases, choices: Choices) -> Numbers:
    vectors, found = item_vectors(made), np.zeros(choices.items.shape, np.float32)
    for row, items in enumerate(choices.items):
        history = cases.histories.row(row)
        profile = (DECAY ** np.arange(len(history))[::-1]).astype(np.float32) @ vectors[history]
        found[row] = vectors[items] @ (profile / max(1e-9, float(np.linalg.norm(profile))))
    return found


def trees(choices: Choices, seed: int) -> NDArray[np.int64]:
    """Ranks of the targets in the cross-fitted order of LambdaRank."""
    there, chosen = choices.items >= 0, choices.chosen
    features = inputs_of(torch.from_numpy(choices.features), torch.from_numpy(there)).numpy()
    folds = folds_of(choices.users, seed)
    found = np.zeros(choices.targets.shape, np.int64)
    for fold in range(FOLDS):
        fitted, held = (folds != fold) & chosen.any(axis=1), folds == fold
        sizes, shown = there[fitted].sum(axis=1), there[fitted]
        table = lightgbm.Dataset(features[fitted][shown], chosen[fitted][shown].astype(int), group=sizes)
        model = lightgbm.train(TREES | {"num_threads": 1, "seed": seed}, table, COUNT)
        scores = np.full(choices.items[held].shape, -np.inf)
        scores[there[held]] = model.predict(features[held][there[held]], num_threads=1)
        order = np.argsort(-scores, axis=1, kind="stable")
        found[held] = target_rank_in(np.take_along_axis(choices.items[held], order, 1), choices.targets[held])
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HR@10 / NDCG@10 on validation, and what each addition gains of NDCG@10, thousandths."""
    lines = ["| set | seed | order | HR@10 / NDCG@10 | NDCG@10 gained, thousandths |", "|---|--:|---|--:|--:|"]
    for row in rows:
        for name, values in row.items():
            if not isinstance(values, Mapping):
                continue
            figures = " / ".join(f"{values[metric]:.4f}".removeprefix("0") for metric in ("hr@10", "ndcg@10"))
            gained = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(1000 * end for end in values["gained"]))
            lines.append(f"| {row['set']} | {row['seed']} | {name} | {figures} | {gained} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
