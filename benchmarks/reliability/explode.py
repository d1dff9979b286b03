"""Row 18: small files that would fill the memory, deep nesting, and model texts that would end the process.

    python -m benchmarks.reliability.explode FOLDER ...     run each folder's recipe, all in one process
    python -m benchmarks.reliability.explode --models FILE COUNT     load and score so many mutants of a model

are the child processes of the check: each writes one line of JSON for each thing that it has survived.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from adagrpo.errors import UserError
from adagrpo.rewards.features import FEATURES
from benchmarks.reliability.findings import Finding

__all__ = ["BOMBS", "explode", "fitted_text", "mutated", "prepared", "refusal", "write_bomb"]

ROOT = Path(__file__).parent.parent.parent
MOST = 2**30  # bytes of memory at the peak of a refusal
LIMIT = 3 * 2**30  # of a child, so that a check that fails does not take the machine with it
ROW, ROWS = b"u1,i1,1\n", 2**23  # of a member of a gzip file, of 64 MB
LOG = "user_id,item_id,timestamp\nu1,a,1\nu2,b,2\n"
CHARACTERS = "0123456789-+. =\n\x00eainfx_"


def _gzip(folder: Path) -> None:
    """13 GB of valid rows in 13 MB."""
    member = gzip.compress(ROW * ROWS)
    with (folder / "log.csv.gz").open("wb") as file:
        file.write(gzip.compress(b"user_id,item_id,timestamp\n"))
        for _ in range(200):
            file.write(member)


def _hidden(folder: Path) -> None:
    """The same after a million rows as they are."""
    draw = np.random.default_rng(0).integers(0, 10**6, (10**6, 3))
    rows = pl.DataFrame(draw, ["user_id", "item_id", "timestamp"]).write_csv()
    member = gzip.compress(ROW * ROWS)
    with (folder / "log.csv.gz").open("wb") as file:
        file.write(gzip.compress(rows.encode(), 1))
        for _ in range(200):
            file.write(member)


def _gzip_items(folder: Path) -> None:
    with (folder / "items.csv.gz").open("wb") as file:
        file.write(gzip.compress(b"item_id\n"))
        member = gzip.compress(b"i1\n" * 2**24)
        for _ in range(200):
            file.write(member)


def _long_line(name: str, start: str) -> Callable[[Path], None]:
    """A gigabyte without a line end, which takes no room on the disk."""

    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start.encode())
            file.truncate(2**30)

    return write


def _equal_rows(folder: Path) -> None:
    """A hundred million rows in less than a megabyte."""
    one = pl.repeat(1, 10**6, eager=True, dtype=pl.Int64)
    million = pl.DataFrame({"user_id": one, "item_id": one, "timestamp": one})
    pl.concat([million.lazy()] * 100).sink_parquet(folder / "log.parquet")


def _equal_texts(folder: Path) -> None:
    """A hundred thousand ids of ten thousand characters in some kilobytes."""
    ids = pl.DataFrame({"user_id": pl.repeat("x" * 10_000, 10**5, eager=True)})
    ids.with_columns(item_id=1, timestamp=1).write_parquet(folder / "log.parquet")


def _equal_titles(folder: Path) -> None:
    titles = pl.DataFrame({"item_id": np.arange(10**5), "title": pl.repeat("x" * 10_000, 10**5, eager=True)})
    titles.write_parquet(folder / "items.parquet")


def _many_columns(folder: Path) -> None:
    (folder / "log.csv").write_text(",".join(f"column_{n}" for n in range(10_000)) + "\n")


def _deep_rows(folder: Path) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    row = '{"user_id": "u1", "item_id": "a", "timestamp": 1'
    (folder / "log.jsonl").write_text(f'{row}}}\n{row}, "more": {deep}}}\n')


def _deep_items(folder: Path) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    (folder / "items.jsonl").write_text(f'{{"item_id": "a"}}\n{{"item_id": "b", "more": {deep}}}\n')


def _deep_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("data: " + "[" * 20_000 + "]" * 20_000)


def _long_number(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(f"seed: {'9' * 20_000}\ndata: {{logs: [log.csv]}}\n")


def _aliases(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (folder / "recipe.yaml").write_text("\n".join(lines))


class Bomb(NamedTuple):
    """A folder with a recipe that must be refused."""

    write: Callable[[Path], None]
    file: str  # that the refusal must name; the logs or the item table of the recipe, or the recipe itself
    message: str  # that it must have


UNPACKS, LONG = "unpacks to more than 100 times its size", "is longer than 2 MB"
BOMBS = {
    "13 GB in a csv.gz": Bomb(_gzip, "log.csv.gz", UNPACKS),
    "13 GB after a million rows": Bomb(_hidden, "log.csv.gz", UNPACKS),
    "items in a csv.gz": Bomb(_gzip_items, "items.csv.gz", UNPACKS),
    "1 GB in a line of CSV": Bomb(_long_line("log.csv", LOG), "log.csv", LONG),
    "1 GB in a line of JSON": Bomb(_long_line("log.jsonl", '{"user_id": "'), "log.jsonl", LONG),
    "1 GB in a line of CSV items": Bomb(_long_line("items.csv", "item_id\n"), "items.csv", LONG),
    "1 GB in a line of JSON items": Bomb(_long_line("items.jsonl", '{"item_id": "'), "items.jsonl", LONG),
    "equal rows in Parquet": Bomb(_equal_rows, "log.parquet", UNPACKS),
    "equal ids in Parquet": Bomb(_equal_texts, "log.parquet", UNPACKS),
    "equal titles in Parquet": Bomb(_equal_titles, "items.parquet", UNPACKS),
    "10,000 columns": Bomb(_many_columns, "log.csv", "column_19 and 9980 more"),
    "deep JSON rows": Bomb(_deep_rows, "log.jsonl", "row 2: not a JSON object"),
    "deep JSON items": Bomb(_deep_items, "items.jsonl", "cannot be read as JSONL"),
    "deep YAML": Bomb(_deep_recipe, "recipe.yaml", "more than 50 levels deep"),
    "YAML aliases": Bomb(_aliases, "recipe.yaml", "stands for more than 1 MB"),
    "a YAML number of 20,000 digits": Bomb(_long_number, "recipe.yaml", "not a YAML file"),
    "1 GB of YAML": Bomb(_long_line("recipe.yaml", ""), "recipe.yaml", "larger than 1 MB"),
}


def explode(work: Path, mutants: int = 1000) -> Finding:
    """Refuse every bomb, in one process that must live, and load or refuse mutants of the text of a model."""
    work.mkdir(parents=True, exist_ok=True)
    folders = [work / str(place) for place in range(len(BOMBS))]
    for folder, name in zip(folders, BOMBS, strict=True):
        write_bomb(folder, name)
    result = dict(zip(BOMBS, prepared(folders), strict=False))
    whole = sum(refusal(name, one) for name, one in result.items())
    largest = max((one["peak"] for one in result.values()), default=0) / 1e6
    path = work / "model.txt"
    path.write_text(fitted_text(), encoding="utf-8")
    scored, message = mutated(path, mutants)
    figure = (
        f"{whole} of {len(BOMBS)} inputs refused with status 2 in one line that names file and reason, peak memory "
        f"{largest:.0f} MB ({', '.join(BOMBS)}); {scored + message:,} of {mutants:,} mutants of a LightGBM text: "
        f"{scored:,} load and score finite numbers, {message:,} are refused in one line, none ends the process or hangs"
    )
    return Finding(18, figure, whole == len(BOMBS) and scored + message == mutants)


def write_bomb(folder: Path, name: str) -> None:
    """A folder with a recipe and the data that it names, one of them a bomb."""
    folder.mkdir(parents=True)
    bomb = BOMBS[name]
    data: dict[str, Any] = {"logs": ["log.csv"]}
    (folder / "log.csv").write_text(LOG)
    if bomb.file.startswith("log"):
        data["logs"] = [bomb.file]
    elif bomb.file.startswith("items"):
        data["items"] = {"path": bomb.file} | ({"text": ["title"]} if bomb.file == "items.parquet" else {})
    (folder / "recipe.yaml").write_text(json.dumps({"data": data}))
    bomb.write(folder)


def refusal(name: str, found: Mapping[str, Any]) -> bool:
    """Whether a bomb was refused as it should be."""
    bomb, lines = BOMBS[name], found["said"].splitlines()
    return (
        found["status"] == 2
        and len(lines) == 1
        and bomb.file in lines[0]
        and bomb.message in lines[0]
        and len(lines[0]) < 2100
        and found["peak"] <= MOST
    )


def prepared(folders: Sequence[Path], timeout: float = 300) -> list[dict[str, Any]]:
    """Status, words and peak memory of `adagrpo run` in each folder, all in one child; fewer where it ended."""
    return _child([str(folder) for folder in folders], timeout)


def mutated(path: Path, count: int, timeout: float = 600) -> tuple[int, int]:
    """How many mutants of a model a child scored, and how many it refused in one line; less in all where it ended."""
    result = _child(["--models", str(path), str(count)], timeout)
    return sum(one["finite"] for one in result), sum(one["refused"] for one in result)


def _child(arguments: Sequence[str], timeout: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.reliability.explode", *arguments]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as answers:
        process = subprocess.Popen(command, stdout=answers, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
        process.kill()
        process.wait()
        answers.seek(0)
        return [json.loads(line) for line in answers]


# ---------------------------------------------------------------- in the child


def main() -> None:
    """Carry out what the arguments say."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    if sys.argv[1] == "--models":
        _score(Path(sys.argv[2]), int(sys.argv[3]))
        return
    importlib.import_module("adagrpo.pipeline")  # before memory is measured
    from adagrpo import cli

    for folder in sys.argv[1:]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        arguments = [f"{folder}/recipe.yaml", "--data", folder, "--out", f"{folder}/run", "--quiet"]
        sys.argv = ["adagrpo", "run", *arguments]
        status: Any = 0
        with contextlib.redirect_stderr(io.StringIO()) as message:
            try:
                cli.main()
            except SystemExit as error:
                status = error.code
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        print(
            json.dumps({"status": status, "said": message.getvalue(), "peak": peak}),
            flush=True,
        )


def _score(path: Path, count: int) -> None:
    from adagrpo.rewards import load_model

    table = [pl.Series(column) for column in np.random.default_rng(0).normal(size=(3, 50)) * 30]
    text = path.read_text(encoding="utf-8")
    for mutant in mutants(text, count):
        path.write_text(mutant, encoding="utf-8", newline="")
        finite = refused = False
        try:
            finite = bool(np.isfinite(load_model(path).predict(table, 1)).all())
        except UserError as error:
            refused = str(path) in str(error) and len(str(error).splitlines()) == 1
        print(json.dumps({"finite": finite, "refused": refused}), flush=True)


def mutants(text: str, count: int, seed: int = 0) -> Iterator[str]:
    """A text with a character more, less or another, or a number of it another, before the part that nobody reads."""
    draw = np.random.default_rng(seed)
    numbers = [match.span() for match in re.finditer(r"-?[0-9]+", text)]
    for turn in range(count):
        place, other = int(draw.integers(len(text))), CHARACTERS[int(draw.integers(len(CHARACTERS)))]
        start, end = numbers[int(draw.integers(len(numbers)))]
        yield (
            text[:place] + other + text[place:],
            text[:place] + text[place + 1 :],
            text[:place] + other + text[place + 1 :],
            text[:start] + str(int(draw.integers(-20, 20)) * 10 ** int(draw.integers(0, 9))) + text[end:],
        )[turn % 4]


def fitted_text() -> str:
    """The text of a model of some trees, one feature of which has categories; without its parameters."""
    import lightgbm

    draw = np.random.default_rng(0)
    table = draw.normal(size=(2000, 3))
    table[:, 2] = draw.integers(0, 40, 2000)
    labels = table[:, 0] + (table[:, 1] > 0) + (table[:, 2] % 3 == 0)
    options = {"num_leaves": 7, "min_data_per_group": 5, "cat_smooth": 1, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(table, labels, feature_name=list(FEATURES[:3]), categorical_feature=[2])
    text: str = lightgbm.train(options, data, num_boost_round=3).model_to_string()
    return text[: text.index("parameters:")]


if __name__ == "__main__":
    main()
