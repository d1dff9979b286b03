"""Make a new version of a run's catalogue without training.

A new item gets the next row, codes near similar items (`adagrpo.semantic_ids.placement`) and the mean of their per-item
parameters; earlier additions are placed again where there are interactions. Repeating a request changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.data.columns import ATTRIBUTES, GROUPS, ITEM, ITEM_ID, TEXT, USER_ID
from adagrpo.data.logs.interactions import Refusals
from adagrpo.data.prepared import ITEM_COLUMNS, stack_columns
from adagrpo.errors import UserError, first_of
from adagrpo.pipeline.checks import check
from adagrpo.pipeline.directory import RunDirectory, locked
from adagrpo.pipeline.files import CATALOGS, DIGITS, CatalogVersion, RunData, content_hash
from adagrpo.pipeline.json_files import write_json
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.prepare import log_source, note_lost
from adagrpo.pipeline.stages.tokenize import ENCODED, item_vectors, language_model_folder
from adagrpo.pipeline.staleness import parts_of
from adagrpo.pipeline.versions import LATEST, catalog_versions, open_version
from adagrpo.readers.cells import id_texts
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import columns_of, names_file
from adagrpo.semantic_ids.catalog import Catalog, numbers_items
from adagrpo.semantic_ids.embeddings import words
from adagrpo.semantic_ids.language import language_vectors
from adagrpo.semantic_ids.placement import free_codes, nearest_documents, nearest_of, seen_together, weights_of
from adagrpo.semantic_ids.quantization import level_means
from adagrpo.storage.hashes import hash_file, hash_json
from adagrpo.types import Ragged

NEIGHBOURS = 3  # nearest texts of a new item
PRIOR = 2.0  # weight of the text, in co-occurrences


class _State(NamedTuple):
    items: pl.DataFrame  # V rows: item, item_id, text, attributes
    codes: NDArray[np.int64]  # (V, L)
    listed: NDArray[np.bool_]  # (V,)
    neighbours: pl.DataFrame  # item, neighbour, weight
    columns: pl.DataFrame  # (V,) columns of the item table as they are, if kept


def update_catalog(
    run: RunDirectory,
    *,
    items: Path | None = None,
    delist: Sequence[str] = (),
    interactions: Sequence[Path] = (),
    start: str = LATEST,
) -> tuple[CatalogVersion, bool]:
    """Make the next version; return it, and whether it is new.

    Args:
        items: a table with the columns of `data.items`; a delisted item gets its old codes.
        delist: ids, or files of ids: a table with the id column, or one id per line.
        start: the version to change, see `adagrpo.pipeline.versions.open_version`.

    Raises:
        UserError: an id or file is invalid, or a new item is similar to nothing.
    """
    if items is None and not delist and not interactions:
        raise UserError("catalog update: nothing to change; give --items, --delist or --interactions")
    with locked(run):
        latest = catalog_versions(run)[-1]
        parent = open_version(run, start)
        check(run, "serve", [parent.stage])
        leaving = _leaving(run, delist)
        request = {
            "start": start,
            "items": None if items is None else _digest(items),
            "delist": hash_json(sorted(leaving)) if leaving else None,
            "interactions": [_digest(path) for path in interactions],
        }
        if latest.number and parts_of(run, measuring=True)[latest.stage].usable:
            of_latest = start == LATEST or latest.about["parent"] == parent.name
            if of_latest and latest.about["request"] == request:
                return latest, False
        codes, there = parent.codes.codes.numpy().copy(), parent.codes.listed.numpy()
        state = _State(parent.items, codes, there, parent.neighbours, parent.item_columns)
        rows = {str(name): row for row, name in enumerate(state.items[ITEM_ID].to_list())}
        came = len(rows)
        if items is not None:
            state = _with_items(run, state, items, rows)
        if unknown := [name for name in leaving if name not in rows]:
            raise UserError(f"--delist: not in the catalogue: {first_of(unknown)}; it takes ids as the logs have them")
        comes = state.listed & ~np.append(there, np.zeros(len(state.listed) - len(there), np.bool_))
        if both := [name for name in leaving if comes[rows[name]]]:
            raise UserError(f"--delist: {both[0]!r} is in {items} too; an item comes or leaves")
        listed = state.listed.copy()
        listed[[rows[name] for name in leaving]] = False
        if not listed.any():
            raise UserError("--delist: no item would be left; a catalogue lists one at least")
        together = _together(run, parent, state, interactions)
        seen = np.flatnonzero(np.diff(together.indptr)) + parent.trained
        moving = np.union1d(seen, np.arange(came, len(state.items))).astype(np.int64)
        near = state.neighbours
        if len(moving):
            weights = likeness(run, state.items, moving, together)
            silent = np.flatnonzero(np.diff(weights.indptr) == 0)
            if len(silent):
                name = state.items[ITEM_ID][int(moving[silent[0]])]
                raise UserError(
                    f"item {name!r}: no word of its text or attributes is in another item's, nor was it seen beside"
                    f" one, and {len(silent) - 1} more; nothing says what it is like"
                )
            state.codes[moving] = codes_near(run, weights, np.delete(state.codes, moving, axis=0))
            kept = near.filter(~pl.col(ITEM).is_in(moving.tolist()))
            near = pl.concat([kept, neighbours_of(moving, weights)]).sort(ITEM, "neighbour")
        catalog = Catalog.from_codes(state.codes, parent.codes.level_sizes, listed)
        digest = content_hash(state.items[ITEM_ID], catalog)
        same = digest[:DIGITS] == parent.name.partition("-")[2] and near.equals(parent.neighbours)
        if same and parent.number == latest.number:  # otherwise the served version would not change
            return parent, False
        number = latest.number + 1
        about = {"number": number, "version": f"{number:04d}-{digest[:DIGITS]}", "parent": parent.name}
        about |= {"items": len(state.items), "listed": int(listed.sum()), "placed": len(moving), "request": request}

        def build(work: Path) -> None:
            catalog.write(work / "codes.parquet")
            state.items.write_parquet(work / "items.parquet")
            near.write_parquet(work / "neighbours.parquet")
            if state.columns.columns:  # those of the first items are the run's, which may be prepared again
                state.columns.slice(parent.trained).write_parquet(work / ITEM_COLUMNS)
            write_json(work / "version.json", about)

        reads = ["prepare:items.parquet", *CatalogVersion(run, 0).files]
        files = ("codes.parquet", "codes.json", "items.parquet", ITEM_COLUMNS, "neighbours.parquet", "version.json")
        made_from = Declaration(build, reads, files, also={"parent": parent.name, "request": request})
        make(run, f"{CATALOGS}/{number:04d}", made_from)
        return CatalogVersion(run, number), True


def _with_items(run: RunDirectory, state: _State, path: Path, rows: dict[str, int]) -> _State:
    """Append new items with codes -1; relist delisted ones."""
    source = log_source(run)
    if source.described is None:
        raise UserError("--items: the recipe has no data.items, which says what the columns of an item table are")
    table = source._replace(items=path).read_items()
    assert table is not None
    note_lost(run, path)
    ids = table[ITEM_ID].cast(pl.String)
    known_rows = np.array([rows.get(name, -1) for name in ids.to_list()])
    there = np.flatnonzero((known_rows >= 0) & state.listed[np.maximum(known_rows, 0)])
    if len(there):
        raise UserError(
            f"{path}: in the catalogue already: item {first_of(ids.gather(there).to_list())}; "
            "--items takes new items, and those that were delisted"
        )
    kind = state.items.schema[ITEM_ID]
    unknown = pl.Series(known_rows < 0)
    new = table.filter(unknown).with_columns(pl.col(ITEM_ID).cast(kind, strict=False))
    wrong = ids.filter(unknown).filter(new[ITEM_ID].cast(pl.String).ne_missing(ids.filter(unknown)))  # "007" is not 7
    if len(wrong):
        raise UserError(f"{path}: item {wrong[0]!r}: the ids of the catalogue are whole numbers")
    numbers = pl.Series(ITEM, np.arange(len(state.items), len(state.items) + len(new)), dtype=state.items.schema[ITEM])
    back = table.filter(~unknown).with_columns(pl.Series(ITEM, known_rows[known_rows >= 0], dtype=numbers.dtype))
    known = state.items
    if GROUPS in known and GROUPS in back:
        now = back.select(ITEM, pl.col(GROUPS).alias("now"))
        joined = known.join(now, on=ITEM, how="left", maintain_order="left")
        known = joined.with_columns(pl.coalesce("now", GROUPS).alias(GROUPS)).drop("now")
    grown = pl.concat([known, new.with_columns(numbers)], how="diagonal")
    rows |= {str(name): len(state.items) + number for number, name in enumerate(new[ITEM_ID].to_list())}
    codes = np.concatenate([state.codes, np.full((len(new), state.codes.shape[1]), -1)])
    listed = np.concatenate([state.listed, np.ones(len(new), np.bool_)])
    listed[known_rows[known_rows >= 0]] = True
    columns = state.columns
    if columns.columns and (read := source._replace(items=path).read_columns()) is not None:
        columns = stack_columns(columns, read.filter(unknown))
    return _State(grown, codes, listed, state.neighbours, columns)


def _together(run: RunDirectory, parent: CatalogVersion, state: _State, files: Sequence[Path]) -> sparse.csr_array:
    """(V - trained, trained) co-occurrence counts."""
    if not files:
        return sparse.csr_array((len(state.items) - parent.trained, parent.trained))
    source = log_source(run)._replace(logs=list(files))
    read = source.read_logs(Refusals())
    names = state.items.select(pl.col(ITEM_ID).cast(pl.String), ITEM)
    table = read.interactions.with_columns(pl.col(ITEM_ID).cast(pl.String)).join(names, on=ITEM_ID, how="inner")
    found, there = len(table), len(read.interactions)
    if not found:
        raise UserError(
            f"--interactions: none of {there:,} interactions is of an item of the catalogue; ids are compared as they"
            " are written"
        )
    if found < there:
        run.console.note(f"note: {there - found:,} of {there:,} interactions are of no item of the catalogue")
    table = table.sort(USER_ID, read.time_key, maintain_order=True)
    counts = table.group_by(USER_ID, maintain_order=True).len()["len"].to_numpy()
    sequences = Ragged(table[ITEM].to_numpy().astype(np.int32), np.concatenate([[0], counts.cumsum()]).astype(np.int64))
    return seen_together(sequences, parent.trained, len(state.items), run.config.tokenizer.window)


def likeness(
    run: RunDirectory,
    items: pl.DataFrame,  # V rows, those of training first
    new: NDArray[np.int64],  # (N,) rows
    together: sparse.csr_array,  # (V - trained, trained)
) -> sparse.csr_array:
    """Return (N, trained) weights of the trained items that new ones are like, if any."""
    trained = together.shape[1]
    tables = [items[:trained], items[new.tolist()]]
    if "language_model" in run.config.tokenizer.vectors and run.path(*ENCODED).is_file():
        texts = tables[1][TEXT].to_list()
        vectors = language_vectors(texts, language_model_folder(run), device=str(RunData(run).device))
        every = pl.read_parquet(run.checked(*ENCODED))["vector"].to_numpy()

        def similarity(rows: slice) -> sparse.csr_array:
            return sparse.csr_array(np.maximum(vectors[rows] @ every.T, 0))

        nearest = nearest_of(len(vectors), len(every), similarity, NEIGHBOURS)
    else:
        documents = [
            [[*words(text), *attributes] for text, attributes in table.select(TEXT, ATTRIBUTES).rows()]
            for table in tables
        ]
        nearest = nearest_documents(documents[0], documents[1], NEIGHBOURS)
    return weights_of(nearest, together[new - trained], PRIOR)


def codes_near(run: RunDirectory, weights: sparse.csr_array, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N, L) free codes near trained items by (N, trained) weights; `taken` (V, L) are not free."""
    first = CatalogVersion(run, 0).codes
    codes = first.codes.numpy()
    meaning = codes[:, :-1] if numbers_items(codes) else codes
    return free_codes(weights, level_means(meaning, item_vectors(run)), first.level_sizes, taken)


def neighbours_of(items: NDArray[np.int64], weights: sparse.csr_array) -> pl.DataFrame:
    """Return the table of neighbours of (N,) items: item, neighbour, weight."""
    entries = weights.tocoo()
    row, neighbour = entries.coords
    order = np.lexsort((neighbour, row))
    return pl.DataFrame(
        [
            pl.Series(ITEM, items[row[order]].astype(np.int32)),
            pl.Series("neighbour", neighbour[order].astype(np.int32)),
            pl.Series("weight", entries.data[order].astype(np.float32)),
        ]
    )


def _leaving(run: RunDirectory, given: Sequence[str]) -> list[str]:
    ids: list[str] = []
    for one in given:
        path = Path(one)
        if not names_file(one):
            if path.suffix in (".txt", ".csv", ".jsonl", ".parquet") and "," not in one:
                raise UserError(f"--delist {one}: no such file")
            ids += [name.strip() for name in one.split(",") if name.strip()]
        elif path.suffix == ".txt":
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--delist {path}: cannot be read as UTF-8 text ({error})") from error
            ids += [line.strip() for line in lines if line.strip()]
        else:
            described = log_source(run).described
            names = [described.id_column if described else ITEM_ID, ITEM_ID]
            column = next((name for name in names if name in columns_of(path)), names[0])
            ids += id_texts(read_table(path, [column], ids=[column])[column]).drop_nulls().to_list()
    return list(dict.fromkeys(ids))


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return hash_file(path)
