"""Shared parts of external rewards: requests in the ids of the input data, and checked responses.

A missing, extra, non-numeric or non-finite score is an error that names its position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.types import Histories, ItemId

LARGEST = float(np.finfo(np.float32).max)
UNORDERED = (str, bytes, dict, set, frozenset)  # scores without a defined order


class InvalidResponse(ValueError):
    """A response of the wrong length, or with a value that is not a finite number."""


class ScoreRequest(NamedTuple):
    """A request for scores; rows without candidates are left out."""

    histories: list[list[ItemId]]
    candidates: list[list[ItemId]]


def users_of(histories: Histories, user_ids: Sequence[ItemId]) -> list[ItemId | None]:
    """Return the (B,) ids of the histories' users, None where unknown; `user_ids` are (U,) ids of the logs by row.

    >>> histories = Histories(torch.tensor([[2], [1]]), torch.tensor([1, 1]), torch.tensor([1, 0]))
    >>> users_of(histories, ["ann", "bob"])
    ['bob', 'ann']
    """
    if (asking := histories.asking) is not None:
        return [user_ids[int(row)] for row in asking.users] if asking.rows else list(asking.users)  # type: ignore[arg-type]
    if histories.users is not None:
        return [user_ids[row] for row in histories.users.tolist()]
    return [None] * len(histories.lengths)


def score_request(histories: Histories, items: Tensor, ids: Sequence[ItemId]) -> ScoreRequest:
    """Convert histories and items (B, N), -1 for none, into ids."""
    batch = zip(histories.items.tolist(), histories.lengths.tolist(), items.tolist(), strict=True)
    rows = [(row[:length], [item for item in candidates if item >= 0]) for row, length, candidates in batch]
    requested = [(history, candidates) for history, candidates in rows if candidates]
    return ScoreRequest(
        [[ids[item] for item in history] for history, _ in requested],
        [[ids[item] for item in candidates] for _, candidates in requested],
    )


def check_response(response: Any, candidates: Sequence[Sequence[ItemId]]) -> list[NDArray[np.float32]]:
    """Return the scores of each row of a response, a sequence of sequences of numbers or an array.

    InvalidResponse names the first position that is wrong.
    """
    if not hasattr(response, "__len__") or isinstance(response, UNORDERED) or hasattr(response, "columns"):
        raise InvalidResponse(f"answered {_short(response)}; expected a list of scores for each history")
    if len(response) != len(candidates):
        raise InvalidResponse(f"answered {len(response)} rows for {len(candidates)} histories")
    scores = []
    for index, (row, items) in enumerate(zip(response, candidates, strict=True)):
        if not hasattr(row, "__len__") or isinstance(row, UNORDERED):
            raise InvalidResponse(f"answered {_short(row)} for history {index}; expected a list of {len(items)} scores")
        if len(row) != len(items):
            raise InvalidResponse(f"answered {len(row)} scores for the {len(items)} candidates of history {index}")
        values = row.tolist() if hasattr(row, "tolist") else row
        for item, value in zip(items, values, strict=True):
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not -LARGEST <= value <= LARGEST:  # NaN is not below anything either
                wanted = "scores must be finite" if number else "expected a number"
                raise InvalidResponse(f"answered {_short(value)} for item {item!r} of history {index}; {wanted}")
        scores.append(np.array([float(value) for value in values], np.float32))
    return scores


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def scatter_scores(rows: Sequence[NDArray[np.float32]], items: Tensor) -> Tensor:
    """Return (B, N) float32 scores from the rows of a response; NaN where there is no item."""
    scores = torch.full(items.shape, torch.nan)
    if rows:
        scores[(items >= 0).cpu()] = torch.from_numpy(np.concatenate(rows))
    return scores.to(items.device)
