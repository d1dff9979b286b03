"""The order in which items are numbered: by a keyed hash of their ids, so that a number says nothing about its item.

    order(ids) = ids by (blake2b_64(key, text of the id), id)

Ids often ascend by first appearance, popularity or date of release, and the rank of an id then carries that order: to
a model through the order of its rows, and to a metric wherever a tie is broken by the lower number. The hash depends on
the id alone. Neither the order of the rows of a log, nor its other items, nor the machine changes which of two items
comes first. An integer and its text have one hash.

The key is written here and is no setting: runs of one log and other seeds have the same numbers, so that they share
their prepared data and are compared item by item.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl

KEY = b"adagrpo: items, 1"
_BYTES = 8  # of a hash; two of a million items agree with a probability of 3e-8, and are then ordered by their ids


def in_hash_order(ids: pl.Series, key: bytes = KEY) -> pl.Series:
    """The distinct ids in the order of their hashes.

    Args:
        ids: integers or text, in any order, repeats allowed.
        key: of the hash, at most 64 bytes.

    >>> in_hash_order(pl.Series("item_id", [1, 2, 3, 4, 5, 5])).to_list()
    [4, 1, 3, 2, 5]
    """
    distinct = ids.unique().sort()
    texts = distinct.cast(pl.String)
    hashes = (blake2b(text.encode(), digest_size=_BYTES, key=key).digest() for text in texts)
    numbers = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)
    return distinct.gather(np.argsort(numbers, kind="stable"))
