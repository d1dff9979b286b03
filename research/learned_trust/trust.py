"""How far a reward is to be trusted, sample by sample and item by item: a weight w(x, i) that validation choices fit.

    r'(x, i) = w(x, i) · (r(x, i) - mean over the list) / σ           w = max(0, (w_0 + Σ_f u_f[level of (x, i)]) / α)

`f` runs over what is known when a list is served: training interactions of the item, its group (the first attribute),
length of the history, spread of the scores in the list, and the rank correlation of the list's scores with a second
reward. `log π + r'` is the learned re-ranking, so `r'` as the reward of `rerank`, of distillation with a reward weight
of 1, or of any other objective, carries the weights into it. How they are fitted: `research.learned_trust.fit`.

Scores are centred within the list that is asked about: weights that differ within it then say whom to believe, and
give no item a bonus of its own. A reward is never turned round: where it orders choices the wrong way, it gets 0.
`trusted` is for `reward.kind: factory`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from adagrpo.config.reward import FeatureOptions
from adagrpo.errors import UserError
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.rewards import Reward
from adagrpo.types import Histories

__all__ = [
    "FACTORS",
    "Items",
    "TrustModel",
    "TrustedReward",
    "centred",
    "levels",
    "read_trust",
    "trust_items",
    "trusted",
]

FACTORS = ("popularity", "item_group", "history_length", "spread", "agreement")
_QUARTERS = (0.25, 0.5, 0.75)
TRUST_GROUPS = 50  # of items, the largest ones: a weight for each of thousands of groups is known of none

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Masks = NDArray[np.bool_]


class Items(NamedTuple):
    """What is known of the items."""

    counts: Ints  # (V,) training interactions
    groups: Ints  # (V,) the group of each, -1 for none
    names: tuple[str, ...] = ()  # of the groups, by number


class TrustModel(NamedTuple):
    """Weights of a reward. A factor without effects has none to tell apart: all of it is one weight."""

    scale: float  # σ, the spread of the scores within a list
    base: float  # w_0 / α
    edges: Mapping[str, Sequence[float]]  # of each factor in quarters: where the second, third and fourth begin
    effects: Mapping[str, Sequence[float]]  # of each factor, u / α of its levels
    groups: tuple[str, ...] | None = None  # names of the levels of `item_group`; None: an earlier version wrote none

    def weights(self, placed: Mapping[str, Ints]) -> Floats:
        """(N, W) `w` from the levels (N, W) of each factor, -1 where it has none."""
        total = np.full(next(iter(placed.values())).shape, self.base)
        for name, effects in self.effects.items():
            at = placed[name]
            known = (at >= 0) & (at < len(effects))
            total += np.where(known, np.asarray(effects)[np.where(known, at, 0)], 0.0)
        return np.asarray(np.maximum(total, 0.0))

    def as_json(self) -> str:
        """The text of a file that `read_trust` reads."""
        content = {"scale": self.scale, "base": self.base, "edges": self.edges, "effects": self.effects}
        content |= {} if self.groups is None else {"groups": self.groups}
        return json.dumps({"kind": "trust"} | content, indent=1, allow_nan=False) + "\n"


def read_trust(path: Path) -> TrustModel:
    """Read what `TrustModel.as_json` gave.

    Raises:
        UserError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        edges = {str(name): [float(edge) for edge in values] for name, values in content["edges"].items()}
        effects = {str(name): [float(value) for value in values] for name, values in content["effects"].items()}
        groups = None if "groups" not in content else tuple(map(str, content["groups"]))
        model = TrustModel(float(content["scale"]), float(content["base"]), edges, effects, groups)
        numbers = [model.scale, model.base, *(v for part in (edges, effects) for vs in part.values() for v in vs)]
        if content["kind"] != "trust" or not np.isfinite(numbers).all() or model.scale <= 0:
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a file of weights that adagrpo wrote; fit them again") from error
    if unknown := (edges.keys() | effects.keys()) - set(FACTORS):
        raise UserError(f"{path}: has a factor '{sorted(unknown)[0]}'; there are {', '.join(FACTORS)}")
    return model


def centred(rewards: Floats, usable: Masks) -> Floats:
    """(N, W) scores less the mean of their list, 0 where there is no item."""
    count = np.maximum(usable.sum(axis=1, keepdims=True), 1)
    mean = np.where(usable, rewards, 0.0).sum(axis=1, keepdims=True) / count
    return np.where(usable, rewards - mean, 0.0)


def levels(
    candidates: Ints,  # (N, W)
    lengths: Ints,  # (N,)
    rewards: Floats,  # (N, W)
    second: Floats,  # (N, W)
    items: Items,
    edges: Mapping[str, Sequence[float]] | None = None,
) -> tuple[dict[str, Ints], dict[str, list[float]]]:
    """Place every candidate in a level of every factor.

    Args:
        candidates: (N, W) items, -1 where there is none.
        lengths: (N,) of the histories.
        rewards: (N, W) scores, not read where there is no item.
        second: (N, W) scores of another reward.
        items: what is known of the items.
        edges: of the quarters, as they were fitted; None fits them here.

    Returns:
        (N, W) levels by factor, and the edges.
    """
    usable, wide = candidates >= 0, np.ones(candidates.shape)
    near = centred(rewards, usable)
    spread = np.sqrt((near**2).sum(axis=1) / np.maximum(usable.sum(axis=1), 1))
    values = {
        "popularity": items.counts[np.maximum(candidates, 0)].astype(np.float64),
        "history_length": lengths[:, None] * wide,
        "spread": spread[:, None] * wide,
        "agreement": _rank_correlation(rewards, second, usable)[:, None] * wide,
    }
    placed, found = {"item_group": items.groups[np.maximum(candidates, 0)]}, {}
    for name, numbers in values.items():
        own = [float(e) for e in np.quantile(numbers[usable], _QUARTERS)] if edges is None else list(edges[name])
        found[name] = own
        placed[name] = np.searchsorted(np.asarray(own), numbers, side="left").astype(np.int64)
    return {name: np.where(usable, placed[name], -1) for name in FACTORS}, found


def _rank_correlation(a: Floats, b: Floats, usable: Masks) -> Floats:
    """(N,) Spearman's correlation over the usable places; 0 where one side is constant."""
    x, y = (centred(stats.rankdata(np.where(usable, part, -np.inf), axis=1), usable) for part in (a, b))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.asarray(np.where(size > 0, (x * y).sum(axis=1) / np.where(size > 0, size, 1.0), 0.0))


class TrustedReward:
    """Implements `adagrpo.rewards.protocol.Reward`; a score depends on which other items are asked about with it."""

    def __init__(self, member: Reward, second: Reward, items: Items, model: TrustModel) -> None:
        """Take a reward, the second one that it is compared with, and weights that were fitted with both."""
        self.members, self.second, self.items, self.model = (member,), second, items, model

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        real = (items >= 0).cpu().numpy()
        parts = (reward.score(histories, items).double().cpu().numpy() for reward in (*self.members, self.second))
        own, second = (np.where(real, part, 0.0) for part in parts)
        lengths = histories.lengths.cpu().numpy()
        placed, _ = levels(items.cpu().numpy(), lengths, own, second, self.items, self.model.edges)
        scores = self.model.weights(placed) * centred(own, real) / self.model.scale
        return torch.from_numpy(scores).float().to(items.device)


def trusted(models: Models, members: Sequence[Reward], *, model: str) -> TrustedReward:
    """Make the weighted scores of the one member.

    Args:
        models: of the run.
        members: the reward.
        model: the file of the weights.
    """
    (member,) = members
    weights = read_trust(models.run.data / model)
    items = trust_items(models.data, weights.groups)
    return TrustedReward(member, models.reward_of(FeatureOptions()), items, weights)


def trust_items(data: RunData, groups: Sequence[str] | None = None) -> Items:
    """What the weights of a trusted reward know of the items: how often each was seen, and its first attribute.

    Args:
        data: of the run.
        groups: names by number, as the weights were fitted; None numbers those of the items that were trained with.
    """
    names = [names[0] if names else "" for names in data.items["attributes"].to_list()]
    if groups is None:
        unique, sizes = np.unique(np.array(names[: data.version.trained]), return_counts=True)
        largest = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable") < TRUST_GROUPS
        groups = unique[(unique != "") & largest].tolist()
    number = {name: place for place, name in enumerate(groups)}
    numbers = np.array([number.get(name, -1) for name in names], np.int64)
    return Items(data.training.counts(data.num_items), numbers, tuple(groups))
