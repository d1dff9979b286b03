"""Serving that explores: a share of the lists is drawn from the policy, and how probable each was is known.

    a request draws     u(seed, request id) < share,   u uniform on [0, 1)
    its list            k items without replacement from the policy at a temperature, see `adagrpo.decoding.drawn_lists`

Both follow from the seed of the service and the id of the request, so that a list can be drawn again from the log. Who
draws does not depend on the user or the history: drawn lists alone are a sample of all requests, and their propensities
are those of a list that is drawn. Lists that are not drawn have no propensity; off-policy estimates leave them out.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from adagrpo.lists.query import Query


class Exploration(NamedTuple):
    """Settings of exploration: which share of the lists is drawn, and at which temperature."""

    temperature: float  # divides the logits of each level
    share: float = 1.0  # of the requests whose list is drawn
    seed: int = 0

    def of(self, query: Query, request_id: str) -> Query:
        """A query as the request asks it: with a temperature and a seed of its own where its list is drawn.

        >>> drawn = [Exploration(0.5, 0.25).of(Query([1]), str(n)).temperature for n in range(1000)]
        >>> {*drawn}, 0.22 < sum(map(bool, drawn)) / 1000 < 0.28
        ({0.0, 0.5}, True)
        """
        digest = hashlib.sha256(f"{self.seed}\n{request_id}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.share * 2**64:
            return query
        return query._replace(temperature=self.temperature, seed=int.from_bytes(digest[8:16], "big") >> 1)
