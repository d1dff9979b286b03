r"""Orders one beam in several ways: by the policy, by the ranker, by both, and by rankers that know nothing.

    policy    log π(o | x)
    ranker    RM(x, o)
    mix       log π(o | x) + w RM(x, o) / σ        σ and the weights that are tried: `adagrpo.evaluation.reranking`

`w` is chosen by NDCG@10 on one half of the users and applied to the other half, and the reverse, so that
no case is scored with a weight that it helped to choose; 0 is a candidate. Which users are in which half is chance, and
which weight wins hangs on it: what is said of the mix is therefore a mean over `HALVINGS` halvings. Re-ranked beams are
Tables 1 to 3 of AdaGRPO (Xu et al. 2026, arXiv 2606.08480). We depart by adding the mix, which is what a team would
serve, and two controls: a shuffled ranker (the scores of each list permuted, so that its values stay and their items
are forgotten) and a random one (independent normal scores).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.evaluation.reranking import WEIGHTS, mixed_scores, reward_spread
from adagrpo.evaluation.reward_quality import rank_correlation

HALVINGS = 1000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Lists(NamedTuple):
    """A beam for each of `N` cases, with what policy and ranker say of its items."""

    items: Ints  # (N, W) best first by the policy, -1 where a place holds no item
    log_probs: Floats  # (N, W) nats; not read where there is no item
    rewards: Floats  # (N, W); not read where there is no item
    targets: Ints  # (N,) logged items

    @property
    def usable(self) -> NDArray[np.bool_]:  # (N, W)
        """True where a place holds an item."""
        return self.items >= 0


class Mix(NamedTuple):
    """The cross-fitted mix."""

    keys: Floats  # (N, W) what the mix sorts by
    weights: tuple[float, float]  # of the first and of the second half; each was chosen on the other
    spread: float  # σ


def target_ranks(
    lists: Lists,
    keys: Floats,  # (N, W)
) -> Ints:
    """(N,) rank from 1 of the logged item when each list is sorted by `keys`, the largest first; 0 where it is not.

    Ties keep the policy's order. Places without an item come last.

    Example:
        >>> lists = Lists(np.array([[7, 4, -1]]), np.zeros((1, 3)), np.zeros((1, 3)), np.array([4]))
        >>> target_ranks(lists, np.array([[1.0, 2.0, 9.0]]))
        array([1])
    """
    order = np.argsort(-np.where(lists.usable, keys, -np.inf), axis=1, kind="stable")
    return metrics.target_rank_in(np.take_along_axis(lists.items, order, axis=1), lists.targets)


def share_below(
    scores: Floats,  # (N, W)
    target: NDArray[np.bool_],  # (N, W)
    others: NDArray[np.bool_],  # (N, W)
) -> Floats:
    """(N,) the share of the others of each row that score below its target; ties count one half, NaN without both.

    Example:
        >>> there = np.array([[False, True, False, False]])
        >>> share_below(np.array([[1.0, 2.0, 2.0, 9.0]]), there, ~there)
        array([0.5])
    """
    own = np.where(target, scores, 0.0).sum(axis=1, keepdims=True)
    below = np.where(others, (own > scores) + 0.5 * (own == scores), 0.0).sum(axis=1)
    count = np.where(target.any(axis=1), others.sum(axis=1), 0)
    return np.where(count > 0, below / np.maximum(count, 1), np.nan)


def mixed_keys(lists: Lists, weight: float, spread: float) -> Floats:
    """(N, W): `log π + weight · RM / spread`, in single precision, so that the order is the one that is served."""
    log_probs, rewards = (values.astype(np.float32) for values in (lists.log_probs, lists.rewards))
    return np.where(lists.usable, mixed_scores(log_probs, rewards, weight, spread), -np.inf).astype(np.float64)


def cross_fitted_mix(
    lists: Lists,
    half: NDArray[np.bool_],  # (N,)
) -> Mix:
    """Choose the weight of each half by the mean NDCG@10 of the other one; of equally good ones the smallest.

    Raises:
        ValueError: `half` is not a mask of the cases.
    """
    if half.shape != lists.targets.shape or half.dtype != np.bool_:
        raise ValueError(f"half is {half.dtype} {half.shape}, expected bool {lists.targets.shape}")
    spread = reward_spread(lists.items, lists.rewards)
    gains = np.stack([metrics.ndcg(target_ranks(lists, mixed_keys(lists, w, spread)), 10) for w in WEIGHTS])
    chosen = [WEIGHTS[int(gains[:, part].sum(axis=1).argmax())] for part in (half, ~half)]
    first, second = (mixed_keys(lists, weight, spread) for weight in chosen)
    return Mix(np.where(half[:, None], second, first), (chosen[0], chosen[1]), spread)


class RepeatedMix(NamedTuple):
    """The cross-fitted mix under `S` halvings of the users, `K` weights to choose from."""

    ranks: Ints  # (K, N) of the logged item under each of `WEIGHTS`, as `target_ranks`
    spread: float  # σ
    shares: Floats  # (K, N) share of the halvings in which a case has the weight
    ndcg: Floats  # (S,) NDCG@10 of the mix in each halving, a mean over the cases

    def mean(
        self,
        values: Floats,  # (K, N)
    ) -> Floats:
        """(N,) what each case gets from the mix, a mean over the halvings, from what it gets at each weight."""
        return np.asarray((self.shares * values).sum(axis=0))


def repeated_mix(lists: Lists, *, seed: int, halvings: int = HALVINGS) -> RepeatedMix:
    """`cross_fitted_mix` under many random halvings; the beams are sorted once a weight."""
    spread, cases = reward_spread(lists.items, lists.rewards), len(lists.targets)
    ranks = np.stack([target_ranks(lists, mixed_keys(lists, weight, spread)) for weight in WEIGHTS])
    values = metrics.ndcg(ranks.reshape(-1), 10).reshape(ranks.shape)  # (K, N)
    generator, counts, means = np.random.default_rng(seed), np.zeros(ranks.shape), []
    for _ in range(halvings):
        half = generator.permutation(cases) % 2 == 0
        second, first = values[:, half].sum(axis=1), values[:, ~half].sum(axis=1)  # (K,) sums over either half
        counts[second.argmax()] += ~half
        counts[first.argmax()] += half
        means.append((first[second.argmax()] + second[first.argmax()]) / cases)
    return RepeatedMix(ranks, spread, counts / halvings, np.asarray(means))


def permuted(
    values: Floats,  # (N, C)
    real: NDArray[np.bool_],  # (N, C)
    generator: np.random.Generator,
) -> Floats:
    """Permute the values of each row among its real places; the others are left as they are.

    Example:
        >>> row, real = np.array([[1.0, 2.0, 3.0]]), np.array([[True, True, False]])
        >>> sorted(permuted(row, real, np.random.default_rng(0))[0, :2])
        [np.float64(1.0), np.float64(2.0)]
    """
    draws = np.where(real, generator.random(values.shape), np.inf)
    # the real places in their own order, and in a random one
    places, source = np.argsort(~real, axis=1, kind="stable"), np.argsort(draws, axis=1, kind="stable")
    result = np.empty_like(values)
    np.put_along_axis(result, places, np.take_along_axis(values, source, axis=1), axis=1)
    return result


def serving_quantities(
    lists: Lists,
    history_lengths: Ints,  # (N,)
) -> dict[str, Floats]:
    """Compute the quantities of a case that are known when it is served: none reads the logged item.

    Returns:
        By name, (N,) each: the entropy of the policy over the beam (nats), the spread of the rewards over the beam
        (standard deviation), the rank correlation of both scores over it, the policy's rank of the item that the
        ranker likes best, and the length of the history. NaN where a list has too few items.
    """
    usable, count = lists.usable, lists.usable.sum(axis=1)
    log_probs = np.where(usable, lists.log_probs, -np.inf)
    largest = np.where(count > 0, log_probs.max(axis=1), 0.0)
    shares = np.exp(log_probs - largest[:, None])
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    rewards = np.where(usable, lists.rewards, 0.0)
    mean = rewards.sum(axis=1) / np.maximum(count, 1)
    spread = np.sqrt((np.where(usable, rewards - mean[:, None], 0.0) ** 2).sum(axis=1) / np.maximum(count, 1))
    favourite = np.where(usable, rewards, -np.inf).argmax(axis=1)
    own = np.take_along_axis(log_probs, favourite[:, None], axis=1)
    unknown = np.where(count > 1, 0.0, np.nan)  # NaN where there is no order to speak of
    return {
        "policy entropy": entropy + unknown,
        "reward spread": spread + unknown,
        "agreement of policy and ranker": rank_correlation(log_probs, rewards, usable),
        "policy's rank of the ranker's first": (log_probs > own).sum(axis=1) + 1.0 + unknown,
        "history length": history_lengths.astype(np.float64),
    }
