"""Whether a tensor is divided among processes, without importing what divides them: that takes more than a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["is_divided"]


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a `DTensor`; there is none before its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
