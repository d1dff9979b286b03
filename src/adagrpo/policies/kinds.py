"""Registry of policy kinds: the module `adagrpo.policies.<kind>` defines `KIND`.

Options of a kind are in `adagrpo.config.models.PolicyConfig`; no other code depends on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from adagrpo.config.models import PolicyConfig
from adagrpo.policies.policy import Policy
from adagrpo.semantic_ids.catalog import Catalog

if TYPE_CHECKING:

    class PolicyModule(nn.Module, Policy[Any, Any]):
        """A policy that is a `torch.nn.Module`."""
else:
    PolicyModule = nn.Module


@dataclass(frozen=True)
class PolicySpec:
    """Specification of a policy."""

    options: PolicyConfig
    catalog: Catalog
    max_history: int
    seed: int
    folder: Path  # of the relative paths of a recipe
    trained: bool = False  # weights are loaded afterwards, so none are read from where they came


@dataclass(frozen=True)
class PolicyKind:
    """A kind of policy."""

    build: Callable[[PolicySpec], Policy[Any, Any]]  # with initial weights


def policy_kind(name: str) -> PolicyKind:
    """Return the kind defined by the module of that name; UserError if a needed library is missing."""
    kind: PolicyKind = importlib.import_module(f"adagrpo.policies.{name}").KIND
    return kind
