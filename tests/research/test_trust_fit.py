"""Weights that are fitted to choices: planted ones are found, and none are used where there is nothing to tell."""

from __future__ import annotations

import numpy as np
import pytest

from research.learned_trust.fit import Choices, _derivatives, fit_trust
from research.learned_trust.trust import Items

CASES, WIDE, ITEMS, GROUPS = 1200, 12, 200, 4


def planted(kind: str, seed: int) -> tuple[Choices, Items]:
    """Choices by log-probability plus a taste that a reward sees: everywhere, in half of the groups, nowhere."""
    generator = np.random.default_rng(seed)
    items = Items(generator.integers(1, 100, ITEMS), generator.integers(0, GROUPS, ITEMS))
    candidates = np.argsort(generator.random((CASES, ITEMS)), axis=1)[:, :WIDE]
    log_probs = -np.sort(generator.exponential(2.0, (CASES, WIDE)), axis=1)
    taste = generator.normal(size=(CASES, WIDE))
    rewards, noise = taste + 0.5 * generator.normal(size=(CASES, WIDE)), generator.normal(size=(CASES, WIDE))
    wrong = {"everywhere": False, "half": items.groups[candidates] < GROUPS // 2, "nowhere": True}[kind]
    chosen = (log_probs + taste + generator.gumbel(size=taste.shape)).argmax(axis=1)
    targets = candidates[np.arange(CASES), chosen]
    targets[generator.random(CASES) < 0.2] = ITEMS  # in no beam
    second, lengths = generator.normal(size=taste.shape), generator.integers(1, 20, CASES)
    return Choices(candidates, log_probs, np.where(wrong, noise, rewards), second, targets, lengths), items


def test_groups_whose_scores_are_noise_are_told_apart() -> None:
    fit = fit_trust(*planted("half", 0), factors=("item_group", "history_length"))
    assert fit.decision == "levels"
    weights = fit.model.base + np.array(fit.model.effects["item_group"])
    assert (np.abs(weights[:2]) < 0.25).all() and (weights[2:] > 0.5).all()
    assert np.abs(fit.model.effects["history_length"]).max() < 0.1  # shrunk: it says nothing
    assert fit.facts["ndcg@10"]["levels"] > fit.facts["ndcg@10"]["one weight"] > fit.facts["ndcg@10"]["policy"]


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_that_is_right_everywhere_gets_one_weight(seed: int) -> None:
    fit = fit_trust(*planted("everywhere", seed), factors=("item_group", "history_length"))
    assert fit.decision == "one weight" and not fit.model.effects
    # a normal taste that is seen with noise of half its size: 1 / 1.25 of it, times a spread of about 1.1
    assert fit.model.base == pytest.approx(0.8 * 1.1, rel=0.2)


def test_noise_gets_no_weight() -> None:
    fit = fit_trust(*planted("nowhere", 5), factors=("item_group",))
    assert fit.decision == "none" and fit.model.base == 0.0
    few = planted("everywhere", 0)
    nothing = few[0]._replace(targets=np.full(CASES, ITEMS))
    assert fit_trust(nothing, few[1]).decision == "none"


def test_derivatives_are_those_of_the_log_likelihood() -> None:
    """Against differences of a plain loop."""
    generator = np.random.default_rng(2)
    design, usable = generator.normal(size=(6, 4, 3)), generator.random((6, 4)) < 0.8
    usable[:, 0] = True
    chosen, theta = np.zeros(6, np.int64), generator.normal(size=3)

    def likelihood(at: np.ndarray) -> float:
        total = 0.0
        for row in range(6):
            logits = [design[row, place] @ at for place in range(4) if usable[row, place]]
            total += design[row, 0] @ at - np.log(np.exp(logits).sum())
        return float(total)

    gradient, hessian = _derivatives(design, usable, chosen, theta)
    step = 1e-5 * np.eye(3)
    for i in range(3):
        assert gradient[i] == pytest.approx(
            (likelihood(theta + step[i]) - likelihood(theta - step[i])) / 2e-5, rel=1e-5
        )
        up, down = (_derivatives(design, usable, chosen, theta + sign * step[i])[0] for sign in (1, -1))
        assert hessian[i] == pytest.approx(-(up - down) / 2e-5, rel=1e-4, abs=1e-6)
