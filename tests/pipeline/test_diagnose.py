from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from adagrpo.data.prepared import load_item_ids, load_user_ids
from adagrpo.data.simulation.marketplace import Truth
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.diagnose import observe
from adagrpo.report import diagnosis_tables, write_diagnosis
from adagrpo.report.tables import format_p


class Done(NamedTuple):
    directory: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def done(finished: Path, data: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A diagnosed copy of the finished run, to be read only."""
    directory = Path(shutil.copytree(finished, tmp_path_factory.mktemp("diagnosed") / "run"))
    return Done(directory, world.run(directory, data).diagnose().content)


def test_the_result_is_kept_and_the_stage_is_skipped_when_nothing_changed(done: Done, data: Path, world: Any) -> None:
    path = done.directory / "diagnose/diagnose.json"
    assert json.loads(path.read_text(encoding="utf-8")) == done.result
    before = path.stat().st_mtime_ns
    assert world.run(done.directory, data).diagnose().content == done.result
    assert path.stat().st_mtime_ns == before


def test_policy_order_is_what_evaluation_reports_on_validation(done: Done) -> None:
    metrics = json.loads((done.directory / "metrics.json").read_text(encoding="utf-8"))
    reported = metrics["stages"]["sft"]["validation"]
    for name, value in done.result["orders"]["policy"].items():
        assert value == pytest.approx(reported[name], rel=1e-12)
    again = metrics["ranker"]["rerank"]["validation"]["reward"]
    assert done.result["orders"]["ranker"] == pytest.approx(
        {name: again[name] for name in done.result["orders"]["ranker"]}
    )


def test_the_popularity_cells_hold_every_case_once(done: Done) -> None:
    cases = len(pl.read_parquet(done.directory / "prepare/validation.parquet").filter("target"))
    assert done.result["settings"]["cases"] == cases == sum(row["cases"] for row in done.result["popularity"])


def test_test_targets_are_not_read(done: Done, finished: Path, data: Path, world: Any, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(finished, tmp_path / "run"))
    (directory / "prepare/test.parquet").unlink()
    result = world.run(directory, data).diagnose().content
    assert result == done.result


def test_tables_print_the_result(done: Done) -> None:
    result, tables = done.result, diagnosis_tables(done.result)
    assert "exposure" not in tables
    for table in tables.values():
        assert all(len(row) == len(table.header) == len(table.alignment) for row in table.rows)
    first, grid = tables["serving"].rows[0], tables["grid"].rows[0]
    assert first[:2] == ("all cases", str(result["settings"]["cases"]))
    assert first[3] == f"{result['orders']['policy']['ndcg@10']:.4f}"
    assert first[-1] == format_p(result["verdict"]["all_cases_adjusted_p"])
    assert grid[2] == str(result["grid"][0]["admitted"]) and len(tables["grid"].rows) == len(result["grid"])
    gate = {row[0]: row[1:] for row in tables["gate"].rows}
    assert gate["admitted"] == tuple(f"{100 * result['gate'][kind]['admission']:.1f} %" for kind in ("sample", "beam"))


def test_the_page_is_whole_offline_and_escapes_names(done: Done, tmp_path: Path) -> None:
    page = (done.directory / "diagnose.html").read_text(encoding="utf-8")
    drawn = page.count("<summary>Numbers of this chart</summary>")
    assert page.count("<svg") == drawn == 3
    assert page.count("<table>") == page.count("</table>") == len(diagnosis_tables(done.result)) + drawn
    assert done.result["verdict"]["decision"].replace("_", " ").capitalize() in page
    hostile = write_diagnosis(tmp_path, done.result, "<script>x</script>").read_text(encoding="utf-8")
    assert "<script" not in hostile and "&lt;script&gt;x" in hostile
    assert not re.search(r"https?://|src=|@import|<link", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))


@pytest.mark.slow
def test_a_marketplace_is_held_against_its_truth(world: Any, tmp_path: Path) -> None:
    """Its logs have impressions and a known utility, so exposure and accuracy are measured."""
    run = world.run(
        tmp_path / "run",
        tmp_path,
        data={"logs": [], "marketplace": {"users": 80, "items": 100}},
        tokenizer={"vectors": {"cooccurrence": 1.0}},
    )
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        stage(run)
    result = run.diagnose().content
    assert sum(row["cases"] for row in result["exposure"]) == result["settings"]["cases"]
    models, truth = Models(RunData(run)), Truth.load(run.path("simulate/truth"))
    policy, ranker = models.policy(run.path("sft/best")), models.ranker(run.path("ranker/best"))
    cases = models.data.cases("validation")
    utility = observe(models, policy, ranker, cases, utility=models.data.utility_at(cases)).utility
    assert utility is not None
    items = np.arange(3 * len(cases)).reshape(-1, 3) % models.data.num_items
    users, names = load_user_ids(models.data.prepared), load_item_ids(models.data.prepared)
    for case, row in enumerate(utility(items)):  # by the ids of the logs, as the simulation has them
        user = truth.user_ids.index(users[int(cases.users[case])])
        own = [truth.item_ids.index(names[int(item)]) for item in items[case]]
        bought = truth.item_ids.index(names[int(cases.targets[case])])
        before = truth.utility_before(np.array([user]), np.array([bought]), np.array([own]))
        assert row.tolist() == before[0].tolist()
