"""Count which differences of the trial stay significant, by how many tests Holm's correction covers.

    python -m research.fair_trial.corrected     prints the table of README.md

A comparison has two families: its arms against continued NLL, and its pairs of gates, each at both checkpoints. The
verdicts of its page are corrected within a family. Here the same p-values are corrected within it, over both families
of a set, over the seven sets' arms, over all tests of the seven sets, and over every comparison in this folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.report.comparison_page import read_comparison
from adagrpo.report.tables import Table, to_text
from adagrpo.statistics import holm

__all__ = ["Difference", "corrected_table", "differences_in", "read_differences"]

LEVEL = 0.05
SETS = ("amazon18-scientific", "amazon-beauty", "amazon-toys", "lastfm", "ml-1m", "yelp", "kuairand-clicks")


class Difference(NamedTuple):
    """One p-value of a comparison: an arm against continued NLL, or a pair of arms."""

    comparison: str
    arm: str
    other: str  # empty: continued NLL
    checkpoint: str
    difference: float
    p_value: float


def differences_in(name: str, content: Mapping[str, Any]) -> list[Difference]:
    """List the tests of a comparison.

    Args:
        name: of its file, without the ending.
        content: of `comparison.json`.
    """
    rows = [row for row in content["rows"] if row["p_holm"] is not None]
    metric = content["plan"]["metric"]
    return [
        Difference(name, row["arm"], row.get("other", ""), row["checkpoint"], cell["difference"], cell["p"])
        for row in (*rows, *content.get("pairs", ()))
        for cell in (row["against"][metric],)
    ]


def corrected_table(tests: Sequence[Difference], trials: Sequence[str]) -> Table:
    """Make one row for each family of tests that the correction may cover: what is significant at the last step.

    Args:
        tests: of all comparisons.
        trials: the comparisons whose arms and pairs are counted; the others are in the last row alone.
    """
    inside = [test for test in tests if test.comparison in trials]
    by_set = [[test for test in inside if test.comparison == name] for name in trials]
    gains = [[test for test in one if not test.other] for one in by_set]
    pairs = [[test for test in one if test.other] for one in by_set]
    families = (
        ("arms of a set, pairs of a set", [*gains, *pairs]),
        ("arms and pairs of a set", by_set),
        (
            "arms of the seven sets, pairs of the seven sets",
            [[one for one in inside if not one.other], [one for one in inside if one.other]],
        ),
        ("arms and pairs of the seven sets", [inside]),
        ("every comparison of the study", [list(tests)]),
    )
    header: tuple[str, ...] = (
        "corrected over",
        "tests",
        "trained arms above NLL",
        "re-ranking above NLL",
        "either gate below none",
    )
    header += ("the gate apart from the random one",)
    lines = tuple((label, _sizes(family), *_counted(family, trials)) for label, family in families)
    return Table(header, lines, ("left", "right", "left", "left", "left", "right"))


def read_differences(folder: Path) -> list[Difference]:
    """Read the tests of every comparison in a folder."""
    files = {path.name.removesuffix(".comparison.json"): path for path in sorted(folder.glob("*.comparison.json"))}
    return [test for name, path in files.items() for test in differences_in(name, read_comparison(path))]


def _sizes(families: Sequence[Sequence[Difference]]) -> str:
    return ", ".join(dict.fromkeys(str(len(family)) for family in families))


def _counted(families: Iterable[Sequence[Difference]], trials: Sequence[str]) -> tuple[str, ...]:
    """What is significant among the last steps of the trials; re-ranking has its one checkpoint."""
    significant = [
        test
        for family in families
        for test, p in zip(family, holm([test.p_value for test in family]), strict=True)
        if p <= LEVEL and test.comparison in trials and (test.checkpoint == "final" or test.arm == "rerank")
    ]
    up = [test for test in significant if not test.other and test.difference > 0]
    return (
        _by_set([test for test in up if test.arm != "rerank"]),
        _by_set([test for test in up if test.arm == "rerank"]),
        _by_set([test for test in significant if test.difference < 0 and _is_ungated(test.other)]),
        str(sum(test.arm.endswith("-gate") and test.other.endswith("-random") for test in significant)),
    )


def _is_ungated(arm: str) -> bool:
    return bool(arm) and not arm.endswith(("-gate", "-random"))


def _by_set(tests: Sequence[Difference]) -> str:
    names = [test.comparison.removeprefix("trial-") for test in tests]
    each = ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
    return f"{len(names)}: {each}" if names else "0"


if __name__ == "__main__":
    print(to_text(corrected_table(read_differences(Path(__file__).parent), [f"trial-{name}" for name in SETS])))
