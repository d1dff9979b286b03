"""Rows of an exposure log elsewhere, brought into a folder, where all that reads logs finds them.

    DIR/collected.txt    what is in the log: `s3://BUCKET/NAME`, or `CLUSTER TOPIC PARTITION OFFSET MILLISECONDS`, the
                         offset of the next message and the time of the one before it

A line is written once the rows before it are on disk. So after a kill some rows are read again, and none is left out;
the log keeps the first row of each request id. What comes while rows are read is for the next time.

A topic that was removed and made anew counts its messages from 0 again. It is told by its length or, where it is longer
by now, by the time of the message before the offset on record; an identity of topics, which not all brokers have, is
not asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.serving.exposure_address import KafkaAddress, ObjectAddress, parse_address
from adagrpo.serving.exposure_log import Exposure, Feedback, decode_exposure, decode_feedback
from adagrpo.serving.exposure_objects import object_client
from adagrpo.serving.exposure_store import LocalExposureLog

__all__ = ["COLLECTED", "collect_log"]

COLLECTED = "collected.txt"
AT_ONCE = 5000  # rows of a transaction
PATIENCE = 30.0  # seconds without a message
Put = Callable[[list[Exposure], list[Feedback], list[str]], None]  # rows, and lines that say where they are from


def collect_log(source: str, directory: Path) -> dict[str, int]:
    """Bring what was logged since the last time into a folder.

    Args:
        source: address of a bucket or a cluster, see `adagrpo.serving.exposure_address`.
        directory: new, empty, or of an exposure log.

    Returns:
        `answers` and `feedback` that were read, how many of them the folder had already (`.._repeated`), `missed`:
        messages that Kafka had removed before they were read, and `made_anew`: partitions that were read from their
        beginning, since the topic is not the one of the last time.

    Raises:
        UserError: no such bucket or topic, it does not answer, or holds what is no row.
    """
    address = parse_address(source)
    if isinstance(address, Path):
        raise UserError(f"{source}: is a folder, which needs no collecting; give s3://.. or kafka://..")
    names = ("answers", "answers_repeated", "feedback", "feedback_repeated", "missed", "made_anew")
    counts = dict.fromkeys(names, 0)
    log = LocalExposureLog(directory)
    record = directory / COLLECTED
    try:
        done = _whole_lines(record)

        def put(shown: list[Exposure], events: list[Feedback], lines: list[str]) -> None:
            written = log.write(shown) if shown else []
            counts["answers"] += len(shown)
            counts["answers_repeated"] += sum(one is not row for one, row in zip(written, shown, strict=True))
            if events:
                counts["feedback"] += len(events)
                counts["feedback_repeated"] += log.feedback(events).repeated
            with record.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())

        if isinstance(address, ObjectAddress):
            _objects(address, {*done}, put)
        else:
            counts["missed"], counts["made_anew"] = _messages(address, done, put)
    finally:
        log.close()
    return counts


def _whole_lines(record: Path) -> list[str]:
    """The lines of a record; what a kill left of the last one is cut off, so that the next line begins anew."""
    if not record.exists():
        return []
    content = record.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(record, len(whole))
    return whole.decode(errors="replace").splitlines()


def _objects(address: ObjectAddress, done: set[str], put: Put) -> None:
    """Read the objects that were not read yet, in the order of their names, which is that of their times."""
    client, failures = object_client()
    try:
        for kind in ("exposures", "feedback"):
            shown: list[Exposure] = []
            events: list[Feedback] = []
            names: list[str] = []
            for name, lines in _new_objects(client, address, kind, done):
                place = f"s3://{address.bucket}/{name}"
                if kind == "exposures":
                    shown += [_decoded(decode_exposure, line, place) for line in lines]
                else:
                    events += [_decoded(decode_feedback, line, place) for line in lines]
                names.append(place)
                if len(shown) + len(events) >= AT_ONCE:
                    put(shown, events, names)
                    shown, events, names = [], [], []
            if names:
                put(shown, events, names)
    except failures as error:
        raise UserError(f"s3://{address.bucket}/{address.prefix}: {error}") from error


def _new_objects(client: Any, address: ObjectAddress, kind: str, done: set[str]) -> Iterator[tuple[str, list[bytes]]]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket, Prefix=f"{address.prefix}/{kind}/")
    for page in pages:
        for entry in page.get("Contents", ()):
            name = str(entry["Key"])
            if f"s3://{address.bucket}/{name}" not in done and name.endswith(".jsonl"):
                content: bytes = client.get_object(Bucket=address.bucket, Key=name)["Body"].read()
                yield name, content.splitlines()


def _messages(address: KafkaAddress, done: list[str], put: Put) -> tuple[int, int]:
    """Read both topics from where the last time ended up to where they end now.

    Returns:
        How many messages are gone, and how many partitions were read from their beginning, being of another topic.
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    after = _places(done)
    groups = {"group.id": "adagrpo-collect", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    missed = anew = 0
    try:
        consumer = Consumer({**address.options, **groups})
        try:
            for topic in (address.exposures, address.feedback):
                cluster = consumer.list_topics(topic, timeout=PATIENCE)
                parts = cluster.topics[topic]
                if parts.error is not None:
                    raise UserError(f"Kafka, topic {topic}: {parts.error.str()}")
                for part in sorted(parts.partitions):
                    first, end = consumer.get_watermark_offsets(TopicPartition(topic, part), timeout=PATIENCE)
                    name = f"{cluster.cluster_id or '-'} {topic} {part}"
                    begin, moment = after.get(name, (0, None))
                    if begin > end or (first < begin and _moved(consumer, (topic, part), begin - 1, moment)):
                        begin, anew = 0, anew + 1
                    missed += max(0, first - begin)
                    if (begin := max(begin, first)) < end:
                        consumer.assign([TopicPartition(topic, part, begin)])
                        _partition(consumer, (topic, part), (begin, end), name, put, topic == address.exposures)
        finally:
            consumer.close()
    except KafkaException as error:
        raise UserError(f"Kafka: {error.args[0].str()}") from error
    return missed, anew


def _places(done: list[str]) -> dict[str, tuple[int, int | None]]:
    """Of each partition on record the next offset, and the time of the message before it, which older lines lack."""
    places: dict[str, tuple[int, int | None]] = {}
    for line in done:
        cluster, *fields = line.split(" ")
        if len(fields) in (3, 4) and all(field.lstrip("-").isdigit() for field in fields[1:]):
            topic, part, offset, *moment = fields
            places[f"{cluster} {topic} {part}"] = int(offset), int(moment[0]) if moment else None
    return places


def _moved(consumer: Any, which: tuple[str, int], offset: int, moment: int | None) -> bool:
    """Whether the message of an offset is not of the moment on record; False where nothing says so."""
    from confluent_kafka import TopicPartition

    if moment is None:
        return False
    consumer.assign([TopicPartition(*which, offset)])
    found = consumer.consume(1, timeout=PATIENCE)
    consumer.unassign()
    if found and found[0].error() is not None:
        raise UserError(f"{_named(which)}: {found[0].error().str()}")
    # a message that was compacted away leaves its offset to none
    return bool(found) and found[0].offset() == offset and found[0].timestamp()[1] != moment


def _named(which: tuple[str, int]) -> str:
    return f"Kafka, topic {which[0]}, partition {which[1]}"


def _partition(
    consumer: Any, which: tuple[str, int], span: tuple[int, int], name: str, put: Put, answers: bool
) -> None:
    """Read a partition from an offset up to another."""
    at, end = span
    named = _named(which)
    until = time.monotonic() + PATIENCE
    while at < end:
        shown: list[Exposure] = []
        events: list[Feedback] = []
        for message in consumer.consume(min(AT_ONCE, end - at), timeout=1.0):
            if message.error() is not None:
                raise UserError(f"{named}: {message.error().str()}")
            at, moment = message.offset() + 1, message.timestamp()[1]
            place = f"{named}, offset {message.offset()}"
            if answers:
                shown.append(_decoded(decode_exposure, message.value(), place))
            else:
                events.append(_decoded(decode_feedback, message.value(), place))
        if shown or events:
            until = time.monotonic() + PATIENCE
            put(shown, events, [f"{name} {at} {moment}"])
        elif time.monotonic() > until:
            raise UserError(f"{named}: no message for {PATIENCE:.0f} s, {end - at} lack")
    consumer.unassign()


def _decoded(decode: Callable[[bytes], Any], text: bytes, place: str) -> Any:
    try:
        return decode(text)
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: holds what is no row of an exposure log ({type(error).__name__})") from error
