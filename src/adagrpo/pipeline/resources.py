"""Free memory and disk, read from the system: /proc, control groups, the GPU's driver."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # control groups of version 1 write a number that is as good as none


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo("MemAvailable"), _left_in_group("memory.max", "memory.current", "inactive_file")]
    limits.append(_left_in_group("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def free_disk(folder: Path) -> int:
    """Bytes that may be written below a folder, which need not be there yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def in_words(size: float) -> str:
    """Bytes as a person reads them.

    >>> in_words(512), in_words(3_500_000), in_words(42_000_000_000)
    ('512 B', '3.5 MB', '42 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _meminfo(name: str) -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _left_in_group(limit: str, usage: str, cache: str) -> int | None:
    """Return the memory that a control group has left; its unused file pages count as free."""
    limited, used = CGROUP / limit, CGROUP / usage
    if not limited.is_file() or not used.is_file():
        return None
    text = limited.read_text(encoding="utf-8").strip()
    if text == "max" or int(text) > UNLIMITED:
        return None
    statistics = used.with_name("memory.stat")
    rows = statistics.read_text(encoding="utf-8").split("\n") if statistics.is_file() else []
    cached = next((int(row.split()[1]) for row in rows if row.startswith(f"{cache} ")), 0)
    return max(0, int(text) - int(used.read_text(encoding="utf-8")) + cached)
