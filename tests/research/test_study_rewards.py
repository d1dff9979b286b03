"""Rewards of the studies in runs of the tiny world: what each makes of the members and files that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.types import Histories
from research.rewards.controls import files_of_start


def factory(name: str, *members: dict[str, Any], files: list[str] | None = None, **options: Any) -> dict[str, Any]:
    made = {"kind": "factory", "function": f"research.{name}", "members": list(members), "options": options}
    return made | {"files": files or []}


@pytest.mark.slow
def test_control_rewards_are_made_from_the_recipe(world: Any, data: Path, finished: Path, copied: Path) -> None:
    """A count, another run's policy, shuffled and corrupted scores; the other run's own policy gives what it says."""
    start = [str(file) for file in files_of_start(finished)]
    members: list[dict[str, Any]] = [
        {"kind": "feature", "name": "knn_history"},
        factory("rewards.controls:policies", files=start, runs=[str(finished)]),
        factory("rewards.controls:shuffled", {"kind": "feature", "name": "popularity"}),
        factory("rewards.corrupted:corrupted", {"kind": "sequential"}, by="exposure", how="inverted"),
    ]
    arms = {"arms": [{"objective": "nll"}, {"objective": "distill"}]}
    reward = {"kind": "weighted", "weights": [1, 0.1, 1, 1], "members": members}
    run = world.run(copied, data, reward=reward, train=arms)
    run.train()
    models = Models(RunData(run))
    histories, items = Histories(torch.tensor([[1, 2]]), torch.tensor([2])), torch.arange(models.data.num_items)[None]
    policy = models.policy(finished / "sft" / "best").eval()
    own = policy.score(policy.encode(histories), models.data.catalog.codes[items]).sum(-1)
    assert torch.allclose(models.reward_of(run.config.reward.parts[1]).score(histories, items), own, rtol=1e-5)
    corrupted = run.config.reward.parts[3].model_copy(update={"options": {"by": "user_group"}})
    with pytest.raises(UserError, match="up to 6 items and max_history is 6"):  # cut there, all users look alike
        models.reward_of(corrupted)
