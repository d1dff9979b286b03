"""A finished run behind HTTP answers with the lists that evaluation measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adagrpo.data.prepared import load_item_ids
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import reordered
from adagrpo.lists.query import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.serve import recommender
from adagrpo.serving.app import Application
from adagrpo.serving.draining import Server, listen
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Options
from adagrpo.serving.schemas import HealthAnswer
from adagrpo.storage.artifacts import seal
from adagrpo.types import Cases, Ragged


def opened(folder: Path, *settings: str) -> Run:
    return Run.open(folder, settings)


def questions(run: Run) -> list[list[Any]]:
    """The histories of the test cases, in the ids of the log."""
    models = Models(RunData(run))
    names, cases = load_item_ids(models.data.prepared).to_list(), models.data.cases("test")
    return [[names[item] for item in cases.histories.row(row)] for row in range(len(cases))]


@pytest.mark.parametrize(("mask", "weight"), [(False, 0.0), (True, 0.0), (True, 2.0)])
def test_the_lists_are_those_of_evaluation(copied: Path, mask: bool, weight: float) -> None:
    run = opened(copied, f"evaluation.exclude_history={str(mask).lower()}")
    models = Models(RunData(run))
    served, about = recommender(opened(copied), ListOptions("adagrpo", "final", weight, exclude_history=mask))
    assert about["arm"] == ("adagrpo+rerank" if weight else "adagrpo")
    assert (about["checkpoint"], about["items"]) == ("final", models.data.num_items)
    cases = models.data.cases("test")
    expected = models.predict(models.policy(copied / "train/adagrpo/final"), cases, models.reward())
    if weight:
        expected = reordered(expected, weight, served.within_list_std)
    names = load_item_ids(models.data.prepared).to_list()
    actual = served.recommend([Query(served.known(history)[0]) for history in questions(run)])
    for reply, items, scores in zip(actual, expected.items, expected.scores, strict=True):
        assert reply.items == [names[item] for item in items if item >= 0]
        assert reply.scores == pytest.approx(scores[items >= 0].tolist(), abs=1e-2)  # bf16 where it is native


def test_a_request_may_say_whether_items_of_its_history_are_left_out(copied: Path) -> None:
    """Histories of both kinds in one batch are answered as each kind alone."""
    asked = [row for row in questions(opened(copied)) if len(row) > 3][:6]
    exclude = [True, False, True, False, False, True]
    expected = []
    for mask in (False, True):
        served, about = recommender(opened(copied), ListOptions("adagrpo", "final", exclude_history=mask))
        queries = [Query(served.known(history)[0]) for history in asked]
        said = [query._replace(exclude_history=mask) for query in queries]
        assert about["exclude_history"] is mask and served.recommend(queries) == served.recommend(said)
        expected.append(served.recommend(queries))
    answers = served.recommend(
        [query._replace(exclude_history=masked) for query, masked in zip(queries, exclude, strict=True)]
    )
    for row, masked in enumerate(exclude):
        assert answers[row].items == expected[masked][row].items
        assert not masked or not {*answers[row].items} & {*asked[row]}
    assert any({*without.items} & {*history} for without, history in zip(expected[0], asked, strict=True))
    assert (
        recommender(opened(copied), ListOptions("adagrpo", "final"))[1]["exclude_history"] is False
    )  # as evaluation does


def test_the_last_weights_of_sft_are_not_chosen_by_the_evaluation_of_its_best(copied: Path) -> None:
    run = opened(copied)
    for arm, value in {"sft": 0.9, "nll": 0.25, "adagrpo": 0.125}.items():
        write_validation(run, arm, value)
    for source, chosen in (("ranker", "nll"), ("sft", "sft")):  # other weights than the best ones, and the same
        shutil.copyfile(run.path(source, "best", "model.safetensors"), run.path("sft", "final", "model.safetensors"))
        seal(run.path("sft"), kind="sft", fingerprint="1")
        assert choose_checkpoint(run, None, "final").arm == chosen
        assert choose_checkpoint(run, None, "best").arm == "sft"


def test_without_a_name_the_arm_that_is_best_on_validation_is_taken(copied: Path) -> None:
    """Best by what its evaluation says, in whatever order the recipe has the arms."""
    values = {"sft": 0.5, "nll": 0.25, "adagrpo": 0.125}
    run = opened(copied)
    for best in ("adagrpo", "nll", "sft"):
        for arm, value in values.items():
            write_validation(run, arm, value + (best == arm))
        chosen = choose_checkpoint(run, None, "best")
        assert chosen.arm == best and chosen.weights.parent.name == best
        assert chosen.why == f"NDCG@10 {values[best] + 1:.4f} on validation, the best of sft, nll, adagrpo"
    assert choose_checkpoint(run, "nll", "best").why == "as named"
    shutil.rmtree(copied / "evaluate" / "adagrpo")
    assert choose_checkpoint(run, None, "best").why.endswith("the best of sft, nll; not evaluated: adagrpo")
    shutil.rmtree(copied / "evaluate")
    with pytest.raises(UserError, match=r"--arm: nothing was evaluated .* none is the best of sft, nll, adagrpo; name"):
        choose_checkpoint(run, None, "best")
    shutil.rmtree(copied / "train")
    assert choose_checkpoint(run, None, "best").arm == "sft"


def test_an_evaluation_of_earlier_weights_chooses_nothing(copied: Path) -> None:
    for arm, value in {"sft": 0.25, "nll": 0.125, "adagrpo": 0.5}.items():
        write_validation(opened(copied), arm, value)
    assert choose_checkpoint(opened(copied), None, "best").arm == "adagrpo"
    # only how lists are made differs from the evaluation: it still is of these weights
    assert choose_checkpoint(opened(copied, "evaluation.exclude_history=true"), None, "best").arm == "adagrpo"
    train_again(copied, "adagrpo")
    chosen = choose_checkpoint(opened(copied), None, "best")
    assert chosen.arm == "sft"
    assert chosen.why.endswith("the best of sft, nll; evaluated before being trained again: adagrpo")
    assert choose_checkpoint(opened(copied), None, "final").arm  # the final weights are what they were
    for arm in ("nll", "sft"):
        train_again(copied, arm)
    with pytest.raises(UserError, match=r"as it is .evaluated before being trained again: sft, nll, adagrpo., so none"):
        choose_checkpoint(opened(copied), None, "best")


def train_again(folder: Path, arm: str) -> None:
    """Other weights in the best checkpoint of an arm, in a stage that is whole."""
    stage = folder / "sft" if arm == "sft" else folder / "train" / arm
    weights = load_file(stage / "best" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, stage / "best" / "model.safetensors")
    (stage / "manifest.json").unlink()
    seal(stage, kind="stage", fingerprint="")


def write_validation(run: Run, arm: str, value: float) -> None:
    """Say of the best checkpoint of an arm that it has this NDCG@10 on validation."""
    folder = run.path("evaluate", arm) if arm == "sft" else run.path("evaluate", arm, "best")
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    values["validation"]["ndcg@10"] = value
    (folder / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    made_from = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("made_from")
    (folder / "manifest.json").unlink()
    seal(folder, kind="stage", fingerprint="", made_from=made_from)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_no_item_of_a_long_history_is_served(copied: Path, weight: float) -> None:
    run = opened(copied, "evaluation.exclude_history=true")
    models = Models(RunData(run))
    served, _ = recommender(opened(copied), ListOptions("adagrpo", "final", weight, exclude_history=True))
    draw = np.random.default_rng(0)
    length = models.data.num_items - 12
    assert length > 2 * run.config.max_history and served.width <= 12
    histories = np.stack([draw.permutation(models.data.num_items)[:length] for _ in range(20)])
    rows = Ragged(histories.reshape(-1).astype(np.int32), length * np.arange(21))
    cases = Cases(np.zeros(20, np.int32), rows, np.zeros(20, np.int32))
    expected = models.predict(models.policy(copied / "train/adagrpo/final"), cases, models.reward())
    if weight:
        expected = reordered(expected, weight, served.within_list_std)
    names = load_item_ids(models.data.prepared).to_list()
    answers = served.recommend([Query(history) for history in histories.tolist()])
    for history, reply, items in zip(histories, answers, expected.items, strict=True):
        assert reply.items == [names[item] for item in items]
        assert len(set(reply.items)) == served.width and not set(reply.items) & {names[item] for item in history}


class Service:
    """The application at a port of its own."""

    def __init__(self, run: Run) -> None:
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        served, about = recommender(run, ListOptions())
        self.width = served.width
        self.server = Server(Application(ModelManager(Serving(served, about)), Options()))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def ask(self, body: Any, path: str = "/recommend") -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST" if body is not None else "GET", path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("served") / "run"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    result = Service(opened(folder))
    yield result
    result.server.end()
    result.thread.join(10)


def test_a_list_without_the_items_of_its_history(service: Service, folder: Path) -> None:
    history = next(row for row in questions(opened(folder)) if len(row) > 3)
    kept = service.ask({"history": history, "exclude_history": False})[1]["items"]
    assert kept == service.ask({"history": history})[1]["items"]
    left_out = service.ask({"history": history, "exclude_history": True})[1]["items"]
    assert len(left_out) == 10 and not {*left_out} & {*history}


def test_many_at_once_get_what_one_alone_gets(service: Service, folder: Path) -> None:
    histories = questions(opened(folder))
    alone = [service.ask({"history": history}) for history in histories]
    assert all(status == 200 and len(reply["items"]) == 10 for status, reply in alone)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda history: service.ask({"history": history}), histories))
    assert [reply["items"] for _, reply in together] == [reply["items"] for _, reply in alone]


def test_ids_that_are_not_in_the_catalogue_are_named_and_left_out(service: Service) -> None:
    status, reply = service.ask({"history": [3, 13, "99999", 23], "k": 3})
    assert status == 200 and reply["unknown"] == ["99999"] and len(reply["items"]) == 3
    assert service.ask({"history": ["3", 13, 23], "k": 3})[1]["items"] == reply["items"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"history": [99999]}, "none of its ids"),
        ({"history": []}, "history"),
        ({"history": [3], "k": 11}, "k: more than the beam holds, 10"),
        ({"history": [3], "k": 0}, "k"),
        ({"history": [3], "k": True}, "k"),
        ({"history": [3], "k": "5"}, "k"),
        ({"history": [3], "top": 5}, "top"),
        ({"history": [[3]]}, "history"),
        ({"history": [3] * 10_001}, "history"),
        ("{", "JSON"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(service: Service, body: Any, said: str) -> None:
    status, reply = service.ask(body)
    assert status == 422 and said in json.dumps(reply)


def test_a_request_says_what_may_be_in_its_list(service: Service) -> None:
    """The items of the world have no groups; ids are a filter too, and so is a mapping that names them."""
    ids = [10 * item + 3 for item in range(12)]
    for include in (ids, {"item_id": ids}):
        status, reply = service.ask({"history": [3, 13], "include": include, "exclude": [3, 999]}, "/v1/recommend")
        assert status == 200 and {*reply["items"]} <= {*ids[1:]} and len(reply["items"]) == 10
        assert reply["short"] is None
    few = service.ask({"history": ["gone"], "include": ids[:4], "exclude": {"item_id": [3]}}, "/v1/recommend")[1]
    assert {*few["items"]} == {*ids[1:4]} and few["source"] == "popular"
    assert few["short"] == "only 3 eligible items are left"
    nothing = service.ask({"history": [3], "include": []}, "/v1/recommend")[1]
    assert nothing["items"] == [] and nothing["short"] == "no item is eligible"


@pytest.mark.parametrize(
    ("narrowed", "said"),
    [
        ({"include": {"market": "secret"}}, "include: names a group that the items do not have; they have none"),
        ({"exclude": {"market": True}}, "exclude: names a group that the items do not have; they have none"),
        ({"include": {"market": 1.5}}, "include"),
        ({"include": "toys"}, "include"),
        ({"include": {f"g{number}": 1 for number in range(33)}}, "include"),
        ({"exclude": {"market": [None]}}, "exclude"),
    ],
)
def test_a_filter_that_is_none_is_refused_without_repeating_it(service: Service, narrowed: Any, said: str) -> None:
    status, reply = service.ask({"history": [3], **narrowed}, "/v1/recommend")
    assert status == 422 and reply["detail"].startswith(said) and "secret" not in reply["detail"]


def test_health_says_what_is_served(service: Service) -> None:
    status, reply = service.ask(None, "/health")
    assert status == 200 and reply["status"] == "ok"
    assert (reply["name"], reply["checkpoint"], reply["exclude_history"]) == ("tiny", "best", False)
    assert reply["why"].endswith("the best of sft, nll, adagrpo") and reply["arm"] in ("sft", "nll", "adagrpo")
    said = {*HealthAnswer.model_fields}  # in /openapi.json
    assert {*reply} == said - {"degraded", "exposure_log", "explore", "experiment", "reward_spread", "rules"}
    HealthAnswer.model_validate(reply, strict=True)


def test_an_address_in_use_and_an_arm_that_is_not_there_are_refused(folder: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"--port .*choose another"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match=r"--arm grpo: no list of .* sft, nll, adagrpo, .*mean 'adagrpo'"):
        recommender(opened(folder), ListOptions("grpo"))


def test_the_command_serves_until_it_is_told_to_end(folder: Path) -> None:
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(folder), "--port", "0", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
        connection = HTTPConnection("127.0.0.1", int(about["url"].rsplit(":", 1)[1]), timeout=30)
        connection.request("POST", "/recommend", '{"history": [3, 13], "k": 2}', {"Content-Type": "application/json"})
        assert len(json.loads(connection.getresponse().read())["items"]) == 2
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
