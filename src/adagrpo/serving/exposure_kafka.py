"""The exposure log in Kafka: a message a row, keyed by request id. Needs the extra `kafka`.

A row is durable once all brokers in sync have it. A topic cannot be asked whether it has an id, so a retry writes a
second message; whoever reads keeps the first of each, as `LocalExposureLog.write` does with what it is given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

from adagrpo.errors import UserError
from adagrpo.serving.exposure_log import Exposure, Feedback, FeedbackCounts, SinkFailed, encode

__all__ = ["KafkaSink"]

DURABLE = {"acks": "all", "enable.idempotence": True}  # an order that retries of the client do not change


class KafkaSink:
    """An `ExposureSink` that writes two topics."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        exposures: str = "adagrpo.exposures",
        feedback: str = "adagrpo.feedback",
        seconds: float = 2.0,
    ) -> None:
        """Connect in the background; a broker that is not there is found by the first write.

        Args:
            options: of librdkafka, such as `{"bootstrap.servers": "kafka:9092"}`.
            exposures: topic of the answers.
            feedback: topic of the feedback.
            seconds: that a call waits for the brokers.

        Raises:
            UserError: the extra is missing, or librdkafka refuses the options.
        """
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError as error:
            raise UserError("exposures in Kafka: needs confluent-kafka; pip install 'adagrpo[kafka]'") from error
        self._topics, self._seconds, self._failure = (exposures, feedback), seconds, KafkaException
        # What librdkafka says of a connection that failed: a row alone says that its time was over
        self._said = said = deque[str](maxlen=1)
        limits: dict[str, Any] = {"message.timeout.ms": int(1000 * seconds)}
        limits |= {"log_level": 0, "error_cb": lambda error: said.append(error.str())}  # no lines on stderr
        self._renewing = Lock()
        make: Any = partial(Producer, {**limits, **options, **DURABLE})
        self._make = make
        try:
            self._producer: Any = self._make()
        except KafkaException as error:
            raise UserError(f"exposures in Kafka: {error.args[0].str()}") from error

    def check(self) -> None:
        """Ask the brokers for both topics; one that they make when it is asked for is made.

        Raises:
            UserError: no broker answers, the topic is not there, or this client may not see it.
        """
        end = time.monotonic() + 2 * self._seconds
        for topic in self._topics:
            said: Any = None
            while True:
                try:
                    said = self._producer.list_topics(topic, timeout=self._seconds).topics[topic].error
                except self._failure as error:
                    said = error.args[0]
                    self._producer.poll(0)  # hears why
                if said is None:
                    break
                if time.monotonic() > end:
                    raise UserError(f"Kafka, topic {topic}: {said.str()}{self._because()}")
                time.sleep(0.1)

    def write(self, rows: Sequence[Exposure]) -> list[Exposure]:
        """See `ExposureSink.write`; the rows themselves come back."""
        self._send(self._topics[0], rows)
        return list(rows)

    def feedback(self, rows: Sequence[Feedback]) -> FeedbackCounts:
        """See `ExposureSink.feedback`; nothing is known of what came before."""
        self._send(self._topics[1], rows)
        return FeedbackCounts(len(rows), 0, 0)

    def close(self) -> None:
        """See `ExposureSink.close`."""
        self._producer.flush(self._seconds)
        self._producer = None

    def _send(self, topic: str, rows: Sequence[Exposure] | Sequence[Feedback]) -> None:
        outcomes: list[Any] = []  # an error or None for each row; filled by whichever thread polls
        producer = self._producer
        try:
            for row in rows:
                producer.produce(
                    topic, encode(row), row.request_id, on_delivery=lambda error, _: outcomes.append(error)
                )
        except (BufferError, self._failure) as error:
            self._renew(producer, error.args[0])
            raise SinkFailed(f"Kafka, topic {topic}: {error}") from error
        end = time.monotonic() + 2 * self._seconds
        while len(outcomes) < len(rows) and time.monotonic() < end:
            producer.poll(0.01)
        failed = [error for error in outcomes if error is not None]
        for reason in failed:
            self._renew(producer, reason)
        if failed or len(outcomes) < len(rows):
            reason = failed[0].str() if failed else "no word from the brokers"
            raise SinkFailed(f"Kafka, topic {topic}: {reason}" + self._because())
        self._said.clear()

    def _because(self) -> str:
        return "".join(f" ({said})" for said in self._said)

    def _renew(self, producer: Any, error: Any) -> None:
        """Take another client where this one will never send again, such as after brokers that forgot its numbers."""
        if not hasattr(error, "fatal") or not error.fatal():
            return
        with self._renewing:
            if self._producer is producer:
                self._producer = self._make()
