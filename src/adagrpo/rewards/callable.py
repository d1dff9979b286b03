"""A Python function as a reward.

    scores = function(histories, candidates)

`histories` and `candidates` are lists of lists of item ids, oldest first; the function returns one score for each
candidate of each history. Of these it is given what its signature names:

    users          the id of each history's user, None where nobody is known
    times          when each list is asked for, seconds since 1970, None where that is not known
    shown          what each user was shown in the training impressions: lists of (item id, clicked), oldest first;
                   empty while a policy is trained, since it would hold what the user chose next
    training_logs  the path of the training logs
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

from torch import Tensor

from adagrpo.errors import ServiceError, UserError
from adagrpo.rewards.external import InvalidResponse, check_response, scatter_scores, score_request, users_of
from adagrpo.types import Histories, ItemId

INSTALLED = {"site-packages", "dist-packages"}
KEYWORDS = frozenset({"users", "times", "shown", "training_logs"})
ScoreFunction = Callable[..., Any]
Shown = Sequence[tuple[ItemId, bool]]  # items that a user was shown, and whether it was clicked


class CallableReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        name: str,
        function: ScoreFunction,
        ids: Sequence[ItemId],  # (V,)
        *,
        user_ids: Sequence[ItemId] = (),  # (U,)
        shown: Callable[[], Mapping[str, Shown]] = dict,
        training_logs: Callable[[], Path] | None = None,
    ) -> None:
        """Wrap a function; nothing is read that it does not ask for. `shown` returns users' items by id as text."""
        self.name, self.function, self.ids, self.user_ids = name, function, ids, user_ids
        self.asked = keywords_of(function)
        self.shown = shown() if "shown" in self.asked else {}
        self.always: dict[str, Any] = {}
        if "training_logs" in self.asked and training_logs is not None:
            self.always["training_logs"] = training_logs()

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; UserError if the function raised, or returned invalid scores."""
        request = score_request(histories, items, self.ids)
        if not request.candidates:
            return scatter_scores([], items)
        # what the function asks for beside histories and candidates, of the rows with candidates
        kept, asking, about = (items >= 0).any(1).tolist(), histories.asking, dict(self.always)
        users = list(compress(users_of(histories, self.user_ids), kept))
        if "users" in self.asked:
            about["users"] = users
        if "times" in self.asked:
            about["times"] = list(compress([None] * len(kept) if asking is None else asking.times, kept))
        if "shown" in self.asked:
            about["shown"] = [list(self.shown.get(str(user), ())) if asking is not None else [] for user in users]
        try:
            scores = self.function(request.histories, request.candidates, **about)
            rows = check_response(scores, request.candidates)
        except InvalidResponse as error:
            raise UserError(f"reward {self.name}: {error}") from error
        except (UserError, ServiceError):
            raise
        except (Exception, SystemExit) as error:
            message = " ".join(str(error).split())
            raise UserError(f"reward {self.name}: raised {type(error).__name__}: {message}") from error
        return scatter_scores(rows, items)


def find_module(function: str, folder: Path) -> Path:
    """Return the file of the module in `module:function`, without running it if it is in the folder.

    UserError if there is no such module, or it has no file.
    """
    module = function.partition(":")[0]
    stem = folder.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"reward.function: no module '{module}', neither in {folder} nor installed")
    return Path(spec.origin)


def module_files(function: str, folder: Path) -> list[Path]:
    """Return the module's file and those of its imports, also indirect, from the same folder.

    Dynamic imports are missed. For an installed package only the module is returned. UserError as of `find_module`.
    """
    first, names = find_module(function, folder), [function.partition(":")[0]]
    if INSTALLED & {*first.parts}:
        return [first]
    depth = names[0].count(".") + (first.name == "__init__.py")
    root, found = first.parents[depth], {first: None} if first.suffix != ".py" else dict[Path, None]()
    while names:
        parts = names.pop().split(".")
        for end in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b too
            stem = root.joinpath(*parts[:end])
            for path, package in ((stem.with_suffix(".py"), parts[: end - 1]), (stem / "__init__.py", parts[:end])):
                if path not in found and path.is_file():
                    found[path] = None
                    names += _imported(path.read_bytes(), tuple(package))
    return list(found)


@cache
def _imported(source: bytes, package: tuple[str, ...]) -> list[str]:
    """Modules that a source imports; for `from a import b` also `a.b`, which may be one."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # importing it reports this
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names if base]
    return names


def load_function(function: str, folder: Path) -> Callable[..., Any]:
    """Import the function in `module:function`, looking in the folder first.

    UserError if the module cannot be imported, another one has its name, or it has no such function.
    """
    name, _, attribute = function.partition(":")
    path = find_module(function, folder)
    if str(folder) not in sys.path:  # for good: the module may import its neighbours later
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UserError(f"reward.function: importing {path} raised {type(error).__name__}: {error}") from error
    origin = Path(str(getattr(module, "__file__", None)))
    if origin.resolve() != path.resolve():
        raise UserError(f"reward.function: another module '{name}' is loaded, {origin}; give {path} another name")
    value = getattr(module, attribute, None)
    if not callable(value):
        raise UserError(f"reward.function: {path} has no function '{attribute}'")
    return value  # type: ignore[no-any-return]


def keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return which of `KEYWORDS` a function has as parameters.

    >>> sorted(keywords_of(lambda histories, candidates, users, *, training_logs: []))
    ['training_logs', 'users']
    """
    try:
        return KEYWORDS & inspect.signature(function).parameters.keys()
    except (TypeError, ValueError):  # of some builtins nothing is known
        return frozenset()
