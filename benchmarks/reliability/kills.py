"""Rows 1 to 3: a run that is killed, or meets a full disk, and is carried on by the same command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adagrpo.storage.artifacts import verify
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.processes import FULL, SAVES, Server, server

__all__ = ["disk", "kills", "resume"]

# the demo in its small world; more checkpoints than usual, so that a kill inside one is likely
SETTINGS = {
    "train.arms": "[{objective: nll}, {objective: adagrpo}]",
    "sft.epochs": "4",
    "sft.checkpoint_seconds": "0",
    "ranker.fit.checkpoint_seconds": "0",
    "train.fit.checkpoint_seconds": "0",
}


def demo(out: Path, **settings: str) -> list[str]:
    """The command."""
    chosen = SETTINGS | settings
    return ["demo", "--small", "--quiet", "--out", str(out), *(f"--set={key}={value}" for key, value in chosen.items())]


def weights(run: Path) -> dict[str, str]:
    """The sha256 of every best and final model."""
    files = sorted([*run.glob("*/*/model.safetensors"), *run.glob("train/*/*/model.safetensors")])
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def result(run: Path) -> tuple[dict[str, str], bytes, list[str]]:
    """What equal runs have in common: the weights, metrics.json, and the names of all files."""
    names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return weights(run), (run / "metrics.json").read_bytes(), names


def succeed(processes: Server, arguments: Sequence[str]) -> float:
    """Carry out a command that must end well; returns its seconds."""
    started = time.monotonic()
    status, message = processes.run(arguments)
    if status != 0:
        raise RuntimeError(f"adagrpo {' '.join(arguments)} ended with status {status}: {message}")
    return time.monotonic() - started


def kills(work: Path, outside: int = 12, inside: int = 8, seed: int = 0) -> Finding:
    """Kill runs at random times from outside, and runs inside a save; finish each. Only real kills count."""
    draw = np.random.default_rng(seed)
    equal = {"outside": 0, "inside": 0}
    killed = {"outside": 0, "inside": 0}
    with server(work / "server") as processes:
        seconds = succeed(processes, demo(work / "whole"))
        expected = result(work / "whole")
        for attempt in range(3 * (outside + inside)):  # a run may end before its kill; another is tried then
            kind = "outside" if killed["outside"] < outside else "inside"
            if killed["inside"] >= inside and kind == "inside":
                break
            run = work / f"run-{attempt}"
            if kind == "outside":
                pid = processes.start(demo(run))
                time.sleep(float(draw.uniform(0.02, 0.98)) * seconds)
                if not (run / "metrics.json").exists():
                    os.kill(pid, signal.SIGKILL)
                status, _ = processes.wait()
            else:
                moment = SAVES[killed["inside"] % len(SAVES)]
                status, _ = processes.run(demo(run), moment, int(draw.integers(1, 6)))
            if status == -signal.SIGKILL:
                killed[kind] += 1
                succeed(processes, demo(run))
                equal[kind] += result(run) == expected
            shutil.rmtree(run, ignore_errors=True)
    figure = (
        f"{sum(equal.values())} of {sum(killed.values())} killed runs, {killed['inside']} of them inside a save, "
        "end with the weights, metrics.json and file names of the whole run, byte for byte"
    )
    return Finding(1, figure, equal == killed == {"outside": outside, "inside": inside})


def disk(work: Path, counts: Sequence[int] = (1, 6, 11, 16)) -> Finding:
    """Forbid files to grow at some write of a checkpoint; then carry on with room again."""
    held = 0
    with server(work / "server") as processes:
        succeed(processes, demo(work / "whole"))
        expected = result(work / "whole")
        for count in counts:
            run = work / f"run-{count}"
            status, message = processes.run(demo(run), FULL, count)
            named = str(run) in message and "checkpoints" in message and "safetensors" in message
            kept = [path.parent for path in run.glob(".work/*/checkpoints/[0-9]*/manifest.json")]
            for folder in kept:
                verify(folder)
            whole = len(kept) == (0 if count <= 4 else 1)  # the one before it, but before the first
            succeed(processes, demo(run))
            held += status == 1 and named and whole and result(run) == expected
            shutil.rmtree(run)
    figure = (
        f"{held} of {len(counts)} times: status 1, the file named, the checkpoint before it whole, the next run equal"
    )
    return Finding(2, figure, held == len(counts))


def resume(work: Path, steps: int = 200) -> Finding:
    """Kill sft and post-training between two micro-batches in the middle of an epoch; compare the losses after it."""
    fits = {
        "sft": {"sft.batch_size": "16", "sft.accumulation": "2", "sft.epochs": "20"},
        "train": {"train.fit.batch_size": "16", "train.fit.accumulation": "2", "train.fit.epochs": "20"},
    }
    compared = {}
    with server(work / "server") as processes:
        succeed(processes, demo(work / "base"))
        for verb, settings in fits.items():
            folder = Path("sft" if verb == "sft" else "train/adagrpo")
            arms = {"train.arms": "[{objective: adagrpo}]"}
            changes = [f"--set={key}={value}" for key, value in (settings | arms).items()]
            for name in ("whole", "cut"):
                shutil.copytree(work / "base", work / f"{verb}-{name}")
            commands = {
                name: [verb, "--run", str(work / f"{verb}-{name}"), "--quiet", *changes] for name in ("whole", "cut")
            }
            succeed(processes, commands["whole"])
            # the 41st micro-batch is the first of the 21st step; an epoch has 13 steps
            status, _ = processes.run(commands["cut"], "micro", 41)
            succeed(processes, commands["cut"])
            whole, cut = ((work / f"{verb}-{name}" / folder / "steps.jsonl").read_text() for name in ("whole", "cut"))
            rows = [[*map(json.loads, text.splitlines())][20 : 20 + steps] for text in (whole, cut)]
            same = sum(one == other for one, other in zip(*rows, strict=True))
            compared[verb] = same if status == -signal.SIGKILL and whole == cut else 0
    figure = ", ".join(f"{verb}: {same} of the next {steps} steps" for verb, same in compared.items())
    return Finding(3, f"{figure} log the same numbers, bit for bit", all(same == steps for same in compared.values()))
