"""What a mask costs: lists of a part of a catalogue, against lists of all of it, in batches and alone.

The lists are those of `Recommender`, beam 50, of random policies: weights decide which items, not how long it takes. A
request is 64 histories together or one alone. Masks are made before the clock runs, and their making is timed apart.
Times are of the processor, one thread, so that what else runs on the machine matters less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adagrpo.lists.query import Query
from adagrpo.lists.recommender import Recommender
from benchmarks.rows import Row, median_spread
from benchmarks.scale import HISTORY, random_catalog, random_policy

__all__ = ["eligible_parts"]

BATCH, WIDTH, K, REPEATS, LISTS = 64, 50, 10, 5, 256
SHARES = (0.01, 0.1, 0.9)


def eligible_parts(data: Path, work: Path) -> list[Row]:
    """Catalogues of 12,101 and 100,000 items, of which 1 %, 10 % and 90 % are eligible; both policies."""
    rows = []
    for name, count in (("12k", 12_101), ("100k", 100_000)):
        catalog = random_catalog(count)
        for kind in ("compact", "hybrid"):
            policy = random_policy(catalog, kind)
            served = Recommender(
                policy, catalog, list(range(count)), width=WIDTH, max_history=HISTORY, exclude_history=True
            )
            for share in SHARES:
                rows += _of_share(served, f"eligible_{name}_{100 * share:.0f}_{kind}", share)
        mask = torch.rand(count) < 0.1
        (seconds,) = in_turn([partial(catalog.trie.eligible, mask)])
        value, spread = median_spread([1000 * one for one in seconds])
        rows.append(Row(f"eligible_{name}_mask_ms", value, "ms", spread, "", None, "a mask is made, 10 % of the items"))
    return rows


def _of_share(served: Recommender, name: str, share: float) -> list[Row]:
    """Full lists, and seconds with masks over seconds without: one for a batch, one for each history, and alone."""
    draw, generator = np.random.default_rng(0), torch.Generator().manual_seed(1)
    count = len(served.item_ids)
    masks = [served.catalog.trie.eligible(torch.rand(count, generator=generator) < share) for _ in range(BATCH)]
    plain = [Query(draw.integers(0, count, HISTORY).tolist()) for _ in range(BATCH)]
    shared = [query._replace(eligible=masks[0]) for query in plain]
    mixed = [query._replace(eligible=mask) for query, mask in zip(plain, masks, strict=True)]
    asked = [Query(draw.integers(0, count, HISTORY).tolist(), eligible=masks[turn % BATCH]) for turn in range(LISTS)]
    lists = [one for first in range(0, len(asked), BATCH) for one in served.recommend(asked[first : first + BATCH])]
    wrong = sum(
        not bool(query.eligible.items[torch.tensor(one.items)].all())
        for query, one in zip(asked, lists, strict=True)
        if query.eligible is not None
    )
    full = statistics.mean(len(one.items) >= K for one in lists)
    requests = (plain, shared, mixed, plain[:1], shared[:1])
    batches = in_turn([partial(served.recommend, request) for request in requests])
    whole, one_mask, many_masks, alone, alone_masked = (statistics.median(seconds) for seconds in batches)
    ratios = [masked / unmasked for masked, unmasked in zip(batches[1], batches[0], strict=True)]
    detail = {
        "full_lists": full,
        "lists": len(lists),
        "ineligible": wrong,
        "ms_without": 1000 * whole,
        "ms_one_mask": 1000 * one_mask,
        "ms_64_masks": 1000 * many_masks,
        "alone_ms_without": 1000 * alone,
        "alone_ms": 1000 * alone_masked,
    }
    against = "64 histories under one mask, over the same without"
    value, spread = median_spread(ratios)
    return [Row(name, value, "x", spread, "full lists 100 %", full == 1.0 and wrong == 0, against, detail)]


def in_turn(works: list[Callable[[], object]]) -> list[list[float]]:
    """Processor seconds of several chunks of work taken in turn, after one round that warms up."""
    result: list[list[float]] = [[] for _ in works]
    for turn in range(1 + REPEATS):
        for work, seconds in zip(works, result, strict=True):
            started = time.process_time()
            work()
            if turn:
                seconds.append(time.process_time() - started)
    return result
