"""What a check has found, the table of docs/reliability.md that is made of it, and the figures in results.md."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adagrpo.storage.writing import write_file

__all__ = ["ROWS", "Finding", "record", "table"]

BEGIN, END = "<!-- figures: written by python -m benchmarks.reliability -->", "<!-- end of figures -->"

# what is promised, by the number of its row
ROWS = {
    1: "A run that is killed at random points, also inside a save, ends with the same bytes after the same command.",
    2: "A full disk during a save is named; the checkpoint before it stays whole.",
    3: "A fit that resumes inside an epoch or an accumulation window logs the same numbers.",
    4: "Accumulation 1 x 8 and 8 x 1, and one process and two, reach the same weights.",
    5: "NaN or infinity in rewards, logits or gradients is counted, and the step skipped.",
    6: "Bad rows of a log are rejected with their reason, and all rows are accounted for; memory stays bounded.",
    7: "Malicious files, YAML tags, names and model folders are refused; nothing of them runs.",
    8: "A truncated file of a run is named by the commands that need it, and changes no answer.",
    9: "Generated lists hold valid items, each once, and are those of brute force.",
    10: "Malformed requests get a short 4xx answer, and the next lists come.",
    11: "32 clients at 70 % of capacity are not refused; at four times the peak refusals are fast and the rate holds.",
    12: "SIGTERM under load drops no request; kill -9 loses no row of the exposure log.",
    13: "A model is exchanged under load, and a damaged one refused.",
    14: "Where a token is set, no route but liveness and readiness answers without it.",
    15: "Experiments without an effect find one in about 5 %, and not more often when you look daily.",
    16: "Files that are not of this run are never overwritten or removed.",
    17: "A file of a run with a flipped bit is named by the commands that need it, and changes no answer.",
    18: "Inputs that explode (compression, long lines, nesting, malformed models) are refused within bounded memory.",
    19: "A stale stage is named with the command that makes it again.",
    20: "The verdict of `diagnose` over seeds, worlds and rewards.",
    21: "Items of the history are left out, also where it is longer than what the policy reads.",
    22: "A run on a read-only file system can be evaluated, exported and served.",
    23: "A list under a filter holds eligible items alone, and as many as there are.",
    25: "Exposure logs with rows of another plan, late feedback, wrong types or edits: refused or counted.",
    26: "Clients that send without end, stay silent or smuggle requests do not slow the lists of others.",
    28: "Served lists are the measured ones, item by item.",
    30: "Bodies at their bounds, valid or invalid in every entry, do not hold up the lists of others.",
    31: "Feedback that is early, late, repeated or of unknown requests in one arm makes an experiment invalid.",
    32: "With `--as-measured`, what is served is what was measured, also where a reward's modules, data, endpoint or"
    " library change.",
    33: "Among lists that are equal, `decide` says something false in at most 5 %; over shops of six kinds its regret"
    " is at most half of the best constant list's.",
    34: "A list is served until a refreshed one is whole and no worse; older rows and other columns get one line.",
    35: "Acknowledged rows of an exposure log that are in none of its parts yet are collected.",
    36: "A run is made anew of other logs only with `--replace`.",
    37: "Bursts of other work do not change a list's milliseconds; a budget that none meets leaves the old decision.",
    38: "A refused batch leaves no row; a repeated request is the same in all that changes its list.",
    39: "Ids in several spellings, duplicates and unread columns are said; errors of bad rows name the option to type.",
    40: "Nothing of a case's basket, or later, is in what ranks it; guests' orders, returns and future rows are said.",
    41: "A run of an earlier version opens without the keys of gates that are no longer registered, and says so.",
    42: "A refit that is half done or outdated is not served; the measured list is, and a line says so.",
    43: "Lists under rules are served as they were measured, and what rules cost is the difference of two evaluations.",
    44: "Model files score as their library does, to 1e-6, with categories and missing values; a reward that does not"
    " fit ends `decide` before anything is fitted.",
    45: "Lists of a reward that is told who asks are served as they were measured; no answer outlives its deadline.",
    46: "What users get today (`--control`) is measured as its file says; unknown users and items are said.",
    47: "Reasons add up to an item's score, and name the rules that moved it; the page of users is as measured.",
    48: "A log that has changed is noticed, also beside another program's `manifest.json`.",
    49: "Requests compute no item vectors of a served policy, and a newly loaded one keeps none of the former's.",
    50: "Rows of benchmarks that are older than what they measure are named.",
    51: "New impressions are taken by a refresh, each once.",
    52: "What a shop shows judges lists only where it is found not to depend on the user.",
    53: "A folder of log files is read whole, but for the files of the engine that wrote it.",
    54: "A machine that dies loses no list of `recommend --ray`, and no step of `train` over two machines.",
    0: "An hour of runs that are killed and continued in one process leaves no file and no growing memory.",
}
ELSEWHERE = {
    20: "a study: [simulated shops](../research/decisions/README.md#simulated-shops)",
    25: "tests: `experiments/test_ab.py`, `serving/test_exposure_*.py`",
    28: "tests: `pipeline/test_decide.py`, `research/decisions` (served lists)",
    31: "tests: `experiments/test_left_out.py`, `experiments/test_ab.py`",
    32: "tests: `pipeline/test_rewards.py`, `rewards/test_external.py`",
    33: "tests: `pipeline/test_decide.py`, `research/worlds`",
    34: "tests: `pipeline/test_refresh.py`",
    35: "tests: `serving/test_exposure_collect.py`",
    36: "tests: `pipeline/test_other_logs.py`",
    37: "tests: `pipeline/test_decide.py`",
    38: "tests: `serving/test_exposure_store.py`, `serving/test_service.py`",
    39: "tests: `data/test_notes.py`, `data/test_bad_rows.py`, `data/test_own_logs.py`",
    40: "tests: `data/test_baskets.py`, `pipeline/test_baskets.py`",
    41: "tests: `pipeline/test_run.py`, `research/test_gates.py`",
    42: "tests: `pipeline/test_refit.py`",
    43: "tests: `pipeline/test_rules.py`, `lists/test_rules.py`",
    44: "tests: `rewards/test_model_files.py`, `pipeline/test_own_ranker.py`",
    45: "tests: `pipeline/test_own_ranker.py`, `rewards/test_http.py`",
    46: "tests: `pipeline/test_control.py`",
    47: "tests: `pipeline/test_rules.py`, `report/test_users_page.py`",
    48: "tests: `pipeline/test_by_name.py`",
    49: "tests: `policies/test_hybrid.py`",
    50: "tests: `test_benchmarks.py`",
    51: "tests: `pipeline/test_refresh.py`",
    52: "tests: `evaluation/test_exposure_dependence.py`, `pipeline/test_random_judge.py`",
    53: "tests: `data/test_own_logs.py`, `test_cli.py`",
    54: "command: [`benchmarks.nodes`](how-to/scale.md#what-was-run-on-several-machines)",
}


@dataclass(frozen=True)
class Finding:
    """A figure for a row."""

    row: int
    figure: str  # what was found, with its numbers
    passes: bool


def record(path: Path, name: str, found: Finding, carried_out: str | None = None) -> None:
    """Put a finding into a JSON file, in the place of an earlier one of the same check."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    content[name] = asdict(found) | {
        "command": carried_out or f"python -m benchmarks.reliability --only {name}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or None,
        "machine": f"{platform.machine()}, torch {version('torch')}, python {platform.python_version()}",
    }
    write_file(path, json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def table(results: Path, page: Path, raw: Path) -> None:
    """Write what holds into a page, between its two marks, and the figures into a page beside the results."""
    content = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    lines = ["| # | what is promised | checks: do they hold? |", "|---|---|---|"]
    for row, title in ROWS.items():
        checks = [f"`{name}` {_holds(entry)}" for name, entry in content.items() if entry["row"] == row]
        found = ", ".join(checks) or ELSEWHERE.get(row, "not measured yet")
        lines.append(f"| {row or 'soak'} | {title} | {found} |")
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    write_file(page, f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")
    figures = ["# What each check found", "", "| check | holds | found | command | date |", "|---|---|---|---|---|"]
    figures += [
        f"| {name} | {_holds(entry)} | {entry['figure']} | `{entry['command']}` | {entry['date']} |"
        for name, entry in content.items()
    ]
    write_file(raw, "\n".join(figures) + "\n")


def _holds(entry: dict[str, Any]) -> str:
    return "yes" if entry["passes"] else "**no**"
