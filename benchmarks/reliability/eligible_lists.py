"""Row 23: no list holds an item that its request rules out, and none is shorter than it has to be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from adagrpo.lists.query import Query
from adagrpo.lists.recommender import Recommender
from adagrpo.policies.compact import CompactPolicy
from adagrpo.policies.hybrid import HybridPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.lists import SHAPES

__all__ = ["Counts", "check_eligible", "eligible_lists"]

LENGTH, K = 5, 10
SHARES = (0.01, 0.1, 0.5, 0.9, 1.0, 0.0)  # of the items that are eligible


class Counts(NamedTuple):
    """Of lists."""

    lists: int
    ineligible: int  # with an item that is ruled out, or one twice
    short: int  # with fewer items than could be
    compared: int  # with brute force
    exact: int


def eligible_lists(work: Path, count: int = 100_000) -> Finding:
    """Random catalogues, policies of both kinds with random weights, random histories and masks mixed in a batch."""
    total, catalogues = Counts(0, 0, 0, 0, 0), 0
    for turn in itertools.count():
        if total.lists >= count:
            break
        result = check_eligible(SHAPES[turn % len(SHAPES)], turn, contexts=500, hybrid=turn % 4 == 0)
        total, catalogues = Counts(*map(sum, zip(total, result, strict=True))), catalogues + 1
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    figure = (
        f"{total.lists:,} served lists of {catalogues} catalogues of up to 500 items, of which {shares} % are "
        f"eligible, masks mixed in a batch: {total.ineligible:,} with an item that is ruled out, "
        f"{total.short:,} shorter than the eligible items allow; "
        f"{total.exact:,} of {total.compared:,} are those of brute force"
    )
    return Finding(23, figure, not total.ineligible and not total.short and total.exact == total.compared)


@torch.no_grad()
def check_eligible(sizes: tuple[int, ...], seed: int, contexts: int, *, hybrid: bool = False) -> Counts:
    """Lists of one catalogue, of a narrow beam, and of one as wide as the catalogue for every fifth request."""
    generator, draw = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    space = torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes))
    count = int(torch.randint(2, min(len(space), 500) + 1, (1,), generator=generator))
    catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:count]], sizes)
    options = {"width": 16, "layers": 1, "heads": 2, "decoder_hidden": 16, "max_history": LENGTH, "dropout": 0.0}
    policy: CompactPolicy | HybridPolicy = CompactPolicy(catalog.codes, sizes, **options, seed=seed)  # type: ignore[arg-type]
    if hybrid:
        policy = HybridPolicy(policy, catalog.trie, seed=seed)
    for parameter in policy.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    masks = [catalog.trie.eligible(torch.rand(count, generator=generator) < share) for share in SHARES]
    queries = [
        Query(
            draw.integers(0, count, draw.integers(1, 2 * LENGTH)).tolist(),
            exclude_history=bool(draw.random() < 0.5),
            without=draw.integers(0, count, draw.integers(0, 4)).tolist(),
            eligible=masks[draw.integers(len(masks))] if draw.random() < 0.9 else None,
        )
        for _ in range(contexts)
    ]
    possible = [_possible(query, count) for query in queries]
    arguments = {"max_history": LENGTH, "exclude_history": False, "precision": "float32"}
    narrow = Recommender(policy, catalog, list(range(count)), width=K, **arguments)  # type: ignore[arg-type]
    answers = [one for first in range(0, contexts, 64) for one in narrow.recommend(queries[first : first + 64])]
    wrong = sum(
        not {*answer.items} <= left or len({*answer.items}) < len(answer.items)
        for answer, left in zip(answers, possible, strict=True)
    )
    short = sum(len(answer.items) < min(K, len(left)) for answer, left in zip(answers, possible, strict=True))
    wide = Recommender(policy, catalog, list(range(count)), width=count, **arguments)  # type: ignore[arg-type]
    rows = range(0, contexts, 5)
    found = wide.recommend([queries[row] for row in rows])
    exact = [
        _is_exact(policy, catalog, queries[row], possible[row], answer.items, answer.scores)
        for row, answer in zip(rows, found, strict=True)
    ]
    return Counts(contexts, wrong, short, len(exact), sum(exact))


def _possible(query: Query, count: int) -> set[int]:
    kept = range(count) if query.eligible is None else query.eligible.items.nonzero().squeeze(1).tolist()
    return {*kept} - {*query.without} - ({*query.history} if query.exclude_history else set())


def _is_exact(
    policy: CompactPolicy | HybridPolicy,
    catalog: Catalog,
    query: Query,
    possible: set[int],
    items: list[int],
    scores: list[float],
) -> bool:
    """Whether a list holds all that is possible, in the order of its probability, up to rounding."""
    seen = query.history[-LENGTH:]
    context = policy.encode(Histories(torch.tensor([seen]), torch.tensor([len(seen)])))
    every = policy.score(context, catalog.codes.unsqueeze(0)).sum(-1)[0]
    if {*items} != possible:
        return False
    best = every[sorted(possible)].sort(descending=True).values
    given, own = torch.tensor(scores), every[items] if items else every[:0]
    near = 1e-4 * (1 + best.abs())  # two ways to add up the same log-probabilities
    return bool(((given - best).abs() <= near).all() and ((own - given).abs() <= 20 * near).all())
