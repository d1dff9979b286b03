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
from adagrpo.report.diagnosis_page import diagnosis_tables, write_diagnosis
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
    first = tables["serving"].rows[0]
    assert first[:2] == ("all cases", str(result["settings"]["cases"]))
    assert first[3] == f"{result['orders']['policy']['ndcg@10']:.4f}"
    assert first[-1] == format_p(result["verdict"]["all_cases_adjusted_p"])


def test_the_page_is_whole_offline_and_escapes_names(done: Done, tmp_path: Path) -> None:
    page = (done.directory / "diagnose.html").read_text(encoding="utf-8")
    drawn = page.count("<summary>Numbers of this chart</summary>")
    assert page.count("<svg") == drawn == 3
    assert page.count("<table>") == page.count("</table>") == len(diagnosis_tables(done.result)) + drawn
    assert done.result["verdict"]["decision"].replace("_", " ").capitalize() in page
    hostile = write_diagnosis(tmp_path, done.result, "<script>x</script>", None, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in hostile and "&lt;script&gt;x" in hostile
    assert not re.search(r"https?://|src=|@import|<link", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))


def test_the_nll_of_a_logged_item_is_that_of_its_beam(done: Done, data: Path, world: Any) -> None:
    """Where the beam holds it, its score there is -L times the NLL."""
    models = Models(RunData(world.run(done.directory, data, evaluation={"precision": "float32"})))
    cases = models.data.cases("validation")
    observed = observe(
        models, models.policy(done.directory / "sft/best"), models.ranker(done.directory / "ranker/best"), cases
    )
    rows, places = np.nonzero(observed.lists.items == observed.lists.targets[:, None])
    assert len(rows) > 20
    expected = -observed.lists.log_probs[rows, places] / models.data.catalog.num_levels
    np.testing.assert_allclose(observed.nll[rows], expected, rtol=1e-5)


@pytest.mark.slow
def test_what_was_decided_is_named_and_compared(copied: Path, data: Path, world: Any) -> None:
    """One answer: before `decide` its command, afterwards its list, on the page and in what is returned."""
    run = world.run(copied, data, reward={"kind": "noise"})
    before = run.diagnose()
    assert before.serve is None and before.sentences[-1].startswith(f"`adagrpo decide --run {copied}` compares all")
    decision = run.decide()
    pairs = decision["reward_in_fusion"]
    fused, without, again = (
        next(row for row in decision["contenders"] if row["list"] == name)["validation"]["ndcg@10"]
        for name in ("fuse", "fuse-without-reward", "rerank")
    )
    assert pairs[0] == pytest.approx(fused - without) and pairs[1] <= pairs[0] <= pairs[2]
    page = (copied / "diagnose.html").read_text(encoding="utf-8")  # written again by `decide`
    after = run.diagnosis
    assert after.serve == decision["serve"] and after.serve in page
    chosen = next(row for row in decision["contenders"] if row["list"] == decision["chosen"])["validation"]["ndcg@10"]
    beside = "" if decision["chosen"] == "rerank" else f", that of rerank {again:.4f}"
    named = f"which `adagrpo decide` chose: its NDCG@10 on validation is {chosen:.4f}{beside}."
    mean, low, high = pairs
    added = f"In the fused list the reward changes NDCG@10 by {mean:+.4f} ({low:+.4f} to {high:+.4f})."
    assert after.sentences[-2:] == (f"Serve {decision['chosen']}, {named}", added)
    assert named.replace("`", "") in page and added in page
    assert after.content == before.content  # the stage does not read the decision
    stale = world.run(copied, data).diagnose()  # of another reward
    assert stale.serve is None and stale.sentences[-1] == before.sentences[-1]


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
