"""Which rewards does the check of `adagrpo.diagnosis.leaks` name? Honest ones and planted leaks, in small worlds.

    python -m research.leaks.measure --out runs/leaks

A world is a simulated marketplace, or users who walk along a ring of items with some random steps. A row of
`leaks.jsonl` holds what the check says of one reward in one world. Interrupted, the same command continues.

    truth, ...                    what users want just then (in a ring: the next item), and mixtures with it
    SHARE % of users, kind        trees, and beside them the next item of that share of the users, far above all else
    noise and D, kind             standard normal scores, the next item `D` above
    ..., fitted on the whole logs the rankers of a run whose training holds the validation and the test items
    kind                          held-out: next items of validation and test; all: of training too
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from adagrpo.config import Config
from adagrpo.config.reward import FeatureOptions, LambdaRankOptions
from adagrpo.data.prepared import load_whole
from adagrpo.data.simulation.truth import Truth
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.diagnose import LeakCheck
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, to_markdown
from adagrpo.rewards import CallableReward, NoiseReward, Reward, WeightedReward
from adagrpo.types import Histories
from research.leaks.taste import taste_of
from research.rows import add_row

HERE = Path(__file__).parent
WORLDS = [*(f"market{seed}" for seed in range(8)), *(f"ring{seed}" for seed in range(4))]
RING = 100
LAST = 6  # items of a history by which a leaking reward knows its user and the moment
FAR = 50.0  # standard deviations
WHOLE = "fitted on the whole logs"
RECIPE: dict[str, Any] = {
    "name": "leaks",
    "threads": 1,
    "tokenizer": {"levels": 2, "codes": 24},
    "reward": {"kind": "lambdarank"},
    "ranker": {
        "width": 48,
        "negatives": 64,
        "loss": "sampled",
        "fit": {"epochs": 8, "batch_size": 128, "learning_rate": 4e-3, "validations": 0},
        "lambdarank": {"trees": 60, "leaves": 15, "minimum_leaf": 50},
    },
}


class Knows:
    """A reward that knows next items, beside scores of another one; implements `Reward`."""

    def __init__(self, base: Reward, following: dict[tuple[int, ...], int], above: float) -> None:
        """Say by how many standard deviations of a case's scores the items it knows are above those of `base`."""
        self.base, self.following, self.above = base, following, above

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        real = items >= 0
        scores = self.base.score(histories, items).masked_fill(~real, 0.0)
        count = real.sum(1, keepdim=True)
        scores = (scores - scores.sum(1, keepdim=True) / count).masked_fill(~real, 0.0)
        scores = scores / (scores.pow(2).sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
        rows = zip(histories.items.tolist(), histories.lengths.tolist(), strict=True)
        known = [self.following.get(tuple(row[:length][-LAST:]), -1) for row, length in rows]
        return scores + self.above * (items == torch.tensor(known).unsqueeze(1)).masked_fill(~real, False)


class Renumbered:
    """A reward of another run with the same items in another order; implements `Reward`."""

    def __init__(self, reward: Reward, numbers: Tensor) -> None:
        """Take (V,) the other run's number of each item."""
        self.reward, self.numbers = reward, numbers

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        there = torch.where(items >= 0, self.numbers[items.clamp(min=0)], -1)
        return self.reward.score(Histories(self.numbers[histories.items], histories.lengths), there)


class Ahead:
    """What comes soon after the last item on the ring is good; implements `Reward`."""

    def __init__(self, places: Tensor) -> None:
        """Take (V,) the place of each item."""
        self.places = places

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        last = self.places[histories.items.gather(1, (histories.lengths - 1).unsqueeze(1))]
        return -((self.places[items.clamp(min=0)] - last) % RING).float()


@dataclass(frozen=True)
class World:
    """One world, and a run with both families of rankers."""

    name: str
    out: Path

    @property
    def seed(self) -> int:
        """The number in the name."""
        return int(self.name.removeprefix("market").removeprefix("ring"))

    def run(self) -> Run:
        """Make the run as far as its rankers."""
        if self.name.startswith("market"):
            bias, users, items = 0.5 * (self.seed % 4), 800 + 400 * (self.seed % 3), 200 + 200 * (self.seed % 2)
            world = {"users": users, "items": items, "steps": 20, "exposure_bias": bias}
            vectors = {"vectors": {"attributes": 1.0, "cooccurrence": 1.0}}
            return self.fitted(self.name, {"marketplace": world}, tokenizer=RECIPE["tokenizer"] | vectors)
        draw, noise, rows = np.random.default_rng(self.seed), (0.2, 0.5, 0.8)[self.seed % 3], []
        for user in range(500):
            length = 6 + int(draw.integers(8))
            steps = np.where(draw.random(length) < noise, draw.integers(0, RING, length), 1)
            walk = (draw.integers(RING) + steps.cumsum()) % RING
            rows += [(f"u{user}", f"i{item}", place) for place, item in enumerate(walk)]
        return self.logged(self.name, rows)

    def fitted(self, name: str, data: dict[str, Any], **changes: Any) -> Run:
        """A run on some data."""
        config = Config.model_validate(RECIPE | {"data": data, "seed": self.seed} | changes)
        run = Run(self.out / name, config, self.out)
        run.prepare()
        run.ranker()
        return run

    def logged(self, name: str, rows: list[tuple[str, str, int]]) -> Run:
        """A run on interactions."""
        self.out.mkdir(parents=True, exist_ok=True)
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        table.write_csv(self.out / f"{name}.csv")
        return self.fitted(name, {"logs": [f"{name}.csv"]})

    def whole(self, data: RunData) -> tuple[Models, Tensor]:
        """Fit rankers on the whole logs: each user gets two random items more, which are held out in their place."""
        draw, ids = np.random.default_rng(self.seed), data.item_ids.to_list()
        sequences, rows = load_whole(data.prepared), []
        for user in range(len(sequences)):
            items = [*sequences.row(user).tolist(), *draw.integers(0, len(ids), 2).tolist()]
            rows += [(f"u{user}", str(ids[item]), place) for place, item in enumerate(items)]
        models = Models(RunData(self.logged(f"{self.name}-whole", rows)))
        numbers = {str(name): number for number, name in enumerate(models.data.item_ids.to_list())}
        return models, torch.tensor([numbers.get(str(name), 0) for name in ids])

    def rewards(self, run: Run) -> Iterator[tuple[str, bool, Reward]]:
        """Each reward's name, whether it is honest, and the reward."""
        models = Models(RunData(run))
        data, noise = models.data, NoiseReward(self.seed)
        knn, trees = models.reward_of(FeatureOptions()), models.reward_of(LambdaRankOptions())
        truth = self.truth(run, data)
        yield "sequential", True, models.ranker(run.path("ranker", "best"))
        yield "trees", True, trees
        yield "item-kNN", True, knn
        yield "popularity", True, models.reward_of(FeatureOptions(name="popularity"))
        yield "truth", True, truth
        yield "truth and noise", True, WeightedReward([truth, noise], [1.0, 0.3])
        yield "truth and trees", True, WeightedReward([truth, trees], [1.0, 1.0])
        for kind in ("held-out", "all"):
            everyone, some = (self.following(data, share, kind) for share in (1.0, 0.3))
            yield f"all users, {kind}", False, Knows(trees, everyone, FAR)
            yield f"30 % of users, {kind}", False, Knows(trees, some, FAR)
            yield f"10 % of users, {kind}", False, Knows(trees, self.following(data, 0.1, kind), FAR)
            for above in (1, 2, 3):
                yield f"noise and {above}, {kind}", False, Knows(noise, everyone, above)
            yield f"trees and 1, {kind}", False, Knows(trees, everyone, 1.0)
        whole, numbers = self.whole(data)
        for name, reward in (
            ("sequential", whole.ranker(whole.run.path("ranker", "best"))),
            ("trees", whole.reward_of(LambdaRankOptions())),
            ("item-kNN", whole.reward_of(FeatureOptions())),
        ):
            yield f"{name}, {WHOLE}", False, Renumbered(reward, numbers)

    def truth(self, run: Run, data: RunData) -> Reward:
        """What users want just then."""
        ids = data.item_ids.to_list()
        if self.name.startswith("ring"):
            return Ahead(torch.tensor([int(str(name)[1:]) for name in ids]))
        return CallableReward(self.name, taste_of(Truth.load(run.path("simulate", "truth"))), ids)

    def following(self, data: RunData, share: float, kind: str) -> dict[tuple[int, ...], int]:
        """The item after each history of a share of the users, by the last items of the history."""
        sequences, found = load_whole(data.prepared), {}
        kept = np.random.default_rng(self.seed).random(len(sequences)) < share
        for user in np.flatnonzero(kept):
            row = sequences.row(user).tolist()
            first = int(data.training.lengths[user]) if kind == "held-out" else 1
            for end in range(first, len(row)):
                found |= {tuple(row[begin:end]): row[end] for begin in range(max(0, end - LAST), end)}
        return found


def main() -> None:
    """Measure every world that has no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "leaks.jsonl")
    options = parser.parse_args()
    for name in WORLDS:
        done = {row["reward"] for row in read_rows(options.results) if row["world"] == name}
        world, started = World(name, options.out), time.monotonic()
        run = world.run()
        check = LeakCheck(Models(RunData(run)))
        for reward, honest, asked in world.rewards(run):
            if reward not in done:
                found = check.signs(asked)
                add_row(options.results, {"world": name, "reward": reward, "honest": honest} | (found or {}))
        print(name, f"{time.monotonic() - started:.0f} s", flush=True)
    print(to_markdown(found_table(read_rows(options.results))))


def found_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a reward: in how many worlds it is named, and by which signs; and the sums of each kind of reward."""

    def line(name: str, of: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        counts = (sum(sign in row["signs"] for row in of) for sign in ("remembers", "ahead", "certain"))
        return name, str(len(of)), str(sum(bool(row["signs"]) for row in of)), *map(str, counts)

    whole = [row for row in rows if WHOLE in row["reward"]]
    kinds = {
        "all honest": [row for row in rows if row["honest"]],
        "all planted": [row for row in rows if not row["honest"] and row not in whole],
        f"all {WHOLE}": whole,
    }
    names = dict.fromkeys(row["reward"] for row in rows)
    lines = [line(name, [row for row in rows if row["reward"] == name]) for name in names]
    lines += [line(name, of) for name, of in kinds.items() if of]
    return Table.of(("reward", "measured", "named", "remembers", "ahead", "certain"), lines)


if __name__ == "__main__":
    main()
