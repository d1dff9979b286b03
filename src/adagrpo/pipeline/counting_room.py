"""What counting pairs and making Semantic IDs takes of memory, said before it is taken; what will not fit is refused.

    tokenize    the largest of: pairs (a block of them, and what is kept twice while it is put together),
                a decomposition (bases of V rows), quantisation (vectors, what is left of them, a sample, distances)
    trees       28 bytes an entry of `common_users`: the matrix, and the sorted list that it is looked up in

Estimates, meant to be right within a factor of two, like those of `adagrpo.pipeline.sizes`. They go by the names of
the bounds in `adagrpo.semantic_ids`, so that a bound that is changed there is changed here.
"""

from __future__ import annotations

import torch

from adagrpo.config.tokenizer import TokenizerConfig
from adagrpo.data.pairs import pair_products
from adagrpo.errors import UserError
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.room import free_memory, in_words
from adagrpo.semantic_ids.decomposition import EXTRA, sketched
from adagrpo.semantic_ids.pair_information import BLOCK, PAIRS, pairs_in
from adagrpo.semantic_ids.quantization import A_CODE, DISTANCES, FITTED
from adagrpo.types import Ragged

__all__ = ["check_pair_room", "check_tokenize_room", "tokenize_memory"]

PAIR, COUNTED, LOOKED_UP = 12, 56, 28  # bytes of a pair that is kept, that is being counted, and of an entry for trees


def tokenize_memory(options: TokenizerConfig, items: int, interactions: int, pairs: int) -> dict[str, int]:
    """Bytes that each part of the stage takes at its peak.

    Args:
        options: of the recipe.
        items: `V`.
        interactions: of training; 0 without co-occurrence.
        pairs: of `pairs_in`; 0 without co-occurrence.
    """
    kept = min(pairs, max(PAIRS, items))
    width = options.width * len(options.vectors)
    vectors = 4 * items * width
    basis = 4 * items * (options.width + EXTRA) * 3 if sketched(items, kept) else 8 * items * options.width * 4
    sample = min(items, max(FITTED, A_CODE * options.codes))
    distances = (
        items * options.codes * 3 if options.quantizer == "balanced_kmeans" else min(items * options.codes, DISTANCES)
    )
    return {
        "log": 8 * interactions,
        "pairs": 2 * PAIR * kept + COUNTED * min(pairs, BLOCK),
        "decomposition": PAIR * kept + basis + vectors,
        "quantisation": 3 * vectors + 8 * sample * width + 4 * distances,
    }


def check_tokenize_room(data: RunData) -> None:
    """Say what Semantic IDs take, where that is much of what there is.

    Raises:
        UserError: there is not so much, in one line.
    """
    options, interactions, pairs = data.config.tokenizer, 0, 0
    if "cooccurrence" in options.vectors:
        interactions, pairs = len(data.training.values), pairs_in(data.training, options.window)
    parts = tokenize_memory(options, data.num_items, interactions, pairs)
    log = parts.pop("log")
    peak, there = log + max(parts.values()), free_memory(torch.device("cpu"))
    words = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())
    said = f"tokenize: {data.num_items:,} items; about {in_words(peak)} of memory (one after the other {words})"
    if there is not None and peak > there:
        advice = "take a lower tokenizer.width or tokenizer.window, or fewer kinds of tokenizer.vectors"
        raise UserError(f"{said}; there are {in_words(there)} of memory; {advice}")
    if there is not None and 2 * peak > there:
        data.run.console.note(f"{said}; there are {in_words(there)}")


def check_pair_room(training: Ragged, items: int) -> None:
    """Refuse features of trees whose pair counts do not fit.

    Raises:
        UserError: in one line that says what is needed and what there is.
    """
    entries = min(pair_products(training), items * items)
    needed, there = LOOKED_UP * entries, free_memory(torch.device("cpu"))
    if there is not None and needed > there:
        raise UserError(
            f"reward.kind: lambdarank counts up to {entries:,} pairs of {items:,} items with a common user, which takes"
            f" up to {in_words(needed)} of memory; there are {in_words(there)}; take reward.kind sequential"
        )
