from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo.semantic_ids.trie import Trie

torch.set_num_threads(2)

DENSE, SPARSE = 2**26, 0


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Up to 300 distinct code sequences; level sizes from 1, so that single-child levels occur."""
    sizes = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    space = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, len(sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    chosen = draw(st.integers(0, min(300, len(space))))
    return space[torch.randperm(len(space), generator=generator)[:chosen]], sizes


class Twin:
    """The same tree with dictionaries keyed by prefixes."""

    def __init__(self, codes: torch.Tensor) -> None:
        self.rows = [tuple(row) for row in codes.tolist()]
        self.items = {row: item for item, row in enumerate(self.rows)}
        levels = codes.shape[1]
        self.prefixes = [
            sorted({row[:level] for row in self.rows} | ({()} if level == 0 else set())) for level in range(levels + 1)
        ]
        self.nodes = [{prefix: node for node, prefix in enumerate(prefixes)} for prefixes in self.prefixes]

    def child(self, level: int, node: int, code: int) -> int:
        if node < 0:
            return -1
        return self.nodes[level + 1].get((*self.prefixes[level][node], code), -1)


@settings(max_examples=60, deadline=None)
@given(catalogue=catalogues(), share=st.floats(0.0, 1.0), seed=st.integers(0, 10_000))
def test_a_node_is_closed_where_all_below_it_is_excluded(
    catalogue: tuple[torch.Tensor, tuple[int, ...]], share: float, seed: int
) -> None:
    codes, sizes = catalogue
    trie, twin = Trie.build(codes, sizes), Twin(codes)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(3, len(codes), generator=generator) < share * torch.tensor([[1.0], [0.5], [0.0]])
    items = torch.arange(len(codes)).expand(3, -1).masked_fill(~drawn, -1)
    items = torch.cat([items, items[:, :5]], dim=1)[:, torch.randperm(len(codes) + len(items[0, :5]))]  # some twice
    excluded = trie.excluding(items)
    for level, prefixes in enumerate(twin.prefixes):
        expected = [
            [all(bool(drawn[b, i]) for row, i in twin.items.items() if row[:level] == prefix) for prefix in prefixes]
            for b in range(3)
        ]
        nodes = torch.arange(-1, len(prefixes))
        actual = trie.closed(level, nodes, torch.arange(3).unsqueeze(1), excluded)
        assert actual.tolist() == [[True, *row] for row in expected]


@settings(max_examples=60, deadline=None)
@given(catalogue=catalogues(), share=st.floats(0.0, 1.0), seed=st.integers(0, 10_000))
def test_a_node_is_closed_where_nothing_below_it_is_eligible(
    catalogue: tuple[torch.Tensor, tuple[int, ...]], share: float, seed: int
) -> None:
    """Five samples: two share a mask, one has the catalogue, and some leave out items beside that."""
    codes, sizes = catalogue
    trie, twin = Trie.build(codes, sizes), Twin(codes)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, len(codes), generator=generator) < torch.tensor([[share], [1 - share]])
    shared, other = trie.eligible(masks[0]), trie.eligible(masks[1])
    out = torch.rand(5, len(codes), generator=generator) < torch.tensor([0.5, 0.0, 0.3, 0.5, 0.0]).unsqueeze(1)
    items = torch.arange(len(codes)).expand(5, -1).masked_fill(~out, -1)
    excluded = trie.excluding(items, [shared, shared, None, other, other])
    possible = torch.stack([masks[0], masks[0], torch.ones(len(codes), dtype=torch.bool), masks[1], masks[1]]) & ~out
    for level, prefixes in enumerate(twin.prefixes):
        expected = [
            [not any(possible[b, i] for row, i in twin.items.items() if row[:level] == prefix) for prefix in prefixes]
            for b in range(5)
        ]
        nodes = torch.arange(-1, len(prefixes))
        actual = trie.closed(level, nodes, torch.arange(5).unsqueeze(1), excluded)
        assert actual.tolist() == [[True, *row] for row in expected]
    assert shared.count == int(masks[0].sum()) and torch.equal(shared.items, masks[0])


def test_a_mask_may_end_before_an_item_that_was_delisted() -> None:
    trie = Trie.build(torch.tensor([[0], [1]]), (2,)).named(torch.tensor([0, 2]))  # item 3 came later, and left
    mask = trie.eligible(torch.tensor([True, True, True]))
    excluded = trie.excluding(torch.tensor([[3, 2], [3, -1]]), [mask, mask])
    nodes = torch.tensor([0, 1])
    assert trie.closed(1, nodes, torch.tensor([[0], [1]]), excluded).tolist() == [[False, True], [False, False]]


def test_no_samples_exclude_nothing() -> None:
    trie, nobody = Trie.build(torch.tensor([[0], [1]]), (2,)), torch.empty(0, 3, dtype=torch.int64)
    for eligible in (None, []):
        excluded = trie.excluding(nobody, eligible)
        assert trie.closed(1, nobody, nobody, excluded).shape == (0, 3)


@pytest.mark.parametrize("dense_limit", [DENSE, SPARSE])
@settings(max_examples=40, deadline=None)
@given(catalogue=catalogues())
def test_every_query_equals_the_dictionary_twin(
    dense_limit: int, catalogue: tuple[torch.Tensor, tuple[int, ...]]
) -> None:
    codes, sizes = catalogue
    trie, twin = Trie.build(codes, sizes, dense_limit=dense_limit), Twin(codes)
    assert trie.node_counts == tuple(len(prefixes) for prefixes in twin.prefixes)
    for level, size in enumerate(sizes):
        nodes = [-1, *range(len(twin.prefixes[level]))]
        tried = list(range(-2, size + 2))
        expected = [[twin.child(level, node, code) for code in tried] for node in nodes]
        column, row = torch.tensor(nodes).unsqueeze(1), torch.tensor(tried)
        assert trie.child(level, column, row).tolist() == expected
        assert trie.child(level, column.expand(-1, len(tried)), row.expand(len(nodes), -1)).tolist() == expected
        following = [[(code, child) for code, child in zip(tried, row, strict=True) if child >= 0] for row in expected]
        branches = trie.branches(level, torch.tensor(nodes))
        assert branches.counts.tolist() == list(map(len, following))
        assert torch.stack(branches[1:], -1).tolist() == [
            [place, code, child] for place, pairs in enumerate(following) for code, child in pairs
        ]
        assert trie.allowed(level, torch.tensor(nodes)).tolist() == [
            [child >= 0 for child in children[2:-2]] for children in expected
        ]
    leaves = torch.tensor([-1, *range(len(codes))])
    assert trie.leaf_items(leaves).tolist() == [-1, *[twin.items[prefix] for prefix in twin.prefixes[-1]]]
    every = list(itertools.product(*[range(-1, size + 1) for size in sizes]))
    assert trie.lookup(torch.tensor(every)).tolist() == [twin.items.get(row, -1) for row in every]


@settings(max_examples=30, deadline=None)
@given(catalogue=catalogues(), limit=st.integers(0, 60))
def test_storage_may_differ_by_level(catalogue: tuple[torch.Tensor, tuple[int, ...]], limit: int) -> None:
    codes, sizes = catalogue
    mixed, dense = Trie.build(codes, sizes, dense_limit=limit), Trie.build(codes, sizes)
    for level, size in enumerate(sizes):
        assert (mixed.tables[level].dim() == 2) == (mixed.node_counts[level] * size <= limit)
        nodes = torch.arange(-1, dense.node_counts[level])
        assert torch.equal(mixed.allowed(level, nodes), dense.allowed(level, nodes))
    assert torch.equal(mixed.lookup(codes), torch.arange(len(codes)))


@pytest.mark.parametrize("dense_limit", [DENSE, SPARSE])
def test_an_unknown_prefix_is_never_unconstrained(dense_limit: int) -> None:
    trie = Trie.build(torch.tensor([[0, 1, 1], [1, 0, 0]]), (2, 2, 2), dense_limit=dense_limit)
    lost = trie.child(1, trie.child(0, torch.tensor(0), torch.tensor(0)), torch.tensor(0))
    assert lost.item() == -1
    assert not trie.allowed(2, lost).any()
    assert trie.child(2, lost.expand(2), torch.tensor([0, 1])).tolist() == [-1, -1]


@pytest.mark.parametrize("dense_limit", [DENSE, SPARSE])
def test_batched_shapes_and_dtypes(dense_limit: int) -> None:
    trie = Trie.build(torch.tensor([[0, 2], [1, 0], [1, 2]]), (2, 3), dense_limit=dense_limit)
    nodes = torch.tensor([[0, 1, -1], [1, 1, 0]])
    assert trie.allowed(1, nodes).shape == (2, 3, 3)
    assert trie.allowed(1, nodes)[0].tolist() == [[False, False, True], [True, False, True], [False, False, False]]
    assert trie.allowed(0, torch.tensor(0)).tolist() == [True, True]
    assert trie.child(1, nodes.T, torch.tensor(2)).dtype == torch.int64
    assert trie.child(1, nodes.T, torch.tensor(2)).tolist() == [[0, 2], [2, 2], [-1, 0]]
    assert trie.lookup(torch.tensor([[[1, 2], [0, 0]]])).tolist() == [[2, -1]]
    assert trie.lookup(torch.tensor([0, 2])).tolist() == 0


@pytest.mark.parametrize("dense_limit", [DENSE, SPARSE])
def test_an_empty_catalogue_allows_nothing(dense_limit: int) -> None:
    trie = Trie.build(torch.empty(0, 2, dtype=torch.int64), (3, 2), dense_limit=dense_limit)
    assert trie.node_counts == (1, 0, 0)
    assert not trie.allowed(0, torch.tensor([0, -1])).any()
    assert trie.lookup(torch.tensor([[0, 0], [2, 1]])).tolist() == [-1, -1]


def test_to_keeps_the_answers() -> None:
    codes = torch.tensor([[0, 2], [1, 0], [1, 2]])
    moved = Trie.build(codes, (2, 3)).to("cpu")
    assert moved.lookup(codes).tolist() == [0, 1, 2]
    assert moved.num_levels == 2


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 1], [0, 1]], (2, 2), "1 are distinct"),
        ([[0, 2]], (2, 2), "outside"),
        ([[0, -1]], (2, 2), "outside"),
        ([[0, 1]], (2,), "expected \\(V, L\\)"),
        ([0, 1], (2, 2), "expected \\(V, L\\)"),
        ([[0.0, 1.0]], (2, 2), "torch.int64"),
    ],
)
def test_build_names_what_is_wrong(codes: list[list[int]], sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(torch.tensor(codes), sizes)


def test_lookup_refuses_another_number_of_levels() -> None:
    trie = Trie.build(torch.tensor([[0, 1]]), (1, 2))
    with pytest.raises(ValueError, match="expected"):
        trie.lookup(torch.tensor([[0]]))
