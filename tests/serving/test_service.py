"""What the service promises to those who run it: tokens, deadlines, exchange under load, an end without loss."""

from __future__ import annotations

import io
import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import SinkFailed
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate
from adagrpo.exposures.user_hash import UserHash, read_key
from adagrpo.lists.exploration import Exploration
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Bearers, Limits, Options, RequestLog, check_exposed, read_tokens

TOKEN = "0123456789abcdef"
OLD = Limits(grace_seconds=0.0)


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# ---------------------------------------------------------------- requests and answers


def test_either_answer_says_why_a_list_is_not_the_usual_one(
    stub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = stub()
    usual = Serving.answer
    late = lambda serving, asked: [one._replace(degraded="reward: late") for one in usual(serving, asked)]  # noqa: E731
    monkeypatch.setattr(Serving, "answer", late)
    for path in ("/recommend", "/v1/recommend"):
        status, reply, _ = service.ask(path, {"history": [1], "k": 2})
        assert status == 200 and reply["degraded"] == "reward: late"


def test_times_of_a_history_reach_the_list_in_days_and_wrong_ones_are_named(stub: Callable[..., Any]) -> None:
    service, day = stub(), 86_400
    body = {"history": [1, 99, 3], "times": [day, day, 3 * day], "now": 5 * day}
    assert service.ask("/v1/recommend", body)[0] == 200
    (query,) = service.recommender.queries
    assert (query.history, query.days, query.now) == ([1, 3], [1.0, 3.0], 5.0)  # 99 is no item
    assert service.ask("/v1/recommend", {"history": [1], "now": 5 * day})[0] == 200
    (query,) = service.recommender.queries
    assert (query.days, query.now) == (None, 5.0)
    for times, reason in (([day], "holds 1 for 3 items"), ([3, 2, 1], "must ascend"), ([1, 2, -1], "greater")):
        status, reply, _ = service.ask("/v1/recommend", body | {"times": times})
        assert status == 422 and reason in reply["detail"]


def test_one_request_and_a_batch_get_the_same_lists_with_ids_and_versions(stub: Callable[..., Any]) -> None:
    service = stub()
    status, one, _ = service.ask("/v1/recommend", {"history": [1, "2", "x"], "k": 2, "request_id": "r-1"})
    assert status == 200 and one == {
        "request_id": "r-1",
        "items": [3, 4],
        "scores": [-3.0, -4.0],
        "codes": [[3], [4]],
        "source": "policy",
        "reranked": False,
        "degraded": None,
        "repeated": False,
        "short": None,
        "unknown": ["x"],
        "versions": {"model": "m1", "catalog": "c1", "arm": "sft/best"},
    }
    assert "degraded" not in service.ask("/recommend", {"history": [1], "k": 2})[1]
    status, batch, _ = service.ask(
        "/v1/recommend", {"requests": [{"history": [2], "k": 2}, {"history": ["x"], "k": 1}]}
    )
    first, second = batch["responses"]
    assert (first["items"], second["items"], second["source"]) == ([3, 4], [1], "popular")
    assert re.fullmatch(r"[0-9a-f]{32}", first["request_id"]) and second["request_id"] == first["request_id"] + ".1"


@pytest.mark.parametrize("value", [3, "toys", {"stock": None}, {"stock": 1.5}, {"stock": [["x"]]}])
def test_what_is_no_filter_is_told_what_one_is(stub: Callable[..., Any], value: Any) -> None:
    status, content, _ = stub().ask("/v1/recommend", {"history": [1], "exclude": value})
    assert (status, content) == (422, {"detail": "exclude: should be item ids, or values by group"})


def test_filters_narrow_a_list_and_a_bad_one_is_refused_without_its_value(stub: Callable[..., Any]) -> None:
    service = stub()
    status, answer, _ = service.ask(
        "/v1/recommend", {"history": [1], "k": 4, "exclude": [3, 4], "include": [2, 3, 5, 9]}
    )
    assert status == 200 and answer["items"] == [2, 5, 9] and answer["short"] == "only 3 eligible items are left"
    status, answer, _ = service.ask("/v1/recommend", {"history": [1], "include": {"user": ["alice-7731", True, 7]}})
    assert (status, answer) == (422, {"detail": "include: no such group"})
    for bad in ({"a": {"b": 1}}, {"a": [[1]]}, {"a": 1.5}, {"a": None}, "x", {str(n): 1 for n in range(17)}):
        status, answer, _ = service.ask("/v1/recommend", {"history": [1], "include": bad})
        assert status == 422 and answer["detail"].startswith("include"), answer


def test_a_share_of_the_lists_is_drawn_by_request_id(stub: Callable[..., Any], tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    service = stub(Options(limits=OLD, exposures=log, explore=Exploration(0.5, 0.5)))
    sources = {}
    for turn in range(40):
        body = {"history": [1], "k": 3, "request_id": f"r{turn}"}
        sources[body["request_id"]] = service.ask("/v1/recommend", body)[1]["source"]
    assert 8 <= sum(source == "sampled" for source in sources.values()) <= 32
    service.end()
    rotate(tmp_path / "log")
    for row in read_parts(parts_of(tmp_path / "log"))[0].to_dicts():
        drawn = sources[row["request_id"]] == "sampled"
        assert (row["temperature"], row["log_propensities"]) == ((0.5, [-1.0] * 3) if drawn else (None, None))
        assert (row["seed"] is not None) == (row["log_inclusions"] is not None) == drawn


def test_items_health_and_the_pages_of_the_api(stub: Callable[..., Any]) -> None:
    service = stub()
    assert service.ask("/v1/items/7")[:2] == (200, {"item_id": 7, "codes": [7], "listed": True, "catalog": "c1"})
    assert service.ask("/v1/items/9")[1]["listed"] is False
    assert service.ask("/v1/items/99")[0] == 404
    assert service.ask("/health")[1] == {"status": "ok", "name": "stub"}
    paths = service.ask("/openapi.json")[1]["paths"]
    page = service.ask("/docs")[1]
    assert {"/recommend", "/v1/recommend", "/v1/feedback", "/v1/items/{item_id}", "/readyz"} < set(paths)
    assert all(f"<code>{method.upper()} {path}</code>" in page for path, methods in paths.items() for method in methods)
    assert 'name="viewport"' in page and "the words of <code>search</code>" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_an_item_is_found_whose_id_holds_a_slash(stub: Callable[..., Any]) -> None:
    service = stub()
    service.recommender.known = lambda names: ([7], []) if list(names) == ["shop/7"] else ([], list(names))
    assert [service.ask(f"/v1/items/{name}")[0] for name in ("shop%2F7", "shop/7", "shop")] == [200, 200, 404]


def test_answers_and_refusals_are_what_openapi_says_of_them(stub: Callable[..., Any]) -> None:
    service = stub()
    described = service.ask("/openapi.json")[1]

    def fits(path: str, body: Any = None, *, status: int = 200, route: str | None = None) -> None:
        found, answer, _ = service.ask(path, body)
        said = described["paths"][route or path]["get" if body is None else "post"]["responses"]
        schema = said[str(status) if status == 200 else f"{status // 100}XX"]["content"]["application/json"]["schema"]
        assert found == status
        jsonschema.validate(answer, schema | {"components": described["components"]})

    fits("/recommend", {"history": [1]})
    fits("/v1/recommend", {"history": [1], "k": 2})
    fits("/v1/recommend", {"requests": [{"history": [1]}, {"history": ["x"]}]})
    fits("/v1/recommend", {"history": 1}, status=422)
    fits("/v1/items/7", route="/v1/items/{item_id}")
    fits("/v1/items/99", route="/v1/items/{item_id}", status=404)
    for path in ("/health", "/livez", "/readyz"):
        fits(path)
    fits("/v1/feedback", {"request_id": "r", "item_id": 1, "kind": "click"}, status=409)
    assert {"200", "503"} < {*described["paths"]["/readyz"]["get"]["responses"]}  # a process that ends says so
    with pytest.raises(jsonschema.ValidationError):  # so the schemas do say something
        jsonschema.validate({"items": 3}, described["components"]["schemas"]["ListAnswer"])


def test_many_who_ask_for_the_figures_at_once_cost_what_one_does(stub: Callable[..., Any]) -> None:
    service, written = stub(), list[int]()
    service.app.metrics.text = lambda: written.append(1) or b"figures"
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: service.ask("/metrics")[:2], range(64)))
    assert answers == [(200, "figures")] * 64 and len(written) <= 3  # one a second


def test_metrics_count_what_was_asked(stub: Callable[..., Any]) -> None:
    service = stub()
    service.ask("/v1/recommend", {"history": [1]})
    service.ask("/v1/recommend", {"history": []}, authorization="x")
    service.ask("/v1/recommend", "{")
    service.ask("/v1/items/nobody-7731")
    text = service.ask("/metrics")[1]
    assert 'adagrpo_requests_total{route="/v1/recommend",status="200"} 2.0' in text
    assert 'adagrpo_requests_total{route="/v1/recommend",status="422"} 1.0' in text
    assert 'adagrpo_requests_total{route="/v1/items/{id}",status="404"} 1.0' in text and "nobody" not in text
    assert 'adagrpo_version{arm="sft/best",catalog="c1",model="m1"} 1.0' in text
    assert "adagrpo_list_length_count 2.0" in text and "adagrpo_batch_size_sum 2.0" in text


def test_a_log_of_requests_has_hashes_of_users_and_no_ids(stub: Callable[..., Any]) -> None:
    stream = io.StringIO()
    hashed = UserHash(b"k" * 32)
    service = stub(Options(limits=OLD, log=RequestLog(1.0, stream), user_hash=hashed))
    service.ask("/v1/recommend", {"history": [17], "user_id": "alice", "request_id": "r"})
    line = json.loads(stream.getvalue())
    assert (line["status"], line["route"], line["request_id"], line["lists"]) == (200, "/v1/recommend", "r", 1)
    assert (
        line["user"] == hashed("alice")
        and "alice" not in stream.getvalue()
        and "17" not in json.dumps(line["user"][:0])
    )
    assert line["versions"]["model"] == "m1" and line["ms"] >= 0


# ---------------------------------------------------------------- exposures


def test_each_list_has_a_row_before_it_is_sent_and_feedback_counts_once(
    stub: Callable[..., Any], tmp_path: Path
) -> None:
    log = LocalExposureLog(tmp_path / "log")
    hashed = UserHash(b"k" * 32)
    service = stub(Options(limits=OLD, exposures=log, user_hash=hashed))
    body = {"history": [3], "k": 2, "user_id": "alice", "request_id": "r"}
    first = service.ask("/v1/recommend", body)[1]
    assert (first["items"], first["repeated"]) == ([4, 5], False)
    again = service.ask("/v1/recommend", body | {"history": ["3"]})[1]  # the same id: the list that was shown
    assert (again["items"], again["repeated"], again["codes"], again["scores"]) == ([4, 5], True, [[4], [5]], [])
    now = service.app.manager.now
    service.app.manager._served = (replace(now, versions=now.versions | {"catalog": "c2"}),)
    later = service.ask("/v1/recommend", body)[1]  # items may have other codes now
    assert (later["items"], later["codes"], later["versions"]["catalog"]) == ([4, 5], [[], []], "c1")
    service.app.manager._served = (now,)
    assert service.ask("/v1/recommend", {"requests": [{"history": [1]}] * 3})[0] == 200
    others: list[dict[str, Any]] = [
        *({"history": [7]}, {"user_id": "bob"}, {"user_id": None}, {"history": [7], "user_id": "bob"}),
        *({"k": 3}, {"exclude": [4, 5]}, {"include": []}, {"exclude_history": False}),
    ]
    for other in others:  # of somebody else, or another question
        status, answer, _ = service.ask("/v1/recommend", body | other)
        assert status == 409 and answer == {
            "detail": "request_id: was used for another user, history, k or filter; send a new one"
        }
    filtered = body | {"request_id": "f", "exclude": [4, 9]}
    assert service.ask("/v1/recommend", filtered)[1]["items"] == [5, 6]
    alike = service.ask("/v1/recommend", filtered | {"exclude": {"item_id": ["9", "4"]}})[1]  # written otherwise
    assert (alike["items"], alike["repeated"]) == ([5, 6], True)
    name = service.ask("/recommend", {"history": [1]})[2]["x-request-id"]
    events = [
        {"request_id": name, "item_id": 2, "kind": "click"},
        {"request_id": "r", "item_id": 4, "kind": "dwell", "value": 9},
    ]
    assert service.ask("/v1/feedback", {"events": events})[1] == {"accepted": 2, "duplicates": 0, "unknown": 0}
    assert service.ask("/v1/feedback", events[0])[1] == {"accepted": 0, "duplicates": 1, "unknown": 0}
    large = events[1] | {"value": 1e13}  # one would outweigh all others of an experiment
    assert service.ask("/v1/feedback", large)[:2] == (
        422,
        {"detail": "value: Input should be less than or equal to 1000000000000"},
    )
    assert service.ask("/v1/feedback", {"request_id": "none", "item_id": 4, "kind": "click"})[1]["unknown"] == 1
    service.end()
    rotate(tmp_path / "log")
    exposures, feedback = read_parts(parts_of(tmp_path / "log"))
    rows = {row["request_id"]: row for row in exposures.to_dicts()}
    assert len(rows) == len(exposures) == 6 and len(feedback) == 3
    assert (rows["r"]["slate"], rows["r"]["user_hash"]) == (["4", "5"], hashed("alice"))
    assert (rows["r"]["model_version"], rows["r"]["arm"], rows[name]["user_hash"]) == ("m1", "sft/best", None)
    assert {row["key_version"] for row in rows.values()} == {hashed.fingerprint} and len(hashed.fingerprint) == 12
    assert rows["r"]["latency_ms"] > 0 and "alice" not in str(rows)


def test_a_batch_that_is_refused_leaves_no_row(stub: Callable[..., Any], tmp_path: Path) -> None:
    service = stub(Options(limits=OLD, exposures=LocalExposureLog(tmp_path / "log")))
    ask = {"history": [3], "k": 2, "user_id": "alice", "request_id": "used"}
    assert service.ask("/v1/recommend", ask)[0] == 200
    others = [{"history": [1], "user_id": f"u{n}", "request_id": f"new-{n}"} for n in range(63)]
    for place in (0, 63):  # whether the used one comes first or last
        batch = [*others[:place], ask | {"user_id": "bob"}, *others[place:]]
        assert service.ask("/v1/recommend", {"requests": batch})[0] == 409
    status, answer, _ = service.ask("/v1/recommend", {"requests": [*others[:2], ask]})
    assert status == 200 and [one["repeated"] for one in answer["responses"]] == [False, False, True]
    service.end()
    rotate(tmp_path / "log")
    assert set(read_parts(parts_of(tmp_path / "log"))[0]["request_id"]) == {"used", "new-0", "new-1"}


def test_health_says_what_cannot_be_written_until_it_can(stub: Callable[..., Any], tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "log")
    service = stub(Options(limits=OLD, exposures=log))
    event = {"request_id": "r", "item_id": 4, "kind": "click"}
    assert service.ask("/health")[1]["status"] == "ok"
    log._connection.execute("PRAGMA query_only = 1")  # a disk that takes nothing more
    assert service.ask("/v1/recommend", {"history": [1]})[0] == 503
    state = service.ask("/health")[1]
    assert state["status"] == "failing"
    assert state["exposure_log"] == "lists cannot be written: attempt to write a readonly database"
    log._connection.execute("PRAGMA query_only = 0")
    assert service.ask("/v1/feedback", event)[0] == 200
    assert service.ask("/health")[1]["status"] == "failing", "feedback may fit where lists do not"
    assert service.ask("/v1/recommend", {"history": [1]})[0] == 200
    assert service.ask("/health")[1] == {"status": "ok", "name": "stub"}


def test_without_a_log_feedback_is_refused_and_what_cannot_be_logged_is_not_sent(stub: Callable[..., Any]) -> None:
    event = {"request_id": "r", "item_id": 4, "kind": "click"}
    assert stub().ask("/v1/feedback", event)[0] == 409

    class Full:
        def write(self, rows: Any, together: Any = None) -> Any:
            raise SinkFailed("disk full: /secret/place")

        feedback = write

        def close(self) -> None:
            pass

    service = stub(Options(limits=OLD, exposures=Full()))
    for path, body in (("/v1/recommend", {"history": [1]}), ("/recommend", {"history": [1]}), ("/v1/feedback", event)):
        status, answer, headers = service.ask(path, body)
        assert (status, headers["retry-after"]) == (503, "1") and "secret" not in answer["detail"]


# ---------------------------------------------------------------- tokens and keys


def test_with_a_token_every_route_but_two_needs_it(stub: Callable[..., Any]) -> None:
    """The short version of row 14 of docs/reliability.md."""
    service = stub(Options(limits=OLD, bearers=Bearers([TOKEN, TOKEN[::-1]])))
    paths = {route.path: route.methods for route in service.app.api.routes}
    assert len(paths) >= 11
    for path, methods in paths.items():
        path = path.replace("{item_id}", "7")
        for method in methods:
            body = {"history": [1]} if method == "POST" else None
            status, _, headers = service.ask(path, body)
            if path in ("/livez", "/readyz"):
                assert status == 200
                continue
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
            for wrong in (TOKEN[:-1], TOKEN + "x", "", "é"):
                assert (
                    service.ask(path, body, **{"authorization": f"Bearer {wrong}".encode().decode("latin1")})[0] == 401
                )
            assert service.ask(path, body, authorization=f"Basic {TOKEN}")[0] == 401
            assert (
                service.ask(path, body, **bearer())[0] != 401
                and service.ask(path, body, **bearer(TOKEN[::-1]))[0] != 401
            )
    assert service.ask("/nothing")[0] == 401  # nor does it say which routes there are


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    assert Bearers([TOKEN, "f" * 40]).admit(f"Bearer {TOKEN}".encode())
    assert compared == [(32, 32), (32, 32)]  # all of them, whatever the first says


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of the shop\n{TOKEN}\n\n")
    assert read_tokens(file).admit(b"bearer " + TOKEN.encode())
    monkeypatch.setenv("ADAGRPO_TOKENS", f"{TOKEN}, {'f' * 20}")
    assert read_tokens(None).admit(b"Bearer " + b"f" * 20)
    file.write_text("short\n")
    with pytest.raises(UserError, match="token 1 has 5 characters") as error:
        read_tokens(file)
    assert "short" not in str(error.value)
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no token"):
        read_tokens(file)
    with pytest.raises(UserError, match="No such file"):
        read_tokens(tmp_path / "none")


def test_an_address_that_others_can_reach_needs_a_token_or_a_word() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "shop.example"):
        with pytest.raises(UserError, match="--without-token"):
            check_exposed(host, Bearers(), False)
        check_exposed(host, Bearers([TOKEN]), False)
        check_exposed(host, Bearers(), True)
    check_exposed("127.0.0.1", Bearers(), False)


def test_a_key_for_user_ids_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    file = tmp_path / "key"
    first = read_key(file)("alice")
    assert file.stat().st_mode & 0o777 == 0o600 and read_key(file)("alice") == first
    assert re.fullmatch("[0-9a-f]{32}", first) and read_key(None)("alice") != first and read_key(file)("bob") != first
    assert read_key(file)(7) == read_key(file)("7")
    file.chmod(0o644)
    with pytest.raises(UserError, match="others may read it"):
        read_key(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(UserError, match="at least 16"):
        read_key(file)
    with pytest.raises(UserError, match="user-key-file"):
        read_key(tmp_path / "no" / "key")


def test_services_that_begin_at_once_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process asks for the key while this one is making it."""
    file, draw, others = tmp_path / "key", secrets.token_hex, []
    program = "import sys, pathlib; from adagrpo.exposures.user_hash import read_key as key\n"
    program += "print(key(pathlib.Path(sys.argv[1]))('alice'), end='')"

    def beside(count: int) -> str:
        others.append(subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True))
        return draw(count)

    monkeypatch.setattr("adagrpo.exposures.user_hash.secrets.token_hex", beside)
    own = read_key(file)("alice")
    (other,) = others
    assert (other.stdout, other.returncode) == (own, 0), other.stderr
    assert [*tmp_path.iterdir()] == [file] and file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk; the empty file that it left was refused as too short a key from then on."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left on device"):
        patched.setattr("adagrpo.exposures.user_hash.os.fsync", full)
        read_key(tmp_path / "key")
    assert not [*tmp_path.iterdir()]
    read_key(tmp_path / "key")


# ---------------------------------------------------------------- load


def test_what_would_come_too_late_is_turned_away_at_once_and_the_rest_is_answered(stub: Callable[..., Any]) -> None:
    """The short version of row 11: a burst of four times what can be answered by the deadline."""
    service = stub(Options(limits=Limits(deadline_seconds=0.4, grace_seconds=0.0)))
    service.recommender.seconds = 0.05
    service.app.queue._most = 4  # 80 requests a second, about 32 by the deadline
    for _ in range(20):
        service.ask("/v1/recommend", {"requests": [{"history": [1]}] * 4})  # the rate is learnt

    def timed(_: int) -> tuple[int, float, dict[str, str]]:
        started = time.monotonic()
        status, _, headers = service.ask("/v1/recommend", {"history": [1]})
        return status, time.monotonic() - started, headers

    with ThreadPoolExecutor(128) as pool:
        results = list(pool.map(timed, range(128)))
    good = [seconds for status, seconds, _ in results if status == 200]
    refused = [(seconds, headers) for status, seconds, headers in results if status == 503]
    assert len(good) + len(refused) == 128 and len(good) >= 4 and len(refused) >= 40
    assert all(int(headers["retry-after"]) >= 1 for _, headers in refused)
    assert max(good) < 5


def test_no_work_is_done_for_clients_that_left_or_whose_time_is_over(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=Limits(deadline_seconds=0.3, grace_seconds=0.0)))
    service.recommender.go.clear()
    body = b'{"history": [1]}'
    request = (
        b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n" + body
    )
    held = service.raw(request)  # in hand
    until(lambda: service.recommender.batches == [1])
    left = [service.raw(request) for _ in range(3)]
    until(lambda: service.app.queue.waiting == 4)
    for client in left:
        client.close()
    late = service.raw(request)
    until(lambda: len(service.server.server_state.connections) == 2 and service.app.queue.waiting == 5)
    time.sleep(0.35)
    fresh = service.raw(request)
    until(lambda: service.app.queue.waiting == 6)
    service.recommender.go.set()
    assert held.recv(100).startswith(b"HTTP/1.1 200 ") and fresh.recv(100).startswith(b"HTTP/1.1 200 ")
    answer = late.recv(1000)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in answer
    assert service.recommender.batches == [1, 1]
    assert 'adagrpo_refused_total{why="queue"} 1.0' in service.ask("/metrics")[1]


def test_a_body_that_comes_slowly_is_not_late_for_that(
    stub: Callable[..., Any], whole: Callable[[socket.socket], bytes]
) -> None:
    service = stub(Options(limits=Limits(deadline_seconds=0.3, grace_seconds=0.0)))
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
    with service.raw(head + b'{"history"') as client:
        time.sleep(0.4)
        client.sendall(b": [1]}")
        assert whole(client).startswith(b"HTTP/1.1 200 ")


def test_time_that_requests_wait_unread_counts(stub: Callable[..., Any]) -> None:
    """Where reading itself is behind, the queue is short and everybody waits all the same."""
    service = stub(Options(limits=Limits(deadline_seconds=1.0, grace_seconds=0.0)))
    service.app.queue.times.observe(1, 0.6)
    service.app.queue._most = 1
    service.recommender.go.clear()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(service.ask, "/v1/recommend", {"history": [1]})
        until(lambda: service.recommender.batches == [1])
        service.app.middleware.lag = 0.8
        assert service.ask("/v1/recommend", {"history": [1]})[0] == 503
        service.app.middleware.lag = 0.0
        service.recommender.go.set()
        assert held.result()[0] == 200 and service.ask("/v1/recommend", {"history": [1]})[0] == 200


def test_a_loop_that_is_behind_says_by_how_much(stub: Callable[..., Any]) -> None:
    service = stub()
    service.app.metrics.text = lambda: time.sleep(0.5) or b""
    service.ask("/metrics")
    until(lambda: service.app.middleware.lag > 0.25)
    assert service.app.middleware.lag < 3


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---------------------------------------------------------------- exchange


def test_another_model_is_served_under_load_and_a_broken_one_is_not(stub: Callable[..., Any]) -> None:
    """The short version of row 13: each answer is of one version, the one that its list is of."""
    made = []

    def load(**wanted: str) -> Serving:
        if wanted.get("arm") == "broken":
            raise UserError("model.safetensors: content differs from the manifest")
        recommender = type(service.recommender)()
        shift = len(made) + 2
        whole = recommender.recommend
        recommender.recommend = lambda queries: [  # type: ignore[method-assign]
            one._replace(scores=[float(shift)] * len(one.items)) for one in whole(queries)
        ]
        made.append(Serving(recommender, {"name": "stub"}, {"model": f"m{shift}", "catalog": "c1", "arm": "x"}))
        return made[-1]

    service = stub(Options(limits=OLD, bearers=Bearers([TOKEN])), load)
    stop, wrong, seen = threading.Event(), [], set[str]()

    def client() -> None:
        while not stop.is_set():
            status, answer, _ = service.ask("/v1/recommend", {"requests": [{"history": [3]}] * 3}, **bearer())
            versions = {one["versions"]["model"] for one in answer["responses"]}
            scores = {score for one in answer["responses"] for score in one["scores"]}
            seen.update(versions)
            expected = {float(version[1:]) for version in versions if version != "m1"}
            if status != 200 or len(versions) != 1 or (expected and scores != expected):
                wrong.append(answer)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    for turn in range(8):
        arm = "broken" if turn == 4 else "x"
        status, answer, _ = service.ask("/v1/admin/reload", {"arm": arm}, **bearer())
        assert status == (409 if arm == "broken" else 200)
        assert ("kept what was served: model.safetensors" in answer.get("detail", "")) == (arm == "broken")
        time.sleep(0.02)
    stop.set()
    for one in clients:
        one.join()
    assert not wrong and len(seen) >= 4
    assert service.ask("/v1/recommend", {"history": [3]}, **bearer())[1]["versions"]["model"] == "m8"
    metrics = service.ask("/metrics", **bearer())[1]
    assert 'swaps_total{outcome="failed"} 1.0' in metrics and 'swaps_total{outcome="done"} 7.0' in metrics


def test_what_was_exchanged_is_freed_after_the_exchange(stub: Callable[..., Any]) -> None:
    """Not while the next one is loaded, when it is served still."""
    service = stub()
    one, other = (Serving(service.recommender, {"name": name}) for name in ("one", "other"))
    served: list[Serving] = []
    manager = ModelManager(one, lambda: other, lambda: served.append(manager.now))
    assert manager.swap() is other and served == [other]


def test_a_model_that_changes_while_it_is_loaded_is_loaded_again_once(stub: Callable[..., Any]) -> None:
    """Told by SIGHUP: otherwise one of several workers would keep what the others no longer serve."""
    there, go, loaded = ["m1"], threading.Event(), list[str]()

    def load(**wanted: str) -> Serving:
        loaded.append(there[0])
        found = {"model": there[0], "catalog": "c", "arm": "a"}
        assert go.wait(10)
        return Serving(service.recommender, {}, found)

    service = stub(Options(OLD), load)
    told = [threading.Thread(target=service.app.reload) for _ in range(4)]
    told[0].start()
    until(lambda: loaded == ["m1"])
    there[0] = "m2"
    for thread in told[1:]:
        thread.start()
    until(lambda: sum(thread.is_alive() for thread in told) == 2)  # the one that loads, and one that waits for all
    go.set()
    for thread in told:
        thread.join(10)
    assert loaded == ["m1", "m2"] and service.app.manager.now.versions["model"] == "m2"


def test_the_end_does_not_wait_for_a_model_that_is_being_loaded(stub: Callable[..., Any]) -> None:
    go = threading.Event()

    def load(**wanted: str) -> Serving:
        go.wait(30)
        raise UserError("too late")

    service = stub(Options(replace(OLD, drain_seconds=0.2), Bearers([TOKEN])), load)
    head = "POST /v1/admin/reload HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    client = service.raw(f"{head}Authorization: Bearer {TOKEN}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    until(lambda: service.app.manager.loading)
    started = time.monotonic()
    service.end()
    assert time.monotonic() - started < 5 and b" 200 " not in client.recv(100)
    go.set()


def test_reload_needs_a_token_and_something_to_load_from(stub: Callable[..., Any]) -> None:
    assert stub().ask("/v1/admin/reload", {})[0] == 403
    status, answer, _ = stub(Options(limits=OLD, bearers=Bearers([TOKEN]))).ask("/v1/admin/reload", {}, **bearer())
    assert status == 409 and "nothing to load" in answer["detail"]


# ---------------------------------------------------------------- the end


def test_at_the_end_all_that_was_asked_is_answered_and_readiness_says_so(
    stub: Callable[..., Any], whole: Callable[..., bytes]
) -> None:
    """The short version of row 12: connections that the system took before the end are served, none is reset."""
    service = stub(Options(limits=Limits(grace_seconds=0.5, drain_seconds=5.0, deadline_seconds=30.0)))
    service.recommender.seconds = 0.2
    request = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
    request += b'{"history": [1]}'
    kept = service.raw(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert whole(kept).startswith(b"HTTP/1.1 200 ")
    clients = [service.raw(request) for _ in range(60)]
    service.server.end()
    kept.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = whole(kept)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"connection: close" in answer.lower()
    for client in clients:
        answer = whole(client)
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"items":[2,3' in answer
    service.thread.join(10)
    assert not service.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        service.raw()


def test_clients_that_neither_send_nor_read_do_not_hold_up_the_end(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=Limits(grace_seconds=0.0, drain_seconds=0.5)))
    half = service.raw(
        b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"
    )
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", service.port))
    deaf.settimeout(0.5)
    try:
        for _ in range(200):
            deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    except TimeoutError:
        pass
    started = time.monotonic()
    service.end()
    assert time.monotonic() - started < 3
    half.close()
    deaf.close()


def test_signals_are_taken_by_the_main_thread_alone(stub: Callable[..., Any]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stub()
    assert signal.getsignal(signal.SIGTERM) is before
