r"""Orders of what was shown to a user, by a policy, a reward or a count, against what the user made of it.

    AUC       = share of a user's pairs (chosen, not chosen) in the right order, ties one half
    NDCG@10   = Σ_chosen 1[r <= 10] / log2(1 + r) over its best value
    top@k     = share of the k items put first that were chosen; level scores share their ranks
    policy    = log π(codes of the item | history) = Σ_l log π(c_l | x, c_<l), of the policy that acts

All are of one user, then means over users. AUC and NDCG need a chosen item and another one; top@k needs more than k
items, so that there is something to choose. Where chance chose what was shown, none of them knows of the platform's
taste; where the platform chose, all of them do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.data.columns import USER
from adagrpo.data.sequences import pad
from adagrpo.evaluation.reward_quality import shown_quality
from adagrpo.networks import Precision, mixed_precision
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward, ask_reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.statistics import mean_interval
from adagrpo.types import Histories, Ragged

__all__ = [
    "MEASURES",
    "Judgement",
    "auc_of",
    "differences",
    "judge_order",
    "means",
    "policy_scores",
    "reward_scores",
]

TOPS = (1, 5)
MEASURES = ("auc", "ndcg@10", *(f"top@{k}" for k in TOPS))
CELLS = 8192  # candidates that are scored at a time, padding among them

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Judgement(NamedTuple):
    """What an order is worth to each user, and what each chosen exposure says."""

    users: pl.DataFrame  # a row a user: user, and `MEASURES`; null where a user cannot say
    auc: Floats  # (N,) of a chosen exposure: the share of the user's others that it is put above; else NaN


def judge_order(scores: NDArray[np.floating[Any]], chosen: NDArray[np.bool_], users: Ints) -> Judgement:
    """What an order of exposures is worth.

    Args:
        scores: (N,) of the exposures, the higher the earlier.
        chosen: (N,) what came of them.
        users: (N,) whose they are, ascending.

    Example:
        >>> table = judge_order(np.array([3.0, 1.0, 2.0]), np.array([False, False, True]), np.zeros(3, np.int64))
        >>> table.users.row(0)  # above one of two; second; the first was not chosen; no more than five items
        (0, 0.5, 0.6309297535714575, 0.0, None)
    """
    quality = shown_quality(scores, chosen, users)
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    row = np.repeat(np.arange(len(starts)), np.diff([*starts.tolist(), len(users)]))
    known = ~np.isnan(quality.auc)
    counts = np.bincount(row[known], minlength=len(starts))
    sums = np.bincount(row[known], quality.auc[known], minlength=len(starts))
    with np.errstate(invalid="ignore"):
        columns = {"auc": sums / counts, "ndcg@10": quality.ndcg[starts]}
    tops = np.full((len(TOPS), len(starts)), np.nan)
    for place, (first, last) in enumerate(pairwise([*starts.tolist(), len(users)])):
        tops[:, place] = _tops(scores[first:last], chosen[first:last])
    columns |= {f"top@{k}": values for k, values in zip(TOPS, tops, strict=True)}
    table = pl.DataFrame({USER: users[starts], **columns}).with_columns(pl.col(MEASURES).fill_nan(None))
    return Judgement(table, quality.auc)


def auc_of(kept: NDArray[np.bool_], auc: Floats, users: Ints) -> dict[str, float] | None:
    """The mean over users of the AUC of some of their chosen exposures, with its interval; None where there is none.

    Args:
        kept: (N,) which exposures.
        auc: (N,) of `Judgement`.
        users: (N,) whose they are.
    """
    rows = pl.DataFrame({USER: users, "auc": auc}).filter(pl.Series(kept & ~np.isnan(auc)))
    return _interval(rows.group_by(USER, maintain_order=True).agg(pl.col("auc").mean())["auc"])


def _tops(scores: NDArray[np.floating[Any]], chosen: NDArray[np.bool_]) -> Floats:
    """(len(TOPS),) the share chosen of the first k of one user; NaN where there are no more than k."""
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    shares = np.bincount(group, chosen) / sizes  # what any place among level scores is worth
    gained = np.cumsum(np.repeat(shares, sizes))
    return np.array([gained[k - 1] / k if len(scores) > k else np.nan for k in TOPS])


def means(users: pl.DataFrame) -> dict[str, dict[str, float] | None]:
    """The mean of each measure over users, with a 95 % normal interval over users; None where nobody can say.

    Args:
        users: of a `Judgement`.
    """
    return {name: _interval(users[name]) for name in MEASURES}


def differences(users: pl.DataFrame, reference: pl.DataFrame) -> dict[str, dict[str, float] | None]:
    """The mean difference of each measure from another order, over the same users.

    Args:
        users: of a `Judgement`.
        reference: the same, of the other order of the same exposures.

    Raises:
        ValueError: the users are not the same.
    """
    if not users[USER].equals(reference[USER]):
        raise ValueError("the orders are of other users")
    return {name: _interval(users[name] - reference[name]) for name in MEASURES}


def _interval(values: pl.Series) -> dict[str, float] | None:
    known = values.drop_nulls().to_numpy()
    if not len(known):
        return None
    found = mean_interval(known)
    return {"mean": found.mean, "low": found.low, "high": found.high, "users": len(known)}


@torch.no_grad()
def policy_scores(
    policy: Policy[Any, Any],
    catalog: Catalog,
    histories: Ragged,
    users: Ints,
    items: Ints,
    *,
    max_history: int,
    precision: Precision = "float32",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:  # (N,)
    """Log-probability of each item's whole Semantic ID, given the user's history.

    Args:
        policy: put into evaluation mode.
        catalog: whose codes are scored; items have codes of their own.
        histories: (U,) of all users.
        users: (N,) ascending.
        items: (N,).
        max_history: items of a history that the policy sees, the last ones.
        precision: of the policy.
        report: called with (exposures done, exposures in all).
    """
    policy = policy.eval().frozen()
    device = catalog.codes.device

    def score(seen: Histories, candidates: Tensor) -> Tensor:
        with mixed_precision(policy, precision):
            context = policy.encode(seen)
            return policy.score(context, catalog.codes[candidates.clamp(min=0)].long()).float().sum(-1)

    return _by_user(score, histories, users, items, max_history, device, report)


@torch.no_grad()
def reward_scores(
    reward: Reward, histories: Ragged, users: Ints, items: Ints, *, max_history: int, device: torch.device
) -> Floats:  # (N,)
    """The reward of each item, given the user's history; see `policy_scores`."""
    return _by_user(
        lambda seen, candidates: ask_reward(reward, seen, candidates),
        *(histories, users, items, max_history, device, lambda done, total: None),
    )


def _by_user(
    score: Callable[[Histories, Tensor], Tensor],
    histories: Ragged,
    users: Ints,
    items: Ints,
    max_history: int,
    device: torch.device,
    report: Callable[[int, int], None],
) -> Floats:
    """Score every exposure of a user behind one encoding of the history, users of as many exposures together."""
    scores, done = np.empty(len(users)), 0
    for owners, cells in _blocks(users):
        seen = pad(histories, owners, max_history)
        batch = Histories(*(part.to(device) for part in (seen.items, seen.lengths, torch.from_numpy(owners))))
        candidates = np.where(cells >= 0, items[cells], -1)
        found = score(batch, torch.from_numpy(candidates).to(device)).double().cpu().numpy()
        scores[cells[cells >= 0]] = found[cells >= 0]
        done += int((cells >= 0).sum())
        report(done, len(users))
    return scores


def _blocks(users: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Users (B,) and the rows of their exposures (B, G), -1 where a user has fewer; about `CELLS` at a time."""
    owners, starts, counts = np.unique(users, return_index=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * counts[order[last]] <= CELLS:
            last += 1
        rows = order[first:last]
        columns = np.arange(counts[rows].max())
        yield owners[rows], np.where(columns < counts[rows, None], starts[rows, None] + columns, -1)
        first = last
