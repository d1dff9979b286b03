"""Full-catalogue evaluation of policies and rankers, without sampled negatives (Krichene and Rendle 2020).

Retrieval is constrained beam search; hallucination is the share of invalid sequences among the first K of an
unconstrained beam of the same width. With one target per user, recall@K equals HR@K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo import metrics
from adagrpo.data.prepared import drawn_positions
from adagrpo.data.sequences import older_items, pad
from adagrpo.decoding import beam_search_both, sample
from adagrpo.decoding.history import unseen, without_history
from adagrpo.networks import Precision, mixed_precision
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward, ask_reward
from adagrpo.rewards.reranking import mixed_scores
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Cases, Histories, Ragged

SAMPLED_CASES, SAMPLES = 1000, 16  # how many cases and samples a case the invalid share of plain samples is read from

Utility = Callable[[NDArray[np.integer[Any]]], NDArray[np.float64]]  # (N, K) items, -1 where none, one row a case


class Predictions(NamedTuple):
    """A policy's predictions for all cases, in their order."""

    items: NDArray[np.int64]  # (N, W) constrained beam, best first, -1 where the catalogue is shorter than the beam
    scores: NDArray[np.float32]  # (N, W) log-probability
    rewards: NDArray[np.float32] | None  # (N, W) of those items, NaN at -1
    free_codes: NDArray[np.int64]  # (N, W, L) free beam, best first
    free_valid: NDArray[np.bool_]  # (N, W) True where they name an item
    invalid_samples: float  # share of plain samples that name no item
    unmasked: NDArray[np.int64] | None = None  # (N, W) what `items` would be with the history in it; None if it is


def sample_cases(cases: Cases, count: int, seed: int) -> Cases:
    """Return a random sample of at most `count` cases, in their order."""
    if count >= len(cases):
        return cases
    return select_cases(cases, np.sort(np.random.default_rng(seed).choice(len(cases), count, replace=False)))


def select_cases(cases: Cases, rows: NDArray[np.int64]) -> Cases:  # rows (K,)
    """Select cases by row."""
    relevant = None if cases.relevant is None else cases.relevant.rows(rows)
    days = None if cases.days is None else cases.days[rows]
    return Cases(cases.users[rows], cases.histories.rows(rows), cases.targets[rows], relevant, days)


def eligible_cases(cases: Cases, eligible: NDArray[np.bool_]) -> Cases:  # eligible (V,)
    """Select the cases with an eligible logged item; of baskets only eligible items remain."""
    if cases.relevant is None:
        return select_cases(cases, np.flatnonzero(eligible[cases.targets]))
    inside, offsets = eligible[cases.relevant.values], cases.relevant.offsets
    counts = np.diff(np.append(0, inside.cumsum())[offsets])
    remaining = Ragged.of(cases.relevant.values[inside], counts)
    kept = np.flatnonzero(counts)
    found = replace(select_cases(cases, kept), relevant=remaining.rows(kept))
    assert found.relevant is not None
    drawn = found.relevant.values[found.relevant.offsets[:-1] + drawn_positions(found.users, counts[kept])]
    return replace(found, targets=np.where(eligible[found.targets], found.targets, drawn))


@torch.no_grad()
def predict(
    policy: Policy[Any, Any],
    catalog: Catalog,
    cases: Cases,
    *,
    width: int,
    batch_size: int,
    max_history: int,
    reward: Reward | None = None,
    exclude_history: bool = False,  # leave the whole history out of the constrained list
    eligible: Eligible | None = None,  # items allowed in that list; None: all
    precision: Precision = "auto",
    report: Callable[[int, int], None] = lambda done, total: None,  # called with cases done and in all
) -> Predictions:
    """Search constrained and unconstrained beams for every case."""
    policy = policy.eval().frozen()
    # as wide in every batch, so that a case's list does not depend on how long the others' histories are, and no wider
    # for a long history: a sample that needs more is searched again, see `without_history`
    constrained_width = width + (max_history if exclude_history else 0)
    count, levels = len(cases), catalog.codes.shape[1]
    items = np.full((count, width), -1, dtype=np.int64)
    scores = np.full((count, width), -np.inf, dtype=np.float32)
    rewards = np.full((count, width), np.nan, dtype=np.float32)
    free_codes = np.full((count, width, levels), -1, dtype=np.int64)
    free_valid = np.zeros((count, width), dtype=np.bool_)
    sampled, uniforms = _sample_plan(count, levels)
    unmasked = np.full((count, width), -1, dtype=np.int64) if exclude_history else None
    invalid = done = 0
    for rows, histories in batches(cases, batch_size, max_history, catalog.codes.device, whole=exclude_history):
        with mixed_precision(policy, precision):
            context = policy.encode(histories)
            masks = None if eligible is None else [eligible] * len(rows)
            excluded = None if masks is None else catalog.trie.excluding(histories.items[:, :0], masks)
            beams, free = beam_search_both(
                policy, context, width, trie=catalog.trie, constrained_width=constrained_width, excluded=excluded
            )
        ranked, score = catalog.trie.leaf_items(beams.leaves), beams.scores
        if unmasked is not None:
            unmasked[rows] = ranked[:, :width].cpu().numpy()
            ranked, score = without_history(
                policy, context, catalog.trie, beams, histories, width, precision=precision, eligible=masks
            )
        items[rows], scores[rows] = ranked.cpu().numpy(), score.cpu().numpy()
        free_codes[rows] = free.codes.cpu().numpy()
        free_valid[rows] = (catalog.lookup(free.codes) >= 0).cpu().numpy()
        if reward is not None:
            rewards[rows] = ask_reward(reward, histories, ranked).cpu().numpy()
        chosen = torch.from_numpy(sampled[rows])
        if bool((chosen >= 0).any()):
            device = catalog.codes.device
            with mixed_precision(policy, precision):
                part = context[(chosen >= 0).nonzero().squeeze(1).to(device)]
                drawn = sample(policy, part, uniforms[chosen[chosen >= 0]].to(device))
            invalid += int((catalog.trie.lookup(drawn.codes) < 0).sum())
        done += len(rows)
        report(done, count)
    share = invalid / max(1, len(uniforms) * SAMPLES)
    return Predictions(items, scores, None if reward is None else rewards, free_codes, free_valid, share, unmasked)


def summarise(
    predictions: Predictions, cases: Cases, *, tail: NDArray[np.bool_], utility: Utility | None = None
) -> dict[str, float]:
    """Return mean metrics, as fractions; with masked histories `*_unmasked` too."""
    lists = metrics.RankedLists(
        ranks_in(predictions.items, cases),
        predictions.items.shape[1],
        items=predictions.items,
        valid=predictions.free_valid,
        tail=tail,
        rewards=predictions.rewards,
        utility=utility,
        invalid_samples=predictions.invalid_samples,
        sizes=cases.sizes,
    )
    values = metrics.measure(lists)
    if predictions.unmasked is not None:
        whole = retrieval(predictions.unmasked, cases)
        main = [name for name in metrics.metric_names(metrics.ReportPart.RESULTS) if name in whole]
        values |= {f"{name}_unmasked": whole[name] for name in main}
    return values


def reordered(predictions: Predictions, weight: float, std: float) -> Predictions:
    """Re-rank the constrained beam by `log-probability + weight · reward / std`; ties keep the policy's order.

    An infinite weight orders by the reward alone. The unmasked list, which has no rewards, is dropped.
    """
    assert predictions.rewards is not None, "predict with a reward"
    mixed = predictions.rewards
    if weight < np.inf:
        mixed = mixed_scores(predictions.scores, predictions.rewards, weight, std)
    scores = np.where(predictions.items < 0, -np.inf, mixed)
    order = np.argsort(-scores, axis=1, kind="stable")
    items, scores, rewards = (
        np.take_along_axis(values, order, 1) for values in (predictions.items, scores, predictions.rewards)
    )
    return predictions._replace(items=items, scores=scores.astype(np.float32), rewards=rewards, unmasked=None)


@torch.no_grad()
def rank_by_ranker(
    ranker: SequentialRanker,
    cases: Cases,
    *,
    batch_size: int,
    max_history: int,
    width: int = 50,
    exclude_history: bool = False,
) -> dict[str, float]:
    """Measure the ranker's retrieval over the catalogue."""
    ranker.eval()
    wide = min(width + (max_history if exclude_history else 0), ranker.items.num_embeddings)
    items = np.full((len(cases), width), -1, dtype=np.int64)
    for rows, histories in batches(cases, batch_size, max_history, ranker.items.weight.device, whole=exclude_history):
        with mixed_precision(ranker):
            scores = ranker.catalogue_scores(ranker.last_states(histories))
        best = scores.topk(wide)
        ranked = best.indices
        if exclude_history:
            ranked = unseen(ranked, best.values, histories, width)[0]
            short = (ranked[:, -1] < 0).nonzero().squeeze(1)  # those who have more than `max_history` of the best items
            if len(short) and wide < scores.shape[1]:
                every = scores[short].sort(dim=1, descending=True, stable=True)
                ranked[short] = unseen(every.indices, every.values, histories.rows(short), width)[0]
        items[rows, : ranked.shape[1]] = ranked.cpu().numpy()
    return retrieval(items, cases)


def _sample_plan(count: int, levels: int) -> tuple[NDArray[np.int64], Tensor]:
    """(N,) row of sampled cases in the uniforms, else -1; the uniforms."""
    size = min(count, SAMPLED_CASES)
    rows = np.full(count, -1, dtype=np.int64)
    rows[np.random.default_rng(0).choice(count, size, replace=False)] = np.arange(size)
    return rows, torch.rand(size, SAMPLES, levels, generator=torch.Generator().manual_seed(0))


def retrieval(items: NDArray[np.int64], cases: Cases) -> dict[str, float]:
    """Return metrics of items (N, W), best first, -1 for none."""
    ranks = ranks_in(items, cases)
    return metrics.measure(metrics.RankedLists(ranks, items.shape[1], items=items, sizes=cases.sizes))


def ranks_in(items: NDArray[np.int64], cases: Cases) -> NDArray[np.int64]:
    """Return the logged items' ranks in lists (N, W): (N,) from 1, 0 if absent; of baskets (N, R)."""
    return metrics.target_rank_in(items, cases.logged)


def batches(
    cases: Cases, batch_size: int, max_history: int, device: torch.device, *, whole: bool = False
) -> Iterator[tuple[NDArray[np.int64], Histories]]:
    """Yield rows and histories of similar length; `whole` adds what the policy does not see."""
    order = np.argsort(-np.minimum(cases.histories.lengths, max_history), kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        histories = pad(cases.histories, rows, max_history)
        older = older_items(cases.histories, rows, max_history).to(device) if whole else None
        asking = cases.asking(rows)
        yield rows, Histories(histories.items.to(device), histories.lengths.to(device), older=older, asking=asking)
