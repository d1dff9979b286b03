"""What may be converted, said to a person or a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.errors import UserError
from examples.datasets.published import PublicSet
from examples.datasets.sets import SETS

__all__ = ["described", "listing"]


def described(names: Sequence[str] = (), sets: Mapping[str, PublicSet] = SETS) -> list[dict[str, Any]]:
    """The entries of some sets, or of all, as JSON values.

    Raises:
        UserError: there is no set of a name.
    """
    for name in names:
        if name not in sets:
            raise UserError(f"{name}: no such set; there are {', '.join(sets)}")
    return [_entry(sets[name]) for name in names or sets]


def _entry(one: PublicSet) -> dict[str, Any]:
    files = [{"name": f.name, "address": f.address, "size": f.size, "md5": f.md5} for f in one.downloads]
    return {
        "name": one.name,
        "what": one.what,
        "page": one.page,
        "files": files,
        "terms": one.terms,
        "counts": dict(one.counts),
        "recipe": one.recipe,
        "cautions": list(one.cautions),
    }


def listing(entries: Sequence[Mapping[str, Any]]) -> str:
    """Entries in lines: an address must be one line to be copied, so there is no table with columns."""
    blocks = []
    for one in entries:
        counts = ", ".join(f"{count:,} {what}" for what, count in one["counts"].items())
        lines = [f"{one['name']}: {one['what']}", f"  expected  {counts}", f"  terms     {one['terms']}"]
        lines += [f"  page      {one['page']}"]
        lines += [f"  file      {_file(file)}" for file in one["files"]]
        lines += [f"  recipe    recipes/{one['recipe']}"] if one["recipe"] else []
        blocks.append("\n".join([*lines, *(f"  caution   {caution}" for caution in one["cautions"])]))
    return "\n\n".join([*blocks, "convert: python -m examples.datasets NAME --from FILE... --out DIR"])


def _file(file: Mapping[str, Any]) -> str:
    facts = [file["size"] or "", f"md5 {file['md5']}" if file["md5"] else ""]
    told = ", ".join(filter(None, facts))
    shown = file["address"] if file["address"].endswith(file["name"]) else f"{file['address']} ({file['name']})"
    return f"{shown}{f' ({told})' if told else ''}"
