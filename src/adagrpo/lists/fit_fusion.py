"""Fits a fused list's weights to user choices: a conditional logit (McFadden 1974), shrunk toward the policy.

    max_w  (1/N) Σ_n a_n log softmax_i(Σ_f w_f φ_f(x_n, i) / σ_f)[y_n]  -  λ |w - w⁰|²

over the cases whose logged item `y_n` is a candidate (of a basket, the mean over such items); `a_n` is the case's
weight, `w⁰` the policy's own order: σ_policy for the log-probability, 0 for the rest. `λ` maximises the held-out
log-likelihood over `FOLDS` folds of users, which also choose the network's epochs (`adagrpo.lists.correction`) and give
the cross-fitted order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

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
from adagrpo.rewards.reranking import within_list_std

FOLDS = 5
FITS = 2 * FOLDS + 1  # weights and network of each fold, and the network of everyone
PATIENCE = 6  # epochs of the networks without a higher held-out likelihood, after which no more are tried
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


class _CrossFitted(NamedTuple):
    shrinkage: float
    weights: Sequence[Floats]  # of the fit without each fold
    scores: Floats  # (N, C), each user by weights of the others
    likelihoods: Floats  # of the answered cases by these scores


class _Linear:
    """Conditional logits of some features, cross-fitted over folds of users."""

    def __init__(self, choices: Choices, names: Sequence[str], used: Sequence[str], seed: int) -> None:
        self.choices, self.used, self.columns = choices, list(used), [names.index(name) for name in used]
        self.stds = [within_list_std(choices.items, choices.features[..., column]) for column in self.columns]
        self.prior = np.array([std if name == POLICY else 0.0 for name, std in zip(used, self.stds, strict=True)])
        self.there = there = choices.items >= 0
        # about the mean of the list, so that the products stay small
        scaled = choices.features[..., self.columns].astype(np.float64) / self.stds
        scaled -= scaled.sum(axis=1, keepdims=True, where=there[..., None]) / there.sum(axis=1)[:, None, None].clip(1)
        self.scaled, self.folds = scaled, folds_of(choices.users, seed)
        self.chosen: NDArray[np.bool_] = choices.chosen
        self.answered = np.asarray(self.chosen.any(axis=1))

    def fitted(self, rows: NDArray[np.bool_], shrinkages: Sequence[float]) -> list[Floats]:
        rows, weights = rows & self.answered, self.choices.case_weights
        part = self.scaled[rows], self.there[rows], self.chosen[rows], weights[rows], self.prior
        return [_conditional_logit(*part, shrinkage) for shrinkage in shrinkages]

    def cross_fitted(
        self, pool: Executor, shrinkages: Sequence[float], report: Callable[[int, int], None] = lambda done, total: None
    ) -> _CrossFitted:
        """Fit without each fold, by the shrinkage of highest held-out likelihood."""
        by_fold = []
        for weights in pool.map(lambda fold: self.fitted(self.folds != fold, shrinkages), range(FOLDS)):
            by_fold.append(weights)
            report(len(by_fold), FITS)
        found = []
        for shrinkage, of_folds in zip(shrinkages, zip(*by_fold, strict=True), strict=True):
            products = np.einsum("ncf,nf->nc", self.scaled, np.stack(of_folds)[self.folds])
            scores = np.where(self.there, products, -np.inf)
            found.append(_CrossFitted(shrinkage, of_folds, scores, self.likelihoods(scores)))
        return max(found, key=lambda one: (float(one.likelihoods.sum()), one.shrinkage))

    def likelihoods(self, scores: Floats, rows: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Weighted means of the chosen items' log softmax."""
        kept, weights = self.answered[rows], self.choices.case_weights[rows]
        scores, chosen = scores[kept], self.chosen[rows][kept]
        highest = scores.max(axis=1, keepdims=True)
        sums = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
        shares = np.where(chosen, scores, 0.0).sum(axis=1) / chosen.sum(axis=1) - sums
        return np.asarray(shares * weights[kept])


@contextmanager
def _fold_threads() -> Iterator[Executor]:
    """A thread for each fold, up to torch's number; a fit's tensors are too small for more than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(FOLDS, threads)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def helps(gained: Floats) -> bool:
    """Return whether the mean of held-out gains (N,) is above its standard error.

    >>> helps(np.array([0.1, 0.1, -0.05])), helps(np.array([0.1, 0.0, -0.05])), helps(np.array([]))
    (True, False, False)
    """
    return bool(len(gained) and gained.mean() > gained.std() / len(gained) ** 0.5)


def fit_weights(
    choices: Choices,
    names: Sequence[str],
    used: Sequence[str],
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    optional: Collection[str] = (),
) -> Fit:
    """Fit weights of features `used`, of all `names`; `report` gets fits done and in all.

    Features of `optional` stay if, added alone to the others, they raise the held-out log-likelihood by more than its
    standard error.
    """
    everyone = np.ones(len(choices.users), np.bool_)
    with _fold_threads() as pool:
        linear = _Linear(choices, names, [name for name in used if name not in optional], seed)
        crossed = linear.cross_fitted(pool, SHRINKAGE, report)
        helpful = []
        for name in (name for name in used if name in optional):
            gained = (
                _Linear(choices, names, [*linear.used, name], seed).cross_fitted(pool, [crossed.shrinkage]).likelihoods
                - crossed.likelihoods
            )
            if helps(gained):
                helpful.append(name)
        if helpful:
            linear = _Linear(choices, names, [name for name in used if name in {*linear.used, *helpful}], seed)
            crossed = linear.cross_fitted(pool, SHRINKAGE)
        (weights,) = linear.fitted(everyone, [crossed.shrinkage])
        there, counts = torch.from_numpy(linear.there), linear.chosen.sum(axis=1, keepdims=True)
        targets = torch.from_numpy(linear.chosen.argmax(axis=1))
        if counts.max(initial=0) > 1:
            targets = torch.from_numpy((linear.chosen / counts.clip(1)).astype(np.float32))
        cases = ChoiceTensors(
            inputs_of(torch.from_numpy(choices.features[..., linear.columns]), there),
            there,
            targets,
            torch.from_numpy(choices.case_weights).float(),
        )

        def corrections(rows: NDArray[np.bool_], weights: Floats) -> Iterator[Correction]:
            kept = torch.from_numpy(rows & linear.answered)
            return fit_correction(cases.of(kept), torch.from_numpy(linear.scaled @ weights).float()[kept], passes, seed)

        def of_next_epoch(rows: NDArray[np.bool_], base: Tensor, network: Iterator[Correction]) -> Floats:
            return corrected(next(network), cases.inputs[torch.from_numpy(rows)], base)

        passes = most_epochs(int(linear.answered.sum()))
        held_out = [rows for fold in range(FOLDS) if (rows := np.asarray(linear.folds == fold)).any()]
        bases = [torch.from_numpy(crossed.scores[rows]).float() for rows in held_out]
        networks = [corrections(~rows, crossed.weights[linear.folds[rows][0]]) for rows in held_out]
        orders = [crossed.scores[rows] for rows in held_out]
        ranks, by_epochs = [], []  # by epoch of the networks of all folds: ranks, and held-out likelihoods
        for epoch in range(passes + 1):
            report(FOLDS + FOLDS * epoch // (passes + 1), FITS)
            ranks.append(np.zeros(choices.targets.shape, np.int64))
            by_epochs.append(np.zeros(len(everyone)))
            if epoch:
                orders = list(pool.map(of_next_epoch, held_out, bases, networks))
            for rows, ordering in zip(held_out, orders, strict=True):
                order = np.argsort(-ordering, axis=1, kind="stable")
                ordered = np.take_along_axis(choices.items[rows], order, axis=1)
                ranks[-1][rows] = target_rank_in(ordered, choices.targets[rows])
                by_epochs[-1][rows & linear.answered] = linear.likelihoods(ordering, rows)
            if epoch - np.argmax([values.sum() for values in by_epochs]) >= PATIENCE:
                break
        report(2 * FOLDS, FITS)
        epochs = fewest_epochs(np.stack(by_epochs)[:, linear.answered]) if passes else 0
        correction = next(islice(corrections(everyone, weights), epochs - 1, None)) if epochs else None
    of_feature, stds = (dict(zip(linear.used, values, strict=True)) for values in (weights.tolist(), linear.stds))
    return Fit(Weights(of_feature, stds, correction), crossed.shrinkage, epochs, ranks[epochs])


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
