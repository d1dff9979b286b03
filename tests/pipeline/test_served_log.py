"""What a service logged becomes a run: answers and feedback, `adagrpo prepare --exposures`, a ranker, post-training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from threading import Event, Thread, Timer

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from adagrpo.cli import app
from adagrpo.config import resolve_config
from adagrpo.errors import UserError
from adagrpo.exposures import exposure_store
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import KIND, LocalExposureLog
from adagrpo.exposures.exposure_store import parts_of as log_parts
from adagrpo.lists.exploration import Exploration
from adagrpo.pipeline import ListOptions, Run, Silent
from adagrpo.pipeline.directory import remake_command
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.stages.prepare import latest_exposures, publish_first
from adagrpo.pipeline.staleness import parts_of
from adagrpo.serving.app import Application
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Limits, Options
from adagrpo.storage.locks import lock_folder

USERS, ITEMS, PLACES, DAYS = 30, 20, 4, 4
SMALL = [
    *("max_history=6", "threads=1", "tokenizer.levels=2", "tokenizer.codes=8", "tokenizer.width=8"),
    *("policy.width=16", "policy.layers=1", "policy.heads=2", "policy.decoder_hidden=16", "evaluation.beam_width=10"),
    *("sft.epochs=1", "sft.batch_size=16", "sft.validations=1", "ranker.width=16", "ranker.layers=1"),
    *("ranker.fit.epochs=1", "ranker.fit.batch_size=16", "ranker.fit.validations=1"),
    *("train.fit.epochs=1", "train.fit.batch_size=16", "train.fit.validations=1", "objective.num_generations=4"),
    *("ranker.loss=impressions", "train.arms=[{objective: adagrpo}]"),
]


def serve_days(log: LocalExposureLog) -> tuple[int, int]:
    """Lists drawn at random for users who like items of their own parity; answers and clicks that were logged."""
    rng, answers, clicks = np.random.default_rng(0), list[Exposure](), list[Feedback]()
    for day in range(DAYS):
        for user in range(USERS):
            name, time = f"{user}-{day}", 86_400.0 * day + user
            slate = tuple(map(int, rng.permutation(ITEMS)[:PLACES]))
            answers.append(
                Exposure(
                    request_id=name,
                    time=time,
                    slate=slate,
                    arm="nll",
                    model_version="m",
                    catalog_version="c",
                    user_hash=f"u{user}",
                    key_version="k",
                    log_inclusions=(math.log(PLACES / ITEMS),) * PLACES,
                    log_propensities=tuple(-math.log(ITEMS - place) for place in range(PLACES)),
                )
            )
            liked = [item for item in slate if rng.random() < (0.8 if item % 2 == user % 2 else 0.1)]
            clicks += [Feedback(request_id=name, item=item, kind="click", time=time + 5) for item in liked]
    log.write(answers)
    log.feedback(clicks)
    return len(answers), len(clicks)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    directory = tmp_path_factory.mktemp("served") / "log"
    log = LocalExposureLog(directory, rotate_rows=200)
    answers, clicks = serve_days(log)
    log.feedback([Feedback(request_id="nobody", item=1, kind="click", time=1.0)])
    log.close()
    return directory, answers, clicks


def prepared(directory: Path, out: Path, *more: str) -> dict[str, object]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = ["prepare", "--exposures", str(directory), "--out", str(out), "--json", *settings, *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_log_of_a_service_prepares_fits_and_post_trains_by_one_command_each(
    logged: tuple[Path, int, int], tmp_path: Path
) -> None:
    directory, answers, clicks = logged
    summary = prepared(directory, tmp_path / "run", "--set", "ranker.propensity=snips")
    counts = summary["exposures"]
    assert counts["answers"] == answers and counts["impressions"] == answers * PLACES
    assert counts["clicks"] == clicks == counts["feedback"] - 1 and counts["feedback_of_unknown_requests"] == 1
    shown = pl.read_parquet(tmp_path / "run" / "prepare" / "impressions.parquet")
    np.testing.assert_allclose(shown["propensity"], PLACES / ITEMS, rtol=1e-12)
    assert set(shown["slot"]) == set(range(PLACES))
    run = Run.open(tmp_path / "run")
    for stage in (Run.tokenize, Run.sft, Run.ranker, Run.train):
        stage(run)
    assert (tmp_path / "run" / "train" / "adagrpo" / "final" / "model.safetensors").is_file()


def test_clicks_of_a_list_are_no_history_of_the_list(logged: tuple[Path, int, int], tmp_path: Path) -> None:
    prepared(logged[0], tmp_path / "run")
    shown = pl.read_parquet(tmp_path / "run" / "prepare" / "impressions.parquet")
    first_day = shown.group_by("user", maintain_order=True).head(PLACES)
    assert first_day["clicked"].sum() > 0 and first_day["history_length"].max() == 0


def test_what_is_logged_later_is_for_the_next_run(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    serve_days(log)
    before = prepared(tmp_path / "log", tmp_path / "run")
    made = (tmp_path / "run" / "prepare" / "manifest.json").read_bytes()
    log.feedback([Feedback(request_id="0-0", item=item, kind="purchase", time=9.0) for item in range(ITEMS)])
    log.rotate()
    log.close()
    assert {part.state for part in parts_of(Run.open(tmp_path / "run")).values() if part.there} == {"done"}
    assert (tmp_path / "run" / "prepare" / "manifest.json").read_bytes() == made
    after = prepared(tmp_path / "log", tmp_path / "next")
    assert after["exposures"]["feedback"] == before["exposures"]["feedback"] + ITEMS


def test_the_first_run_of_a_recipe_reads_what_is_in_no_part_yet(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    serve_days(log)
    config = resolve_config({"name": "n", "data": {"exposures": {"path": str(tmp_path / "log")}}}, [], "recipe.yaml")
    run = Run(tmp_path / "run", config, Path(), Silent())
    publish_first(run)
    assert [part.name for part in log_parts(tmp_path / "log")] == ["000001"]
    log.feedback([Feedback(request_id="0-0", item=0, kind="purchase", time=9.0)])
    (tmp_path / "run" / "exposures").mkdir(parents=True)
    publish_first(run)  # a run that goes on is not made again for what came meanwhile
    log.close()
    assert [part.name for part in log_parts(tmp_path / "log")] == ["000001"]


def test_a_run_goes_on_where_the_log_is_gone_and_names_the_verb_that_reads_it(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    serve_days(log)
    log.close()
    prepared(tmp_path / "log", tmp_path / "run")
    (tmp_path / "log").rename(tmp_path / "away")
    run = Run.open(tmp_path / "run")
    assert {name: part.state for name, part in parts_of(run).items() if part.there} == {
        "exposures": "done",
        "prepare": "done",
    }
    expected = f"`adagrpo prepare --exposures {tmp_path / 'log'} --out {tmp_path / 'run'}`"
    assert remake_command(run, "exposures").startswith(expected) and remake_command(run, "prepare").startswith(expected)
    run.tokenize()


def test_a_run_is_up_to_date_wherever_its_verbs_are_called_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LocalExposureLog(tmp_path / "log")
    serve_days(log)
    log.close()
    monkeypatch.chdir(tmp_path)
    prepared(Path("log"), Path("run"))
    Run.open(Path("run")).tokenize()
    monkeypatch.chdir("/")
    assert {part.state for part in parts_of(Run.open(tmp_path / "run")).values() if part.there} == {"done"}


def test_a_damaged_part_is_refused_by_name(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    serve_days(log)
    log.rotate()
    log.close()
    part = tmp_path / "log" / "parts" / "000001" / "exposures.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    command = ["prepare", "--exposures", str(tmp_path / "log"), "--out", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"exposures\.parquet: content differs from the manifest"):
        CliRunner().invoke(app, command, standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give log files, or --exposures and the folder of an exposure log"),
        (["log.csv", "--exposures", "log"], "log: no exposure log; give the folder that"),
        (["--exposures", "nothing"], "nothing: no exposure log; give the folder that `adagrpo serve` logs into"),
        (["--exposures", "empty"], "empty: nothing was logged there yet"),
    ],
)
def test_what_is_no_exposure_log_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    LocalExposureLog(Path("empty")).close()
    with pytest.raises(UserError, match=re.escape(message)):
        CliRunner().invoke(app, ["prepare", *arguments, "--out", "run"], standalone_mode=False, catch_exceptions=False)
    assert not Path("run").exists()


def test_a_service_that_explores_feeds_the_next_ranker(copied: Path, tmp_path: Path) -> None:
    """Over the routes of the service: lists that are drawn, clicks by request id, and a run of what was logged."""
    answering, _ = recommender(Run.open(copied), ListOptions("adagrpo", "final", exclude_history=False))
    serving = Serving(answering, {}, {"model": "m", "catalog": "c", "arm": "adagrpo/final"})
    limits = Limits(deadline_seconds=60.0)  # on a busy machine too
    options = Options(limits, exposures=LocalExposureLog(tmp_path / "log"), explore=Exploration(1.0, share=0.8))
    clicks = 0
    with TestClient(Application(ModelManager(serving), options)) as client:
        for visit in range(5):
            history = [answering.item_ids[visit]]
            requests = [{"history": history, "k": 3, "user_id": user} for user in range(20)]
            replies = client.post("/v1/recommend", json={"requests": requests}).json()["responses"]
            events = [
                {"request_id": r["request_id"], "item_id": r["items"][visit % 3], "kind": "click"} for r in replies
            ]
            assert client.post("/v1/feedback", json={"events": events}).json()["unknown"] == 0
            clicks += len(events)
    sampled = ("--set", "data.exposures.only_sampled=true", "--set", "ranker.propensity=ips")
    counts = prepared(tmp_path / "log", tmp_path / "run", *sampled)["exposures"]
    kept = counts["answers"] - counts["answers_not_sampled"]
    assert (counts["answers"], counts["feedback"]) == (100, clicks) and 60 < kept < 95
    assert counts["impressions"] == 3 * kept and counts["clicks"] == kept
    Run.open(tmp_path / "run").ranker()
    assert (tmp_path / "run" / "ranker" / "final" / "model.safetensors").is_file()


def test_rows_are_read_also_while_a_service_makes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came then read what there was before, without a word."""
    log, shown = LocalExposureLog(tmp_path), {"slate": (1, 2), "arm": "a", "model_version": "m", "catalog_version": "c"}
    log.write([Exposure(request_id=f"r{n}", time=float(n), **shown) for n in range(3)])
    with pytest.raises(UserError, match="has no part yet; without --dry-run one is made"):
        latest_exposures(tmp_path, publish=False)
    begun, ended = Event(), Event()

    def service() -> None:
        with lock_folder(tmp_path, KIND):
            begun.set()
            ended.wait(60)

    thread = Thread(target=service)
    thread.start()
    begun.wait()
    Timer(0.3, ended.set).start()
    assert latest_exposures(tmp_path, publish=True)["through"] == 1
    thread.join()
    log.close()
    monkeypatch.setattr(exposure_store, "PATIENCE", 0.1)
    with lock_folder(tmp_path, KIND), pytest.raises(UserError, match="is at work here; wait until it ends"):
        latest_exposures(tmp_path, publish=True)
