"""Versions of a run's catalogue: which there are, which one is meant, and what differs between two.

    tokenize/              version 0, the one that the policies were trained with
    catalogs/NNNN/         versions 1, 2, ..., see `adagrpo.pipeline.catalog_update`
        codes.parquet, codes.json     codes of all items, and which of them are listed
        items.parquet                 item, item_id, text, attributes; the items of `prepare/` first, in their order
        neighbours.parquet            item, neighbour, weight: what each item that came later is like
        version.json                  number, version, parent, and counts

A version is called by its number and the hash of its content, `0003-1f0c4a7be2d9`: item ids, codes, and what is listed.
An item keeps its row for good, so that trained weights stay aligned; one that was delisted is not in the tree of codes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from adagrpo.data.columns import ITEM, ITEM_ID
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.semantic_ids import Catalog

CATALOGS, LATEST = "catalogs", "latest"
DIGITS = 12  # of the hash, in a name


@dataclass(frozen=True)
class CatalogVersion:
    """One version of the catalogue of a run. Every file is held against its manifest before it is read."""

    run: RunDirectory
    number: int

    @property
    def stage(self) -> str:
        """The stage that it is."""
        return f"{CATALOGS}/{self.number:04d}" if self.number else "tokenize"

    @property
    def files(self) -> list[Path]:
        """The codes, and the sizes of their levels."""
        return [self.run.path(*self.stage.split("/"), name) for name in ("codes.parquet", "codes.json")]

    @cached_property
    def codes(self) -> Catalog:
        """Codes of all items, on the CPU."""
        for path in self.files:
            self.run.hash_input(path)
        return Catalog.read(self.files[0])

    @cached_property
    def items(self) -> pl.DataFrame:
        """The item table: item, item_id, text, attributes."""
        folder = self.stage.split("/") if self.number else ["prepare"]
        return pl.read_parquet(self.run.checked(*folder, "items.parquet"))

    @property
    def item_ids(self) -> pl.Series:
        """(V,) ids of the logs, in the order of items."""
        return self.items[ITEM_ID]

    @cached_property
    def trained(self) -> int:
        """The number of items that the weights of the run know, the first ones."""
        return len(pl.read_parquet(self.run.checked("prepare", "items.parquet"), columns=[ITEM_ID]))

    @cached_property
    def neighbours(self) -> pl.DataFrame:
        """The neighbours of each item that came later: item, neighbour, weight."""
        if self.number:
            return pl.read_parquet(self.run.checked(*self.stage.split("/"), "neighbours.parquet"))
        return pl.DataFrame(schema={ITEM: pl.Int32, "neighbour": pl.Int32, "weight": pl.Float32})

    @property
    def borrowed(self) -> sparse.csr_array | None:
        """(V - trained, trained) the neighbours as rows of weights; None where no item came later."""
        if len(self.items) == self.trained:
            return None
        table = self.neighbours
        rows = table[ITEM].to_numpy().astype(np.int64) - self.trained
        entries = (table["weight"].to_numpy(), (rows, table["neighbour"].to_numpy()))
        return sparse.csr_array(entries, shape=(len(self.items) - self.trained, self.trained))

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of version.json."""
        if self.number:
            return self.run.content(*self.stage.split("/"), "version.json")
        name = f"0000-{content_hash(self.item_ids, self.codes)[:DIGITS]}"
        items = len(self.items)
        return {"number": 0, "version": name, "parent": None, "items": items, "listed": items}

    @property
    def name(self) -> str:
        """The name of the version."""
        return str(self.about["version"])


def content_hash(item_ids: pl.Series, catalog: Catalog) -> str:
    """The sha256 of what a version is: ids, codes, and what is listed."""
    digest = hashlib.sha256(json.dumps([item_ids.to_list(), catalog.level_sizes]).encode())
    digest.update(np.ascontiguousarray(catalog.codes.cpu().numpy(), dtype="<i8").tobytes())
    digest.update(np.packbits(catalog.listed.cpu().numpy()).tobytes())
    return digest.hexdigest()


def catalog_versions(run: RunDirectory) -> list[CatalogVersion]:
    """All versions of a run, the first one first."""
    names = [name.removeprefix(f"{CATALOGS}/") for name in run.finished(f"{CATALOGS}/*")]
    return [CatalogVersion(run, number) for number in (0, *sorted(int(name) for name in names if name.isdecimal()))]


def open_version(run: RunDirectory, which: str | int = LATEST) -> CatalogVersion:
    """The version that is meant.

    Args:
        which: `latest`, a number, or a name as `CatalogVersion.name` has it.

    Raises:
        UserError: there is none, or its name has another hash.
    """
    versions, which = catalog_versions(run), str(which)
    if which == LATEST:
        return versions[-1]
    number, _, digits = which.partition("-")
    wanted = number.lstrip("0") or number[:1]  # 0003 is 3; compared as text, however long it is
    found = [one for one in versions if wanted == str(one.number)]
    if not found:
        last = versions[-1].number
        there = "0 alone" if last == 0 else f"0 to {last}"
        raise UserError(f"catalogue '{which}': no such version in {run.called}; there is {there}, and {LATEST}")
    if digits and found[0].name != f"{found[0].number:04d}-{digits}":
        raise UserError(f"catalogue '{which}': version {found[0].number} of {run.called} is {found[0].name}")
    return found[0]


def evaluate_with(run: RunDirectory, which: str) -> None:
    """Have a run that goes on from another one evaluate a version of its catalogue, from now on.

    Args:
        run: opened with a directory of its own for what is written (`adagrpo evaluate --out`).
        which: see `open_version`.

    Raises:
        UserError: there is no such version, the run is not another one's, or is about another version already.
    """
    version = open_version(run, which)
    if run.source is None and version.number != run.catalog:
        raise UserError(
            "--catalog: what a run measures is of the catalogue that it was trained with; give --out, another run "
            "directory, for what is measured with another"
        )
    if run.catalog not in (0, version.number):
        raise UserError(f"{run.directory}: is about version {run.catalog} of the catalogue; --out takes a new folder")
    run.catalog = version.number
    run.note("catalog", version.number)


def catalog_diff(before: CatalogVersion, after: CatalogVersion) -> dict[str, Any]:
    """Compare two versions, in the ids of the logs.

    Returns:
        JSON-able: `before`, `after`, and lists of ids: `added` (listed, where the other does not have it), `removed`
        (had and listed before, not had after), `delisted`, `relisted`; `moved`, a list of id, codes before and after.
    """
    tables = [
        one.items.select(
            ITEM_ID,
            pl.Series("codes", one.codes.codes.tolist(), dtype=pl.List(pl.Int64)),
            pl.Series("listed", one.codes.listed.numpy()),
        )
        for one in (before, after)
    ]
    both = tables[0].join(
        tables[1], on=ITEM_ID, how="full", suffix="_after", coalesce=True, maintain_order="left_right"
    )
    was, now = both["listed"].fill_null(False), both["listed_after"].fill_null(False)
    had, has = both["codes"].is_not_null(), both["codes_after"].is_not_null()
    names = both[ITEM_ID]
    moved = both.filter(had & has & (both["codes"] != both["codes_after"]).fill_null(False))
    return {
        "before": before.name,
        "after": after.name,
        "added": names.filter(~had & now).to_list(),
        "removed": names.filter(was & ~has).to_list(),
        "delisted": names.filter(was & ~now & has).to_list(),
        "relisted": names.filter(had & ~was & now).to_list(),
        "moved": [
            {"item_id": item, "before": old, "after": new}
            for item, old, new in moved.select(ITEM_ID, "codes", "codes_after").rows()
        ],
    }
