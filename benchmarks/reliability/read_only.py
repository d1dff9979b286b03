"""Row 22: a run on a file system that cannot be written is evaluated, diagnosed, reported, exported and served.

Each verb runs in a name space of mounts of its own, in which the run is read-only; it needs root and `unshare`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import yaml

from benchmarks.reliability.findings import Finding
from benchmarks.reliability.foreign import RECIPE

__all__ = ["MODEL", "read_only", "snapshot"]

MODEL = {"kind": "causal_lm", "lm": {"config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}}}
VERBS = ("evaluate", "diagnose", "report")


def read_only(work: Path) -> Finding:
    """Two runs, one of a language model, which alone can be exported."""
    runs = []
    for name, changes in (("small", {}), ("lm", {"policy": MODEL, "max_history": 8})):
        recipe = work / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
        runs.append(work / name)
        _carry_out(["run", str(recipe), "--out", str(runs[-1])])
    small, lm = runs
    before = [snapshot(run) for run in runs]
    for verb in VERBS:
        _carry_out([verb, "--run", str(small), "--out", str(work / f"of-{verb}")], sealed=small)
    _carry_out(["export", "--run", str(lm), "--to", str(work / "exported")], sealed=lm)
    served = _served(small)
    message = _carry_out(["evaluate", "--run", str(small)], sealed=small, status=2)
    same = before == [snapshot(run) for run in runs]
    figure = (
        f"evaluate, diagnose and report to another --out, export and serve end well where the run cannot be written:"
        f" {len(VERBS) + 1 + served} of 5; every file and time stamp of the run as before: {'yes' if same else 'no'};"
        f" without --out one line says what to do: {'yes' if '--out' in message else 'no'}"
    )
    return Finding(22, figure, served and same and "--out" in message)


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Time stamp and content of every file and folder."""
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (directory, *directory.rglob("*"))
    }


def _command(arguments: Sequence[str], sealed: Path | None) -> list[str]:
    command = [sys.executable, "-m", "adagrpo", *arguments]
    if sealed is None:
        return command
    folder = shlex.quote(str(sealed))
    mounts = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    return ["unshare", "--mount", "sh", "-c", f"{mounts} && exec {shlex.join(command)}"]


def _carry_out(arguments: Sequence[str], sealed: Path | None = None, status: int = 0) -> str:
    text = subprocess.run(_command([*arguments, "--quiet"], sealed), capture_output=True, text=True, check=False)
    if text.returncode != status:
        raise RuntimeError(f"adagrpo {' '.join(arguments)} ended with status {text.returncode}: {text.stderr}")
    return text.stderr


def _served(run: Path) -> bool:
    """Whether a server of the run answers with a list, re-ranked by the reward."""
    known = pl.read_parquet(run / "prepare" / "items.parquet", columns=["item_id"])["item_id"].to_list()
    arguments = ["serve", "--run", str(run), "--port", "0", "--reward-weight", "1", "--json", "--quiet"]
    with subprocess.Popen(_command(arguments, run), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = json.loads(server.stdout.readline())["url"]
            body = json.dumps({"history": known[:3], "k": 3}).encode()
            request = urllib.request.Request(f"{address}/recommend", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as reply:
                return len(json.loads(reply.read())["items"]) == 3
        finally:
            server.terminate()
