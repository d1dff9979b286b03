"""What the head of the hybrid policy costs as the catalogue grows, and whether its lists are those of brute force.

Cost: both beam searches of 64 histories, beam 50, a million Semantic IDs over 10,000, in turn. Times are of the
processor, one thread, so that what else runs on the machine matters less. Weights are random: what is computed does not
depend on them.

Lists: beam search of a policy that was trained on Amazon Beauty, each history cut at every place, in float32. Brute
force gives every item its probability by the head's definition, in float64, and sums them over the whole tree, from
which the same search then reads. Two lists can differ where two scores do not: float32 knows about seven digits. So the
rows say how many lists are the same in every place, and how far apart the scores of one place are at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from adagrpo.decoding import Beams, beam_search, beams
from adagrpo.policies import HybridPolicy, hybrid
from adagrpo.policies.hybrid import HybridContext
from adagrpo.policies.item_head import HeadScores, upwards
from adagrpo.types import Histories, Ragged
from benchmarks.compact import models_of
from benchmarks.eligible_parts import in_turn
from benchmarks.rows import Row, median_spread
from benchmarks.scale import HISTORY, random_catalog, random_policy, searching

__all__ = ["Compared", "brute_force", "compared", "item_head", "kept_at_levels", "margins"]

BATCH, WIDTH, PREFIX = 64, 50, 2
LISTS, LISTS_OF_A_MILLION = 100_000, 640
NEAR = 1e-4  # what scores of one item may differ by: float32 and the sum of a few log-probabilities

Kept = list[tuple[Tensor, Tensor]]  # (B, W) scores and nodes that a search kept, a level at a time


class Compared(NamedTuple):
    """Lists held against those of brute force."""

    lists: int
    same: int  # in every place
    difference: float  # largest, of two scores of one item
    parted: int  # lists whose searches did not keep the same prefixes
    margin: float  # largest, of a prefix that one of them dropped to the edge of its beam, where they first parted


def item_head(data: Path, work: Path) -> list[Row]:
    """All rows."""
    return [*costs(), *exact_lists(data, work)]


def costs() -> list[Row]:
    """The time of a search at a million items over that at 10,000, for either head; 64 histories and one."""
    few, many = random_catalog(10_000), random_catalog(1_000_000)
    rows = []
    for histories in (BATCH, 1):
        works = []
        for catalog in (few, many):
            for prefix in (0, PREFIX):
                policy = random_policy(catalog, "hybrid")
                assert isinstance(policy, HybridPolicy)
                policy.prefix = prefix
                works.append(searching(policy, catalog, histories, WIDTH))
        seconds = in_turn(works)
        for name, of_few, of_many in (("items", *seconds[0::2]), ("prefixes", *seconds[1::2])):
            ratios = [long / short for short, long in zip(of_few, of_many, strict=True)]
            value, spread = median_spread(ratios)
            detail = {"ms_10k": 1000 * median_spread(of_few)[0], "ms_1m": 1000 * median_spread(of_many)[0]}
            against = f"10 K items, {histories} histories, beam 50, held and free, processor time"
            rows.append(Row(f"head_{name}_1m_{histories}", value, "x", spread, "<= 2", value <= 2, against, detail))
    return rows


def exact_lists(data: Path, work: Path) -> list[Row]:
    """Lists of trained policies against brute force, and some of a million items and random weights."""
    rows = []
    for name, prefix in (("items", 0), ("prefixes", PREFIX)):
        models = models_of(data, work / name, "hybrid", f"policy.item_prefix={prefix}")
        policy = models.policy(models.run.path("sft", "best"))
        assert isinstance(policy, HybridPolicy)
        found = compared(policy, cuts(models.data.training, models.config.max_history, LISTS))
        rows.append(row_of(f"head_{name}_lists", found, "trained on Amazon Beauty"))
        catalog, generator = random_catalog(1_000_000), torch.Generator().manual_seed(2)
        items = torch.randint(catalog.num_items, (LISTS_OF_A_MILLION, HISTORY), generator=generator)
        batches = (Histories(part, torch.full((len(part),), HISTORY)) for part in items.split(BATCH))
        large = random_policy(catalog, "hybrid")
        assert isinstance(large, HybridPolicy)
        large.prefix = prefix
        rows.append(row_of(f"head_{name}_lists_1m", compared(large, batches), "a million items, random weights"))
    return rows


def row_of(name: str, found: Compared, policy: str) -> Row:
    """The share of lists that are the same."""
    share, far = found.same / found.lists, max(found.difference, found.margin)
    detail = {
        "lists": found.lists,
        "same": found.same,
        "largest_difference_of_scores": found.difference,
        "parted": found.parted,
        "largest_margin_where_parted": found.margin,
    }
    against = f"brute force in float64; {policy}, beam 50"
    return Row(name, share, "share", (share, share), f"scores and margins within {NEAR}", far <= NEAR, against, detail)


def cuts(training: Ragged, longest: int, count: int) -> Iterator[Histories]:
    """Batches of the first histories of a log, each cut at every place."""
    left, row = count, 0
    while left > 0:
        windows: list[Tensor] = []
        while len(windows) < min(BATCH, left):
            items = torch.from_numpy(training.row(row)[:longest].astype("int64"))
            windows += [items[:end] for end in range(1, len(items) + 1)]
            row += 1
        windows = windows[: min(BATCH, left)]
        lengths = torch.tensor([len(items) for items in windows])
        yield Histories(torch.nn.utils.rnn.pad_sequence(windows, batch_first=True), lengths)
        left -= len(windows)


@torch.no_grad()
def compared(policy: HybridPolicy, batches: Iterator[Histories]) -> Compared:
    """Hold the lists of a policy against those of brute force; the last level waits for its prefixes in any case."""
    frozen, total = policy.eval().frozen(), Compared(0, 0, 0.0, 0, 0.0)
    for histories in batches:
        with patch.object(hybrid, "_MANY", 0), kept_at_levels() as of_fast:
            fast = beam_search(frozen, frozen.encode(histories), WIDTH, trie=frozen.trie)
        with kept_at_levels() as of_slow:
            slow = brute_force(frozen, frozen.encode(histories), WIDTH)
        same = (fast.codes == slow.codes).flatten(1).all(1)
        margin = margins(of_fast, of_slow)
        total = Compared(
            total.lists + len(same),
            total.same + int(same.sum()),
            max(total.difference, difference_of(of_fast[-1], of_slow[-1])),
            total.parted + int((margin >= 0).sum()),
            max(total.margin, float(margin.max())),
        )
    return total


@contextmanager
def kept_at_levels() -> Iterator[Kept]:
    """What the searches of the block keep, held to the trie."""
    kept: Kept = []
    search = beams._best_children

    def noted(*arguments: Any) -> tuple[Any, Tensor]:
        step, nodes = search(*arguments)
        kept.append((step.scores, nodes))
        return step, nodes

    with patch.object(beams, "_best_children", noted):
        yield kept


def margins(
    one: Kept,
    other: Kept,
) -> Tensor:  # (B,)
    """How far what one search alone kept was from the edge of the other's beam, at the first level where they part.

    -1 where they never do; infinite where a beam had room, so that nothing should have been dropped.
    """
    found = torch.full((len(one[0][0]),), -1.0)
    for (scores, nodes), (other_scores, other_nodes) in zip(one, other, strict=True):
        both = (nodes.unsqueeze(2) == other_nodes.unsqueeze(1)) & (nodes >= 0).unsqueeze(2)  # (B, W, W)
        alone, other_alone = (nodes >= 0) & ~both.any(2), (other_nodes >= 0) & ~both.any(1)
        # of a beam with room the last score is -inf
        far = (scores - other_scores[:, -1:]).abs().masked_fill(~alone, -1.0).amax(1)
        other_far = (other_scores - scores[:, -1:]).abs().masked_fill(~other_alone, -1.0).amax(1)
        found = torch.where(found < 0, torch.maximum(far, other_far), found)
    return found


def difference_of(
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
) -> float:
    """The largest difference of the scores of a node that both have kept."""
    (scores, nodes), (other_scores, other_nodes) = one, other
    both = (nodes.unsqueeze(2) == other_nodes.unsqueeze(1)) & (nodes >= 0).unsqueeze(2)
    return float((scores.unsqueeze(2) - other_scores.unsqueeze(1)).abs()[both].max())


def brute_force(policy: HybridPolicy, context: HybridContext, width: int) -> Beams:
    """The same search over the tree's masses, which hold the probability of each single item by its definition."""
    items, trie = policy.trie.items, policy.trie
    queries = policy.item_states(context)
    vectors = (policy.items(items) + policy.compact.code_vectors(items)).double()
    bias = policy.bias(items).double().squeeze(1)
    logits = queries.double() @ vectors.T + bias  # (B, V)
    if policy.prefix == 0:
        probabilities = logits.softmax(1)
    else:
        sizes = trie.leaf_ranges[policy.prefix].diff()
        prefix = torch.repeat_interleave(sizes)  # (V,) of each leaf
        means = vectors.new_zeros(len(sizes), vectors.shape[1]).index_add(0, prefix, vectors) / sizes.unsqueeze(1)
        mean_bias = bias.new_zeros(len(sizes)).index_add(0, prefix, bias) / sizes
        of_prefixes = (queries.double() @ means.T + mean_bias + sizes.log()).softmax(1)
        within = (logits - logits.amax(1, keepdim=True)).exp()
        totals = within.new_zeros(len(within), len(sizes)).index_add(1, prefix, within)
        probabilities = within / totals[:, prefix] * of_prefixes[:, prefix]
    masses = upwards(trie, torch.nn.functional.pad(probabilities, (1, 0)), trie.num_levels)
    context.head_scores = HeadScores(queries, tuple(mass.float() for mass in masses))
    return beam_search(policy, context, width, trie=trie)
