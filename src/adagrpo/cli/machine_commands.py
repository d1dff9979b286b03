"""The command `doctor`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adagrpo import __version__
from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common
from adagrpo.cli.printing import print_values


@Command("doctor", "machine", draws=False)
def doctor(common: Common) -> None:
    """Say what this machine offers: versions, threads, native bf16, GPU."""
    device = library.torch.device("cuda" if library.torch.cuda.is_available() else "cpu")
    packages = ("torch", "numpy", "accelerate", "safetensors", "polars", "pydantic", "scipy")
    facts: dict[str, Any] = {"adagrpo": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    facts |= {"threads": library.torch.get_num_threads(), "processors": os.cpu_count(), "device": str(device)}
    facts["mixed_precision"] = "bf16" if library.autocast_dtype(device) is not None else "no (bf16 would be emulated)"
    print_values(facts, common.as_json)
