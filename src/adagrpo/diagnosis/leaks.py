"""Signs that a reward has seen the held-out items.

For each user the reward ranks, among the same sampled items, the held-out item and the last training item, each after
its own history. HR@1 is the share ranked first, `r` the reward's on held-out items, `r⁰` the best of rankers fitted on
training data alone (item-kNN, item successions, the sequential ranker):

    remembers   r is above the reward's own HR@1 on the last training items
    ahead       (r - r⁰) / (1 - r⁰) ≥ `AHEAD`
    certain     the same share is at least `CERTAIN`, and r at least `FIRST`, in the tenth of the cases with the largest
                margin between the first and second item: a reward that knows some users' answers

A sign counts at p ≤ `STRONG` if at least 20 cases differ; one sign flags the reward. Detection rates: `research/leaks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrpo.data.sequences import basket_starts, pad
from adagrpo.diagnosis.orders import bounded_interval
from adagrpo.diagnosis.verdict import STRONG
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Cases, Floats, Ints, Ragged

AHEAD, CERTAIN, FIRST = 0.3, 0.75, 0.9
SUREST = 0.1  # share of the cases


class Questions(NamedTuple):
    """Two cases for each of `N` users."""

    held_out: Cases
    fitted: Cases  # the last training item, after what came before it


class Answers(NamedTuple):
    """Results of a ranker on the questions of `N` users."""

    held_out: Floats  # (N,) 1 if the held-out item comes first, 1/n if n items tie for first, else 0
    fitted: Floats  # (N,) the same of the last training item
    margins: Floats  # (N,) by how much the first item is above the second, in standard deviations of the case's scores


def with_last_fitted(training: Ragged, cases: Cases) -> Questions:
    """Pair cases with the user's last training item, where there is one before it, or before its basket."""
    ends = training.offsets[cases.users + 1] - 1
    lengths = np.where(training.lengths[cases.users] > 0, basket_starts(training)[ends], 0)
    lengths = np.maximum(lengths - training.offsets[cases.users], 0)
    kept = np.flatnonzero(lengths)
    users, lengths, ends = cases.users[kept], lengths[kept], ends[kept]
    fitted = Ragged.of(training.parts(training.offsets[users], lengths), lengths)
    last = training.parts(ends, np.ones_like(ends))
    return Questions(Cases(users, cases.histories.rows(kept), cases.targets[kept]), Cases(users, fitted, last))


@torch.no_grad()
def answers(
    reward: Reward,
    questions: Questions,
    drawn: Ints,  # (N, K) items of neither question, the same for both; -1 where there is none
    *,
    max_history: int,
    batch_size: int,
    device: torch.device,
) -> Answers:
    """Rank the logged items among sampled ones by a reward."""
    first, margins = np.zeros((2, len(drawn))), np.zeros((2, len(drawn)))
    for question, cases in enumerate(questions):
        for begin in range(0, len(cases), batch_size):
            rows = np.arange(begin, min(begin + batch_size, len(cases)))
            items = np.column_stack([cases.targets[rows].astype(np.int64), drawn[rows]])
            histories = pad(cases.histories, rows, max_history).to(device)._replace(asking=cases.asking(rows))
            scores = reward.score(histories, torch.from_numpy(items).to(device)).double().cpu().numpy()
            known = np.where(items >= 0, scores, np.nan)
            scores = np.where(items >= 0, scores, -np.inf)
            own, others = scores[:, :1], scores[:, 1:]
            first[question, rows] = np.where((others > own).any(axis=1), 0.0, 1 / (1 + (others == own).sum(axis=1)))
            best, std = -np.sort(-scores, axis=1)[:, :2], np.nanstd(known, axis=1)
            apart = np.isfinite(best[:, -1]) & (std > 0)
            gap = (best[:, 0] - best[:, -1]) / np.where(apart, std, 1.0)
            margins[question, rows] = np.where(apart, gap, 0.0)
    return Answers(first[0], first[1], margins[0])


def leak_signs(reward: Answers, references: Mapping[str, Answers]) -> dict[str, Any]:
    """Test for signs that a reward has seen the held-out items, against `references` fitted on training data.

    JSON-able: `signs` that hold, `cases`, `hr@1` of the reward, `references` (their HR@1), `shares`.
    """

    def gains(difference: Floats) -> bool:
        interval = bounded_interval(difference)
        return bool(interval.mean > 0 and interval.p_value <= STRONG)

    held_out = {name: answered.held_out for name, answered in references.items()}
    surest = np.argsort(-reward.margins, kind="stable")[: max(1, round(SUREST * len(reward.margins)))]
    signs = {"remembers": gains(reward.held_out - reward.fitted)}
    shares = {}
    everyone = np.arange(len(reward.margins))
    for name, rows, least in (("ahead", everyone, AHEAD), ("certain", surest, CERTAIN)):
        own, best = reward.held_out[rows], max((one[rows] for one in held_out.values()), key=np.mean)
        shares[name] = float((own - best).mean() / max(1 - best.mean(), 1e-9)) if best.mean() < 1 else 0.0
        signs[name] = gains(own - best) and shares[name] >= least
    surely = float(reward.held_out[surest].mean())
    signs["certain"] &= surely >= FIRST
    return {
        "signs": [name for name, holds in signs.items() if holds],
        "cases": len(everyone),
        "hr@1": {
            "held-out items": float(reward.held_out.mean()),
            "last training items": float(reward.fitted.mean()),
            "held-out items, surest": surely,
        },
        "references": {name: float(values.mean()) for name, values in held_out.items()},
        "shares": shares,
    }
