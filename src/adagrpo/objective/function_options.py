"""Options of a gate or reward term: the keyword-only parameters of its function."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Any


@cache  # called again and again by configurations
def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each option, by name.

    Example:
        >>> from adagrpo.objective.terms import TERMS
        >>> options = options_of(TERMS["grpo"].loss)
        >>> list(options), options["beta"][1]
        (['epsilon', 'epsilon_high', 'beta', 'invalid_penalty', 'scale_rewards'], 0.0)
    """
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {one.name: (hints[one.name], one.default) for one in parameters if one.kind is one.KEYWORD_ONLY}
