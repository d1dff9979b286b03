"""Downloads to a sealed folder of one set, after its content was compared with what was published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo import __version__
from adagrpo.errors import UserError
from adagrpo.storage.artifacts import check_replaceable, publish, seal
from adagrpo.storage.hashes import hash_file, hash_json
from adagrpo.storage.writing import naming, remove, temporary
from examples.datasets.downloads import Downloads
from examples.datasets.published import Comparison, Converted, PublicSet, compared

__all__ = ["KIND", "convert"]

KIND = "public data"  # of the manifest of a folder
SCHEMA = 1  # raised when a reader makes something else of the same files


def convert(
    name: str,
    sets: Mapping[str, PublicSet],
    downloads: Sequence[Path],
    out: Path,
    *,
    unchecked: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make the folder of a set.

    Args:
        name: of the set.
        sets: the table of sets.
        downloads: files, folders or archives, as they were downloaded.
        out: a new folder, or one that this made before.
        unchecked: write also what is not the published set, and say so.
        tell: is told what is being done.

    Returns:
        set, folder, counts, notes, problems (none unless `unchecked`), files with rows, the next command.

    Raises:
        UserError: no such set, a download is missing or broken, `out` is not to be replaced, or the content is not the
            published one.
    """
    chosen = sets.get(name)
    if chosen is None:
        raise UserError(f"{name}: no such set; there are {', '.join(sets)}")
    check_replaceable(out, KIND)
    given = Downloads(downloads, chosen.downloads, tell)
    made = chosen.read(given)
    wrong = given.published_md5()
    found = compared(chosen, made)
    found = Comparison((*found.problems, *wrong), found.notes)
    if found.problems and not unchecked:
        raise UserError(
            f"{name}: {'; '.join(found.problems)}; another version, or a truncated download;"
            f" {given.expected()}; --unchecked writes it all the same"
        )
    _write(chosen, made, found, given.files, out)
    return {
        "set": name,
        "folder": str(out),
        "counts": dict(made.counts),
        "notes": list(found.notes),
        "problems": list(found.problems),
        "files": {file: len(table) for file, table in made.tables.items()},
        "next": f"adagrpo run recipes/{chosen.recipe} --data {out} --out runs/{name}" if chosen.recipe else None,
    }


def _write(chosen: PublicSet, made: Converted, found: Comparison, files: Sequence[Path], out: Path) -> None:
    """Write beside the place, seal, and rename. What it was made from is in `source.json`."""
    sources = {path.name: {"size": path.stat().st_size, "sha256": hash_file(path)} for path in files}
    source = {
        "set": chosen.name,
        "what": chosen.what,
        "page": chosen.page,
        "terms": chosen.terms,
        "made_by": f"adagrpo {__version__}",
        "from": sources,
        "counts": dict(made.counts),
        "notes": list(found.notes),
        "problems": list(found.problems),
    }
    work = temporary(out)
    work.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    try:
        for name, table in made.tables.items():
            with naming(work / name):
                table.write_parquet(work / name, compression="zstd")
        with naming(work / "source.json"):
            (work / "source.json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
        seal(work, kind=KIND, fingerprint=hash_json({"set": chosen.name, "schema": SCHEMA, "from": sources}))
        publish(work, out)
    finally:
        remove(work, lambda name: True)
