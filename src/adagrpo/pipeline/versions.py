"""Versions of a run's catalogue.

    tokenize/              version 0, used in training
    catalogs/NNNN/         versions 1, 2, ..., see `adagrpo.pipeline.catalog_update`
        codes.parquet, codes.json     codes of all items, and which are listed
        items.parquet                 item, item_id, text, attributes; items of `prepare/` first, in their order
        neighbours.parquet            item, neighbour, weight, of added items
        version.json                  number, version, parent, and counts

Names are number and content hash, `0003-1f0c4a7be2d9`. Items keep their row, aligned with trained weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from adagrpo.data.columns import ITEM, ITEM_ID
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, finished_stages, hash_of, place_of
from adagrpo.pipeline.stage import Read
from adagrpo.semantic_ids import Catalog

CATALOGS, LATEST = "catalogs", "latest"
DIGITS = 12  # of the hash in a name


@dataclass(frozen=True)
class CatalogVersion:
    """One catalogue version; files are verified when read."""

    run: RunDirectory
    number: int

    @property
    def stage(self) -> str:
        """Name of its stage."""
        return f"{CATALOGS}/{self.number:04d}" if self.number else "tokenize"

    @property
    def files(self) -> list[Read]:
        """Files of the codes and level sizes."""
        return [f"{self.stage}:{name}" for name in ("codes.parquet", "codes.json")]

    @cached_property
    def codes(self) -> Catalog:
        """Codes of all items, on the CPU."""
        for file in self.files:
            hash_of(self.run, file)
        return Catalog.read(place_of(self.run, self.files[0]))

    @cached_property
    def items(self) -> pl.DataFrame:
        """Item table: item, item_id, text, attributes."""
        folder = self.stage.split("/") if self.number else ["prepare"]
        return pl.read_parquet(self.run.checked(*folder, "items.parquet"))

    @property
    def item_ids(self) -> pl.Series:
        """(V,) ids of the logs, in row order."""
        return self.items[ITEM_ID]

    @cached_property
    def trained(self) -> int:
        """Number of items in training, the first rows."""
        return len(pl.read_parquet(self.run.checked("prepare", "items.parquet"), columns=[ITEM_ID]))

    @cached_property
    def neighbours(self) -> pl.DataFrame:
        """Neighbours of added items: item, neighbour, weight."""
        if self.number:
            return pl.read_parquet(self.run.checked(*self.stage.split("/"), "neighbours.parquet"))
        return pl.DataFrame(schema={ITEM: pl.Int32, "neighbour": pl.Int32, "weight": pl.Float32})

    @property
    def borrowed(self) -> sparse.csr_array | None:
        """(V - trained, trained) neighbour weights; None without added items."""
        if len(self.items) == self.trained:
            return None
        table = self.neighbours
        rows = table[ITEM].to_numpy().astype(np.int64) - self.trained
        entries = (table["weight"].to_numpy(), (rows, table["neighbour"].to_numpy()))
        return sparse.csr_array(entries, shape=(len(self.items) - self.trained, self.trained))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Content of version.json."""
        if self.number:
            return self.run.content(*self.stage.split("/"), "version.json")
        name = f"0000-{content_hash(self.item_ids, self.codes)[:DIGITS]}"
        items = len(self.items)
        return {"number": 0, "version": name, "parent": None, "items": items, "listed": items}

    @property
    def name(self) -> str:
        """Number and hash of the version."""
        return str(self.about["version"])


def content_hash(item_ids: pl.Series, catalog: Catalog) -> str:
    """Return the sha256 of ids, codes and listing."""
    digest = hashlib.sha256(json.dumps([item_ids.to_list(), catalog.level_sizes]).encode())
    digest.update(np.ascontiguousarray(catalog.codes.cpu().numpy(), dtype="<i8").tobytes())
    digest.update(np.packbits(catalog.listed.cpu().numpy()).tobytes())
    return digest.hexdigest()


def catalog_versions(run: RunDirectory) -> list[CatalogVersion]:
    """Return all versions of a run, oldest first."""
    names = [name.removeprefix(f"{CATALOGS}/") for name in finished_stages(run, f"{CATALOGS}/*")]
    return [CatalogVersion(run, number) for number in (0, *sorted(int(name) for name in names if name.isdecimal()))]


def open_version(run: RunDirectory, which: str | int = LATEST) -> CatalogVersion:
    """Return a version by `latest`, number or full name, whose hash must match."""
    versions, which = catalog_versions(run), str(which)
    if which == LATEST:
        return versions[-1]
    number, _, digits = which.partition("-")
    wanted = number.lstrip("0") or number[:1]  # 0003 is 3; compared as text, of any length
    found = [one for one in versions if wanted == str(one.number)]
    if not found:
        last = versions[-1].number
        there = "0 alone" if last == 0 else f"0 to {last}"
        raise UserError(f"catalogue '{which}': no such version in {run.called}; there is {there}, and {LATEST}")
    if digits and found[0].name != f"{found[0].number:04d}-{digits}":
        raise UserError(f"catalogue '{which}': version {found[0].number} of {run.called} is {found[0].name}")
    return found[0]


def evaluate_with(run: RunDirectory, which: str) -> None:
    """Set the catalogue version that a continued run evaluates; see `open_version`."""
    version = open_version(run, which)
    if run.source is None and version.number != run.catalog:
        raise UserError(
            "--catalog: what a run measures is of the catalogue that it was trained with; give --out, another run "
            "directory, for what is measured with another"
        )
    if run.catalog not in (0, version.number):
        raise UserError(f"{run.directory}: is about version {run.catalog} of the catalogue; --out takes a new folder")
    run.catalog = version.number
    run.noted["catalog"] = version.number


def catalog_diff(before: CatalogVersion, after: CatalogVersion) -> dict[str, Any]:
    """Compare two versions, in ids of the logs.

    Returns:
        JSON-able: `before`, `after`, and ids: `added` (listed, not in the other version), `removed` (listed before,
        absent after), `delisted`, `relisted`, `moved` (with codes before and after).
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
