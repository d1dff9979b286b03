"""The page of some users: what they had, each list beside the others, and what they took next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adagrpo.report.page import Block, Section, page
from adagrpo.report.tables import MISSING, Table
from adagrpo.storage.writing import write_file

USERS_PAGE = "users.html"
MARK = "\N{HEAVY CHECK MARK} "


class ShownUser(NamedTuple):
    """A user with a test case; items are texts."""

    user: str
    history: Sequence[str]  # the latest, oldest first
    earlier: int  # items of the history before these
    wanted: Sequence[str]  # what the user took next
    lists: Mapping[str, Sequence[tuple[str, bool]]]  # items, best first, and whether the user took them; by list


def write_users(directory: Path, name: str, users: Sequence[ShownUser]) -> Path:
    """Write users.html and return its path."""
    sections = []
    for number, one in enumerate(users):
        names = [*one.lists]
        length = max(map(len, one.lists.values()), default=0)
        rows, hits = [], set()
        for rank in range(length):
            cells = [str(rank + 1)]
            for column, found in enumerate(one.lists.values(), 1):
                title, hit = found[rank] if rank < len(found) else (MISSING, False)
                cells.append(MARK + title if hit else title)
                hits |= {(rank, column)} if hit else set()
            rows.append(tuple(cells))
        had = f"{one.earlier} earlier items, then " if one.earlier else ""
        blocks = [
            Block("p", f"Had: {had}{'; '.join(one.history)}."),
            Block("p", f"Took next: {'; '.join(one.wanted)}."),
            Block("table", Table.of(["rank", *names], rows, left=len(names) + 1, best=hits), f"Lists of {one.user}"),
        ]
        sections.append(Section(f"user-{number + 1}", one.user, blocks, one.user))
    text = (
        f"{len(users)} users, drawn from the test cases by the seed of the run, and the first ten items of each list"
        f" that was measured, the chosen one first. {MARK.strip()} marks what the user took next."
    )
    opening = Section(
        "lists", "Lists of some users", [Block("quiet", text), Block("link", "The report", "report.html")]
    )
    path = directory / USERS_PAGE
    write_file(path, page(f"{name}: lists of some users", name, [opening, *sections]))
    return path
