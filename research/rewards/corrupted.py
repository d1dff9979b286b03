"""A reward that is right for some and wrong for others, on purpose: what a gate or a weight could find out.

    r'(x, i) = (1 - s) r(x, i) + s w(x, i)      where (x, i) is in the wrong part, and r(x, i) elsewhere

    w(x, i)    shuffled: a score drawn from those of the history's items, the same for the same history and item
               inverted: the score of the item that is as far from the other end of the history's order
    wrong      item_group: items of a share of the groups, named by the item's first attribute
               exposure:   the share of the items with the fewest training interactions
               user_group: the share of the users with the fewest training interactions

`w` is on the scale of the history's scores, so no scale has to be known; it depends on which other items are asked
about. Two items of the right part keep their order, those of the wrong part have none, or the reverse of the true one.
`corrupted` is for `reward.kind: factory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from adagrpo.data.splits import keyed_uniforms
from adagrpo.errors import UserError
from adagrpo.pipeline.factories import Models
from adagrpo.rewards import NoiseReward, Reward
from adagrpo.types import Histories

__all__ = ["CorruptedReward", "corrupted", "fewest", "item_groups"]


class CorruptedReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        member: Reward,
        *,
        items: NDArray[np.bool_] | None = None,  # (V,)
        users: NDArray[np.bool_] | None = None,  # (U,)
        shortest: int = 0,
        strength: float = 1.0,
        how: Literal["shuffled", "inverted"] = "shuffled",
        seed: int = 0,
    ) -> None:
        """Say whose scores, and where they are wrong.

        Args:
            member: the reward.
            items: (V,) True where an item's score is wrong; None: no item by itself.
            users: (U,) True where all scores for a user's histories are wrong; None: no user.
            shortest: where it is not said whose a history is, one of up to so many items is wrong; with `users` alone.
            strength: `s`, from 0 to 1.
            how: what stands in the wrong part.
            seed: of the noise.
        """
        self.members = (member,)
        self.items = None if items is None else torch.from_numpy(items)
        self.users = None if users is None else torch.from_numpy(users)
        self.shortest, self.strength, self.how = shortest, strength, how
        self.noise = NoiseReward(seed)

    def wrong(self, histories: Histories, items: Tensor) -> Tensor:
        """(B, N) bool, where the scores of (B, N) items are in the wrong part."""
        result = torch.zeros(items.shape, dtype=torch.bool, device=items.device)
        if self.items is not None:
            result |= self.items.to(items.device)[items.clamp(min=0)]
        if self.users is not None:
            known = histories.users
            short = histories.lengths <= self.shortest if known is None else self.users.to(items.device)[known]
            result |= short.unsqueeze(1)
        return result & (items >= 0)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        real = items >= 0
        scores = self.members[0].score(histories, items).float()
        ranked = scores.masked_fill(~real, torch.inf).sort(dim=1)  # ascending, what is no item at the end
        last = real.sum(dim=1, keepdim=True).clamp(min=1) - 1
        if self.how == "inverted":
            place = last - ranked.indices.argsort(dim=1)
        else:
            shares = torch.from_numpy(ndtr(self.noise.score(histories, items).double().cpu().numpy())).to(items.device)
            place = torch.minimum((shares * (last + 1)).long(), last)
        other = ranked.values.gather(1, place.clamp(min=0))
        mixed = (1 - self.strength) * scores + self.strength * other
        return torch.where(self.wrong(histories, items), mixed, scores)


def corrupted(
    models: Models,
    members: Sequence[Reward],
    *,
    by: Literal["item_group", "user_group", "exposure"] = "item_group",
    share: float = 0.5,
    strength: float = 1.0,
    how: Literal["shuffled", "inverted"] = "shuffled",
    seed: int = 0,
) -> CorruptedReward:
    """Make the one member wrong; where, is read from the training split and the item table.

    Items that came later change nothing of that: their groups are wrong where those are, and nobody has seen them.

    Args:
        models: of the run.
        members: the reward.
        by: groups of items, users seldom seen, or items seldom seen.
        share: of the groups, the users or the items.
        strength: see `CorruptedReward`.
        how: see `CorruptedReward`.
        seed: of the groups and of the noise.
    """
    (member,), data = members, models.data
    training, items, users, shortest = data.training, None, None, 0
    trained = data.version.trained
    if by == "user_group":
        users = fewest(training.lengths, share)
        shortest = int(training.lengths[users].max(initial=0))
        if shortest >= data.config.max_history:  # whoever has more looks alike: histories are cut there
            raise UserError(
                f"reward.options.share: its users have up to {shortest} items and max_history is"
                f" {data.config.max_history}, so that a history cannot say whether it is one of theirs; take a smaller"
                " share or a longer history"
            )
    elif by == "exposure":
        items = fewest(training.counts(trained), share)
        items = np.append(items, np.full(data.num_items - trained, share > 0))
    else:
        attributes = data.items["attributes"].to_list()
        items = item_groups(attributes[:trained], share, seed)
        wrong = {names[0] for names, mark in zip(attributes, items, strict=False) if mark and names}
        later = [bool(names) and names[0] in wrong for names in attributes[trained:]]
        items = np.append(items, np.array(later, np.bool_))
    return CorruptedReward(member, items=items, users=users, shortest=shortest, strength=strength, how=how, seed=seed)


def fewest(counts: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """(N,) True for the share with the lowest counts (N,); of equal ones those that come first.

    Example:
        >>> fewest(np.array([3, 1, 2, 5]), 0.5)
        array([False,  True,  True, False])
    """
    result = np.zeros(len(counts), np.bool_)
    result[np.argsort(counts, kind="stable")[: round(share * len(counts))]] = True
    return result


def item_groups(attributes: list[list[str]], share: float, seed: int = 0) -> NDArray[np.bool_]:
    """(V,) True for the items of a share of the groups, which the seed draws: those of the first attribute.

    Args:
        attributes: V lists; an item without any is a group by itself.
        share: of the groups.
        seed: of the draw.

    Example:
        >>> item_groups([["a"], ["b"], ["a", "x"]], 0.5).tolist()
        [True, False, True]
    """
    names = [names[0] if names else f"\\0{place}" for place, names in enumerate(attributes)]
    _, group = np.unique(np.array(names, dtype=object), return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    order = np.argsort(keyed_uniforms(seed, np.arange(count), np.zeros(count, np.int64)), kind="stable")
    return np.isin(group, order[: round(share * count)])
