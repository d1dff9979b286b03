"""Lists without the items of a history: a beam that is wide enough, or a second search that leaves them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adagrpo.decoding.beams import Beams, beam_search
from adagrpo.networks import Precision, mixed_precision
from adagrpo.policies.policy import Context, Policy
from adagrpo.semantic_ids.trie import Eligible, Trie
from adagrpo.types import Histories


@torch.no_grad()
def without_history(
    policy: Policy[Any, Any],
    context: Context,
    trie: Trie,
    beams: Beams,  # (B, W + T)
    histories: Histories,
    width: int,
    *,
    precision: Precision = "auto",
    closed: Tensor | None = None,  # (B, X) int64, other items that the search left out, -1 for none
    eligible: Sequence[Eligible | None] | None = None,  # masks of the search, see `Trie.excluding`
) -> tuple[Tensor, Tensor]:  # (B, W) each
    """Return found items outside histories and scores, padded with -1 and -inf.

    Samples with short lists are searched again.
    """
    items, scores = unseen(trie.leaf_items(beams.leaves), beams.scores, histories, width)
    # a search that has hypotheses left over has found all that there is
    short = ((items[:, -1] < 0) & (beams.scores[:, -1] > -torch.inf)).nonzero().squeeze(1)
    if len(short):
        out = histories.whole if closed is None else torch.cat([closed, histories.whole], dim=1)
        masks = None if eligible is None else [eligible[row] for row in short.tolist()]
        excluded = trie.excluding(out[short], masks)
        hypotheses = beams.scores.shape[1]
        with mixed_precision(policy, precision):
            again = beam_search(policy, context[short], hypotheses, trie=trie, excluded=excluded)
        items[short] = trie.leaf_items(again.leaves)[:, :width]
        scores[short] = again.scores[:, :width]
    return items, scores


def unseen(
    items: Tensor,  # (B, N), best first
    scores: Tensor,  # (B, N)
    histories: Histories,
    width: int,
) -> tuple[Tensor, Tensor]:  # (B, W) each
    """Return the first items outside histories and their scores, padded with -1 and -inf."""
    seen = histories.holds(items)
    order = seen.to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    dropped = seen.gather(1, order)
    return items.gather(1, order).masked_fill(dropped, -1), scores.gather(1, order).masked_fill(dropped, -torch.inf)
