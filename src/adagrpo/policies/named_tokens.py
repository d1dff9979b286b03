"""Published checkpoints that write Semantic IDs: tokens of codes, and prompts.

    prompt(x) = preamble  item(x_1) separator item(x_2) .. item(x_T)  suffix        item(i) = text with {codes}

Token names are templates, one per level: `<a_{code}>` (MiniOneRec, LC-Rec), `<s_a_{code}>` (OpenOneRec). Whole prompts
are tokenized and cut at the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.errors import UserError
from adagrpo.policies.language_model import Vocabulary, read_tokenizer

CODE, CODES = "{code}", "{codes}"


class Pieces(NamedTuple):
    """Tokens around the codes of a prompt."""

    preamble: tuple[int, ...]
    between: tuple[int, ...]  # of the codes of one item and those of the next
    suffix: tuple[int, ...]


class NamedTokens:
    """Tokens of a checkpoint for the codes of a catalogue."""

    # code_sizes (K_1 .. K_L), item_codes (V, L) int64
    def __init__(self, folder: Path, templates: Sequence[str], code_sizes: Sequence[int], item_codes: Tensor) -> None:
        """Look up the names, templates with `{code}`, in the folder's tokenizer.

        UserError for no tokenizer, or one without the token of an item's code.
        """
        self.folder, self.templates, self.item_codes = folder, templates, item_codes
        self.tokenizer = read_tokenizer(folder, "tokens")
        known = self.tokenizer.get_vocab()
        self.tokens = tuple(
            tuple(known.get(template.replace(CODE, str(code)), -1) for code in range(size))
            for template, size in zip(templates, code_sizes, strict=True)
        )
        for level, codes in enumerate(item_codes.unbind(1)):
            for code in torch.unique(codes).tolist():
                if self.tokens[level][code] < 0:
                    name = templates[level].replace(CODE, str(code))
                    raise UserError(
                        f"{folder}: the tokenizer has no token '{name}', code {code} of level {level + 1}; "
                        "policy.lm.tokens says what its tokens are called"
                    )

    def vocabulary(self, end: int, rows: int) -> Vocabulary:
        """Return the vocabulary in a model of `rows` embeddings; `end` stands for all other tokens."""
        largest = max(map(max, self.tokens))
        if largest >= rows:
            raise UserError(f"{self.folder}: the tokenizer has token {largest}, the model embeds {rows} tokens")
        return Vocabulary(-1, tuple(map(len, self.tokens)), end, self.tokens)

    def pieces(self, preamble: str, item: str, separator: str, suffix: str) -> Pieces:
        """Return the tokens around the codes, none that end a sequence; UserError if the tokenizer splits otherwise."""
        rows = [self.item_codes[row].tolist() for row in (0, len(self.item_codes) - 1, 0)]
        first, second, third = (
            item.replace(CODES, "".join(map(lambda text, code: text.replace(CODE, str(code)), self.templates, row)))
            for row in rows
        )
        two = self._read(f"{preamble}{first}{separator}{second}{suffix}")
        codes = [[self.tokens[level][code] for level, code in enumerate(row)] for row in rows]
        start = _find(two, codes[0], 0)
        after = start + len(codes[0])
        following = _find(two, codes[1], after)
        ending = following + len(codes[1])
        if min(start, following) >= 0:
            found = Pieces(tuple(two[:start]), tuple(two[after:following]), tuple(two[ending:]))
            three = self._read(f"{preamble}{first}{separator}{second}{separator}{third}{suffix}")
            between, last = found.between, [*codes[2], *found.suffix]
            if three == [*found.preamble, *codes[0], *between, *codes[1], *between, *last]:
                return found
        raise UserError(
            f"{self.folder}: its tokenizer does not read '{first}{separator}{second}' as the tokens of two items "
            "with the same text between any two; check policy.lm.tokens, item and separator"
        )

    def _read(self, text: str) -> list[int]:  # with special tokens before a sequence, without those after it
        whole = [int(token) for token in self.tokenizer(text)["input_ids"]]
        plain = [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        start = _find(whole, plain, 0)
        return whole[: start + len(plain)] if start >= 0 else whole


def _find(tokens: Sequence[int], wanted: Sequence[int], start: int) -> int:
    """Return where `wanted` first occurs from `start` on, or -1.

    >>> _find([5, 1, 2, 1, 2], [1, 2], 2), _find([5], [1], 0)
    (3, -1)
    """
    starts = range(max(0, start), len(tokens) - len(wanted) + 1)
    return next((at for at in starts if list(tokens[at : at + len(wanted)]) == list(wanted)), -1)
