"""Rewards that a gain is compared with: the policy's own ensemble, and a reward whose scores are permuted.

    policies   r(x, i) = (1 / K) Σ_k log π_k(codes_k(i) | x)        each policy reads the item in codes of its own
    shuffled   the scores of a history's items, given to these items in a random order

Who distils a ranker and gains has shown that some teacher helps. With these it is seen which: what other seeds of the
same policy know, and what an order without meaning does. `policies` and `shuffled` are for `reward.kind: factory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adagrpo.data.prepared import load_item_ids
from adagrpo.errors import UserError
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.rewards import NoiseReward, Reward
from adagrpo.types import Histories

__all__ = ["PoliciesReward", "ShuffledReward", "files_of_start", "policies", "shuffled"]


def files_of_start(folder: Path) -> list[Path]:
    """The files of another run that decide its starting policy: items, Semantic IDs, weights."""
    names = ("prepare/items.parquet", "tokenize/codes.parquet", "tokenize/codes.json", "sft/best/model.safetensors")
    return [folder / name for name in names]


def policies(models: Models, members: Sequence[Reward], *, runs: Sequence[str]) -> PoliciesReward:
    """Make the mean log-probability of the starting policies of other runs, each with its own Semantic IDs.

    Args:
        models: of this run.
        members: none.
        runs: folders of the others.

    Raises:
        UserError: a run has other items.
    """
    own, found, codes, rows = models.data.item_ids.to_list(), [], [], []
    for folder in map(Path, runs):
        place = {name: row for row, name in enumerate(load_item_ids(folder / "prepare").to_list())}
        if place.keys() != set(own):
            raise UserError(f"reward.options.runs: {folder} has other items; name runs on the same data")
        other = Models(RunData(Run.open(folder)))
        policy = other.policy(folder / "sft" / "best")
        found.append(policy.eval().requires_grad_(False).frozen())
        codes.append(other.data.catalog.codes)
        rows.append(torch.tensor([place[name] for name in own], device=models.data.device))
    return PoliciesReward(found, codes, rows)


def shuffled(models: Models, members: Sequence[Reward], *, seed: int = 0) -> ShuffledReward:
    """Make the permuted scores of the one member."""
    (member,) = members
    return ShuffledReward(member, seed)


class _Scores(Protocol):
    """What is asked of a policy, see `adagrpo.policies.policy.Policy`."""

    def encode(self, histories: Histories) -> Any: ...

    def score(self, context: Any, codes: Tensor) -> Tensor: ...


class PoliciesReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        policies: Sequence[_Scores],
        codes: Sequence[Tensor],  # K tensors of (V, L_k)
        rows: Sequence[Tensor],  # K tensors of (V,)
    ) -> None:
        """Take policies.

        Args:
            policies: K of them.
            codes: (V, L_k) int64 of each policy, by its own numbers of items.
            rows: (V,) int64 of each policy, what it calls each item.
        """
        if not policies or not len(policies) == len(codes) == len(rows):
            raise ValueError(f"{len(codes)} lists of codes for {len(policies)} policies; give one each, at least one")
        self.policies, self.codes, self.rows = tuple(policies), tuple(codes), tuple(rows)

    @torch.no_grad()
    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        total = torch.zeros(items.shape, dtype=torch.float64, device=items.device)
        for policy, codes, rows in zip(self.policies, self.codes, self.rows, strict=True):
            context = policy.encode(Histories(rows[histories.items], histories.lengths))
            total += policy.score(context, codes[rows[items.clamp(min=0)]]).double().sum(-1)
        return (total / len(self.policies)).float()


class ShuffledReward:
    """Implements `adagrpo.rewards.protocol.Reward`; a score depends on which other items are asked about with it."""

    def __init__(self, member: Reward, seed: int = 0) -> None:
        """Say whose scores, and which order: that of `adagrpo.rewards.noise` of the seed."""
        self.members = (member,)
        self.order = NoiseReward(seed)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        real = items >= 0
        scores = self.members[0].score(histories, items).float().masked_fill(~real, -torch.inf)
        places = self.order.score(histories, items).masked_fill(~real, -torch.inf).argsort(dim=1, descending=True)
        return torch.empty_like(scores).scatter(1, places, scores.sort(dim=1, descending=True).values)
