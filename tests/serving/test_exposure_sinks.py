"""Sinks elsewhere, over the protocols themselves: librdkafka's mock cluster, and moto's server for S3.

Both are fakes that listen on local sockets; `test_exposure_elsewhere.py` has a real store and a real broker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.serving.exposure_log import (
    Exposure,
    Feedback,
    FeedbackCounts,
    SinkFailed,
    decode_exposure,
    decode_feedback,
    encode,
)
from adagrpo.serving.exposure_parts import parts_of, read_parts
from adagrpo.serving.exposure_store import LocalExposureLog

CLICK = Feedback(request_id="r0", item=3, kind="click", time=2.0)


def answers(count: int) -> list[Exposure]:
    given: dict[str, Any] = {"arm": "nll", "model_version": "m", "catalog_version": "c", "user_hash": "u", "time": 1.0}
    return [
        Exposure(request_id=f"r{row}", slate=(3, "x"), log_propensities=(-0.5, -1.0), **given) for row in range(count)
    ]


def test_a_line_holds_the_whole_row() -> None:
    assert decode_exposure(encode(answers(1)[0])) == answers(1)[0]
    assert decode_feedback(encode(CLICK).encode()) == CLICK
    for text in ("[]", "{}", encode(CLICK)):
        with pytest.raises(ValueError, match="no row of"):
            decode_exposure(text)


@pytest.fixture
def kafka() -> Iterator[Any]:
    pytest.importorskip("confluent_kafka")
    from adagrpo.serving.exposure_kafka import KafkaSink

    sink = KafkaSink({"bootstrap.servers": "unused", "test.mock.num.brokers": 3, "log_level": 0})
    yield sink
    sink.close()


def test_kafka_has_each_row_under_its_request_id(kafka: Any, tmp_path: Path) -> None:
    from confluent_kafka import Consumer

    assert kafka.write(answers(5)) == answers(5) and kafka.feedback([CLICK]) == FeedbackCounts(1, 0, 0)
    kafka.write(answers(1))  # a retry: a second message, and one row for who reads
    brokers = kafka._producer.list_topics(timeout=5).brokers.values()
    options = {"bootstrap.servers": ",".join(f"{broker.host}:{broker.port}" for broker in brokers), "group.id": "g"}
    consumer = Consumer(options | {"auto.offset.reset": "earliest", "session.timeout.ms": 6000})
    consumer.subscribe(["adagrpo.exposures", "adagrpo.feedback"])
    log, count, end = LocalExposureLog(tmp_path / "log"), 0, time.monotonic() + 20
    while count < 7 and time.monotonic() < end:
        message = consumer.poll(0.2)
        if message is None or message.error():
            continue
        count += 1
        if message.topic() == "adagrpo.feedback":
            log.feedback([decode_feedback(message.value())])
        else:
            row = decode_exposure(message.value())
            assert message.key() == row.request_id.encode()
            log.write([row])
    consumer.close()
    log.rotate()
    log.close()
    exposures, feedback = read_parts(parts_of(tmp_path / "log"))
    assert count == 7 and sorted(exposures["request_id"]) == [f"r{row}" for row in range(5)] and len(feedback) == 1


def test_a_kafka_that_is_not_there_has_logged_nothing() -> None:
    pytest.importorskip("confluent_kafka")
    from adagrpo.serving.exposure_kafka import KafkaSink

    sink = KafkaSink({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, seconds=0.2)
    with pytest.raises(SinkFailed, match=r"Kafka, topic adagrpo\.exposures: .* \(.*Connection refused"):
        sink.write(answers(2))
    with pytest.raises(UserError, match="No such configuration property"):
        KafkaSink({"no.such.option": 1})


def test_objects_of_s3_hold_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    from adagrpo.serving.exposure_objects import ObjectSink

    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
        options |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        sink = ObjectSink("shop", "log", **options)
        with pytest.raises(SinkFailed, match=r"s3://shop/log/exposures/.*NoSuchBucket"):
            sink.write(answers(1))
        sink._client.create_bucket(Bucket="shop")
        sink.write(answers(3))
        sink.write(answers(1))
        sink.feedback([CLICK])
        names = [entry["Key"] for entry in sink._client.list_objects_v2(Bucket="shop")["Contents"]]
        texts = {name: sink._client.get_object(Bucket="shop", Key=name)["Body"].read().decode() for name in names}
        sink.close()
    finally:
        server.stop()
    shown = [name for name in names if name.startswith("log/exposures/")]
    log = LocalExposureLog(tmp_path / "log")
    for name in shown:
        log.write([decode_exposure(line) for line in texts[name].splitlines()])
    log.rotate()
    log.close()
    assert read_parts(parts_of(tmp_path / "log"))[0]["request_id"].to_list() == ["r0", "r1", "r2"]
    assert len(shown) == 2 and [decode_feedback(texts[name]) for name in names if name not in shown] == [CLICK]
