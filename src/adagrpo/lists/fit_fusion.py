"""Fits a fused list's weights to user choices: a conditional logit (McFadden 1974), shrunk toward the policy.

    max_w  (1/N) Σ_n a_n log softmax_i(Σ_f w_f φ_f(x_n, i) / σ_f)[y_n]  -  λ |w - w⁰|²

over the cases whose logged item `y_n` is a candidate (of a basket, the mean over such items); `a_n` is the case's
weight, `w⁰` the policy's own order: σ_policy for the log-probability, 0 for the rest. `λ` maximises the held-out
log-likelihood over `FOLDS` folds of users, which also choose the network's epochs (`adagrpo.lists.correction`) and give
the cross-fitted order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from adagrpo.evaluation.reranking import within_list_std
from adagrpo.lists.correction import (
    ChoiceTensors,
    Correction,
    corrected,
    fewest_epochs,
    fit_correction,
    inputs_of,
    most_epochs,
)
from adagrpo.lists.fusion import POLICY, Weights
from adagrpo.metrics import target_rank_in

FOLDS = 5
FITS = 2 * FOLDS + 1  # weights and network of each fold, and the network of everyone
SHRINKAGE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # λ

Floats = NDArray[np.float64]


class Choices(NamedTuple):
    """User choices with their candidates."""

    items: NDArray[np.int64]  # (N, C), -1 where there is no item
    features: NDArray[np.float32]  # (N, C, F)
    targets: NDArray[np.int64]  # (N,) the logged items; of baskets (N, R), padded with -1
    users: NDArray[np.integer]  # (N,)
    case_weights: Floats  # (N,) `a`, of mean 1

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """(N, C) True at the logged items."""
        if self.targets.ndim == 1:
            return np.asarray(self.items == self.targets[:, None])
        found = np.zeros(self.items.shape, np.bool_)
        for target in self.targets.T:
            found |= (self.items == target[:, None]) & (target >= 0)[:, None]
        return found


class Fit(NamedTuple):
    """Fitted weights with cross-validated results."""

    weights: Weights
    shrinkage: float  # λ
    epochs: int  # passes of the network that is added, 0: there is none
    ranks: NDArray[np.int64]  # (N,) or (N, R), as the targets: ranks in the cross-fitted order from 1; 0 for none of it


def fit_weights(
    choices: Choices,
    names: Sequence[str],
    used: Sequence[str],
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Fit weights of features `used`, of all `names`; `report` gets fits done and in all."""
    columns = [names.index(name) for name in used]
    stds = [within_list_std(choices.items, choices.features[..., column]) for column in columns]
    prior = np.array([std if name == POLICY else 0.0 for name, std in zip(used, stds, strict=True)])
    # about the mean of the list, so that the products stay small
    scaled = choices.features[..., columns].astype(np.float64) / stds
    there = choices.items >= 0
    scaled -= scaled.sum(axis=1, keepdims=True, where=there[..., None]) / there.sum(axis=1)[:, None, None].clip(1)
    folds = folds_of(choices.users, seed)
    chosen: NDArray[np.bool_] = choices.chosen
    answered = np.asarray(chosen.any(axis=1))

    def fitted(rows: NDArray[np.bool_], shrinkages: Sequence[float]) -> list[Floats]:
        rows = rows & answered
        part = scaled[rows], there[rows], chosen[rows], choices.case_weights[rows], prior
        return [_conditional_logit(*part, shrinkage) for shrinkage in shrinkages]

    by_fold = []
    for fold in range(FOLDS):
        report(fold, FITS)
        by_fold.append(fitted(folds != fold, SHRINKAGE))

    def held_out(index: int) -> Floats:
        weights = np.stack([of_fold[index] for of_fold in by_fold])[folds]
        return np.where(there, np.einsum("ncf,nf->nc", scaled, weights), -np.inf)

    def likelihoods(scores: Floats, rows: NDArray[np.bool_]) -> Floats:
        kept = answered[rows]
        return np.asarray(_log_shares(scores[kept], chosen[rows][kept]) * choices.case_weights[rows][kept])

    everyone = np.ones(len(folds), np.bool_)
    by_shrinkage = [float(likelihoods(held_out(index), everyone).sum()) for index in range(len(SHRINKAGE))]
    best = max(range(len(SHRINKAGE)), key=lambda index: (by_shrinkage[index], SHRINKAGE[index]))
    (found,) = fitted(everyone, [SHRINKAGE[best]])
    cases = ChoiceTensors(
        inputs_of(torch.from_numpy(choices.features[..., columns]), torch.from_numpy(there)),
        torch.from_numpy(there),
        _as_targets(chosen),
        torch.from_numpy(choices.case_weights).float(),
    )

    def corrections(rows: NDArray[np.bool_], weights: Floats) -> Iterator[Correction]:
        kept = torch.from_numpy(rows & answered)
        return fit_correction(cases.of(kept), torch.from_numpy(scaled @ weights).float()[kept], passes, seed)

    weighed = held_out(best)
    passes = most_epochs(int(answered.sum()))
    ranks = np.zeros((passes + 1, *choices.targets.shape), np.int64)
    by_epochs = np.zeros((passes + 1, len(folds)))  # held-out likelihoods
    for fold, of_fold in enumerate(by_fold):
        report(FOLDS + fold, FITS)
        rows = np.asarray(folds == fold)
        if not rows.any():
            continue
        inputs, base = cases.inputs[torch.from_numpy(rows)], torch.from_numpy(weighed[rows]).float()
        networks = islice(corrections(~rows, of_fold[best]), passes)
        later = (corrected(network, inputs, base) for network in networks)
        for epoch, scores in enumerate(chain([weighed[rows]], later)):
            order = np.argsort(-scores, axis=1, kind="stable")
            ordered = np.take_along_axis(choices.items[rows], order, axis=1)
            ranks[epoch, rows] = target_rank_in(ordered, choices.targets[rows])
            by_epochs[epoch, rows & answered] = likelihoods(scores, rows)
    report(2 * FOLDS, FITS)
    epochs = fewest_epochs(by_epochs[:, answered]) if passes else 0
    correction = next(islice(corrections(everyone, found), epochs - 1, None)) if epochs else None
    weights = Weights(dict(zip(used, found.tolist(), strict=True)), dict(zip(used, stds, strict=True)), correction)
    return Fit(weights, SHRINKAGE[best], epochs, ranks[epochs])


def folds_of(users: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Return the (N,) fold of each case, by its user."""
    known, user = np.unique(users, return_inverse=True)
    folds = np.random.default_rng(seed).permutation(np.arange(len(known)) % FOLDS)
    return np.asarray(folds[user])


def _conditional_logit(
    features: Floats,  # (N, C, F)
    there: NDArray[np.bool_],  # (N, C)
    chosen: NDArray[np.bool_],  # (N, C)
    case_weights: Floats,  # (N,)
    prior: Floats,  # (F,)
    shrinkage: float,
) -> Floats:  # (F,)
    if not len(features):
        return prior
    counts = chosen.sum(axis=1)
    if counts.max() == 1:
        of_chosen = features[np.arange(len(chosen)), chosen.argmax(axis=1)]
    else:
        of_chosen = np.einsum("nc,ncf->nf", chosen / counts[:, None], features)
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


def _as_targets(chosen: NDArray[np.bool_]) -> Tensor:  # (N,) int64 indices or, of several, (N, C) float32 shares
    counts = chosen.sum(axis=1, keepdims=True)
    if not len(counts) or counts.max() <= 1:
        return torch.from_numpy(chosen.argmax(axis=1))
    return torch.from_numpy((chosen / counts.clip(1)).astype(np.float32))


def _log_shares(scores: Floats, chosen: NDArray[np.bool_]) -> Floats:  # (N,) mean log softmax of the chosen
    highest = scores.max(axis=1, keepdims=True)
    sums = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
    return np.asarray(np.where(chosen, scores, 0.0).sum(axis=1) / chosen.sum(axis=1) - sums)
