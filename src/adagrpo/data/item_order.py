"""Number items by a keyed hash of their ids, lest numbers carry information.

    order(ids) = ids by (blake2b_64(key, text of the id), id)

Ids often ascend by first appearance, popularity or release date, which could leak through ties. The key is fixed, so
that runs share prepared data.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl

KEY = b"adagrpo: items, 1"
_BYTES = 8  # of a hash; two of a million items agree with a probability of 3e-8, and are then ordered by their ids


def in_hash_order(ids: pl.Series, key: bytes = KEY) -> pl.Series:
    """Return the distinct ids in the order of their hashes; an integer hashes as its text.

    >>> in_hash_order(pl.Series("item_id", [1, 2, 3, 4, 5, 5])).to_list()
    [4, 1, 3, 2, 5]
    """
    distinct = ids.unique().sort()
    texts = distinct.cast(pl.String)
    hashes = (blake2b(text.encode(), digest_size=_BYTES, key=key).digest() for text in texts)
    numbers = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)
    return distinct.gather(np.argsort(numbers, kind="stable"))
