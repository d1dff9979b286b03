"""A run that was made from other logs is replaced only where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo import Run

from ..command_line import command

AGAIN = "; --replace makes all of it again in place, or give another --out\n"


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def log(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the world, in the working directory, with a run of it."""
    monkeypatch.chdir(tmp_path)
    world.write(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(world.recipe()), encoding="utf-8")
    assert command("prepare", "log.csv", "--out", "made", "--quiet").status == 0
    return Path("log.csv")


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "decide": lambda log: ["decide", log, "--out", "made"],
    "prepare": lambda log: ["prepare", log, "--out", "made"],
    "run": lambda log: ["run", "recipe.yaml", "--out", "made", "--set", f"data.logs=[{log}]"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_run_of_other_logs_is_left_as_it_is(log: Path, world: Any, verb: str) -> None:
    before = tree(Path("made"))
    other = world.changed("u00", 0, 3).write(Path("elsewhere")).rename("orders.csv")
    refused = command(*COMMANDS[verb](str(other)), "--quiet")
    assert refused == (2, "", f"adagrpo: made: was made from log.csv, not from orders.csv{AGAIN}")
    other.rename(log)  # exported again, with other rows
    refused = command(*COMMANDS[verb]("log.csv"), "--quiet")
    assert refused == (2, "", f"adagrpo: made: was made from another log.csv than the file is now{AGAIN}")
    assert command("decide", "--run", "made", "--quiet") == refused
    assert tree(Path("made")) == before


def test_with_replace_all_of_it_is_made_again(log: Path, world: Any) -> None:
    before = tree(Path("made/prepare"))
    world.changed("u00", 0, 23).write(Path())
    assert command("prepare", "log.csv", "--out", "made", "--quiet", "--replace").status == 0
    assert tree(Path("made/prepare"))[Path("made/prepare/train.parquet")] != before[Path("made/prepare/train.parquet")]
    assert command("prepare", "log.csv", "--out", "made", "--quiet").status == 0  # which is now its log


def test_logs_and_simulated_ones_do_not_replace_each_other(log: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"] = {"marketplace": {"users": 60, "items": 200}}
    Path("simulated.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    refused = command("run", "simulated.yaml", "--out", "made", "--quiet")
    assert refused == (2, "", f"adagrpo: made: was made from log.csv, not from simulated logs{AGAIN}")
    Run.create("simulated.yaml", "shop").prepare()
    refused = command("decide", "log.csv", "--out", "shop", "--quiet")
    assert refused == (2, "", f"adagrpo: shop: was made from simulated logs, not from log.csv{AGAIN}")
    assert command("run", "simulated.yaml", "--out", "shop", "--dry-run", "--quiet").status == 0


def test_the_same_rows_elsewhere_and_further_roles_are_no_other_logs(log: Path, world: Any) -> None:
    log.rename("moved.csv")
    assert command("prepare", "moved.csv", "--out", "made", "--quiet").status == 0
    shown = Path("shown.csv")
    rows = [f"{user},{items[0]},900,1" for user, items in world.sequences.items()]
    shown.write_text("\n".join(["user_id,item_id,timestamp,clicked", *rows]) + "\n", encoding="utf-8")
    assert command("prepare", "--impressions", shown, "--out", "made", "--quiet").status == 0
    both = command("prepare", "moved.csv", "--out", "made", "--quiet")
    assert both == (2, "", f"adagrpo: made: was made from moved.csv and shown.csv, not from moved.csv{AGAIN}")
