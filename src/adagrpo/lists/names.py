"""Names of lists, shared by `compare`, `decide`, `serve`, `recommend` and the arms of experiments.

sft, nll, ...                 the beam of a policy
rerank, nll+rerank            the same by log-probability + weight · reward; `rerank` alone is of sft
fuse, nll+fuse                that beam fused with other sources, see `adagrpo.lists.fusion`; `fuse` alone is of sft
fuse-without-reward, ...      the same with weights that need no reward
popularity, item_knn, ...     a source alone, see `adagrpo.lists.table`
control                       what users get today, from a file (`decide.control`)
reward                        the reward alone over the whole catalogue; for a sum `reward-1`, `reward-2`, ...
"""

from __future__ import annotations

import re
from typing import NamedTuple

from adagrpo.lists.table import LISTED

START = "sft"
RERANK, FUSE, FUSE_WITHOUT_REWARD = "rerank", "fuse", "fuse-without-reward"
REWARD, CONTROL = "reward", "control"
_ALONE = re.compile(rf"{REWARD}(?:-([1-9]\d*))?")


class ListName(NamedTuple):
    """The parts of a list's name."""

    policy: str | None  # the arm whose beam it is; None where no policy has a part
    order: str  # policy, rerank, fuse, fuse-without-reward, a reward alone, or a source

    def __str__(self) -> str:
        if self.policy is None or self.order == "policy":
            return self.policy or self.order
        return self.order if self.policy == START else f"{self.policy}+{self.order}"


def parse_list(name: str) -> ListName:
    """Parse a name; any unknown name is the beam of an arm."""
    if name in (*LISTED, CONTROL) or _ALONE.fullmatch(name):
        return ListName(None, name)
    policy, plus, order = name.rpartition("+")
    if order in (RERANK, FUSE, FUSE_WITHOUT_REWARD) and (policy or not plus):
        return ListName(policy or START, order)
    return ListName(name, "policy")


def reward_number(order: str) -> int | None:
    """Return which reward orders a list alone, from 1; 0: the whole reward, None: no reward alone.

    >>> reward_number("reward-2"), reward_number("reward"), reward_number("rerank")
    (2, 0, None)
    """
    found = _ALONE.fullmatch(order)
    return None if found is None else int(found[1] or 0)
