"""Convert official downloads of public sets into the folders that the recipes read; without a name, list the sets.

python -m examples.datasets
python -m examples.datasets amazon-beauty --from FILE... --out DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.stopping import terminable
from examples.datasets import SETS, convert, described, listing


def main() -> None:
    """Do what the command line asks for; bad input is one line on stderr, and the status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the set; without one, all are listed")
    parser.add_argument(
        "--from",
        dest="downloads",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="official downloads: files, archives or folders",
    )
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument("--list", dest="show", action="store_true", help="only say what there is to know of the set")
    parser.add_argument("--unchecked", action="store_true", help="write it though it is not the published version")
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    try:
        print(_answer(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _answer(given: argparse.Namespace) -> str:
    if given.name is None or given.show:
        sets = described([] if given.name is None else [given.name])
        return json.dumps({"sets": sets}) if given.as_json else listing(sets)
    described([given.name])  # or say that there is no such set
    if given.out is None:
        command = f"python -m examples.datasets {given.name} --list"
        raise UserError(f"{given.name}: needs --out, the folder to write; `{command}` says from what")

    def tell(text: str) -> None:
        if not given.quiet and sys.stderr.isatty():  # elsewhere what is wrong is the only line
            print(text, file=sys.stderr)

    with terminable():
        made = convert(given.name, SETS, given.downloads, given.out, unchecked=given.unchecked, tell=tell)
    return json.dumps(made) if given.as_json else _said(made)


def _said(made: dict[str, Any]) -> str:
    """What was converted, how it compares with what was published, and the next command."""
    counts = ", ".join(f"{count:,} {what}" for what, count in made["counts"].items())
    lines = [f"{made['set']}: {counts}", *made["notes"], *(f"not as published: {one}" for one in made["problems"])]
    return "\n".join([*lines, f"folder: {made['folder']}", *([f"next: {made['next']}"] if made["next"] else [])])


if __name__ == "__main__":
    main()
