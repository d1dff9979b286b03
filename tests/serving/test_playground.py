"""The page at `/` and what it asks, in a browser where there is one."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from adagrpo.data.groups import ItemGroups, no_groups
from adagrpo.lists import Query
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.pipeline import ListOptions, Run, update_catalog
from adagrpo.pipeline.serve import recommender
from adagrpo.serving.app import Application
from adagrpo.serving.draining import Server, listen
from adagrpo.serving.model_manager import Asked, ModelManager, Serving
from adagrpo.serving.options import Bearers, Options
from adagrpo.serving.playground import Playground

from .conftest import Recommender

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TITLES = {3: "red <b>shoe</b>", 13: "red tent"}
ABOUT = {13: ["category=camping", "<i>blue</i>"]}


class Site:
    """A finished run behind the application, at a port of its own."""

    def __init__(self, run: Run, **options: Any) -> None:
        def load(arm: str = "adagrpo", catalog: str = "latest") -> Serving:
            self.loads += 1
            served, about = recommender(run, ListOptions(arm, "best", 0.5, precision="float32", catalog=catalog))
            served.texts = lambda: [TITLES.get(int(name), "") for name in served.item_ids]
            said = [ABOUT.get(int(name), []) for name in served.item_ids]
            described = pl.DataFrame({"item": range(len(said)), "attributes": said})
            served.eligibility.groups = ItemGroups(described)
            return Serving(served, about, about["versions"])

        self.loads = 0
        self.manager = ModelManager(load(), load)
        self.server = Server(Application(self.manager, Options(**options)))
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def ask(self, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read().decode()
        headers = {name.lower(): value for name, value in response.getheaders()}
        connection.close()
        return response.status, json.loads(content) if "json" in headers["content-type"] else content, headers

    def end(self) -> None:
        self.server.end()
        self.thread.join(20)


@pytest.fixture(scope="module")
def site(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    run = Run.open(Path(shutil.copytree(finished, tmp_path_factory.mktemp("look") / "run")))
    update_catalog(run, delist=["43"])
    made = Site(run)
    yield made
    made.end()


def test_items_are_found_by_every_word_and_by_id(site: Site) -> None:
    def found(text: str) -> list[Any]:
        return [item["item_id"] for item in site.ask(f"/v1/items?search={quote(text)}")[1]["items"]]

    assert sorted(found("red")) == [3, 13] and found("TENT red") == [13] and found("red shoe tent") == []
    assert 43 in found("43") and len(found("")) == 20 and found(".*") == []
    items = site.ask("/v1/items?search=43")[1]["items"]
    assert [item["listed"] for item in items if item["item_id"] == 43] == [False]


def test_an_explanation_is_of_the_list_that_is_served(site: Site) -> None:
    body = {"history": [13, 23, 43, 999], "k": 5}
    status, content, _ = site.ask("/v1/explain", body)
    served = site.manager.now.recommender
    asked = Query(served.known([13, 23, 43])[0])
    expected = served.recommend([asked])[0]
    assert status == 200 and content["unknown"] == [999] and content["versions"] == dict(site.manager.now.versions)
    assert [row["item_id"] for row in content["list"]] == expected.items[:5]
    assert [(one["item_id"], one["about"]) for one in content["history"]] == [(13, ABOUT[13]), (23, []), (43, [])]
    for row, codes, score in zip(content["list"], expected.codes, expected.scores, strict=False):
        assert row["codes"] == codes and len(row["log_probs"]) == len(codes)
        assert all(value <= 0 for value in row["log_probs"])
        assert score == pytest.approx(row["score"]) and math.isfinite(row["reward"])
    ranks = [row["reward_rank"] for row in content["list"]]
    rewards = [row["reward"] for row in content["list"]]
    assert sorted(ranks) == [1, 2, 3, 4, 5] and rewards[ranks.index(1)] == max(rewards)
    first = content["list"][0]
    weight = served.reward_weight / served.within_list_std
    assert first["score"] == pytest.approx(sum(first["log_probs"]) + weight * first["reward"], abs=1e-4)


def test_a_request_that_asks_gets_the_reasons_of_its_list(site: Site) -> None:
    body = {"history": [13, 23, 43], "k": 5}
    plain, told = (site.ask("/v1/recommend", body | more)[1] for more in ({}, {"explain": True}))
    reasons = told.pop("reasons")
    assert "reasons" not in plain
    assert {**told, "request_id": None} == {**plain, "request_id": None} and len(reasons) == 5
    mean = sum(told["scores"]) / 5
    for score, one in zip(told["scores"], reasons, strict=True):
        assert one["sources"] == ["policy"] and {*one["features"]} == {"policy", "reward"}
        assert sum(one["features"].values()) == pytest.approx(score - mean, abs=1e-4)
        assert one["rules"] == [] and one["rank_without_rules"] is None and one["history"] == {}
    batch = site.ask("/v1/recommend", {"requests": [body, body | {"explain": True}]})[1]["responses"]
    assert ["reasons" in one for one in batch] == [False, True]
    assert site.ask("/v1/recommend", body | {"explain": "yes"})[0] == 422


def test_an_explanation_says_nothing_of_earlier_failures(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once:
        asked = 0

        def score(self, histories: Any, items: Any) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("away")
            return items.float()

    serving = site.manager.now
    monkeypatch.setattr(serving.recommender, "reward", CircuitBreaker(Once(), budget_seconds=10))
    assert not serving.answer([Asked(serving, Query([0]))])[0].reranked
    body = {"history": [13], "k": 3}
    assert all(row["reward"] is not None for row in site.ask("/v1/explain", body)[1]["list"])


def test_nothing_is_explained_to_clients_that_have_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    go, asked, state = threading.Event(), list[Any](), site.server.server_state

    def explained(recommender: Any, titles: Any, query: Query, k: int) -> dict[str, Any]:
        asked.append(query.history)
        assert go.wait(10)
        return {}

    def until(count: int) -> None:
        end = time.monotonic() + 5
        while min(len(state.tasks), len(state.connections)) != count:
            assert time.monotonic() < end
            time.sleep(0.005)

    monkeypatch.setattr("adagrpo.serving.playground.explain", explained)
    head = "POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"
    clients = []
    for item in (3, 13, 23):
        body = json.dumps({"history": [item]})
        clients.append(socket.create_connection(("127.0.0.1", site.port), timeout=10))
        clients[-1].sendall(head.format(len(body), body).encode())
        until(len(clients))
    clients[1].close()
    until(2)
    go.set()
    for client in (clients[0], clients[2]):
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        client.close()
    assert len(asked) == 2 and asked[0] != asked[1]


def test_the_page_holds_no_model_that_was_exchanged() -> None:
    def serving() -> Serving:
        made = Recommender()
        made.texts = lambda: []  # type: ignore[attr-defined]
        made.eligibility = SimpleNamespace(groups=no_groups())  # type: ignore[attr-defined]
        return Serving(made, {"arms": ["nll"]})  # type: ignore[arg-type]

    manager = ModelManager(serving(), lambda **wanted: serving())
    look, gone = Playground(manager), weakref.ref(manager.now.recommender)
    assert look._titles(manager.now).of(3)["item_id"] == 3
    assert look._serving("nll") is look.other is not None
    manager._served = (serving(),)
    assert gone() is None


def test_what_is_left_out_is_said_with_the_place_it_would_have(site: Site) -> None:
    free = site.ask("/v1/explain", {"history": [13], "k": 5, "exclude_history": False})[1]
    assert free["removed"] == []
    first, third = free["list"][0]["item_id"], free["list"][2]["item_id"]
    narrowed = site.ask(
        "/v1/explain", {"history": [13], "k": 5, "exclude_history": False, "exclude": {"item_id": [first, third]}}
    )[1]
    assert [(row["item_id"], row["rank"]) for row in narrowed["removed"]] == [(first, 1), (third, 3)]
    assert not {first, third} & {row["item_id"] for row in narrowed["list"]}


def test_another_arm_explains_its_own_list(site: Site) -> None:
    body = {"history": [13, 23], "k": 5}
    other = site.ask("/v1/explain", body | {"arm": "nll"})[1]
    assert other["versions"]["arm"] == "nll+rerank/best" and site.manager.now.about["arm"] == "adagrpo+rerank"
    served = site.manager.load_other(arm="nll").recommender
    expected = served.recommend([Query(served.known([13, 23])[0])])[0].items[:5]
    assert [row["item_id"] for row in other["list"]] == expected
    assert site.ask("/v1/explain", body | {"arm": "secret"})[:2] == (422, {"detail": "arm: not trained in this run"})


def test_another_arm_has_the_catalogue_that_is_served_and_is_loaded_once(copied: Path) -> None:
    run = Run.open(copied)
    changing = Site(run)
    try:
        update_catalog(run, delist=["23"])
        body = {"history": [13], "k": 5, "arm": "nll"}
        for served in ("0", "latest", "0"):  # goes over to a version, and back while a later one is there
            changing.manager.swap(catalog=served)
            loads = changing.loads
            for _ in range(3):
                versions = changing.ask("/v1/explain", body)[1]["versions"]
                assert versions["catalog"] == changing.manager.now.versions["catalog"]
            assert changing.loads == loads + 1
    finally:
        changing.end()


def test_a_filter_may_be_a_list_of_ids_and_a_bad_one_is_refused_without_its_value(site: Site) -> None:
    content = site.ask("/v1/explain", {"history": [13], "include": [3, 33]})[1]
    assert {row["item_id"] for row in content["list"]} == {3, 33}
    status, content, _ = site.ask("/v1/explain", {"history": [3], "include": {"secret": ["sesame"]}})
    assert status == 422 and "secret" not in content["detail"] and "sesame" not in content["detail"]


def test_a_cold_user_is_explained_too(site: Site) -> None:
    content = site.ask("/v1/explain", {"history": []})[1]
    assert content["source"] == "popular" and content["list"][0]["log_probs"] is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"history": [3], "k": 60}, "k: more than the beam holds"),
        ({"history": [3], "include": {"colour": ["red"]}}, "include: names a group that the items do not have"),
        ({"history": [3] * 201}, "history"),
        ({"history": [3], "more": 1}, "more"),
        ({}, "history"),
    ],
)
def test_a_bad_request_is_told_why(site: Site, body: dict[str, Any], says: str) -> None:
    status, content, _ = site.ask("/v1/explain", body)
    assert status == 422 and says in content["detail"] and "\n" not in content["detail"]


def test_where_a_token_is_set_the_page_is_behind_it(copied: Path) -> None:
    guarded = Site(Run.open(copied), bearers=Bearers(["a-token-of-sixteen-characters"]))
    try:
        for path, body in (("/", None), ("/v1/items?search=a", None), ("/v1/explain", {"history": [3]})):
            assert guarded.ask(path, body)[0] == 401
    finally:
        guarded.end()


def test_the_page_loads_nothing_and_can_be_used_by_keyboard(site: Site) -> None:
    status, page, headers = site.ask("/")
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"https?:|url\(|@import|<link|<img|<iframe|innerHTML|eval\(", page)
    assert "light-dark(" in page and ":focus-visible" in page
    assert 'id="treepart" hidden' in page  # codes are shown when they are asked for
    assert 'lang="en"' in page and page.count("<h1>") == 1
    for name in re.findall(r'<(?:input|select)[^>]* id="(\w+)"', page):  # each has a label, around it or for it
        assert f'for="{name}"' in page or re.search(rf'<label[^>]*>[^\n]*id="{name}"', page), name
    assert not re.search(r"<(div|span|li|p|td)[^>]*onclick", page)  # what is clicked is a button


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_list_the_tree_and_what_differs(site: Site, tmp_path: Path) -> None:
    state = f"#history={quote('[13, 23]')}&k=5&masked=1&codes=1&arm=nll&exclude=item_id%3D33"
    shown = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000"),
            *(f"--user-data-dir={tmp_path}", "--dump-dom", f"http://127.0.0.1:{site.port}/{state}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    text = html.unescape(re.sub(r"<script>.*?</script>|<style>.*?</style>", "", shown, flags=re.S))
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    body = {"history": [13, 23], "k": 5, "exclude_history": True, "exclude": {"item_id": ["33"]}}
    expected = site.ask("/v1/explain", body)[1]
    assert len(rows) == 6 and "rank in nll+rerank/best" in rows[0] and "reward" in rows[0]
    for row, item in zip(rows[1:], expected["list"], strict=True):
        assert f'<span class="id">{item["item_id"]}</span>' in row and row.count("<meter") == len(item["codes"])
        assert f'<td class="number">{item["score"]:.2f}</td>' in row  # what ordered the list
    assert "catalogue 0001-" in text and ", 29 items" in text
    tree = text[text.index('id="tree"') :]
    assert all(str(item["codes"][0]) in tree for item in expected["list"])
    assert 'role="alert"></p>' in text  # nothing went wrong
    assert shown.count("red &lt;b&gt;shoe") >= 1 and "<b>shoe</b>" not in shown  # titles are text
    assert "category: camping; &lt;i&gt;blue&lt;/i&gt;" in shown
    removed = text[text.index("Left out of it") :]
    assert all(f'<span class="id">{one["item_id"]}</span>' in removed for one in expected["removed"])
