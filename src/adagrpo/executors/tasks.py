"""Tasks, the function that carries them out, and how what came of one gets back to the process that asked."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

from adagrpo.errors import UserError

__all__ = ["Tasks", "Worker", "attempt", "outcome"]

Tasks = Callable[[], Iterator[Any]]
Worker = Callable[[], Callable[[Any], Any]]


def attempt(function: Callable[[], Any]) -> dict[str, Any]:
    """What came of a call in a worker, an error among it, for `outcome` in the process that asked."""
    try:
        return {"result": function()}
    except UserError as error:
        return {"user_error": str(error)}
    except Exception:
        return {"failure": traceback.format_exc()}


def outcome(answer: dict[str, Any]) -> Any:
    """The result that `attempt` had, or its error raised here."""
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    if "failure" in answer:
        raise RuntimeError(f"a worker failed:\n{answer['failure']}")
    return answer["result"]
