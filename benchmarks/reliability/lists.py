"""Row 9: lists of many catalogues are valid and hold no item twice; where the beam covers the trie, they are exact."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from adagrpo.decoding import DeadEnd, beam_search
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Branches
from adagrpo.types import Histories
from benchmarks.reliability.findings import Finding

__all__ = ["check_lists", "lists"]

SHAPES = ((6, 5), (8, 8, 8), (5, 3, 4, 3), (300,), (17, 13), (2,) * 9)
LENGTH = 5


def lists(work: Path, count: int = 100_000) -> Finding:
    """Random catalogues, policies with random weights, random histories."""
    made = valid = exact = compared = dead = catalogues = 0
    for turn in itertools.count():
        if made >= count:
            break
        result = check_lists(SHAPES[turn % len(SHAPES)], seed=turn, contexts=500)
        catalogues += 1
        made, valid, compared, exact = made + result[0], valid + result[1], compared + result[2], exact + result[3]
        dead += result[4]
    figure = (
        f"{valid:,} of {made:,} lists hold valid items, each once, in {catalogues} catalogues of up to 500 items; "
        f"{exact:,} of {compared:,} are those of brute force; {dead} of {catalogues} broken tries raise a dead end"
    )
    return Finding(9, figure, valid == made and exact == compared and dead == catalogues)


def check_lists(sizes: tuple[int, ...], seed: int, contexts: int) -> tuple[int, int, int, int, int]:
    """Lists of one catalogue.

    Returns:
        How many lists were made, and are valid; how many were compared with brute force, and are equal; and 1 if a
        trie that denies a prefix of its own raises.
    """
    generator = torch.Generator().manual_seed(seed)
    space = torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes))
    items = int(torch.randint(2, min(len(space), 500) + 1, (1,), generator=generator))
    catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:items]], sizes)
    policy = CompactPolicy(
        catalog.codes, sizes, width=16, layers=1, heads=2, decoder_hidden=16, max_history=LENGTH, dropout=0.0, seed=seed
    ).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        lengths = torch.randint(1, LENGTH + 1, (contexts,), generator=generator)
        seen = torch.randint(items, (contexts, LENGTH), generator=generator)
        context = policy.encode(Histories(seen, lengths))
        narrow = catalog.lookup(beam_search(policy, context, 10, trie=catalog.trie).codes)  # (B, 10)
        every = policy.score(context, catalog.codes.expand(contexts, -1, -1)).sum(-1)  # (B, V)
        wide = beam_search(policy, context, items, trie=catalog.trie)
    best = every.sort(-1, descending=True).values
    of_items = every.gather(1, catalog.lookup(wide.codes).clamp(min=0))
    # equal up to rounding: two ways to add up the same log-probabilities
    same = ((wide.scores - best).abs() <= 1e-4 * (1 + best.abs())) & ((of_items - wide.scores).abs() <= 1e-4 * 20)
    expected = min(10, items)
    once = torch.tensor([len(set(row[:expected])) == expected for row in narrow.tolist()])
    valid = once & (narrow[:, :expected] >= 0).all(1) & (narrow[:, expected:] == -1).all(1)
    return contexts, int(valid.sum()), contexts, int(same.all(1).sum()), int(_dead_end(policy, context, catalog))


def _dead_end(policy: CompactPolicy, context: object, catalog: Catalog) -> bool:
    """Whether a trie that loses the children of its root ends the search, and no list comes of it."""

    class Broken:
        level_sizes = catalog.level_sizes

        def branches(self, level: int, nodes: torch.Tensor) -> Branches:
            nothing = torch.empty(0, dtype=torch.int64)
            return Branches(torch.zeros(nodes.numel(), dtype=torch.int64), nothing, nothing, nothing)

    try:
        beam_search(policy, context, 10, trie=Broken())  # type: ignore[arg-type,type-var]
    except DeadEnd:
        return True
    return False
