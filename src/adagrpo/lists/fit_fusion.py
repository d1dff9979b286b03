r"""Weights of a fused list from the choices of users: a conditional logit, shrunk toward the policy.

    max_w  (1/N) Σ_n a_n log softmax_i(Σ_f w_f φ_f(x_n, i) / σ_f)[y_n]  -  λ |w - w⁰|²

over the cases whose logged item `y_n` is among the candidates (McFadden 1974), `a_n` the weight of a case. `w⁰` is the
policy alone: weight σ_policy for the log-probability, which is its order, and 0 for the rest. A large `λ` is the
policy's list, a small one trusts the choices; of `SHRINKAGE` the one of the highest log-likelihood of held-out users is
taken, `FOLDS` folds over users. The same folds give the cross-fitted order, in which no case is ranked by weights that
its user had a part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from adagrpo.evaluation.reranking import reward_spread
from adagrpo.lists.fusion import POLICY, Weights

FOLDS = 5
SHRINKAGE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # λ

Floats = NDArray[np.float64]


class Choices(NamedTuple):
    """Choices of users, and the candidates of each."""

    items: NDArray[np.int64]  # (N, C), -1 where there is no item
    features: NDArray[np.float32]  # (N, C, F)
    targets: NDArray[np.int64]  # (N,) the logged items
    users: NDArray[np.integer]  # (N,)
    case_weights: Floats  # (N,) `a`, of mean 1

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """(N, C) True at the logged item."""
        return np.asarray(self.items == self.targets[:, None])


class Fit(NamedTuple):
    """Weights, and what they are worth."""

    weights: Weights
    shrinkage: float  # λ
    ranks: NDArray[np.int64]  # (N,) rank of the logged item in the cross-fitted order, from 1; 0 where it is none of it


def fit_weights(choices: Choices, names: Sequence[str], used: Sequence[str], seed: int) -> Fit:
    """Fit the weights of some features.

    Args:
        choices: of `N` cases.
        names: of all `F` features.
        used: those that get a weight.
        seed: divides users into folds.
    """
    columns = [names.index(name) for name in used]
    spreads = [reward_spread(choices.items, choices.features[..., column]) for column in columns]
    prior = np.array([spread if name == POLICY else 0.0 for name, spread in zip(used, spreads, strict=True)])
    # about the mean of the list, so that the products stay small
    scaled = choices.features[..., columns].astype(np.float64) / spreads
    there = choices.items >= 0
    scaled -= scaled.sum(axis=1, keepdims=True, where=there[..., None]) / there.sum(axis=1)[:, None, None].clip(1)
    folds = folds_of(choices.users, seed)
    chosen: NDArray[np.bool_] = choices.chosen
    answered = np.asarray(chosen.any(axis=1))

    def fitted(rows: NDArray[np.bool_], shrinkages: Sequence[float]) -> list[Floats]:
        rows = rows & answered
        part = scaled[rows], there[rows], chosen[rows].argmax(axis=1), choices.case_weights[rows], prior
        return [_conditional_logit(*part, shrinkage) for shrinkage in shrinkages]

    ranks = {shrinkage: np.zeros(len(folds), np.int64) for shrinkage in SHRINKAGE}
    likelihood = dict.fromkeys(SHRINKAGE, 0.0)
    for fold in range(FOLDS):
        rows = np.asarray(folds == fold)
        if not rows.any():
            continue
        for shrinkage, weights in zip(SHRINKAGE, fitted(folds != fold, SHRINKAGE), strict=True):
            scores = np.where(there[rows], scaled[rows] @ weights, -np.inf)
            ranks[shrinkage][rows] = _ranks(scores, chosen[rows])
            counted = answered[rows]
            shares = _log_shares(scores, chosen[rows])[counted]
            likelihood[shrinkage] += float(shares @ choices.case_weights[rows][counted])
    best = max(SHRINKAGE, key=lambda shrinkage: (likelihood[shrinkage], shrinkage))
    (found,) = fitted(np.ones(len(folds), np.bool_), [best])
    by_name = dict(zip(used, found.tolist(), strict=True))
    return Fit(Weights(by_name, dict(zip(used, spreads, strict=True))), best, ranks[best])


def folds_of(users: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """(N,) the fold of each case, the same for all of a user's; `users` is (N,)."""
    known, place = np.unique(users, return_inverse=True)
    folds = np.random.default_rng(seed).permutation(np.arange(len(known)) % FOLDS)
    return np.asarray(folds[place])


def _conditional_logit(
    features: Floats,  # (N, C, F)
    there: NDArray[np.bool_],  # (N, C)
    chosen: NDArray[np.int64],  # (N,)
    case_weights: Floats,  # (N,)
    prior: Floats,  # (F,)
    shrinkage: float,
) -> Floats:  # (F,)
    """The weights of the highest penalised likelihood; those of the prior where there is no choice."""
    if not len(features):
        return prior
    of_chosen = features[np.arange(len(chosen)), chosen]
    averaging = case_weights / len(case_weights)  # its product with values is their weighted mean

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = np.where(there, features @ weights, -np.inf)
        highest = scores.max(axis=1, keepdims=True)
        shares = np.exp(scores - highest)
        sums = shares.sum(axis=1, keepdims=True)
        expected = np.einsum("nc,ncf->nf", shares / sums, features)
        likelihood = averaging @ (of_chosen @ weights - highest[:, 0] - np.log(sums[:, 0]))
        away = weights - prior
        return shrinkage * away @ away - likelihood, 2 * shrinkage * away - averaging @ (of_chosen - expected)

    return np.asarray(optimize.minimize(loss, prior, jac=True, method="L-BFGS-B").x)


def _log_shares(scores: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """(N,) log softmax of the chosen item; -inf where there is none."""
    highest = scores.max(axis=1, keepdims=True)
    sums = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
    return np.asarray(np.where(chosen, scores, -np.inf).max(axis=1) - sums)


def _ranks(scores: Floats, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) ranks of the chosen items from 1, behind those of equal score that stand before them; 0 for none."""
    of_chosen = np.where(chosen, scores, -np.inf).max(axis=1, keepdims=True)
    earlier = np.arange(scores.shape[1]) < chosen.argmax(axis=1)[:, None]
    better = (scores > of_chosen) | ((scores == of_chosen) & earlier)
    return np.where(chosen.any(axis=1), better.sum(axis=1) + 1, 0)
