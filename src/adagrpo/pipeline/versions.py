"""Versions of a run's catalogue: 0, in `tokenize/`, is of training, later ones are in `catalogs/NNNN/`.

Names are number and content hash, `0003-1f0c4a7be2d9`. Items keep their row, aligned with trained weights.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from adagrpo.data.columns import ITEM_ID
from adagrpo.errors import UserError
from adagrpo.pipeline.directory import RunDirectory, finished_stages
from adagrpo.pipeline.files import CATALOGS, CatalogVersion

LATEST = "latest"


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


def catalog_diff(before: CatalogVersion, after: CatalogVersion) -> dict[str, Any]:
    """Compare two versions, JSON-able, in ids of the logs.

    `added` are listed and not in the other version, `removed` listed before and absent after, `moved` has both codes.
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
