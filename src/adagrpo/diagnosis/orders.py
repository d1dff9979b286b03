"""Orders of one beam: by the policy, the ranker, both, and rankers that know nothing; and what they gain by cell.

    policy    log π(o | x)
    ranker    RM(x, o)
    mix       log π(o | x) + w RM(x, o) / σ        σ and the grid of w: `adagrpo.rewards.reranking`

The mix is cross-fitted: `w` is chosen by NDCG@10 on one half of the users and applied to the other, averaged over
`HALVINGS` random halvings. Re-ranked beams are Tables 1 to 3 of AdaGRPO (Xu et al. 2026, arXiv 2606.08480); we add the
mix and two controls, rewards shuffled within each list and random normal scores, and define no cell by the scores under
test. A gain in a cell of what is known at serving time can be realised; cells by the logged item are biased against the
policy where its own failure defines them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.evaluation.reward_quality import rank_correlation
from adagrpo.rewards.reranking import WEIGHTS, mixed_scores, within_list_std
from adagrpo.statistics import Interval, mean_interval, paired_difference
from adagrpo.types import Floats, Ints

HALVINGS = 1000


class Lists(NamedTuple):
    """A beam for each of `N` cases, scored by policy and ranker."""

    items: Ints  # (N, W) best first by the policy, -1 where there is no item
    log_probs: Floats  # (N, W) nats; not read where there is no item
    rewards: Floats  # (N, W); not read where there is no item
    targets: Ints  # (N,) logged items

    @property
    def usable(self) -> NDArray[np.bool_]:  # (N, W)
        """True where there is an item."""
        return self.items >= 0


class Mix(NamedTuple):
    """The cross-fitted mix."""

    keys: Floats  # (N, W) what the mix sorts by
    weights: tuple[float, float]  # of the first and of the second half; each was chosen on the other
    within_list_std: float  # σ


def target_ranks(lists: Lists, keys: Floats) -> Ints:  # keys (N, W)
    """Return the (N,) rank from 1 of the logged item by descending `keys`, ties by the policy; else 0."""
    order = np.argsort(-np.where(lists.usable, keys, -np.inf), axis=1, kind="stable")
    return metrics.target_rank_in(np.take_along_axis(lists.items, order, axis=1), lists.targets)


# scores, target, others (N, W)
def share_below(scores: Floats, target: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """Return the (N,) share of others below the target; ties count one half; NaN if either is missing.

    >>> there = np.array([[False, True, False, False]])
    >>> share_below(np.array([[1.0, 2.0, 2.0, 9.0]]), there, ~there)
    array([0.5])
    """
    own = np.where(target, scores, 0.0).sum(axis=1, keepdims=True)
    below = np.where(others, (own > scores) + 0.5 * (own == scores), 0.0).sum(axis=1)
    count = np.where(target.any(axis=1), others.sum(axis=1), 0)
    return np.where(count > 0, below / np.maximum(count, 1), np.nan)


def mixed_keys(lists: Lists, weight: float, within_list_std: float) -> Floats:
    """Return (N, W) `log π + weight · RM / within_list_std`, in single precision."""
    log_probs, rewards = (values.astype(np.float32) for values in (lists.log_probs, lists.rewards))
    return np.where(lists.usable, mixed_scores(log_probs, rewards, weight, within_list_std), -np.inf).astype(np.float64)


def cross_fitted_mix(lists: Lists, half: NDArray[np.bool_]) -> Mix:  # half (N,)
    """Choose each half's weight by NDCG@10 on the other; ties: the smallest."""
    std = within_list_std(lists.items, lists.rewards)
    gains = np.stack([metrics.ndcg(target_ranks(lists, mixed_keys(lists, w, std)), 10) for w in WEIGHTS])
    chosen = [WEIGHTS[int(gains[:, part].sum(axis=1).argmax())] for part in (half, ~half)]
    first, second = (mixed_keys(lists, weight, std) for weight in chosen)
    return Mix(np.where(half[:, None], second, first), (chosen[0], chosen[1]), std)


class RepeatedMix(NamedTuple):
    """The mix over `S` halvings of users, with `K` weights."""

    ranks: Ints  # (K, N) of the logged item under each of `WEIGHTS`, as `target_ranks`
    within_list_std: float  # σ
    shares: Floats  # (K, N) share of the halvings in which a case has the weight
    ndcg: Floats  # (S,) NDCG@10 of the mix in each halving, a mean over the cases

    def mean(self, values: Floats) -> Floats:  # (K, N)
        """Average (K, N) values by weight over the halvings to (N,)."""
        return np.asarray((self.shares * values).sum(axis=0))


def repeated_mix(lists: Lists, *, seed: int, halvings: int = HALVINGS) -> RepeatedMix:
    """Compute `cross_fitted_mix` over many random halvings."""
    std, cases = within_list_std(lists.items, lists.rewards), len(lists.targets)
    ranks = np.stack([target_ranks(lists, mixed_keys(lists, weight, std)) for weight in WEIGHTS])
    values = metrics.ndcg(ranks.reshape(-1), 10).reshape(ranks.shape)  # (K, N)
    generator, counts, means = np.random.default_rng(seed), np.zeros(ranks.shape), []
    for _ in range(halvings):
        half = generator.permutation(cases) % 2 == 0
        second, first = values[:, half].sum(axis=1), values[:, ~half].sum(axis=1)  # (K,) sums over either half
        counts[second.argmax()] += ~half
        counts[first.argmax()] += half
        means.append((first[second.argmax()] + second[first.argmax()]) / cases)
    return RepeatedMix(ranks, std, counts / halvings, np.asarray(means))


# values and real (N, C)
def permuted(values: Floats, real: NDArray[np.bool_], generator: np.random.Generator) -> Floats:
    """Shuffle the real values within each row."""
    draws = np.where(real, generator.random(values.shape), np.inf)
    # the real positions in their own order, and in a random one
    real_positions, source = np.argsort(~real, axis=1, kind="stable"), np.argsort(draws, axis=1, kind="stable")
    result = np.empty_like(values)
    np.put_along_axis(result, real_positions, np.take_along_axis(values, source, axis=1), axis=1)
    return result


def serving_quantities(lists: Lists, history_lengths: Ints) -> dict[str, Floats]:  # history_lengths (N,)
    """Return what is known of a case at serving time, (N,) each, by name.

    All but the history length are NaN for fewer than two items.
    """
    usable, count = lists.usable, lists.usable.sum(axis=1)
    log_probs = np.where(usable, lists.log_probs, -np.inf)
    largest = np.where(count > 0, log_probs.max(axis=1), 0.0)
    shares = np.exp(log_probs - largest[:, None])
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    rewards = np.where(usable, lists.rewards, 0.0)
    mean = rewards.sum(axis=1) / np.maximum(count, 1)
    std = np.sqrt((np.where(usable, rewards - mean[:, None], 0.0) ** 2).sum(axis=1) / np.maximum(count, 1))
    favourite = np.where(usable, rewards, -np.inf).argmax(axis=1)
    own = np.take_along_axis(log_probs, favourite[:, None], axis=1)
    unknown = np.where(count > 1, 0.0, np.nan)  # NaN where there is no order to speak of
    return {
        "policy entropy": entropy + unknown,
        "reward spread": std + unknown,
        "agreement of policy and ranker": rank_correlation(log_probs, rewards, usable),
        "policy's rank of the ranker's first": (log_probs > own).sum(axis=1) + 1.0 + unknown,
        "history length": history_lengths.astype(np.float64),
    }


METRICS = ("hr@10", "ndcg@10")
MIN_MOVED = 20  # non-zero differences; with fewer the interval is too narrow

Gains = Mapping[str, Floats]  # metric -> (N,) one number a case


class Cell(NamedTuple):
    """A subset of the cases."""

    name: str
    rows: NDArray[np.bool_]  # (N,)


def gains(ranks: Ints) -> dict[str, Floats]:
    """Return each case's HR@10 and NDCG@10 from (N,) ranks."""
    return {"hr@10": metrics.hit_rate(ranks, 10), "ndcg@10": metrics.ndcg(ranks, 10)}


def thirds(name: str, values: Floats, *, digits: int = 2) -> list[Cell]:
    """Return up to three cells of about equal size; NaN is in none, ties stay together."""
    known = ~np.isnan(values)
    if not known.any():
        return []
    low, high = np.quantile(values[known], [1 / 3, 2 / 3])
    if not digits:  # whole numbers: the edge is printed as it is, and the cells are the same
        low, high = np.floor([low, high])
    cells = [
        Cell(f"{name} low (≤ {low:.{digits}f})", known & (values <= low)),
        Cell(f"{name} middle", (values > low) & (values <= high)),
        Cell(f"{name} high (> {high:.{digits}f})", values > high),
    ]
    return [cell for cell in cells if cell.rows.any()]


def popularity_cells(targets: Ints, counts: Ints) -> list[Cell]:  # targets (N,), counts (V,)
    """Return cells by head, middle and tail items, a third of the training interactions each."""
    tail, below_head = metrics.tail_items(counts, 1 / 3), metrics.tail_items(counts, 2 / 3)
    masks = {"head": ~below_head, "middle": below_head & ~tail, "tail": tail}
    cells = [Cell(f"{name} ({int(mask.sum()):,} items)", mask[targets]) for name, mask in masks.items()]
    return [cell for cell in cells if cell.rows.any()]


def bounded_interval(differences: Floats, weights: Floats | None = None) -> Interval:
    """Return a mean difference's normal interval; p is 1 if fewer than `MIN_MOVED` cases differ from 0."""
    if not len(differences):
        return Interval(0.0, 0.0, 0.0, 1.0)
    interval = mean_interval(differences, weights)
    return interval if np.count_nonzero(differences) >= MIN_MOVED else interval._replace(p_value=1.0)


def measure(
    cells: Sequence[Cell],
    orders: Mapping[str, Gains],
    in_beam: NDArray[np.bool_],  # (N,)
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row per cell: cases, share with the logged item, metrics and differences from `policy`."""
    table = []
    for cell in cells:
        row: dict[str, Any] = {"cell": cell.name, "cases": int(cell.rows.sum())}
        row["in_beam"] = float(in_beam[cell.rows].mean())
        row["orders"] = {
            name: {metric: float(values[metric][cell.rows].mean()) for metric in METRICS}
            for name, values in orders.items()
        }
        row["minus_policy"] = {
            name: {
                metric: paired_difference(
                    values[metric][cell.rows], orders["policy"][metric][cell.rows], resamples=resamples, seed=seed
                )._asdict()
                for metric in METRICS
            }
            for name, values in orders.items()
            if name != "policy"
        }
        table.append(row)
    return table
