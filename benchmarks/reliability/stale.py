"""Row 19: stages are made stale in every order, and then every verb is carried out.

A verb either refuses in one line, or ends with results whose whole chain of inputs is what lies in the run. That is
judged here by a slow twin: the sha256 of each file that a stage was made from, taken anew, against what its manifest
keeps, up to the logs; and its settings against those of run.yaml. Where the report is refused, the command that is
named is carried out, and the next one, until there is a report: hints that lead nowhere go round. After each command,
every stage that run.yaml does not describe has to be called out of date by `adagrpo status`.
"""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adagrpo.config import Config, read_settings
from adagrpo.lists.table import baselines
from adagrpo.pipeline.status import status
from adagrpo.storage.hashes import hash_file
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.foreign import FIT
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import Server, server

__all__ = ["FAULTS", "VERBS", "Answers", "Fault", "begin", "carry_out", "stale"]

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "max_history": 6,
    "data": {"logs": ["a.csv"], "columns": {"timestamp": "timestamp"}},
    "tokenizer": {"levels": 2, "codes": 8, "width": 8},
    "policy": {"width": 16, "layers": 1, "heads": 2, "decoder_hidden": 16},
    "sft": FIT,
    "ranker": {"width": 16, "layers": 1, "fit": FIT},
    "objective": {"num_generations": 4},
    "train": {"arms": ["nll", "adagrpo"], "fit": FIT},
    "evaluation": {"beam_width": 10, "batch_size": 64},
}
VERBS = ("tokenize", "sft", "ranker", "train", "diagnose", "evaluate", "report")
MOST_HINTS = 10


@dataclass(frozen=True)
class Fault:
    """What is done to a finished run."""

    arguments: tuple[str, ...]  # of a command, in which RUN, OTHER (logs), LONGER (logs) and CHANGED (a recipe) stand
    moment: str | None = None  # at which it is killed,
    count: int = 1  # when it comes there for this time
    removed: str | None = None  # a stage that is removed by hand before


COLUMNS = ("--set", "data.columns.timestamp=timestamp")
FAULTS: dict[str, Fault] = {
    "other data": Fault(("prepare", "OTHER", "--out", "RUN", *COLUMNS)),
    "more data": Fault(("prepare", "LONGER", "--out", "RUN", *COLUMNS)),
    "other tokenizer": Fault(("tokenize", "--run", "RUN", "--set", "tokenizer.codes=10")),
    "other sft": Fault(("sft", "--run", "RUN", "--set", "sft.learning_rate=0.01")),
    "other ranker": Fault(("ranker", "--run", "RUN", "--set", "ranker.dropout=0.4")),
    "other objective": Fault(("train", "--run", "RUN", "--set", "objective.adagrpo.tau=0.9")),
    "other reward": Fault(("train", "--run", "RUN", "--set", "reward={kind: noise}")),
    "other arms": Fault(("train", "--run", "RUN", "--set", "train.arms=[nll, mixture]")),
    "changed recipe, killed": Fault(("run", "CHANGED", "--out", "RUN"), "stage", 2),
    "train, killed": Fault(("train", "--run", "RUN", "--set", "objective.adagrpo.tau=0.9"), "micro"),
    "sft, killed": Fault(("sft", "--run", "RUN", "--set", "sft.learning_rate=0.01"), "stage"),
    "failed command": Fault(("sft", "--run", "RUN", "--set", "policy.heads=7")),
    "setting of another verb": Fault(("sft", "--run", "RUN", "--set", "tokenizer.codes=10")),
    "evaluation by another reward": Fault(("evaluate", "--run", "RUN", "--set", "reward={kind: noise}")),
    "diagnosis of another reward": Fault(("diagnose", "--run", "RUN", "--set", "reward={kind: noise}")),
    "removed stage": Fault((), removed="tokenize"),
}
# that change what later stages are made from, and are therefore also tried one after the other
CHANGES = ("other data", "other tokenizer", "other sft", "other ranker", "other reward", "changed recipe, killed")


@dataclass
class Answers:
    """How verbs answered."""

    cases: int = 0
    commands: int = 0  # that were named and carried out
    by_verb: dict[str, Counter[str]] = field(default_factory=lambda: {verb: Counter() for verb in VERBS})
    wrong: list[str] = field(default_factory=list)  # silent, unclear or looping answers, in words

    def add(self, other: Answers) -> None:
        """Count those of another case too."""
        self.cases += other.cases
        self.commands += other.commands
        self.wrong += other.wrong
        for verb, counts in other.by_verb.items():
            self.by_verb[verb] += counts


def stale(work: Path) -> Finding:
    """Every fault, and every two changes in each order."""
    answers = Answers()
    with server(work / "server") as processes:
        begin(processes, work)
        for name in FAULTS:
            answers.add(carry_out(processes, work, [name]))
        for pair in itertools.permutations(CHANGES, 2):
            answers.add(carry_out(processes, work, pair, follow=False))
    print("\n".join(answers.wrong), file=sys.stderr)
    total = sum(answers.by_verb.values(), Counter())
    said = "; ".join(
        f"{verb} {counts['refused']} refused, {counts['done']} done" for verb, counts in answers.by_verb.items()
    )
    figure = (
        f"{answers.cases} ways to make stages stale, each before {len(VERBS)} verbs: {total['refused']} times the stale"
        f" stage was named with the command that makes it, {total['done']} times the verb went through and its whole"
        f" chain of inputs agreed; {answers.commands} commands that were named led to the report;"
        f" {len(answers.wrong)} silent, unclear or looping answers ({said})"
    )
    return Finding(19, figure, not answers.wrong)


def begin(processes: Server, work: Path) -> None:
    """Write logs and recipes, and make a finished run."""
    for name, users, first in (("a.csv", 40, 0), ("b.csv", 40, 1000), ("c.csv", 50, 0)):
        _write_log(work / name, users, first)
    for name, change in (("recipe.yaml", {}), ("changed.yaml", {"tokenizer": RECIPE["tokenizer"] | {"codes": 12}})):
        content = RECIPE | {"data": RECIPE["data"] | {"logs": [str((work / "a.csv").resolve())]}} | change
        (work / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    finished = str(work / "finished")
    succeed(processes, ["run", str(work / "recipe.yaml"), "--out", finished, "--quiet"])
    succeed(processes, ["diagnose", "--run", finished, "--quiet"])


def carry_out(
    processes: Server, work: Path, faults: Sequence[str], verbs: Sequence[str] = VERBS, *, follow: bool = True
) -> Answers:
    """Do some faults to a copy of the finished run, carry out each verb on a copy of that, and follow the hints.

    Args:
        processes: that carry out commands.
        work: that `begin` was given.
        faults: by name, one after the other.
        verbs: each asked by itself.
        follow: carry out what the last verb's refusal names, until it goes through.
    """
    run, faulty, answers = work / "run", work / "faulty", Answers(cases=1)
    _copy(work / "finished", run)
    what = " and ".join(faults)
    for fault in (FAULTS[name] for name in faults):
        if fault.removed is not None:
            shutil.rmtree(run / fault.removed)
        if fault.arguments:
            processes.run([*_filled(fault.arguments, work), "--quiet"], fault.moment, fault.count)
        answers.wrong += [f"{what}: after the fault {wrong}" for wrong in _undescribed(run)]
    _copy(run, faulty)
    for verb in verbs:
        _copy(faulty, run)
        code, said = processes.run([verb, "--run", str(run), "--quiet"])
        answers.by_verb[verb]["done" if code == 0 else "refused"] += 1
        wrong = [*_undescribed(run), *_broken(run, verb)] if code == 0 else _unclear(code, said)
        answers.wrong += [f"{what}, {verb}: {one}" for one in wrong]
    while follow and code != 0 and answers.commands < MOST_HINTS and not _unclear(code, said):
        answers.commands += 1
        code, said = processes.run([*_named(said, work), "--quiet"])
        if code == 0:
            code, said = processes.run([verb, "--run", str(run), "--quiet"])
    if follow:
        ends = [*_undescribed(run), *_broken(run, verb)] if code == 0 else [f"hints lead nowhere: {said}"]
        answers.wrong += [f"{what}, in the end: {wrong}" for wrong in ends]
    return answers


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _unclear(code: int, said: str) -> list[str]:
    """What is wrong with a refusal: it is no bad input, or names no command."""
    return [] if code == 2 and "`adagrpo " in said else [f"status {code}: {said}"]


def _named(said: str, work: Path) -> list[str]:
    """The arguments of the first command that a message names."""
    words = shlex.split(said.split("`adagrpo ")[1].split("`")[0])
    filled = _filled([{"LOGS": "a.csv", "RECIPE": "recipe.yaml"}.get(word, word) for word in words], work)
    return [*filled, *(COLUMNS if words[0] == "prepare" else ())]


def _filled(words: Sequence[str], work: Path) -> list[str]:
    places = {"RUN": "run", "OTHER": "b.csv", "LONGER": "c.csv", "CHANGED": "changed.yaml"}
    places |= {name: name for name in ("a.csv", "recipe.yaml")}
    return [str(work / places[word]) if word in places else word for word in words]


def _write_log(path: Path, users: int, first: int) -> None:
    """Users who mostly walk along a ring of 20 items, whose ids begin at `first`."""
    draw = np.random.default_rng(first + users)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp"])
        for user in range(users):
            item = user
            for time in range(7):
                item = item + 1 if draw.random() < 0.8 else int(draw.integers(20))
                rows.writerow([f"u{user}", first + item % 20, time])


# ---------------------------------------------------------------- the slow twin


def _manifests(run: Path) -> dict[str, Any]:
    paths = [path for path in run.rglob("manifest.json") if ".work" not in path.parts]
    return {path.parent.relative_to(run).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _config(run: Path) -> Config:
    return Config.model_validate(yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["config"])


def _same_settings(config: Config, made_from: Mapping[str, Any]) -> bool:
    return bool(read_settings(config, made_from["keys"], made_from["but"]) == made_from["settings"])


def _undescribed(run: Path) -> list[str]:
    """The stages that run.yaml says something else of, and that are called done."""
    config, states = _config(run), {row["stage"]: row["state"] for row in status(run)["stages"]}
    return [
        f"{name} is called done, and run.yaml says something else"
        for name, content in _manifests(run).items()
        if states.get(name) == "done" and not _same_settings(config, content["made_from"])
    ]


def _broken(run: Path, verb: str) -> list[str]:
    """What does not agree in the chain of inputs of what a verb has made or shown."""
    manifests, config = _manifests(run), _config(run)
    arms = [arm.name for arm in config.train.arms]
    made = {
        "train": [f"train/{arm}" for arm in arms],
        "evaluate": _evaluated(run),
        "report": _evaluated(run),
    }.get(verb, [verb])
    wanted, wrong, seen = list(made), [], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        made_from = manifests[name]["made_from"]
        if not _same_settings(config, made_from):
            wrong.append(f"{name} has other settings than run.yaml")
        for read, digest in made_from["reads"].items():
            stage, _, file = read.partition(":")
            wanted.append(stage)
            if hash_file(run / stage / file) != digest:
                wrong.append(f"{name} was made from another {stage}/{file}")
    return wrong


def _evaluated(run: Path) -> list[str]:
    """The stages of the arms in metrics.json."""
    stages = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["stages"]
    folders = [f"evaluate/{arm}/{kind}" for arm in stages if arm != "sft" for kind in ("best", "final")]
    return ["evaluate/sft", *(f"evaluate/{name}" for name in baselines(_config(run))), "ranker/report", *folders]
