"""The inference engine of `train.rollout_worker`, as post-training takes it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from adagrpo.engines.engine_client import SglangServer
from adagrpo.engines.sglang_processor import PROCESSOR
from adagrpo.errors import UserError
from adagrpo.groups.served_draw import RolloutWorker
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.policies.policy import Policy
from adagrpo.trainer.sharding import is_asked_for

__all__ = ["rollout_worker"]


def rollout_worker(run: RunDirectory) -> RolloutWorker | None:
    """The worker of a run; None where its policies draw their own rollouts.

    Raises:
        UserError: its folder or token is missing, or weights are sharded, which no process could hand over.
    """
    options = run.config.train.rollout_worker
    if options is None:
        return None
    folder = Path(options.folder)
    if not folder.is_dir():
        raise UserError(f"train.rollout_worker.folder: {folder} is no folder")
    if is_asked_for() and run.processes.count > 1:
        raise UserError("train.rollout_worker: not with sharded weights; launch without --use_fsdp, or set it to null")
    token = None
    if options.token_env is not None:
        token = os.environ.get(options.token_env)
        if token is None:
            raise UserError(f"train.rollout_worker.token_env: the environment variable {options.token_env} is not set")
    server = SglangServer(
        options.url, PROCESSOR, timeout_seconds=options.timeout_seconds, concurrency=options.concurrency, token=token
    )

    def hand_over(policy: Policy[Any, Any]) -> None:
        from adagrpo.policies.causal_lm import CausalLMPolicy
        from adagrpo.policies.language_model import merged

        if not isinstance(policy, CausalLMPolicy):
            raise UserError("train.rollout_worker: items share Semantic IDs, which an engine cannot tell apart")
        written = tempfile.mkdtemp(prefix="adagrpo-weights-", dir=folder)
        try:
            Path(written).chmod(0o755)  # the server may be another user
            merged(policy.lm).save_pretrained(written)
            server.update(written)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    return RolloutWorker(server, hand_over, every=options.every, most_drift=options.most_drift)
