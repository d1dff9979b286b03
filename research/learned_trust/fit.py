r"""Fits the weights of `research.learned_trust.trust` to what users chose, and gives them up where they prove nothing.

A validation case whose beam holds the logged item is a choice among the beam's items, a conditional logit

    P(y | x) ∝ exp(α log π(y | x) + Σ_k θ_k z_k(x, y))       z_0 = (r - mean) / σ,  z_k = 1[level k] z_0
    θ_k ~ N(0, τ_f²)                                         for the levels of factor f; θ_0 = w_0 and α are free

so every level's weight is shrunk to the one weight w_0 / α of all, by how much the levels of its factor are seen to
differ: τ_f² = Σ θ_k² / γ_f with γ_f = Σ (1 - V_kk / τ_f²), V the inverse of the Hessian (MacKay 1992). A factor whose
levels do not differ gets τ near 0, and its levels that one weight.

Users are cut into folds. The weights of a fold are fitted on the others, and so is one weight for all, against which
they are held on the fold. The one weight is used if, less the policy's own order, the paired interval of the
log-likelihood of the choices is above 0 and NDCG@10 is no lower; the learned ones if the same holds of them, less what
stands by then. Else the weight is 0. A choice says more by its probability than by whether it is among the first ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from adagrpo import metrics
from adagrpo.evaluation.statistics import mean_interval
from research.learned_trust.trust import FACTORS, Items, TrustModel, centred, levels

__all__ = ["Choices", "TrustFit", "fit_trust"]

FOLDS, ROUNDS, STEPS = 5, 12, 3
LEAST_TAU, LARGEST_TAU = 1e-4, 10.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Choices(NamedTuple):
    """Beams of `N` validation cases and what both rewards say of them."""

    items: Ints  # (N, W) best first by the policy, -1 where there is none
    log_probs: Floats  # (N, W)
    rewards: Floats  # (N, W)
    second: Floats  # (N, W)
    targets: Ints  # (N,)
    lengths: Ints  # (N,) of the histories

    def rows(self, kept: NDArray[Any]) -> Choices:
        """Some of the cases."""
        return Choices(*(part[kept] for part in self))

    @property
    def usable(self) -> NDArray[np.bool_]:  # (N, W)
        """True where a place holds an item."""
        return self.items >= 0


class TrustFit(NamedTuple):
    """The model that is used, what it was taken from, and why."""

    model: TrustModel
    decision: str  # "levels", "one weight" or "none"
    facts: dict[str, Any]  # JSON-able: the intervals that decided, the weights of every level


def fit_trust(choices: Choices, items: Items, *, factors: tuple[str, ...] = FACTORS, seed: int = 0) -> TrustFit:
    """Fit weights, hold them against one weight, and keep what stands.

    Args:
        choices: of validation cases, one a user.
        items: what is known of the items.
        factors: whose levels may differ.
        seed: of the folds.

    Returns:
        The fit; with fewer than `FOLDS` choices the weight is 0.
    """
    scale = _scale(choices)
    placed, edges = levels(choices.items, choices.lengths, choices.rewards, choices.second, items)
    held = (choices.items == choices.targets[:, None]).any(axis=1)
    fold = np.random.default_rng(seed).permutation(len(choices.targets)) % FOLDS
    nothing = TrustModel(scale, 0.0, edges, {})
    if held.sum() < FOLDS:
        return TrustFit(nothing, "none", {"cases": len(held), "choices": int(held.sum())})
    models: dict[str, list[_Fitted]] = {"policy": [], "one weight": [], "levels": []}
    orders, likely = ({name: np.zeros(len(held)) for name in models} for _ in range(2))
    for number in (*range(FOLDS), None):  # None: the model of all cases
        kept = held & (fold != number) if number is not None else held
        for name, used in (("policy", ()), ("one weight", ()), ("levels", factors)):
            part = choices.rows(kept)
            part = part._replace(rewards=np.zeros_like(part.rewards)) if name == "policy" else part
            models[name].append(_fit(part, {factor: placed[factor][kept] for factor in used}, scale, edges))
            if number is not None:
                rows = fold == number
                where = {factor: values[rows] for factor, values in placed.items()}
                orders[name][rows], likely[name][rows] = _judged(choices.rows(rows), models[name][-1], where)
    standing, against = "policy", {}
    for better in ("one weight", "levels"):
        more = mean_interval((likely[better] - likely[standing])[held])
        ahead = mean_interval(orders[better] - orders[standing])
        against[f"{better} minus {standing}"] = {"log-likelihood": more._asdict(), "ndcg@10": ahead._asdict()}
        standing = better if more.low > 0 and ahead.mean >= 0 else standing
    decision = "none" if standing == "policy" else standing
    model = nothing if decision == "none" else models[decision][-1].model
    facts = {
        "cases": len(held),
        "choices": int(held.sum()),
        "ndcg@10": {name: float(values.mean()) for name, values in orders.items()},
        "against": against,
        "one weight": models["one weight"][-1].model.base,
        "levels": {"base": models["levels"][-1].model.base} | dict(models["levels"][-1].model.effects),
    }
    return TrustFit(model, decision, facts)


def _scale(choices: Choices) -> float:
    """The root of the mean variance of the scores within a list; 1 where they are all equal."""
    near, count = centred(choices.rewards, choices.usable), np.maximum(choices.usable.sum(axis=1), 1)
    scale = float(np.sqrt(((near**2).sum(axis=1) / count).mean()))
    return scale if scale > 0 else 1.0


class _Fitted(NamedTuple):
    model: TrustModel
    sharpness: float  # α


def _judged(choices: Choices, fitted: _Fitted, placed: Mapping[str, Ints]) -> tuple[Floats, Floats]:
    """(N,) NDCG@10 of the order that a model gives, and the log-likelihood of the choice, 0 where there is none."""
    near = centred(choices.rewards, choices.usable) / fitted.model.scale
    keys = np.where(choices.usable, choices.log_probs + fitted.model.weights(placed) * near, -np.inf)
    order = np.argsort(-keys, axis=1, kind="stable")  # ties keep the policy's order
    ranks = metrics.target_rank_in(np.take_along_axis(choices.items, order, axis=1), choices.targets)
    hit = choices.items == choices.targets[:, None]
    shares = log_softmax(np.where(choices.usable, fitted.sharpness * keys, -1e30), axis=1)
    return np.asarray(metrics.ndcg(ranks, 10), np.float64), np.where(hit, shares, 0.0).sum(axis=1)


def _fit(choices: Choices, placed: Mapping[str, Ints], scale: float, edges: Mapping[str, list[float]]) -> _Fitted:
    """The model of some choices, all of whose lists hold the logged item; `placed` has the factors that are used."""
    design, blocks = _design(choices, placed, scale)
    chosen = (choices.items == choices.targets[:, None]).argmax(axis=1)
    theta = np.zeros(design.shape[2])
    theta[0] = 1.0
    taus = dict.fromkeys(blocks, 0.1)
    hessian = np.eye(len(theta))
    for _ in range(ROUNDS if blocks else 1):
        penalty = np.zeros(len(theta))
        for name, block in blocks.items():
            penalty[block] = 1 / taus[name]
        for _ in range(STEPS if blocks else 4 * STEPS):
            gradient, hessian = _derivatives(design, choices.usable, chosen, theta)
            hessian += np.diag(penalty + 1e-9)
            step = np.linalg.solve(hessian, gradient - penalty * theta)
            theta = theta + step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        variance = np.diag(np.linalg.inv(hessian))
        for name, block in blocks.items():
            size = float((theta[block] ** 2).sum())
            known = float((1 - variance[block] / taus[name]).clip(1e-3, 1).sum())
            taus[name] = float(np.clip(size / known, LEAST_TAU, LARGEST_TAU))
    if theta[0] <= 0:  # the policy's own scores order nothing: no weight beside them means anything
        return _Fitted(TrustModel(scale, 0.0, edges, {}), 1.0)
    effects = {name: [float(value) for value in theta[block] / theta[0]] for name, block in blocks.items()}
    return _Fitted(TrustModel(scale, float(theta[1] / theta[0]), edges, effects), float(theta[0]))


def _design(choices: Choices, placed: Mapping[str, Ints], scale: float) -> tuple[Floats, dict[str, slice]]:
    """(N, W, P): log-probability, centred score, and the same in the columns of its levels; the columns of factors."""
    near = centred(choices.rewards, choices.usable) / scale
    first = np.where(choices.usable, choices.log_probs, 0.0)
    blocks, width = {}, 2
    for name, at in placed.items():
        count = int(at.max(initial=-1)) + 1
        if count:  # items may have no groups
            blocks[name] = slice(width, width + count)
            width += count
    design = np.zeros((*near.shape, width))
    design[:, :, 0], design[:, :, 1] = first - first.max(axis=1, keepdims=True), near
    for name, block in blocks.items():
        row, place = np.nonzero(placed[name] >= 0)
        design[row, place, block.start + placed[name][row, place]] = near[row, place]
    return design, blocks


def _derivatives(design: Floats, usable: NDArray[np.bool_], chosen: Ints, theta: Floats) -> tuple[Floats, Floats]:
    """Gradient (P,) of the log-likelihood, and the negative of its Hessian (P, P)."""
    logits = np.where(usable, design @ theta, -np.inf)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    mean = np.einsum("nw,nwp->np", shares, design)
    gradient = (design[np.arange(len(chosen)), chosen] - mean).sum(axis=0)
    flat, weights = design.reshape(-1, design.shape[2]), shares.reshape(-1, 1)
    return gradient, flat.T @ (weights * flat) - mean.T @ mean
