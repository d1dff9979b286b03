"""What a policy is built from.

A kind of policy is a module `adagrpo.policies.<kind>` with a function `build(spec: PolicySpec)`; its options are in
`PolicyConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adagrpo.config.models import PolicyConfig
from adagrpo.semantic_ids.catalog import Catalog


@dataclass(frozen=True)
class PolicySpec:
    """Specification of a policy."""

    options: PolicyConfig
    catalog: Catalog
    max_history: int
    seed: int
    folder: Path  # of the relative paths of a recipe
    trained: bool = False  # weights are loaded afterwards, so none are read from where they came
