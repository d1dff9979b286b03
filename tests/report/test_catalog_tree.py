"""The catalogue as a tree that fits on a page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from adagrpo.report.catalog_tree import Branch, Leaf, catalog_tree


def walk(branch: Branch) -> Iterator[Branch | Leaf]:
    yield branch
    for node in branch.below:
        yield from walk(node) if isinstance(node, Branch) else [node]


def random_codes(items: int, levels: int, codes: int) -> np.ndarray:
    flat = np.random.default_rng(0).choice(codes**levels, items, replace=False)
    return np.stack([flat // codes**level % codes for level in reversed(range(levels))], axis=1)


def test_a_small_catalogue_is_shown_whole() -> None:
    codes = random_codes(60, 3, 5)
    bought = np.arange(60)
    root = catalog_tree(codes, [f"item {item}" for item in range(60)], bought)
    leaves = {node.codes: node for node in walk(root) if isinstance(node, Leaf)}
    assert set(leaves) == {tuple(row) for row in codes.tolist()} and root.shown == root.items == 60
    assert all(leaf.title == f"item {leaf.interactions}" for leaf in leaves.values())
    for branch in (node for node in walk(root) if isinstance(node, Branch)):
        inside = [item for item in range(60) if tuple(codes[item][: len(branch.prefix)].tolist()) == branch.prefix]
        assert (branch.items, branch.interactions) == (len(inside), sum(inside)) and branch.items >= 2
        assert branch.example == f"item {max(inside)}" and branch.left_out == 0
    sizes = [node.items if isinstance(node, Branch) else 1 for node in root.below]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("items", "levels", "codes"), [(20_000, 3, 256), (5_000, 4, 16), (3_000, 2, 64)])
def test_a_large_catalogue_is_cut_and_says_by_how_much(items: int, levels: int, codes: int) -> None:
    root = catalog_tree(random_codes(items, levels, codes), ["x"] * items, np.ones(items, dtype=np.int64))
    nodes = list(walk(root))
    assert root.nodes == len(nodes) <= 600 and root.items == items
    left_out = sum(node.left_out for node in nodes if isinstance(node, Branch))
    assert root.shown + left_out == items and root.shown > 0


def test_a_code_that_all_items_share_is_no_choice() -> None:
    root = catalog_tree(np.array([[3, 1, 0], [3, 1, 4]]), ["a", "b"], np.array([5, 2]))
    assert root.prefix == (3, 1) and root.example == "a"
    assert root.below == (Leaf((3, 1, 0), "a", 5), Leaf((3, 1, 4), "b", 2))


def test_a_catalogue_of_one_item() -> None:
    assert catalog_tree(np.array([[2, 9]]), ["a"], np.array([0])).below == (Leaf((2, 9), "a", 0),)
