"""The section `train.rollout_worker`: an inference engine that draws the rollouts of post-training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from adagrpo.config.addresses import plain_http
from adagrpo.config.section import Positive, PositiveFloat, Section

__all__ = ["RolloutWorkerConfig"]


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
