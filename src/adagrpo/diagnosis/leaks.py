r"""Is a reward too good for what the logs allow? Signs that it has seen the held-out items.

Of each user two questions are asked among the same drawn items: where is the held-out item of validation, and where is
the last training item, each after what came before it. HR@1 is the share of questions whose logged item comes first.
References are rankers that the run itself makes of training alone: item-kNN, how often one item followed another, the
sequential ranker. With `r` the reward's HR@1 on held-out items and `r⁰` that of the best reference:

    remembers   r is above the reward's own HR@1 on the last training items. A reward that was fitted on those knows
                them at least as well as what comes later, and one that was fitted on neither knows both alike
    ahead       (r - r⁰) / (1 - r⁰) ≥ `AHEAD`: it takes that share of what the references leave
    certain     the same over the tenth of the cases in which the reward's first item is furthest above its second:
                that share is at least `CERTAIN`, and r at least `FIRST` there. A reward that knows the answer of a few
                users is sure of these, and never wrong

A sign counts at p ≤ `STRONG`, where at least 20 cases differ. One is enough to name the reward. Simulated worlds, a
marketplace or a noisy ring each (12 in all, on most of which the thresholds were chosen), and how often the reward was
named (`research/leaks`):

    honest: sequential ranker, trees, item-kNN, popularity      0 of 48
    honest: the truth, alone, with noise, with trees            0 of 36
    knows the held-out items of all users                      12 of 12
    the same of 30 % of the users                               8 of 12
    the same of 10 %                                            9 of 12
    noise, the held-out item 1 to 3 σ above                    36 of 36
    trees, the held-out item 1 σ above                          7 of 12
    knows held-out and training items of all users             12 of 12
    the same of 30 % of the users                               7 of 12
    the same of 10 %                                            6 of 12
    noise, both 3 σ above                                      10 of 12
    noise, both 1 or 2 σ above                                  2 of 24
    trees, both 1 σ above                                       6 of 12
    trees, fitted on the whole logs                             4 of 12
    sequential ranker or item-kNN, fitted on the whole logs     0 of 24

A ranker that was fitted on the whole logs looks like an honest one that is good, and is mostly not named: fit rewards
on `training_logs`. What is named may still be honest and know more than the logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrpo.data.sequences import pad
from adagrpo.diagnosis.orders import Floats, Ints
from adagrpo.diagnosis.strata import bounded_interval
from adagrpo.diagnosis.verdict import STRONG
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Cases, Ragged

AHEAD, CERTAIN, FIRST = 0.3, 0.75, 0.9
SUREST = 0.1  # share of the cases


class Questions(NamedTuple):
    """Two questions of each of `N` users."""

    held_out: Cases
    fitted: Cases  # the last training item, after what came before it


class Answers(NamedTuple):
    """What a ranker says to the questions of `N` users."""

    held_out: Floats  # (N,) 1 where the held-out item comes first, 1/n where n items share the first place, else 0
    fitted: Floats  # (N,) the same of the last training item
    margins: Floats  # (N,) by how much the first item is above the second, in standard deviations of the case's scores


def with_last_fitted(training: Ragged, cases: Cases) -> Questions:
    """Take the cases of users with at least two training items, and beside each the user's last training item."""
    kept = np.flatnonzero(training.lengths[cases.users] >= 2)
    users = cases.users[kept]
    lengths, ends = training.lengths[users] - 1, training.offsets[users + 1] - 1
    fitted = Ragged.of(training.parts(training.offsets[users], lengths), lengths)
    last = training.parts(ends, np.ones_like(ends))
    return Questions(Cases(users, cases.histories.rows(kept), cases.targets[kept]), Cases(users, fitted, last))


def answers(
    reward: Reward,
    questions: Questions,
    drawn: Ints,  # (N, K) items of neither question, the same for both; -1 where there is none
    *,
    max_history: int,
    batch_size: int,
    device: torch.device,
) -> Answers:
    """Ask a reward where the logged items are among drawn ones.

    Args:
        reward: the one to ask.
        questions: of `N` users.
        drawn: (N, K) items of neither question, the same for both; -1 where there is none.
        max_history: items of a history that are seen, the last ones.
        batch_size: questions at a time.
        device: where scores are made.
    """
    options: dict[str, Any] = {"max_history": max_history, "batch_size": batch_size, "device": device}
    held_out, margins = _firsts(reward, questions.held_out, drawn, **options)
    return Answers(held_out, _firsts(reward, questions.fitted, drawn, **options)[0], margins)


@torch.no_grad()
def _firsts(
    reward: Reward, cases: Cases, drawn: Ints, *, max_history: int, batch_size: int, device: torch.device
) -> tuple[Floats, Floats]:
    """(N,) what each logged item gets for the first place, and (N,) margins."""
    first, margins = np.zeros(len(cases)), np.zeros(len(cases))
    for begin in range(0, len(cases), batch_size):
        rows = np.arange(begin, min(begin + batch_size, len(cases)))
        items = np.column_stack([cases.targets[rows].astype(np.int64), drawn[rows]])
        histories = pad(cases.histories, rows, max_history).to(device)
        scores = reward.score(histories, torch.from_numpy(items).to(device)).double().cpu().numpy()
        there = items >= 0
        scores = np.where(there, scores, -np.inf)
        own, others = scores[:, :1], scores[:, 1:]
        first[rows] = np.where((others > own).any(axis=1), 0.0, 1 / (1 + (others == own).sum(axis=1)))
        best = -np.sort(-scores, axis=1)[:, :2]
        known = np.where(there, scores, np.nan)
        spread = np.nanstd(known, axis=1)
        apart = np.isfinite(best[:, -1]) & (spread > 0)
        margins[rows] = np.where(apart, (best[:, 0] - best[:, -1]) / np.where(apart, spread, 1.0), 0.0)
    return first, margins


def leak_signs(reward: Answers, references: Mapping[str, Answers]) -> dict[str, Any]:
    """Say whether a reward has probably seen the held-out items, by the rule of the module's text.

    Args:
        references: what rankers of training alone answered, by name; at least one.

    Returns:
        JSON-able: `signs`, the names of those that hold, none for an honest reward; `cases`; `hr@1` of the reward on
        held-out and on fitted items and of each reference; the shares that `ahead` and `certain` are read from.

    Example:
        >>> answered = np.repeat([1.0, 0.0], [60, 40])
        >>> honest = Answers(answered, answered, np.arange(100.0))
        >>> knows = Answers(np.ones(100), answered, np.arange(100.0))
        >>> [leak_signs(one, {"item-kNN": honest})["signs"] for one in (honest, knows)]
        [[], ['remembers', 'ahead']]
    """
    held_out = {name: answered.held_out for name, answered in references.items()}
    surest = np.argsort(-reward.margins, kind="stable")[: max(1, round(SUREST * len(reward.margins)))]
    signs = {"remembers": _gains(reward.held_out - reward.fitted)}
    shares = {}
    everyone = np.arange(len(reward.margins))
    for name, rows, least in (("ahead", everyone, AHEAD), ("certain", surest, CERTAIN)):
        own, best = reward.held_out[rows], max((one[rows] for one in held_out.values()), key=np.mean)
        shares[name] = float((own - best).mean() / max(1 - best.mean(), 1e-9)) if best.mean() < 1 else 0.0
        signs[name] = _gains(own - best) and shares[name] >= least
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


def _gains(difference: Floats) -> bool:
    interval = bounded_interval(difference)
    return bool(interval.mean > 0 and interval.p_value <= STRONG)
