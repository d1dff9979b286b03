"""A run can be read where it cannot be written: what verbs write goes elsewhere, and the run stays as it was."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.lists.query import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.staleness import finished_arms
from adagrpo.storage import locks

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reliability.read_only import snapshot


@pytest.mark.slow  # evaluates and diagnoses
def test_verbs_that_read_a_run_leave_it_as_it_was(finished: Path, tmp_path: Path) -> None:
    before = snapshot(finished)
    out = tmp_path / "out"
    run = Run.open(finished, ["evaluation.batch_size=16"], out=out)  # another setting: the evaluation is made again
    arms = finished_arms(run)
    run.evaluate()
    metrics = run.results
    page = run.report()
    run.diagnose()
    served, _ = recommender(Run.open(finished), ListOptions(reward_weight=1.0))
    assert len(served.recommend([Query([0, 1])])[0].items) > 0
    assert snapshot(finished) == before
    assert page == out / "report.html" and set(metrics["stages"]) == {"sft", *arms}
    written = {path.name for path in out.iterdir()}
    assert {"evaluate", "diagnose", "diagnose.html", "metrics.json", "run.yaml"} <= written and "train" not in written


def test_a_run_that_cannot_be_written_says_what_takes_out(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "open", refuse)
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); .* with --out") as caught:
            Run.open(finished, ["seed=9"]).tokenize()
    assert "\n" not in str(caught.value) and Run.open(finished).config.seed != 9
