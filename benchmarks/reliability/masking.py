"""Row 21: histories far longer than what the policy sees, in evaluation, serving and an exported folder.

Half of the histories are of random items. The other half hold, before what the policy sees, the very items that it
would recommend, so that a beam finds nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.data.sequences import pad
from adagrpo.decoding import beam_search
from adagrpo.evaluation.predictions import predict
from adagrpo.lists.query import Query
from adagrpo.lists.recommender import Recommender
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.compact import CompactPolicy
from adagrpo.policies.language_model import VOCABULARY_FILE, from_configuration
from adagrpo.policies.prefix_function import SemanticIds
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Cases, Histories, Ragged
from benchmarks.reliability.findings import Finding

__all__ = ["Counts", "check_masking", "masking"]

SIZES, ITEMS, SEEN, LENGTH, K = (16, 16, 16), 1000, 6, 60, 10


class Counts(NamedTuple):
    """Of lists of ten."""

    lists: int
    holding: int  # an item of the history
    short: int  # fewer than ten items


def masking(work: Path) -> Finding:
    """Lists of each path, and what masking the last items alone would have let through."""
    result = check_masking(work, evaluated=2000, generated=100)
    before = result.pop("the last 6 items alone")
    parts = [f"{name} {counts.holding} of {counts.lists:,}" for name, counts in result.items()]
    figure = (
        f"histories of {LENGTH} items, of which the policy sees {SEEN}: lists of ten with an item of it: "
        f"{', '.join(parts)}; {sum(counts.short for counts in result.values())} lists are short; masking what the "
        f"policy sees alone let one through in {before.holding:,} of {before.lists:,}"
    )
    return Finding(21, figure, all(not counts.holding and not counts.short for counts in result.values()))


def check_masking(work: Path, evaluated: int, generated: int, seed: int = 0) -> dict[str, Counts]:
    """Lists of a random catalogue, by what made them.

    Args:
        work: an empty folder.
        evaluated: histories for evaluation and serving.
        generated: those of them that `generate` answers too.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:ITEMS]], SIZES)
    policy = CompactPolicy(
        catalog.codes, SIZES, width=16, layers=1, heads=2, decoder_hidden=16, max_history=SEEN, dropout=0.0, seed=seed
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    cases = _cases(policy.eval(), catalog, evaluated, np.random.default_rng(seed))
    arguments = {"width": K, "batch_size": 256, "max_history": SEEN, "exclude_history": True}
    histories = [cases.histories.row(row).tolist() for row in range(len(cases))]
    lists = predict(policy, catalog, cases, **arguments).items
    plain = predict(policy, catalog, cases, **arguments | {"width": K + SEEN, "exclude_history": False}).items
    last = [
        [item for item in row if item not in history[-SEEN:]][:K] for row, history in zip(plain, histories, strict=True)
    ]
    recommender = Recommender(policy, catalog, list(range(ITEMS)), width=K, max_history=SEEN, exclude_history=True)
    served = [
        reply.items
        for first in range(0, evaluated, 32)
        for reply in recommender.recommend([Query(history) for history in histories[first : first + 32]])
    ]
    return {
        "evaluated": _count(lists.tolist(), histories),
        "served": _count(served, histories),
        "generated": _count(_generated(work, catalog, histories[:generated], seed), histories[:generated]),
        f"the last {SEEN} items alone": _count(last, histories),
    }


def _cases(policy: CompactPolicy, catalog: Catalog, count: int, draw: np.random.Generator) -> Cases:
    seen = draw.integers(0, ITEMS, (count, SEEN))
    older = draw.integers(0, ITEMS, (count, LENGTH - SEEN))
    likely = slice(0, count, 2)
    result = beam_search(policy, policy.encode(_padded(seen[likely])), LENGTH - SEEN, trie=catalog.trie)
    older[likely] = catalog.lookup(result.codes).numpy()
    items = np.concatenate([older, seen], axis=1).astype(np.int32)
    histories = Ragged(items.reshape(-1), LENGTH * np.arange(count + 1))
    return Cases(np.arange(count, dtype=np.int32), histories, draw.integers(0, ITEMS, count).astype(np.int32))


def _padded(items: NDArray[np.int64]) -> Histories:
    rows, length = items.shape
    return pad(Ragged(items.reshape(-1).astype(np.int32), length * np.arange(rows + 1)), np.arange(rows), length)


def _generated(work: Path, catalog: Catalog, histories: list[list[int]], seed: int) -> list[list[int]]:
    """What `generate` of a small language model answers with the prefix function of an exported folder."""
    options = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model, vocabulary = from_configuration(options, SIZES, seed=seed)
    policy = CausalLMPolicy(model, vocabulary, catalog.codes, max_history=SEEN)
    described = {
        "item_ids": list(range(ITEMS)),
        "codes": catalog.codes.tolist(),
        "preamble": policy.preamble.tolist(),
        "between": policy.between.tolist(),
        "suffix": policy.suffix.tolist(),
        "max_history": SEEN,
    }
    (work / VOCABULARY_FILE).write_text(vocabulary.dump(), encoding="utf-8")
    (work / "catalog.json").write_text(json.dumps(described), encoding="utf-8")
    ids = SemanticIds(work)
    prompts = [ids.prompt(history) for history in histories]
    output = model.eval().generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.int64),
        num_beams=K,
        num_return_sequences=K,
        max_new_tokens=ids.levels,
        do_sample=False,
        pad_token_id=ids.end_token,
        eos_token_id=ids.end_token,
        prefix_allowed_tokens_fn=ids.prefix_function(len(prompts[0]), exclude=histories),
    )
    result = [ids.item(tokens) for tokens in output[:, len(prompts[0]) :].tolist()]
    return [result[first : first + K] for first in range(0, len(result), K)]


def _count(lists: list[list[int]], histories: list[list[int]]) -> Counts:
    holding = sum(bool(set(items) & set(history)) for items, history in zip(lists, histories, strict=True))
    return Counts(len(lists), holding, sum(len({item for item in items if item >= 0}) < K for items in lists))
