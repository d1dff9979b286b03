"""Sums of the item head over the tree, against walks over its leaves."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from adagrpo.policies import item_head
from adagrpo.policies.item_head import (
    crowded,
    exponentials,
    leaf_logits,
    leaves_below,
    shares_below,
    shares_of_branches,
    shares_of_codes,
    sums_by_node,
    upwards,
)
from adagrpo.semantic_ids.trie import Trie

SIZES = (3, 2, 4)
SPACE = torch.tensor(list(itertools.product(*map(range, SIZES))))
CODES = SPACE[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:13]]
TRIE = Trie.build(CODES, SIZES)
PATHS = CODES[TRIE.items].tolist()  # of the leaves
GENERATOR = torch.Generator().manual_seed(1)
VECTORS, BIAS = 2 * torch.randn(13, 8, generator=GENERATOR), torch.randn(13, 1, generator=GENERATOR)
QUERIES = torch.randn(2, 8, generator=GENERATOR)


def prefixes(level: int) -> list[tuple[int, ...]]:
    return sorted({tuple(path[:level]) for path in PATHS})


def below(level: int, node: int) -> list[int]:
    return [leaf for leaf, path in enumerate(PATHS) if tuple(path[:level]) == prefixes(level)[node]]


@pytest.mark.parametrize("level", range(4))
def test_leaves_below_nodes(level):
    nodes = torch.tensor([[len(prefixes(level)) - 1, -1], [0, 0]])
    found = leaves_below(TRIE, level, nodes)
    expected = [[] if node < 0 else below(level, node) for node in nodes.flatten().tolist()]
    assert found.counts.tolist() == [len(leaves) for leaves in expected]
    assert found.leaves.tolist() == list(itertools.chain.from_iterable(expected))
    assert found.parents.tolist() == [place for place, leaves in enumerate(expected) for _ in leaves]


@pytest.mark.parametrize("gathered", [1, 2**20])  # one sample at a time, and all together
@pytest.mark.parametrize("level", range(3))
def test_shares_below_a_prefix_are_those_of_the_whole(level, gathered, monkeypatch):
    monkeypatch.setattr(item_head, "_GATHERED", gathered)
    last = len(prefixes(level)) - 1
    nodes = torch.tensor([[last, -1, 0], [0, -1, -1]])
    branches = TRIE.branches(level, nodes)
    shares = shares_below(TRIE, level, nodes, branches, QUERIES, lambda leaves: (VECTORS[leaves], BIAS[leaves, 0]))
    masses = (QUERIES @ VECTORS.T + BIAS.T).double().exp()
    for share, parent, child in zip(shares.tolist(), branches.parents.tolist(), branches.nodes.tolist(), strict=True):
        sample, node = divmod(parent, 3)
        expected = (
            masses[sample, below(level + 1, child)].sum() / masses[sample, below(level, int(nodes[sample, node]))].sum()
        )
        assert share == pytest.approx(float(expected), rel=1e-5)


def test_samples_without_a_leaf_have_no_logits(monkeypatch):
    monkeypatch.setattr(item_head, "_GATHERED", 1)  # one sample at a time, the second one of no leaf
    trie = Trie.build(torch.tensor([[0], [1]]), (2,))
    below = leaves_below(trie, 0, torch.tensor([[0], [-1], [0]]))
    logits = leaf_logits(below, QUERIES[[0, 0, 1]], lambda leaves: (VECTORS[leaves], BIAS[leaves, 0]))
    expected = (QUERIES @ VECTORS[:2].T + BIAS[:2].T).flatten()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_shares_below_prefixes_that_no_item_has():
    nodes = torch.full((2, 3), -1)
    shares = shares_below(
        TRIE, 1, nodes, TRIE.branches(1, nodes), QUERIES, lambda leaves: (VECTORS[leaves], BIAS[leaves, 0])
    )
    assert len(shares) == 0


def test_a_share_does_not_vanish_with_the_mass_of_its_prefix():
    # logits a thousand below the highest: their exponentials are zero, their shares are not
    bias = torch.tensor([0.0 if path[0] == PATHS[0][0] else -1000.0 for path in PATHS])
    node = torch.tensor([[len(prefixes(1)) - 1]] * 2)
    branches = TRIE.branches(1, node)
    shares = shares_below(TRIE, 1, node, branches, QUERIES, lambda leaves: (VECTORS[leaves], bias[leaves]))
    torch.testing.assert_close(shares.view(2, -1).sum(1), torch.ones(2))
    assert bool((shares > 0).all())


@pytest.mark.parametrize("block", [1, 4, 6, 2**18])  # below the leaves of one node, a few nodes, all
@pytest.mark.parametrize("level", range(3))
def test_sums_by_node_are_sums_of_exponentials(level, block, monkeypatch):
    monkeypatch.setattr(item_head, "_BLOCK", block)
    ranges = TRIE.leaf_ranges[level]
    sums = sums_by_node(VECTORS, QUERIES, BIAS, ranges)
    logits = (VECTORS @ QUERIES.T + BIAS).double()
    masses = (logits - logits.amax(0)).exp()
    expected = torch.stack([masses[below(level, node)].sum(0) for node in range(len(ranges) - 1)])
    torch.testing.assert_close(sums, functional.pad(expected.float().T, (1, 0)), rtol=1e-5, atol=1e-30)
    every = exponentials(VECTORS, QUERIES, BIAS)
    torch.testing.assert_close(every, functional.pad(masses.float().T, (1, 0)), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("samples", [1, 2])
def test_masses_upwards(samples):
    masses = torch.rand(13, samples, generator=GENERATOR)
    levels = upwards(TRIE, functional.pad(masses.T, (1, 0)), 3)
    for level, found in enumerate(levels):
        expected = torch.stack([masses[below(level, node)].sum(0) for node in range(len(prefixes(level)))], dim=1)
        torch.testing.assert_close(found, functional.pad(expected, (1, 0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("level", range(3))
def test_shares_are_looked_up_code_by_code_or_branch_by_branch(level):
    masses = torch.rand(13, 2, generator=GENERATOR)
    levels = upwards(TRIE, functional.pad(masses.T, (1, 0)), 3)
    last = len(prefixes(level)) - 1
    nodes = torch.tensor([[last, -1, 0], [0, -1, -1]])
    branches = TRIE.branches(level, nodes)
    found = shares_of_branches(nodes, branches, levels[level], levels[level + 1])
    every = shares_of_codes(TRIE, level, nodes, levels[level], levels[level + 1])
    expected = torch.zeros(2, 3, SIZES[level])
    for b, w in itertools.product(range(2), range(3)):
        node = int(nodes[b, w])
        for child, prefix in enumerate(prefixes(level + 1)):
            if node >= 0 and prefix[:level] == prefixes(level)[node]:
                expected[b, w, prefix[-1]] = (
                    masses[below(level + 1, child), b].sum() / masses[below(level, node), b].sum()
                )
    torch.testing.assert_close(every, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, every.view(6, -1)[branches.parents, branches.codes], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mass", [1e-16, 1e-19, 1e-25, 1e-29])
def test_shares_of_a_small_mass_have_the_gradients_of_any_other(mass):
    trie = Trie.build(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    nodes, weights = torch.tensor([[1, 0, -1]]), torch.tensor([[[1.0, -2.0], [0.5, 1.5], [3.0, 3.0]]])
    branches = trie.branches(1, nodes)
    values = torch.tensor([[0.0, 0.4, 0.6, 0.25 * mass, 0.75 * mass]])
    gradients = []
    for codes in (True, False):
        leaves = values.clone().requires_grad_()
        above = torch.stack([0 * leaves[:, 0], leaves[:, 1] + leaves[:, 2], leaves[:, 3] + leaves[:, 4]], dim=1)
        if codes:
            total = (shares_of_codes(trie, 1, nodes, above, leaves) * weights).sum()
        else:
            shares = shares_of_branches(nodes, branches, above, leaves)
            total = (shares * weights.view(3, 2)[branches.parents, branches.codes]).sum()
        # shares 1/4 and 3/4: 1/4 - 2 * 3/4, and .4 and .6: .2 + .9
        torch.testing.assert_close(total.detach(), torch.tensor(-1.25 + 1.1), rtol=1e-5, atol=0)
        gradients.append(torch.autograd.grad(total, leaves)[0][0, 1:])
    # d/dm_i of Σ w_j m_j / Σ m_j is (w_i - mean) / Σ m
    expected = torch.tensor([0.5 - 1.1, 1.5 - 1.1, (1.0 + 1.25) / mass, (-2.0 + 1.25) / mass])
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


def test_a_level_is_crowded_where_most_codes_lead_somewhere():
    assert [crowded(TRIE, level) for level in range(3)] == [True, True, 2 * len(prefixes(2)) <= 13]
    assert not crowded(Trie.build(CODES, SIZES, dense_limit=0), 0)  # there is no table
