"""The watch over a log that was written for it: what counts as feedback."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.monitoring import SIGNS, SignRule
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.watch import _predicted, predicted_clicks, watch
from adagrpo.storage.artifacts import manifest

DAY, DAYS, LISTS = 86_400, 10, 20


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """On every day half of the lists are clicked; from the sixth day on the items are none of those that were shown."""
    written = LocalExposureLog(tmp_path / "log")
    for day in range(DAYS):
        rows = [
            Exposure(
                request_id=f"r{day}-{number}", time=(20_000 + day) * DAY + number, slate=("1", "2"), arm="nll",
                model_version="m", catalog_version="c", user_hash=f"u{number}", key_version="k",
            )
            for number in range(LISTS)
        ]  # fmt: skip
        written.write(rows)
        clicked = [
            Feedback(request_id=row.request_id, item="1" if day < 5 else "9", kind="click", time=row.time + 5)
            for row in rows[::2]
        ]
        written.feedback(clicked)
    written.close()
    return tmp_path / "log"


def test_feedback_on_an_item_that_was_not_shown_counts_nowhere(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[pl.DataFrame] = []  # what the histories of users are made of

    def predicted(run: Any, shown: pl.DataFrame, exposures: pl.DataFrame, feedback: pl.DataFrame) -> Any:
        read.append(feedback)
        return np.full(len(shown), np.nan)

    monkeypatch.setattr("adagrpo.pipeline.watch._check_together", lambda run: None)
    monkeypatch.setattr("adagrpo.pipeline.watch.RunData", lambda run: SimpleNamespace(ranker_loss="impressions"))
    monkeypatch.setattr("adagrpo.pipeline.watch._predicted", predicted)
    monkeypatch.setattr("adagrpo.pipeline.watch._invalid", lambda run: {})
    console = SimpleNamespace(note=lambda text: None)
    found = watch(log, SimpleNamespace(console=console), rule=SignRule(baseline=2, window=1))  # type: ignore[arg-type]
    assert [day["clicked"] for day in found["days"]] == [0.5] * 3 + [0.0] * 5
    assert found["signs"]["feedback_down"] == 20_005
    assert set(read[0]["item"]) == {"1"} and len(read[0]) == 5 * LISTS // 2


def test_what_was_clicked_and_bought_is_once_in_a_history(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the impressions that the ranker was trained on."""
    read: list[list[Any]] = []
    monkeypatch.setattr(
        "adagrpo.pipeline.watch.predicted_clicks", lambda ranker, histories, *rest: read.append(histories)
    )
    run = Run.open(finished)
    first = str(RunData(run).item_ids[0])
    shown = pl.DataFrame({"user_hash": ["u", "u"], "time": [1.0, 9.0], "slate": [[first], [first]]})
    exposures = shown.with_columns(request_id=pl.Series(["a", "b"]))
    feedback = pl.DataFrame({"request_id": ["a", "a"], "item": [first, first], "kind": ["click", "purchase"]})
    _predicted(run, shown, exposures, feedback)
    assert [history.tolist() for history in read[0]] == [[], [0]]


@pytest.mark.parametrize(("loss", "says"), [("impressions", True), ("cross_entropy", False)])
def test_scores_of_a_ranker_that_saw_no_impressions_are_no_chances(
    log: Path, monkeypatch: pytest.MonkeyPatch, loss: str, says: bool
) -> None:
    notes: list[str] = []
    run: Any = SimpleNamespace(console=SimpleNamespace(note=notes.append))
    monkeypatch.setattr("adagrpo.pipeline.watch._check_together", lambda run: None)
    monkeypatch.setattr("adagrpo.pipeline.watch.RunData", lambda run: SimpleNamespace(ranker_loss=loss))
    monkeypatch.setattr("adagrpo.pipeline.watch._predicted", lambda run, shown, *rest: np.full(len(shown), 0.5))
    monkeypatch.setattr("adagrpo.pipeline.watch._invalid", lambda run: {})
    found = watch(log, run, rule=SignRule(baseline=2, window=1))
    days = found["days"]
    assert [day["predicted"] == 0.5 for day in days] == [says] * len(days)
    assert [day[name] is not None for day in days for name in ("reward", "calibration")] == [says] * 2 * len(days)
    assert list(found["signs"]) == (list(SIGNS) if says else ["feedback_down", "concentration"])
    assert len(notes) == (not says) and all("fitted by 'cross_entropy'" in note for note in notes)


def test_a_log_without_histories_is_said_to_predict_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    run: Any = SimpleNamespace(console=SimpleNamespace(note=notes.append))
    monkeypatch.setattr("adagrpo.pipeline.watch._check_together", lambda run: None)
    monkeypatch.setattr("adagrpo.pipeline.watch.RunData", lambda run: SimpleNamespace(ranker_loss="impressions"))
    monkeypatch.setattr("adagrpo.pipeline.watch._predicted", lambda run, shown, *rest: np.full(len(shown), np.nan))
    monkeypatch.setattr("adagrpo.pipeline.watch._invalid", lambda run: {})
    found = watch(log, run, rule=SignRule(baseline=2, window=1))
    assert list(found["signs"]) == ["feedback_down", "concentration"]
    assert len(notes) == 1 and "none has a history to predict from" in notes[0]


def test_a_log_that_is_too_short_says_how_much_is_later(log: Path) -> None:
    with pytest.raises(UserError, match=r"want two lists in 30 days .*, found 200 lists, of which 0 are later"):
        watch(log, rule=SignRule(baseline=30))


def test_windows_of_one_list_are_no_look(tmp_path: Path) -> None:
    written = LocalExposureLog(tmp_path / "log")
    days = [0, 0, 1, 5]
    written.write(
        [
            Exposure(
                request_id=f"r{row}", time=float((20_000 + day) * DAY), slate=("1",), arm="nll", model_version="m",
                catalog_version="c", user_hash="u", key_version="k",
            )
            for row, day in enumerate(days)
        ]
    )  # fmt: skip
    written.close()
    with pytest.raises(UserError, match=r"want two lists a window, found one at most; watch longer"):
        watch(tmp_path / "log", rule=SignRule(baseline=1, window=1))


def test_a_stage_that_is_stale_is_not_watched_with(copied: Path, log: Path) -> None:
    found = watch(log, Run.open(copied), rule=SignRule(baseline=2, window=1))
    assert set(found["invalid"]) == {"sft", "nll", "adagrpo"}
    json.dumps(found, allow_nan=False)  # what is not known is null
    assert {day["predicted"] for day in found["days"]} == {None}
    Run.open(copied, ["tokenizer.window=1"]).tokenize()
    with pytest.raises(UserError, match=r"sft is stale: made from another tokenize/codes\.json .* run `adagrpo sft"):
        watch(log, Run.open(copied), rule=SignRule(baseline=2, window=1))


def test_a_stale_arm_that_the_run_has_no_more_is_left_out(
    copied: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the run was made again without it; nobody would train it to watch."""

    def of_other_codes(folder: Path) -> dict[str, Any] | None:
        content = manifest(folder)
        if content is not None and folder.name == "adagrpo":
            content["made_from"]["reads"]["tokenize:codes.json"] = "0" * 64
        return content

    monkeypatch.setattr("adagrpo.pipeline.directory.manifest", of_other_codes)
    found = watch(log, Run.open(copied, ["train.arms=[nll]"]), rule=SignRule(baseline=2, window=1))
    assert set(found["invalid"]) == {"sft", "nll"}
    with pytest.raises(UserError, match=r"train/adagrpo is stale: made from another tokenize/codes\.json"):
        watch(log, Run.open(copied), rule=SignRule(baseline=2, window=1))


def test_lists_are_scored_some_at_a_time_with_the_same_result(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, draw = Run.open(finished), np.random.default_rng(0)
    ranker = Models(RunData(run)).ranker(run.path("ranker", "best"))
    histories = [draw.integers(0, 30, size=size % 5) for size in range(23)]  # some are empty
    items = draw.integers(-1, 30, size=(23, 4))
    items[:, 0] = 3
    whole = predicted_clicks(ranker, histories, items, 6)
    monkeypatch.setattr("adagrpo.pipeline.watch.BATCH", 4)
    np.testing.assert_allclose(predicted_clicks(ranker, histories, items, 6), whole, rtol=1e-5)
    assert np.isnan(whole).sum() == 5
