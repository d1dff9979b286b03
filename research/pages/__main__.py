"""Write the tables and charts of README.md, docs/ and research/ from the rows of the studies.

python -m research.pages                  writes what is out of date
python -m research.pages --check          writes nothing, ends with 2 if something is
python -m research.pages --rows FILE      prints one table of a results.jsonl: means over seeds, test cases
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.report.tables import to_markdown
from research.pages.documents import figures_into, tables_into
from research.pages.intervals import intervals_into
from research.pages.results import results_file_table

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs", "research")


def main(root: Path = ROOT) -> int:
    """Run the command line on a copy of the project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="print the table of these rows and do nothing else")
    options = parser.parse_args()
    try:
        if options.rows is not None:
            print(to_markdown(results_file_table(options.rows)))
            return 0
        changed = intervals_into(root / "research", check=options.check)
        changed += tables_into(root / "research", [root / place for place in PAGES], check=options.check)
        changed += figures_into(root / "research", check=options.check)
    except UserError as error:
        print(f"research.pages: {error}", file=sys.stderr)
        return 2
    print(f"written: {', '.join(str(path) for path in changed) or 'nothing, all up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
