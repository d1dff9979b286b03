"""Measure what docs/reliability.md promises, and write the figures into it.

    python -m benchmarks.reliability [--only NAME ...] [--results FILE] [--page FILE]

Figures of checks that were not asked for are kept. A check that does not hold is written too, and the status is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability import (
    eligible_lists,
    endings,
    explode,
    exposures,
    findings,
    foreign,
    heavy,
    hostile,
    invariance,
    kills,
    lists,
    logs,
    malformed,
    masking,
    nights,
    overload,
    own_artifacts,
    read_only,
    readers,
    stale,
    suites,
    trials,
)
from benchmarks.reliability.findings import Finding

CHECKS: dict[str, Callable[[Path], Finding]] = {
    "kills": kills.kills,
    "disk": kills.disk,
    "resume": kills.resume,
    "invariance": invariance.invariance,
    "numbers": suites.numbers,
    "rows": logs.bad_rows,
    "security": suites.security,
    "damage": readers.truncations,
    "lists": lists.lists,
    "malformed": malformed.malformed,
    "malformed-proxied": malformed.malformed_proxied,
    "overload": overload.overload,
    "endings": endings.endings,
    "endings-proxied": endings.endings_proxied,
    "exchanges": endings.exchanges,
    "token": malformed.token,
    "token-proxied": malformed.token_proxied,
    "foreign": foreign.foreign,
    "own": own_artifacts.own_artifacts,
    "flips": readers.flips,
    "read_only": read_only.read_only,
    "masking": masking.masking,
    "explode": explode.explode,
    "eligible": eligible_lists.eligible_lists,
    "stale": stale.stale,
    "exposures": exposures.kill_log,
    "trials": trials.trials,
    "hostile": hostile.hostile,
    "hostile-proxied": hostile.hostile_proxied,
    "heavy": heavy.heavy,
    "nights": nights.nights,
}
ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    """Carry out the checks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(CHECKS), default=list(CHECKS))
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    whole = True
    for name in options.only:
        with tempfile.TemporaryDirectory() as work:
            result = CHECKS[name](Path(work))
        print(f"{name}: {result.figure} ({'holds' if result.passes else 'DOES NOT HOLD'})", file=sys.stderr)
        findings.record(options.results, name, result)
        whole = whole and result.passes
    findings.table(options.results, options.page, options.results.with_suffix(".md"))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
