"""The section `train.rollout_worker`: an inference engine that draws the rollouts of post-training."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from adagrpo.config.section import Positive, PositiveFloat, Section

__all__ = ["RolloutWorkerConfig", "plain_http"]


def plain_http(value: str) -> str:
    """An address that names no password.

    Raises:
        ValueError: it is of another form, or does.
    """
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{value}' is not of the form http://host/path or https://host/path")
    if parts.username is not None:
        raise ValueError("holds a user name or password, which would be written to run.yaml; use token_env")
    _ = parts.port  # a ValueError of its own where it is no number
    return value


class RolloutWorkerConfig(Section):
    """SGLang over HTTP, see `adagrpo.groups.served_draw`; it serves an export of the starting policy at first.

    Weights are written below `folder`, which it sees under the same path, and removed when it has read them; `every`
    draws they are written again. `most_drift` is the mean difference between its log-probability of a code and the
    policy's at which a fit is ended.
    """

    url: str
    folder: str
    every: Positive = 1
    most_drift: PositiveFloat = 0.5
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    timeout_seconds: PositiveFloat = 60.0
    token_env: str | None = None

    _plain_http = field_validator("url")(plain_http)
