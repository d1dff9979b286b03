"""What tests share: a tiny world (a CSV log, a recipe, one finished run), and a real HTTP server for rewards."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import settings

import research.gates  # noqa: F401 (before what reads recipes)
from adagrpo.config import Config
from adagrpo.pipeline import Console, Run, decide
from adagrpo.report import charts

# the same examples each time: what is found on one machine is found on all
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

USERS, ITEMS = 60, 30
DRAW = charts.draw
RECIPE = {
    "name": "tiny",
    "threads": 1,
    "max_history": 6,
    "data": {"logs": ["log.csv"]},
    "tokenizer": {"levels": 2, "codes": 8, "width": 8},
    "policy": {"width": 16, "layers": 1, "heads": 2, "decoder_hidden": 16, "dropout": 0.1},
    "sft": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "validations": 2, "checkpoint_seconds": 0},
    "ranker": {
        "width": 16,
        "layers": 1,
        "fit": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "validations": 1},
    },
    "objective": {
        "num_generations": 4,
        "adagrpo": {"tau": 0.0, "tau_reward": 1.0, "rho": 0.0},
    },
    "train": {
        "arms": [{"objective": "nll"}, {"objective": "adagrpo"}],
        "fit": {"epochs": 1, "batch_size": 16, "learning_rate": 0.005, "validations": 2, "checkpoint_seconds": 0},
    },
    "evaluation": {"beam_width": 10, "batch_size": 32},
}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        result[key] = _merged(result[key], value) if isinstance(value, Mapping) and key in result else value
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those that make runs, so that no process ends with one of them alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], item.path.parent.name != "pipeline"))


@dataclass(frozen=True)
class World:
    """Sequences of item ids by user id, the oldest first, and the recipe."""

    sequences: dict[str, list[int]]

    def changed(self, user: str, position: int, item: int) -> World:
        """The same world with one interaction on another item."""
        sequence = list(self.sequences[user])
        sequence[position] = item
        return replace(self, sequences={**self.sequences, user: sequence})

    def write(self, folder: Path, header: tuple[str, str, str] = ("user_id", "item_id", "timestamp")) -> Path:
        """Write `log.csv` into a folder, its rows in no order but each user's times ascending."""
        rows = [
            (user, item, 1000 + 10 * place)
            for user, sequence in self.sequences.items()
            for place, item in enumerate(sequence)
        ]
        order = np.random.default_rng(1).permutation(len(rows))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *(rows[index] for index in order)])
        return folder / "log.csv"

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """The recipe as a mapping, with sections changed key by key."""
        return _merged(RECIPE, changes)

    def run(self, directory: Path, folder: Path, /, console: Console | None = None, **changes: Any) -> Run:
        """A run of the recipe on the log in `folder`."""
        return Run(directory, Config.model_validate(self.recipe(**changes)), folder, console)


@pytest.fixture(scope="session")
def world() -> World:
    """60 users who mostly walk along a ring of 30 items, and two with too few interactions to be evaluated."""
    generator = np.random.default_rng(0)
    sequences: dict[str, list[int]] = {}
    for user in range(USERS):
        start, length = int(generator.integers(ITEMS)), 6 + int(generator.integers(4))
        steps = np.where(generator.random(length) < 0.2, generator.integers(0, ITEMS, length), 1)
        sequences[f"u{user:02d}"] = [10 * int(item) + 3 for item in (start + steps.cumsum()) % ITEMS]
    sequences |= {"short-1": [3, 13], "short-2": [23, 33]}
    assert {item for sequence in sequences.values() for item in sequence[:-2]} == {10 * i + 3 for i in range(ITEMS)}
    return World(sequences)


@pytest.fixture(scope="session")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the world's log and recipe."""
    folder = tmp_path_factory.mktemp("data")
    world.write(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(world.recipe()), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(world: World, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one finished run; to be read only, see `copied`."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "draw", DRAW)
        patch.setattr(charts, "_DRAWN", {})
        world.run(directory, data).complete()
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Everything that equal runs have in common: all files of the stages, and metrics.json."""

    def read(directory: Path) -> dict[str, bytes]:
        stages = ("prepare", "tokenize", "sft", "ranker", "train", "evaluate", "report")
        files = [directory / "metrics.json"] + [p for s in stages for p in (directory / s).rglob("*") if p.is_file()]
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(files)}

    return read


@pytest.fixture(autouse=True, scope="session")
def _few_lists_are_timed() -> Iterator[None]:
    """`decide` times each contender by a few lists: no test looks at its milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "TIMED", 5)
        patch.setattr(decide, "WARM_UP", 1)
        patch.setattr(decide, "ROUNDS", 1)
        yield


@pytest.fixture(autouse=True, scope="module")
def _charts_are_drawn_for_those_who_look(request: pytest.FixtureRequest) -> Iterator[None]:
    """Half of the time of a tiny run: what makes whole runs has empty ones, unless its text knows of `svg`."""
    with pytest.MonkeyPatch.context() as patch:
        whole = request.path.parent.name in ("pipeline", "research")
        if whole and "svg" not in request.path.read_text(encoding="utf-8"):
            patch.setattr(charts, "draw", lambda *_, **__: "<svg><title></title></svg>")
            patch.setattr(charts, "_DRAWN", {})
        yield


# ---------------------------------------------------------------- an endpoint

Behaviour = Callable[["Service", BaseHTTPRequestHandler, dict[str, Any]], None]


class Service:
    """Answers with `ord` of the candidate plus the length of the history, unless `behaviour` says otherwise."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = Service.well
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    service.requests.append(body)
                    service.headers.append(dict(self.headers))
                with suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
                    service.behaviour(service, self, body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"

    @staticmethod
    def scores(body: dict[str, Any]) -> list[list[float]]:
        rows = zip(body["histories"], body["candidates"], strict=True)
        return [[len(history) + sum(map(ord, str(item))) for item in row] for history, row in rows]

    @staticmethod
    def reply(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def well(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.reply(handler, json.dumps({"scores": self.scores(body)}).encode())


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()
