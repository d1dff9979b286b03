"""Shared parts of external rewards: requests in the ids of the input data, and responses that are checked.

A question is a list of histories, the oldest item first, and for each the list of its candidates. An answer holds one
row a history and in it one number a candidate. It is checked as a whole before any of it is used: a missing, extra,
non-numeric or non-finite score is named by its place, and never filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.types import Histories

ItemId = int | str
LARGEST = float(np.finfo(np.float32).max)
UNORDERED = (str, bytes, dict, set, frozenset)  # of which no place says whose score it is


class InvalidResponse(ValueError):
    """An answer of the wrong length, or with something that is not a finite number."""


class ScoreRequest(NamedTuple):
    """A request for scores, row by row; rows without any candidate are left out."""

    histories: list[list[ItemId]]
    candidates: list[list[ItemId]]


def score_request(histories: Histories, items: Tensor, ids: Sequence[ItemId]) -> ScoreRequest:
    """Put a question into the ids of the input data.

    Args:
        histories: `B` histories, as much of them as the policy sees.
        items: (B, N) int64 items, -1 where there is nothing to score.
        ids: (V,) id of each item.

    Example:
        >>> histories = Histories(torch.tensor([[2, 0], [1, 0]]), torch.tensor([1, 1]))
        >>> score_request(histories, torch.tensor([[0, -1], [-1, -1]]), ["a", "b", "c"])
        ScoreRequest(histories=[['c']], candidates=[['a']])
    """
    batch = zip(histories.items.tolist(), histories.lengths.tolist(), items.tolist(), strict=True)
    rows = [(row[:length], [item for item in candidates if item >= 0]) for row, length, candidates in batch]
    requested = [(history, candidates) for history, candidates in rows if candidates]
    return ScoreRequest(
        [[ids[item] for item in history] for history, _ in requested],
        [[ids[item] for item in candidates] for _, candidates in requested],
    )


def check_response(response: Any, candidates: Sequence[Sequence[ItemId]]) -> list[NDArray[np.float32]]:
    """The scores of each row, if the answer is whole: a sequence of sequences of numbers, such as lists or an array.

    Raises:
        InvalidResponse: naming the first place that is wrong.

    Example:
        >>> check_response([[1, 2.5]], [["a", "b"]])
        [array([1. , 2.5], dtype=float32)]
    """
    if not hasattr(response, "__len__") or isinstance(response, UNORDERED) or hasattr(response, "columns"):
        raise InvalidResponse(f"answered {_short(response)}; expected a list of scores for each history")
    if len(response) != len(candidates):
        raise InvalidResponse(f"answered {len(response)} rows for {len(candidates)} histories")
    return [_row(row, items, place) for place, (row, items) in enumerate(zip(response, candidates, strict=True))]


def _row(row: Any, items: Sequence[ItemId], place: int) -> NDArray[np.float32]:
    if not hasattr(row, "__len__") or isinstance(row, UNORDERED):
        raise InvalidResponse(f"answered {_short(row)} for history {place}; expected a list of {len(items)} scores")
    if len(row) != len(items):
        raise InvalidResponse(f"answered {len(row)} scores for the {len(items)} candidates of history {place}")
    values = row.tolist() if hasattr(row, "tolist") else row
    for item, value in zip(items, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise InvalidResponse(f"answered {_short(value)} for item {item!r} of history {place}; expected a number")
        if not -LARGEST <= value <= LARGEST:  # NaN is not below anything either
            raise InvalidResponse(
                f"answered {_short(value)} for item {item!r} of history {place}; scores must be finite"
            )
    return np.array([float(value) for value in values], np.float32)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def scatter_scores(rows: Sequence[NDArray[np.float32]], items: Tensor) -> Tensor:
    """(B, N) float32 scores from the rows of an answer to `score_request`; NaN where there was nothing to score."""
    scores = torch.full(items.shape, torch.nan)
    if rows:
        scores[(items >= 0).cpu()] = torch.from_numpy(np.concatenate(rows))
    return scores.to(items.device)
