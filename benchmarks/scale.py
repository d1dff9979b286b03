"""How cost grows with items, users, rollouts and the width of the beam, on random data of the shape of Amazon Beauty.

One thing grows at a time from: 12,101 items (10 K in the table), 256 codes a level, 22,363 users of seven items each,
G 16, beam 50. The rows have no target; they show the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from adagrpo.config import ObjectiveConfig
from adagrpo.decoding import beam_search_both
from adagrpo.evaluation.predictions import predict
from adagrpo.networks import mixed_precision
from adagrpo.policies import CompactPolicy, HybridPolicy
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer import Arm, BatchSchedule, PostTraining, Supervised
from adagrpo.types import Cases, Histories, Ragged
from benchmarks.compact import STEPS, stepper
from benchmarks.rows import Row, median_spread, timed

__all__ = ["scale"]

CODES, HISTORY, LENGTH = 256, 20, 7


def scale(data: Path, work: Path) -> list[Row]:
    """All rows."""
    return [*of_items(), *of_beams(), *of_users(), *of_rollouts()]


def of_items() -> list[Row]:
    """Both beam searches of 64 histories, catalogues of 10 K, 100 K and a million Semantic IDs."""
    rows = []
    for name, count in (("10k", 10_000), ("100k", 100_000), ("1m", 1_000_000)):
        catalog = random_catalog(count)
        for kind in ("compact", "hybrid"):
            search = searching(random_policy(catalog, kind), catalog, 64, 50)
            rows.append(row(f"items_{name}_{kind}", timed(search), "beam 50, held and free, 64 histories"))
    return rows


def of_beams() -> list[Row]:
    """Both beam searches of 256 histories, beams of 10 to 200."""
    catalog = random_catalog(12_101)
    policy = random_policy(catalog, "compact")
    work = "held and free, 256 histories, compact"
    return [
        row(f"beam_{width}", timed(searching(policy, catalog, 256, width)), work) for width in (10, 20, 50, 100, 200)
    ]


def of_users() -> list[Row]:
    """Evaluation, and an epoch of NLL, of 2,796 to 22,363 users."""
    catalog = random_catalog(12_101)
    rows = []
    for users in (22_363 // 8, 22_363 // 4, 22_363 // 2, 22_363):
        policy, training = random_policy(catalog, "compact"), random_sequences(users, catalog.num_items)
        cases = Cases(np.arange(users, dtype=np.int32), training, np.zeros(users, dtype=np.int32))

        def evaluation() -> None:
            predict(policy, catalog, cases, width=50, batch_size=256, max_history=HISTORY)  # noqa: B023

        rows.append(row(f"users_{users}_evaluation", timed(evaluation, repeats=3, warmup=0), "beam 50, held and free"))
        schedule = BatchSchedule(training, HISTORY, 256, 1, 0)
        task = Supervised(policy, catalog.codes, schedule, steps=10**6, validate=dict)
        _, steps = stepper(torch.device("cpu"), task)
        epoch = [seconds / STEPS * schedule.steps_per_epoch for seconds in timed(steps, repeats=5)]
        rows.append(row(f"users_{users}_epoch", epoch, "NLL, from the time of a step"))
    return rows


def of_rollouts() -> list[Row]:
    """A step of post-training, 256 samples, groups of 4 to 64."""
    catalog = random_catalog(12_101)
    training = random_sequences(22_363, catalog.num_items)
    schedule, ranker = BatchSchedule(training, HISTORY, 256, 1, 0), SequentialRanker(catalog.num_items)
    rows = []
    for group in (4, 8, 16, 32, 64):
        arm, options = Arm(anchored=True, lambda_=1.0, gate="all"), ObjectiveConfig(num_generations=group)
        policy = random_policy(catalog, "compact")
        task = PostTraining(policy, catalog, ranker, schedule, options, arm, steps=10**6, validate=dict)
        _, steps = stepper(torch.device("cpu"), task)
        seconds = [time / STEPS for time in timed(steps, repeats=5)]
        rows.append(row(f"g_{group}", seconds, "mixture step, 256 histories, all admitted, compact"))
    return rows


def row(name: str, seconds: list[float], against: str) -> Row:
    """A row without a target."""
    value, spread = median_spread(seconds)
    return Row(f"scale_{name}", value, "s", spread, "", None, against)


def searching(policy: CompactPolicy | HybridPolicy, catalog: Catalog, count: int, width: int) -> Callable[[], None]:
    """Both searches for some random histories."""
    generator = torch.Generator().manual_seed(2)
    items = torch.randint(catalog.num_items, (count, HISTORY), generator=generator)
    histories = Histories(items, torch.full((count,), HISTORY))
    frozen = policy.eval().frozen()

    @torch.no_grad()
    def search() -> None:
        with mixed_precision(policy):
            beam_search_both(frozen, frozen.encode(histories), width, trie=catalog.trie)

    return search


def random_catalog(count: int) -> Catalog:
    """Distinct random codes of three levels."""
    numbers = np.random.default_rng(0).choice(CODES**3, count, replace=False)
    codes = np.stack(np.unravel_index(numbers, (CODES,) * 3), axis=1)
    return Catalog.from_codes(torch.from_numpy(codes.astype(np.int64)), (CODES,) * 3)


def random_policy(catalog: Catalog, kind: str) -> CompactPolicy | HybridPolicy:
    """Random weights, spread enough that beams have an order."""
    compact = CompactPolicy(catalog.codes, catalog.level_sizes)
    with torch.no_grad():
        for head in compact.heads:
            head.weight.mul_(20)
    return compact if kind == "compact" else HybridPolicy(compact, catalog.trie)


def random_sequences(users: int, items: int) -> Ragged:
    """Users of seven random items each."""
    values = np.random.default_rng(1).integers(0, items, users * LENGTH).astype(np.int32)
    return Ragged(values, np.arange(users + 1, dtype=np.int64) * LENGTH)
