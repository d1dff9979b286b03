"""Row 16, its second half: every verb that writes to a folder of yours is given the program's own work of another kind.

A stage, the weights in it, a part of an exposure log and the log, lists, another run, a comparison and a simulation
stand in one folder. Each verb is given each of them as --out. It must refuse in one line that names the folder, and
every file must be there afterwards, byte for byte, and no other.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from adagrpo.exposures.exposure_store import LocalExposureLog
from benchmarks.reliability.exposures import answer
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.foreign import FIT, RECIPE
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import Server, server

__all__ = ["give_own_artifacts", "own_artifacts"]

# by the kind that a verb may replace or go on with, None for none of these
PLACES = {
    "another run": "run",
    "another run/prepare": None,
    "another run/sft": None,
    "another run/sft/best": None,
    "another run/train/nll": None,
    "another run/evaluate": None,
    "log": "log",
    "log/parts/000001": None,
    "lists": "lists",
    "comparison": "comparison",
    "simulation": "simulation",
}


def own_artifacts(work: Path) -> Finding:
    """Make one artifact of each kind, and give each to every verb."""
    with server(work / "server") as processes:
        given, wrong = give_own_artifacts(processes, work)
    figure = (
        f"{given:,} commands were given a stage, weights, a part of an exposure log, lists, a comparison, a simulation"
        f" or another run as --out: {given - len(wrong):,} were refused in one line that names it, and no file changed"
    )
    return Finding(16, figure, not wrong)


def give_own_artifacts(processes: Server, work: Path) -> tuple[int, list[str]]:
    """How many commands were carried out, and those that were not refused or left something changed."""
    own = _prepare(processes, work)
    before, given, wrong = _contents(own), 0, list[str]()
    for verb, (replaces, arguments) in _commands(work).items():
        for name, kind in PLACES.items():
            if kind is not None and kind == replaces:
                continue
            given += 1
            status, message = processes.run([*arguments, str(own / name)])
            if status != 2 or not message.startswith("adagrpo: ") or name not in message or _contents(own) != before:
                wrong.append(f"{verb} on {name}: {status} {message}")
                before = _contents(own)
    return given, wrong


def _prepare(processes: Server, work: Path) -> Path:
    """Make the folder with one artifact of each kind, and beside it a recipe, a run, users and a comparison to read."""
    recipe, own, run = work / "recipe.yaml", work / "own", str(work / "run")
    small = RECIPE | {"train": {"arms": ["nll"], "fit": FIT}, "compare": {"margins": {"hallucination@10": 0.05}}}
    recipe.write_text(yaml.safe_dump(small), encoding="utf-8")
    own.mkdir()
    for out in (run, str(own / "another run")):
        succeed(processes, ["run", str(recipe), "--quiet", "--out", out])
    (work / "users.csv").write_text("user_id\nu0\nu1\n", encoding="utf-8")
    lists = ["recommend", "--run", run, "--users", str(work / "users.csv"), "--quiet", "--out", str(own / "lists")]
    succeed(processes, lists)
    for out in (work / "compared", own / "comparison"):
        succeed(processes, ["compare", str(recipe), "--objectives", "nll", "--quiet", "--out", str(out)])
    succeed(processes, ["simulate", "--users", "90", "--items", "90", "--quiet", "--out", str(own / "simulation")])
    for folder in (own / "log", work / "shipped"):
        log = LocalExposureLog(folder)
        log.write([answer("r0", 0)])
        log.rotate()
        log.close()
    return own


def _commands(work: Path) -> dict[str, tuple[str | None, list[str]]]:
    """Each verb with the kind that it goes on with, and what it is called with but for the folder, which is last."""
    run, recipe = str(work / "run"), str(work / "recipe.yaml")
    logs, users = str(work / "run" / "simulate" / "logs.parquet"), str(work / "users.csv")
    of_a_run = {verb: (None, [verb, "--run", run, "--out"]) for verb in ("evaluate", "diagnose", "report")}
    return of_a_run | {
        "demo": ("run", ["demo", "--small", "--out"]),
        "run": ("run", ["run", recipe, "--out"]),
        "prepare": ("run", ["prepare", logs, "--out"]),
        "simulate": ("simulation", ["simulate", "--users", "90", "--items", "90", "--out"]),
        "compare": ("comparison", ["compare", recipe, "--objectives", "nll", "--out"]),
        "report of a comparison": (None, ["report", "--run", str(work / "compared"), "--out"]),
        "recommend": ("lists", ["recommend", "--run", run, "--users", users, "--out"]),
        "export": (None, ["export", "--run", run, "--to"]),
        "ab": (None, ["ab", str(work / "plan.yaml"), "--exposures", str(work / "exposures"), "--out"]),
        "init": (None, ["init", logs, "--out"]),
        "collect": ("log", ["collect", str(work / "shipped"), "--to"]),
    }


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }
