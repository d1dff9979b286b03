"""Roles of log files, given by options or detected from columns; files of a role have the same columns."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from adagrpo.cli.lazy import library
from adagrpo.errors import UserError

RoledFiles = Annotated[
    list[Path] | None,
    typer.Argument(help="Log files, or folders of them, also of impressions and items; columns say which is which."),
]
Orders = Annotated[
    list[Path] | None,
    typer.Option("--orders", help="Log files whose every row is an interaction, which the policy learns from."),
]
Impressions = Annotated[
    list[Path] | None,
    typer.Option("--impressions", help="Log files of what was shown, clicked or not, which rankers learn from."),
]
Exposures = Annotated[
    Path | None, typer.Option("--exposures", help="The exposure log of a service: what it showed to the logs' users.")
]
RandomExposures = Annotated[
    list[Path] | None, typer.Option("--random", help="Log files of what was shown at random, which judge the lists.")
]
UserKeyFile = Annotated[
    Path | None, typer.Option("--user-key-file", help="The key that the service hashed its users with.")
]
ItemFile = Annotated[Path | None, typer.Option("--items", help="A table of the items, with titles or attributes.")]
LEARN = {"orders": "the policy", "impressions": "the ranker"}


class LogRoles(NamedTuple):
    """Files by role."""

    logs: list[Path]  # training logs
    impressions: list[Path]  # in addition to logs
    exposures: Path | None
    items: Path | None
    user_key: Path | None
    notes: list[str]  # on detected roles
    random: Sequence[Path] = ()

    def beside(self, columns: Mapping[str, str], *, publish: bool = True) -> dict[str, Any]:
        """Return the keys of `data` for everything but the logs; `publish` as in `latest_exposures`."""
        found: dict[str, Any] = {}
        if self.impressions:
            logs = [str(path.resolve()) for path in self.impressions]
            found["impressions"] = {"logs": logs, "columns": dict(columns)}
        if self.random:
            logs, read = [str(path.resolve()) for path in self.random], ("user", "item", "clicked")
            columns = library.preview.roles_of(self.random[0], {})
            found["random"] = {"logs": logs, "columns": {role: columns[role] for role in read if role in columns}}
        if self.exposures is not None:
            found["exposures"] = library.pipeline.latest_exposures(self.exposures, publish=publish)
            if self.user_key is not None:
                found["exposures"]["user_key_file"] = str(self.user_key.resolve())
        return found


def by_role(
    files: Sequence[Path] | None,
    orders: Sequence[Path] | None = None,
    impressions: Sequence[Path] | None = None,
    exposures: Path | None = None,
    items: Path | None = None,
    user_key: Path | None = None,
    random: Sequence[Path] | None = None,
    *,
    given: Mapping[str, str] | None = None,
    kept: bool = False,
) -> LogRoles:
    """Sort files by role; `given` are known columns by role, and `kept` says that they are added to existing logs."""

    def look(path: Path) -> dict[str, str]:
        columns = library.formats.columns_of(path)
        return library.preview.roles_of(path, {role: name for role, name in (given or {}).items() if name in columns})

    files, notes = list(files or ()), list[str]()
    by_kind: dict[str, list[Path]] = {"orders": list(orders or ()), "impressions": list(impressions or ())}
    for path in list(files):
        marked = path.is_dir() and library.marks.is_marked(path)
        if exposures is None and marked and library.marks.read_mark(path).get("kind") in (None, "exposure log"):
            exposures = path
            files.remove(path)
            notes.append(f"note: {path} is a folder that a service logs into: it is taken for --exposures")

    def within(paths: Sequence[Path]) -> list[Path]:
        found = {path: library.formats.files_of([path]) for path in paths}
        for path, parts in found.items():
            if parts != [path]:
                notes.append(f"note: {len(parts)} {'files are' if len(parts) > 1 else 'file is'} read of {path}")
        return [part for path in paths for part in found[path]]

    files, random = within(files), within(random or ())
    by_kind = {kind: within(paths) for kind, paths in by_kind.items()}
    for path in by_kind["orders"]:
        if (clicked := look(path).get("clicked")) is not None:
            raise UserError(
                f"{path}: has a column of clicks, '{clicked}', so not every row is an order; give --impressions"
                f" {shlex.quote(str(path))}, or the file without an option as the only log"
            )
    seen = {path: look(path) for path in files} if len(files) > 1 or any(by_kind.values()) else {}
    table = items
    for path, roles in list(seen.items()):
        if len(files) > 1 and roles.keys() <= (given or {}).keys() and not library.preview.has_rows(path):
            files.remove(path)  # an engine writes such a part too; its values cannot say what its columns are
            del seen[path]
            notes.append(f"note: {path} has no rows")
        elif table is None and "item" in roles and "user" not in roles:
            if items is not None:
                raise UserError(
                    f"{path}: has no column of users, as {items}, which is taken for --items: give one table of the"
                    " items, or say which column is the user's, --set data.columns.user=NAME"
                )
            items = path
            files.remove(path)
            notes.append(f"note: {path} has no column of users: it is taken for --items")
    kinds = {path: "impressions" if "clicked" in seen.get(path, ()) else "orders" for path in files}
    if any(by_kind.values()) or len({*kinds.values()}) > 1:
        for kind in dict.fromkeys(kinds.values()):
            first, *more = (path for path in files if kinds[path] == kind)
            column = seen[first].get("clicked")
            clicks = "no column of clicks" if column is None else f"a column of clicks, '{column}'"
            which = (
                f"{first} has {clicks}: it is" if not more else f"{first} and {len(more)} more have {clicks}: they are"
            )
            notes.append(f"note: {which} taken for --{kind}, {LEARN[kind]} learns from {'them' if more else 'it'}")
            by_kind[kind] += [first, *more]
    else:  # all of one kind: the logs
        by_kind["orders"] = files
    alike: dict[str, Path] = {}  # the first file of each kind
    for path, roles in ((path, roles) for path, roles in seen.items() if path in kinds):
        like = alike.setdefault(kinds[path], path)
        if unlike := [role for role in {**seen[like], **roles} if seen[like].get(role) != roles.get(role)]:
            has, have = (
                ", ".join(f"'{one[role]}' ({role})" if role in one else f"no {role}" for role in unlike)
                for one in (roles, seen[like])
            )
            raise UserError(
                f"{path}: has {has} where {like} has {have}; files of one role have the same columns: say which is"
                " which, --orders FILE, --impressions FILE, --items FILE"
            )
    if not by_kind["orders"] and not kept:
        other = next(iter(by_kind["impressions"]), exposures)
        raise UserError(
            "give log files, or --orders FILE"
            if other is None
            else f"{other}: stands beside orders, which say who and what there is; give --orders FILE too"
        )
    learnt = {path.resolve() for paths in by_kind.values() for path in paths}
    if both := [path for path in random or () if path.resolve() in learnt]:
        raise UserError(f"{both[0]}: has the role --random and another one; nothing may learn from what judges lists")
    return LogRoles(by_kind["orders"], by_kind["impressions"], exposures, items, user_key, notes, random or ())
