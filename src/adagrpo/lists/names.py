"""Names of lists, in one grammar for `compare`, `decide`, `serve`, `recommend` and the arms of experiments.

sft, nll, ...                 the beam of a policy
rerank, nll+rerank            that beam in the order of log-probability + weight · reward; `rerank` is of sft
fuse, nll+fuse                that beam fused with other sources, see `adagrpo.lists.fusion`; `fuse` is of sft
fuse-without-reward, ...      the same with weights that need no reward
popularity, item_knn, ranker  a source alone
"""

from __future__ import annotations

from typing import NamedTuple

START = "sft"
RERANK, FUSE, FUSE_WITHOUT_REWARD = "rerank", "fuse", "fuse-without-reward"
SOURCES = ("popularity", "item_knn", "ranker")


class ListName(NamedTuple):
    """The parts of a name."""

    policy: str | None  # the arm whose beam it is; None where no policy has a part
    order: str  # policy, rerank, fuse, fuse-without-reward, or one of `SOURCES`

    def __str__(self) -> str:
        if self.policy is None or self.order == "policy":
            return self.policy or self.order
        return self.order if self.policy == START else f"{self.policy}+{self.order}"


def parse_list(name: str) -> ListName:
    """Take a name apart; what is no other list is the beam of an arm.

    Example:
        >>> parse_list("nll+fuse"), parse_list("item_knn")
        (ListName(policy='nll', order='fuse'), ListName(policy=None, order='item_knn'))
    """
    if name in SOURCES:
        return ListName(None, name)
    policy, plus, order = name.rpartition("+")
    if order in (RERANK, FUSE, FUSE_WITHOUT_REWARD) and (policy or not plus):
        return ListName(policy or START, order)
    return ListName(name, "policy")
