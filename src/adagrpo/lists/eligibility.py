"""Filters that restrict lists, resolved to masks that searches share.

    include   only items that match every column; within a column, any of its values
    exclude   no item that matches any column

A filter is `{"category": ["toys", "games"], "in_stock": true}`; the column `item_id`, or a plain list of ids, names
single items. Unknown ids are ignored; unknown columns or values are errors.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM_ID
from adagrpo.data.groups import GroupValue, ItemGroups
from adagrpo.errors import UserError
from adagrpo.readers.formats import names_file
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible

FEW = 256  # single items that a search leaves out without a mask
MEMORY = 2**28  # bytes of the masks that are kept
OVERHEAD = 1024  # bytes of a mask in addition to its tensors: headers, digest, dictionary entries
MOST = 1024  # masks that are kept; small ones would bring little room and many objects

Filter = Mapping[str, GroupValue | Sequence[GroupValue]] | Sequence[str | int]
_Columns = dict[str, tuple[GroupValue, ...]]


class Narrowing(NamedTuple):
    """Restrictions of a query; the first two fields are a `Query`'s."""

    without: tuple[int, ...]  # single items
    eligible: Eligible | None  # a mask; None: the catalogue
    left: int  # how many items that is


class Eligibility:
    """Resolves filters for one version of a catalogue."""

    def __init__(
        self,
        catalog: Catalog,
        groups: Callable[[], ItemGroups],
        known: Callable[[Sequence[str | int]], tuple[list[int], list[str | int]]],
        memory: int = MEMORY,  # bytes of the cache, which keeps at least one mask
    ) -> None:
        """Start with no masks; `groups` is called when a filter first names a column."""
        self._trie, self._known, self._memory = catalog.trie, known, memory
        self._listed = catalog.listed.cpu().numpy()  # (V,)
        self._load = groups
        self._masks: OrderedDict[bytes, Eligible] = OrderedDict()
        self._used = 0  # bytes of them
        self._lock = Lock()

    @cached_property
    def groups(self) -> ItemGroups:
        """The groups of the items."""
        return self._load()

    @property
    def kept(self) -> int:
        """The number of cached masks."""
        return len(self._masks)

    def resolve(self, include: Filter | None = None, exclude: Filter | None = None) -> Narrowing:
        """Resolve a request's filters; None includes everything and excludes nothing.

        Raises:
            UserError: a malformed filter, or unknown column or value.
        """
        wanted = None if include is None else _columns("include", include)
        unwanted = _columns("exclude", exclude or {})
        count = len(self._trie.items)
        if wanted is None and not unwanted.keys() - {ITEM_ID}:
            without = tuple(sorted({*self._known(unwanted.get(ITEM_ID, ()))[0]}))
            if len(without) <= FEW:
                return Narrowing(without, None, count - int(self._listed[list(without)].sum()))
        mask = self._mask(wanted, unwanted)
        return Narrowing((), None if mask.count == count else mask, mask.count)

    def matching(self, given: Filter, field: str) -> NDArray[np.bool_]:  # (V,)
        """Return the items that match every column of a filter, called `field` in messages."""
        kept = np.ones_like(self._listed)
        for name, values in _columns(field, given).items():
            kept &= self._matching(field, name, values)
        return kept

    def _mask(self, wanted: _Columns | None, unwanted: _Columns) -> Eligible:
        key = sha256(repr((_key(wanted), _key(unwanted))).encode()).digest()
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        kept = self.matching(wanted or {}, "include")
        for name, values in unwanted.items():
            kept &= ~self._matching("exclude", name, values)
        made = self._trie.eligible(torch.from_numpy(kept).to(self._trie.items.device))
        with self._lock:
            if key in self._masks:  # another thread computed it meanwhile
                return self._masks[key]
            self._masks[key] = made
            self._used += made.memory + OVERHEAD
            while len(self._masks) > 1 and (self._used > self._memory or len(self._masks) > MOST):
                self._used -= self._masks.popitem(last=False)[1].memory + OVERHEAD
        return made

    def _matching(self, field: str, name: str, values: tuple[GroupValue, ...]) -> NDArray[np.bool_]:
        matching = np.zeros_like(self._listed)
        if name == ITEM_ID:
            matching[self._known(values)[0]] = True
        else:
            self.groups.check(name, f"{field}.{name}")
            for value in values:
                matching[self.groups.items(name, value, f"{field}.{name}")] = True
        return matching


def why_short(narrowing: Narrowing | None, wanted: int, found: int, ruled: bool = False) -> str | None:
    """Return why a list is shorter than requested, or None; `ruled`: rules may leave out what is eligible."""
    if found >= wanted or (narrowing is None and not ruled):
        return None
    if narrowing is None:
        return f"rules and the history leave {found} items"
    if ruled and narrowing.left > found:
        return f"rules and the history leave {found} of the {narrowing.left:,} eligible items"
    if narrowing.left == 0:
        return "no item is eligible"
    if found == 0:
        return "no eligible item is left"
    return "only 1 eligible item is left" if found == 1 else f"only {found} eligible items are left"


def parse_filter(words: Sequence[str], option: str) -> dict[str, list[GroupValue]] | None:
    """Parse a command line's filter; None without words.

    Args:
        words: each `column=value`, a .json file with a filter, or a file with one item id per line.

    Raises:
        UserError: a word is none of these.
    """
    columns: dict[str, list[GroupValue]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name and not names_file(word):
            columns.setdefault(name, []).append(value)
            continue
        path = Path(word)
        file = f"{option} {path}"
        try:
            text = path.read_text(encoding="utf-8-sig")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            content = json.loads(text) if path.suffix == ".json" else lines
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: is no column=value and no readable file of item ids or JSON filter") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: is no JSON ({error})") from error
        for name, values in _columns(file, content).items():
            columns.setdefault(name, []).extend(values)
    return columns if words else None


def _columns(field: str, given: object) -> _Columns:
    if isinstance(given, Mapping):
        named = {str(name): values if _is_list(values) else [values] for name, values in given.items()}
    elif _is_list(given):
        named = {ITEM_ID: given}
    else:
        raise UserError(f'{field}: is {given!r:.60}; give item ids, or columns such as {{"category": ["toys"]}}')
    for name, values in named.items():
        for value in values:
            if not isinstance(value, str | int | np.integer):
                key = field if name == ITEM_ID else f"{field}.{name}"
                raise UserError(f"{key}: {value!r:.60} is no text, whole number, true or false")
    return {name: tuple(values) for name, values in named.items()}


def _is_list(value: object) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def filter_key(given: Filter) -> object:
    """Return a JSON-able key, equal for filters of one meaning."""
    return _key(_columns("", given))


def _key(columns: _Columns | None) -> object:
    if columns is None:
        return None
    return tuple(
        sorted(
            (name, tuple(sorted({(isinstance(v, bool), str(v)) for v in values}))) for name, values in columns.items()
        )
    )
