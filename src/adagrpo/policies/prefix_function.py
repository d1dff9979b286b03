"""Recommend items with an exported folder and `transformers`; needs only the standard library.

`adagrpo export` copies this file into the folder as `semantic_ids.py`:

    ids = SemanticIds(folder)
    prompt = ids.prompt(["item-7", "item-3"])            # a history, oldest item first
    output = model.generate(
        torch.tensor([prompt]), num_beams=50, num_return_sequences=10, max_new_tokens=ids.levels, do_sample=False,
        prefix_allowed_tokens_fn=ids.prefix_function(len(prompt), exclude=[["item-7", "item-3"]]),
    )
    items = [ids.item(sequence) for sequence in output[:, len(prompt):].tolist()]

Without the prefix function the model may write codes that name no item. Pad batches on the left, with an attention
mask; `prefix_function` takes the padded length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


class SemanticIds:
    """Catalogue of an exported folder: items to tokens and back, and allowed continuations."""

    def __init__(self, folder: str | Path) -> None:
        """Read `semantic_ids.json` and `catalog.json` of a folder."""
        tokens = json.loads((Path(folder) / "semantic_ids.json").read_text(encoding="utf-8"))
        catalog = json.loads((Path(folder) / "catalog.json").read_text(encoding="utf-8"))
        sizes: list[int] = tokens["level_sizes"]
        starts = [tokens["first_token"] + sum(sizes[:level]) for level in range(len(sizes))]
        blocks = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        of_levels: Sequence[Sequence[int]] = tokens.get("tokens") or blocks
        self.levels = len(sizes)
        self.end_token: int = tokens["outside_token"]
        self.preamble: list[int] = catalog["preamble"]
        self.between: list[int] = catalog["between"]
        self.suffix: list[int] = catalog["suffix"]
        self.max_history: int = catalog["max_history"]
        self.tokens_of: dict[Any, tuple[int, ...]] = {
            item: tuple(level[code] for level, code in zip(of_levels, codes, strict=True))
            for item, codes in zip(catalog["item_ids"], catalog["codes"], strict=True)
        }
        delisted = set(catalog.get("delisted", ()))  # known in histories, never written
        self.item_of = {sequence: item for item, sequence in self.tokens_of.items() if item not in delisted}
        following: dict[tuple[int, ...], set[int]] = {}
        for sequence in self.item_of:
            for level, token in enumerate(sequence):
                following.setdefault(sequence[:level], set()).add(token)
        self.following = {prefix: sorted(next_tokens) for prefix, next_tokens in following.items()}

    def prompt(self, items: Sequence[Any]) -> list[int]:
        """Return the tokens of a history, oldest item first, cut to the last `max_history` items.

        KeyError if an item is not in the catalogue.
        """
        history: list[int] = []
        for item in items[-self.max_history :]:
            history += [*(self.between if history else []), *self.tokens_of[item]]
        return [*self.preamble, *history, *self.suffix]

    def prefix_function(
        self, prompt_length: int, exclude: Sequence[Sequence[Any]] | None = None
    ) -> Callable[[int, Any], list[int]]:
        """Return a function for `generate(prefix_allowed_tokens_fn=...)`: the tokens that may follow, then the end.

        It allows nothing if every item is excluded; `generate` refuses that.

        Args:
            prompt_length: tokens of the prompt, padding included.
            exclude: for each prompt of the batch, items that are never written.

        Raises:
            KeyError: an excluded item is not in the catalogue.
            TypeError: `exclude` is one list of items instead of one per prompt.
        """
        if any(isinstance(items, str) or not isinstance(items, Sequence) for items in exclude or ()):
            raise TypeError("exclude holds a list of items for each prompt: exclude=[history]")
        closed = [self._closed(items) for items in exclude or ()]

        def allowed(batch: int, sequence: Any) -> list[int]:
            written = tuple(int(token) for token in sequence[prompt_length:])
            if len(written) >= self.levels:
                return [self.end_token]
            following = self.following.get(written, [])
            if exclude is None:
                return following
            return [token for token in following if (*written, token) not in closed[batch]]

        return allowed

    def _closed(self, items: Iterable[Any]) -> set[tuple[int, ...]]:
        """Return the token sequences of items, and prefixes that only they complete."""
        last = {self.tokens_of[item] for item in items}
        closed = set(last)
        while last := {sequence[:-1] for sequence in last if sequence}:
            last = {
                prefix
                for prefix in last
                if prefix in self.following and all((*prefix, token) in closed for token in self.following[prefix])
            }
            closed |= last
        return closed

    def item(self, tokens: Iterable[int]) -> Any:
        """Return the item that tokens after a prompt name, or None."""
        return self.item_of.get(tuple(int(token) for token in tokens)[: self.levels])
