"""Row 16: folders that hold somebody else's files, given to every verb, also killed half-way: all of them stay.

A tree is nobody's folder, a finished run, or a run that was killed; files of other names, hidden and temporary-looking
ones, and links to files and folders outside are put all over it. After the verb, and after it was killed and called
again, each of them must be there, byte for byte, and so must what the links lead to.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.reliability.findings import Finding
from benchmarks.reliability.kills import succeed
from benchmarks.reliability.processes import SAVES, Server, server

__all__ = ["RECIPE", "foreign", "foreign_tree", "prepare_trees"]

FIT = {"epochs": 1, "batch_size": 32, "validations": 1, "validation_users": 50, "checkpoint_seconds": 0}
RECIPE = {
    "name": "tiny",
    "threads": 1,
    "data": {"marketplace": {"users": 60, "items": 60, "steps": 12}},
    "tokenizer": {"vectors": {"attributes": 1.0}, "levels": 2, "codes": 8, "width": 8},
    "policy": {"width": 16, "layers": 1, "heads": 2, "decoder_hidden": 16},
    "sft": FIT,
    "ranker": {"width": 16, "layers": 1, "fit": FIT},
    "objective": {"num_generations": 4},
    "train": {"arms": ["nll", "adagrpo"], "fit": FIT},
    "evaluation": {"beam_width": 10, "batch_size": 64},
}
# of files, below folders of the tree; each has been taken for one of the program's own at some time, or looks like it
NAMES = (
    *("mine", "notes.txt", ".hidden", "model.bin", ".data.old/x", ".prepare.old/mine", ".X.old", ".sft.old/best/mine"),
    *(".run.yaml.1234.tmp", ".metrics.json.0123456789abcdef.tmp", "checkpoints/mine", "backup/report.txt", ".mine.tmp"),
)
PLACES = (
    *("", "", "prepare", "data", "simulate", "tokenize", "sft", "sft/best", "ranker", "ranker/best", "train"),
    *("train/nll", "train/adagrpo/final", "evaluate", "evaluate/sft", ".work", ".work/sft", ".work/train.adagrpo"),
)
LINKED = ("train", "sft", "evaluate/nll", "report.html", "events.jsonl", "run.yaml", ".work", ".lock", "x", "ranker/x")


def foreign(work: Path, count: int = 500, seed: int = 0) -> Finding:
    """Give `count` random trees to verbs, a third of which are killed and called again."""
    kept = killed = refused = 0
    with server(work / "server") as processes:
        prepare_trees(processes, work)
        for turn in range(count):
            result = foreign_tree(processes, work, np.random.default_rng((seed, turn)))
            kept, killed, refused = kept + result[0], killed + result[1], refused + result[2]
    figure = (
        f"in {kept:,} of {count:,} trees every file of somebody else is there, byte for byte; {refused:,} commands were"
        f" refused in one line, {killed:,} were killed and called again"
    )
    return Finding(16, figure, kept == count)


def prepare_trees(processes: Server, work: Path) -> None:
    """A recipe, a finished run, and one that was killed in post-training."""
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    command = ["run", str(recipe), "--quiet", "--out"]
    succeed(processes, [*command, str(work / "finished")])
    processes.run([*command, str(work / "half")], "stage", 5)


def foreign_tree(processes: Server, work: Path, draw: np.random.Generator) -> tuple[bool, bool, bool]:
    """One tree and one verb.

    Returns:
        Whether all is there, whether the verb was killed, and whether it ended by refusing.
    """
    tree, outside = work / "tree", work / "outside"
    kind = str(draw.choice(["nobody", "finished", "half"]))
    if kind == "nobody":
        tree.mkdir()
    else:
        shutil.copytree(work / kind, tree)
    (outside / "folder").mkdir(parents=True)
    for name in ("file.txt", "folder/file.txt", "folder/model.safetensors"):
        (outside / name).write_text(f"outside {name}", encoding="utf-8")
    mine = _sprinkle(tree, outside, draw)
    before = {path: _content(path) for path in (*mine, *outside.rglob("*"))}
    command = _command(work, tree, kind, draw)
    killed = bool(draw.random() < 1 / 3)
    if killed and draw.random() < 0.5:
        processes.run(command, str(draw.choice(SAVES)), int(draw.integers(1, 4)))
    elif killed:
        pid = processes.start(command)
        time.sleep(float(draw.uniform(0.05, 1.5)))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it had ended before
            killed = False
        processes.wait()
    status, message = processes.run(command)
    kept = all(_content(path) == content for path, content in before.items())
    one_line = status == 0 or (status in (1, 2) and message.startswith("adagrpo: "))
    for folder in (tree, outside, work / "new"):
        shutil.rmtree(folder, ignore_errors=True)
    return kept and one_line, killed, status == 2


def _sprinkle(tree: Path, outside: Path, draw: np.random.Generator) -> list[Path]:
    """Put files and links of somebody else into a tree."""
    result: list[Path] = []
    for number in range(int(draw.integers(1, 6))):
        path = tree / str(draw.choice(PLACES)) / str(draw.choice(NAMES))
        if path.exists() or any(part.is_symlink() or part.is_file() for part in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine {number}", encoding="utf-8")
        result.append(path)
    if draw.random() < 0.5:
        link = tree / str(draw.choice(LINKED))
        if not link.exists() and not any(part.is_file() for part in link.parents):
            link.parent.mkdir(parents=True, exist_ok=True)
            target = str(draw.choice(["file.txt", "folder", "nothing"]))
            link.symlink_to(outside / target)
            result.append(link)
        elif link.is_dir() and not any(path.is_relative_to(link) for path in result):  # moved elsewhere, and linked
            shutil.move(link, outside / "moved")
            link.symlink_to(outside / "moved")
            result.append(link)
    return result


def _command(work: Path, tree: Path, kind: str, draw: np.random.Generator) -> list[str]:
    """A verb that is given the tree; one of a run is often made to do its work again."""
    recipe, out = str(work / "recipe.yaml"), ["--out", str(tree)]
    if kind == "nobody":
        commands = [
            ["demo", "--small", *out],
            ["run", recipe, *out],
            ["prepare", str(work / "finished" / "simulate" / "logs.parquet"), *out],
            ["simulate", "--users", "90", "--items", "90", *out],
            ["compare", recipe, "--objectives", "nll", *out],
            ["export", "--run", str(work / "finished"), "--to", str(tree)],
            ["evaluate", "--run", str(work / "finished"), *out],
            ["run", recipe, "--data", str(tree), "--out", str(work / "new")],
            ["sft", "--run", str(tree)],
        ]
    else:
        again = [f"--set=seed={int(draw.integers(2))}"]
        commands = [[verb, "--run", str(tree), *again] for verb in ("tokenize", "sft", "ranker", "train", "evaluate")]
        commands += [["run", recipe, *again, *out]] * 3
        commands += [["diagnose", "--run", str(tree)], ["report", "--run", str(tree)], ["simulate", *out]]
        commands += [
            ["compare", recipe, "--objectives", "nll", *out],
            ["export", "--run", str(tree), "--to", str(tree)],
        ]
    return [*commands[int(draw.integers(len(commands)))], "--quiet"]


def _content(path: Path) -> bytes | str | None:
    """What stands at a path; None for nothing, so that a file that has gone is seen."""
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else "folder" if path.is_dir() else None
