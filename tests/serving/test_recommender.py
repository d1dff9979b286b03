"""What a served policy answers, against the whole catalogue scored item by item."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from adagrpo.lists.fusion import POLICY, FittedWeights, Fusion, Weights
from adagrpo.lists.query import ListOrder, Query
from adagrpo.lists.recommender import Recommender
from adagrpo.lists.sources import Shares, popular_shares
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Histories

SIZES, ITEMS, SEEN = (8, 8, 8), 200, 6


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    generator = torch.Generator().manual_seed(0)
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    return Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:ITEMS]], SIZES)


@pytest.fixture(scope="module")
def policy(catalog: Catalog) -> CompactPolicy:
    made = CompactPolicy(
        catalog.codes, SIZES, width=16, layers=1, heads=2, decoder_hidden=16, max_history=SEEN, dropout=0.0, seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def served(policy: CompactPolicy, catalog: Catalog, width: int) -> Recommender:
    counts = np.arange(ITEMS) % 50  # many ties
    names = [f"item {item}" for item in range(ITEMS)]
    options = {"max_history": SEEN, "exclude_history": False, "precision": "float32", "popularity": counts}
    return Recommender(policy, catalog, names, width=width, **options)


def drawn_mask(catalog: Catalog, share: float, seed: int) -> Eligible:
    return catalog.trie.eligible(torch.rand(ITEMS, generator=torch.Generator().manual_seed(seed)) < share)


@torch.no_grad()
def brute_force(policy: CompactPolicy, catalog: Catalog, query: Query, masked: bool) -> list[int]:
    """All items by their log-probability, but for those that the query rules out."""
    history = query.history[-SEEN:]
    context = policy.encode(Histories(torch.tensor([history]), torch.tensor([len(history)])))
    scores = policy.score(context, catalog.codes.unsqueeze(0)).sum(-1)[0]
    out = {*query.without} | ({*query.history} if masked else set())
    kept = [item for item in range(ITEMS) if item not in out and (query.eligible is None or query.eligible.items[item])]
    return sorted(kept, key=lambda item: -float(scores[item]))


def test_lists_of_all_kinds_of_masks_equal_brute_force(policy: CompactPolicy, catalog: Catalog) -> None:
    """A beam as wide as the catalogue is exact; masks of 1 % to 100 %, mixed in one batch, shared by some."""
    recommender = served(policy, catalog, ITEMS)
    draw = np.random.default_rng(2)
    masks = [None, *(drawn_mask(catalog, share, 3) for share in (0.01, 0.1, 0.5, 0.9, 1.0, 0.0))]
    queries = [
        Query(
            draw.integers(0, ITEMS, draw.integers(1, 12)).tolist(),
            exclude_history=bool(row % 3 == 0),
            without=draw.integers(0, ITEMS, draw.integers(0, 9)).tolist() if row % 2 else (),
            eligible=masks[draw.integers(0, len(masks))],
        )
        for row in range(60)
    ]
    answers = recommender.recommend(queries)
    for query, answer in zip(queries, answers, strict=True):
        expected = brute_force(policy, catalog, query, bool(query.exclude_history))
        assert answer.items == [f"item {item}" for item in expected] and answer.source == "policy"
    assert any(answer.items == [] for answer in answers)  # nothing eligible, nothing listed


@pytest.mark.parametrize("share", [0.02, 0.1, 0.9])
def test_a_narrow_beam_gives_full_lists_that_do_not_depend_on_the_company(
    policy: CompactPolicy, catalog: Catalog, share: float
) -> None:
    recommender = served(policy, catalog, 10)
    draw = np.random.default_rng(3)
    masks = [drawn_mask(catalog, share, seed) for seed in range(4)] + [None]
    queries = [
        Query(draw.integers(0, ITEMS, 9).tolist(), exclude_history=bool(row % 2), eligible=masks[row % 5])
        for row in range(40)
    ]
    answers = recommender.recommend(queries)
    for query, answer in zip(queries, answers, strict=True):
        possible = set(brute_force(policy, catalog, query, bool(query.exclude_history)))
        assert {int(name.split()[1]) for name in map(str, answer.items)} <= possible
        assert len(set(answer.items)) == len(answer.items) == min(10, len(possible))
        alone = recommender.recommend([query])[0]
        assert alone.items == answer.items
        assert alone.scores == pytest.approx(answer.scores, rel=1e-5)


def test_a_query_without_a_history_gets_what_is_popular_and_eligible(policy: CompactPolicy, catalog: Catalog) -> None:
    recommender = served(policy, catalog, 10)
    eligible = drawn_mask(catalog, 0.5, 7)
    everything, some, warm = recommender.recommend([Query([]), Query([], without=[49], eligible=eligible), Query([3])])
    assert everything.items == [f"item {item}" for item in (49, 99, 149, 199, 48, 98, 148, 198, 47, 97)]
    assert (everything.source, some.source, warm.source) == ("popular", "popular", "policy")
    kept = [item for item in range(ITEMS) if eligible.items[item] and item != 49]
    assert some.items == [f"item {item}" for item in sorted(kept, key=lambda item: (-(item % 50), item))[:10]]
    total = sum(item % 50 for item in range(ITEMS))
    shares = [np.log((count + 1) / (total + ITEMS)) for count in (49, 49, 49, 49, 48, 48, 48, 48, 47, 47)]
    assert everything.scores == pytest.approx(shares)
    unknown = Recommender(policy, catalog, list(range(ITEMS)), width=10, max_history=SEEN, exclude_history=False)
    assert unknown.recommend([Query([])])[0].items == []


def test_a_list_says_whether_the_policy_made_it(policy: CompactPolicy, catalog: Catalog) -> None:
    plain = served(policy, catalog, 10)
    popular = Shares(popular_shares(np.arange(ITEMS)))
    names = (POLICY, "popularity")
    weights = Weights(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1.0))
    fusion = Fusion({"popularity": popular}, [], 10, FittedWeights(weights, weights))
    lists = {"policy": plain, "fused": plain.ordered(ListOrder(fusion=fusion))}
    lists["alone"] = plain.ordered(ListOrder(alone=popular))
    for source, recommender in lists.items():
        assert recommender.recommend([Query([3])])[0].source == source
        assert recommender.recommend([Query([])])[0].source == "popular"


def test_a_recommender_goes_with_its_last_reference(policy: CompactPolicy, catalog: Catalog) -> None:
    """Or a service would hold a model that it exchanged until the collector comes by."""
    gc.collect()
    gc.disable()
    try:
        made = served(policy, catalog, 10)
        made.recommend([Query([3], eligible=made.narrow(["item 1", "item 2"]).eligible)])
        gone = weakref.ref(made)
        del made
        assert gone() is None
    finally:
        gc.enable()
