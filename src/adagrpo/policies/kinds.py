"""The kinds of policies: the module `adagrpo.policies.<kind>` of each says in its `KIND` how one is made.

A kind is that module and its options in `adagrpo.config.models.PolicyConfig`; nothing else asks which kind a policy is.
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
        """A policy that is a module of torch, as that of every kind is."""
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
    """A kind of policies, and how one is made.

    Attributes:
        build: a policy with its initial weights.
    """

    build: Callable[[PolicySpec], Policy[Any, Any]]


def policy_kind(name: str) -> PolicyKind:
    """Return the kind of a name, which is that of its module.

    Raises:
        UserError: a library that the kind needs is not installed.
    """
    kind: PolicyKind = importlib.import_module(f"adagrpo.policies.{name}").KIND
    return kind
