"""Exploration: a share of the lists is sampled from the policy, with known propensities.

    a request is sampled if   u(seed, request id) < share,   u uniform on [0, 1)
    its list                  k items without replacement, see `adagrpo.decoding.drawn_lists`

Lists are reproducible from the log.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from adagrpo.lists.query import Query


class Exploration(NamedTuple):
    """Settings of exploration."""

    temperature: float  # divides the logits of each level
    share: float = 1.0  # of the requests whose list is drawn
    seed: int = 0

    def of(self, query: Query, request_id: str) -> Query:
        """Return the query, with temperature and seed if sampled."""
        digest = hashlib.sha256(f"{self.seed}\n{request_id}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.share * 2**64:
            return query
        return query._replace(temperature=self.temperature, seed=int.from_bytes(digest[8:16], "big") >> 1)
