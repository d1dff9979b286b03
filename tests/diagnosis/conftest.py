"""A small world with known relevance: a policy that sees it dimly, and rankers that see it, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from adagrpo.diagnosis import Lists, Observations

PREFIXES, PER_PREFIX, LEVELS, WIDTH = 8, 8, 2, 30
ITEMS = PREFIXES * PER_PREFIX


def make_observations(seed: int, cases: int, knowledge: float, *, permute_targets: bool = False) -> Observations:
    """`cases` cases; the ranker's score is `knowledge` times the relevance, plus noise of its own.

    Relevance is a prefix's plus an item's own; targets are drawn from its softmax, so that a ranker without noise would
    be as good as can be. Permuted targets are those of another case.
    """
    generator = np.random.default_rng(seed)
    prefix = np.repeat(generator.normal(0, 1.2, (cases, PREFIXES)), PER_PREFIX, axis=1)
    relevance = prefix + generator.normal(0, 1.0, (cases, ITEMS))
    noise = np.repeat(generator.normal(0, 1.2, (cases, PREFIXES)), PER_PREFIX, axis=1)
    logits = 0.7 * (relevance + noise + generator.normal(0, 1.0, (cases, ITEMS)))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scores = knowledge * relevance + generator.normal(0, 1.0, (cases, ITEMS))
    targets = (relevance + generator.gumbel(size=relevance.shape)).argmax(axis=1)
    if permute_targets:
        targets = generator.permutation(targets)
    items = np.argsort(-log_probs, axis=1)[:, :WIDTH]
    lists = Lists(items, np.take_along_axis(log_probs, items, 1), np.take_along_axis(scores, items, 1), targets)
    return Observations(
        lists=lists,
        history_lengths=generator.integers(1, 20, cases),
        training_counts=generator.integers(1, 100, ITEMS),
        nll=-np.take_along_axis(log_probs, targets[:, None], 1)[:, 0] / LEVELS,
    )


@pytest.fixture(scope="session")
def observed() -> Callable[..., Observations]:
    return make_observations
