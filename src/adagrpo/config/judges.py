"""The section `judges`: what was shown, chosen or not, that no model is fitted on and every policy is held against."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adagrpo.config.section import Positive, Section

__all__ = ["JudgeConfig", "JudgeName"]

JudgeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class JudgeConfig(Section):
    """A table of exposures: a row is a user, an item, and for each label whether it came to that.

    `labels` are columns of true and false, such as a click and a long view. `users` bounds how many users there are,
    drawn by the seed; null takes all.
    """

    path: str
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    user: str = "user_id"
    item: str = "item_id"
    users: Positive | None = None
