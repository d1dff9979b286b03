"""Row 8: one bit or the end of a file of a finished run is lost; whoever reads it must say which file it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adagrpo.errors import UserError
from adagrpo.storage.artifacts import MANIFEST, verify
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.kills import demo, succeed
from benchmarks.reliability.processes import server

__all__ = ["damage", "damage_files"]


def damage(work: Path, count: int = 2000) -> Finding:
    """Damage the files of a demo."""
    with server(work / "server") as processes:
        succeed(processes, demo(work / "run"))
    refused, files = damage_files(work / "run", count)
    figure = f"{refused:,} of {count:,} refused with the file named, in {files} files of all stages"
    return Finding(8, figure, refused == count)


def damage_files(run: Path, count: int, seed: int = 0) -> tuple[int, int]:
    """Flip a bit of a file, or cut its end off, `count` times, and verify its stage; each file is put back.

    Returns:
        How often the file was refused by its name, and how many files there are.
    """
    draw = np.random.default_rng(seed)
    stages = [path.parent for path in sorted(run.rglob(MANIFEST)) if ".work" not in path.parts]
    owner = {path: stage for stage in stages for path in sorted(stage.rglob("*")) if path.is_file()}
    owner = {path: stage for path, stage in owner.items() if path.stat().st_size}
    files = sorted(owner)
    refused = 0
    for turn in range(count):
        path = files[int(draw.integers(len(files)))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        if turn % 2:
            del damaged[int(draw.integers(len(whole))) :]
        else:
            bit = int(draw.integers(8 * len(whole)))
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            verify(owner[path])
        except UserError as error:
            refused += str(error).startswith(f"{path}:")
        path.write_bytes(whole)
    return refused, len(files)
