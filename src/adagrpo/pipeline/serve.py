"""Serving: a checkpoint of a run behind HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from adagrpo.data.groups import load_groups
from adagrpo.data.prepared import load_item_ids
from adagrpo.errors import UserError
from adagrpo.networks.layers import Precision
from adagrpo.pipeline.chain import reward_parts
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.rewards import check_reward
from adagrpo.pipeline.run import Run
from adagrpo.serving import Query, Recommender

__all__ = ["recommender", "serve"]


def recommender(
    run: Run,
    arm: str | None,
    checkpoint: Literal["best", "final"],
    reward_weight: float = 0.0,
    exclude_history: bool | None = None,
    precision: Precision | None = None,
) -> tuple[Recommender, dict[str, Any]]:
    """What answers for a checkpoint, and what it says of itself.

    Args:
        run: with a trained policy.
        arm: see `adagrpo.pipeline.choose_checkpoint.choose_checkpoint`.
        checkpoint: of that arm.
        reward_weight: above 0, the run's reward re-ranks the beam: `log-probability + weight · reward`.
        exclude_history: leave the items of the history out, where a request says nothing of it; None: as the run's
            evaluation does.
        precision: of the policy; None is the recipe's, `evaluation.precision`.

    Raises:
        UserError: no such arm or checkpoint, what it was made from is stale, or the reward cannot be had.
    """
    chosen = choose_checkpoint(run, arm, checkpoint)
    check(run, "serve", [chosen.stage, *(reward_parts(run) if reward_weight > 0 else ())])
    data = RunData(run)
    models = Models(data)
    excludes = run.config.evaluation.mask_history if exclude_history is None else exclude_history
    if reward_weight > 0:
        check_reward(models, note=False)
    served = Recommender(
        models.policy(chosen.weights),
        data.catalog,
        load_item_ids(data.prepared).to_list(),
        width=run.config.evaluation.beam_width,
        max_history=run.config.max_history,
        mask_history=excludes,
        precision=precision or run.config.evaluation.precision,
        reward=models.reward() if reward_weight > 0 else None,
        reward_weight=reward_weight,
        popularity=np.bincount(data.training.values, minlength=data.num_items),
        groups=partial(load_groups, data.prepared),
    )
    about: dict[str, Any] = {"name": run.config.name, "arm": chosen.arm, "checkpoint": checkpoint, "step": chosen.step}
    about |= {"why": chosen.why, "items": data.num_items, "reward_weight": reward_weight}
    return served, about | {"exclude_history": excludes, "precision": served.precision}


def serve(
    run: Run,
    arm: str | None,
    checkpoint: Literal["best", "final"],
    *,
    host: str,
    port: int,
    reward_weight: float = 0.0,
    exclude_history: bool | None = None,
    precision: Precision | None = None,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until the process is told to end.

    Args:
        run: with a trained policy.
        arm: to serve.
        checkpoint: of that arm.
        host: to listen at.
        port: 0 takes a free one.
        reward_weight: see `recommender`.
        exclude_history: see `recommender`.
        precision: see `recommender`.
        ready: called once requests are taken, with the address and what `/health` says.

    Raises:
        UserError: the extra is missing, nothing to serve, what would be served is stale, or the address cannot be had.
    """
    try:
        from adagrpo.serving import app
    except ImportError as error:
        raise UserError("serve: needs fastapi and uvicorn; pip install 'adagrpo[serve]'") from error
    listener = app.listen(host, port)
    with listener:
        served, about = recommender(run, arm, checkpoint, reward_weight, exclude_history, precision)
        served.recommend([Query([0])])  # what is made on first use is made before the first request
        ready({"url": f"http://{host}:{listener.getsockname()[1]}", **about})
        app.serve(app.create_app(served, about), listener)
