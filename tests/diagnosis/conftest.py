"""A small world with known relevance: a policy that sees it dimly, and rankers that see it, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo.diagnosis import Lists, Observations
from adagrpo.groups.score import ScoredGroups, constant_share, distinct_candidates, read_rewards, shuffled
from adagrpo.rewards import ask_reward
from adagrpo.types import Histories, Rollouts

PREFIXES, PER_PREFIX, LEVELS, WIDTH, GROUP, NEGATIVES = 8, 8, 2, 30, 8, 4
ITEMS = PREFIXES * PER_PREFIX


class Table:
    """A reward that reads its scores from a table; the history's only item is the row."""

    def __init__(self, scores: np.ndarray[Any, Any]) -> None:
        self.scores = torch.from_numpy(scores).float()

    def score(self, histories: Histories, items: torch.Tensor) -> torch.Tensor:
        return self.scores[histories.items[:, :1], items.clamp(min=0)]


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
    drawn = (log_probs[:, None] + generator.gumbel(size=(cases, GROUP, ITEMS))).argmax(axis=2)
    drawn[generator.random(drawn.shape) < 0.1] = -1

    def groups(found: np.ndarray[Any, Any]) -> ScoredGroups:
        return make_groups(found, log_probs, scores, targets, seed)

    return Observations(
        lists=lists,
        history_lengths=generator.integers(1, 20, cases),
        training_counts=generator.integers(1, 100, ITEMS),
        sampled=groups(drawn),
        beam=groups(items[:, :GROUP]),
    )


def make_groups(
    items: np.ndarray[Any, Any],
    log_probs: np.ndarray[Any, Any],
    scores: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    seed: int,
) -> ScoredGroups:
    """Groups of given (N, G) items; item `i` has the codes (i // 8, i % 8)."""
    generator = torch.Generator().manual_seed(seed)
    cases, group = items.shape
    own, chosen = torch.from_numpy(items), torch.from_numpy(targets)
    negatives = chosen[torch.randint(0, cases, (cases, NEGATIVES), generator=generator)]
    histories = Histories(torch.arange(cases).unsqueeze(1), torch.ones(cases, dtype=torch.int64))
    candidates = distinct_candidates(chosen, own, negatives)
    values = ask_reward(Table(scores), histories, candidates.items)
    fake = shuffled(candidates, values, torch.rand(values.shape, generator=generator))
    codes, wanted_codes = (
        torch.stack([part.div(PER_PREFIX, rounding_mode="floor"), part % PER_PREFIX], dim=-1) for part in (own, chosen)
    )
    each = torch.from_numpy(np.take_along_axis(log_probs, np.maximum(items, 0), 1)).float()
    target = torch.from_numpy(np.take_along_axis(log_probs, targets[:, None], 1)).float()
    rollouts = Rollouts(codes, own, (each / LEVELS).unsqueeze(2).expand(cases, group, LEVELS))
    return ScoredGroups(
        histories,
        chosen,
        rollouts,
        rollouts,
        wanted_codes,
        (target / LEVELS).expand(cases, LEVELS),
        negatives,
        read_rewards(candidates, values),
        read_rewards(candidates, fake),
        constant_share(candidates, values),
    )


@pytest.fixture(scope="session")
def observed() -> Callable[..., Observations]:
    return make_observations
