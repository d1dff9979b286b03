"""The exposure log in Kafka: a message a row, keyed by request id. Needs the extra `kafka`.

A row is durable once all brokers in sync have it. A topic cannot be asked whether it has an id, so a retry writes a
second message; whoever reads keeps the first of each, as `LocalExposureLog.write` does with what it is given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
        limits = {"message.timeout.ms": int(1000 * seconds)}
        try:
            self._producer = Producer({**limits, **options, **DURABLE})
        except KafkaException as error:
            raise UserError(f"exposures in Kafka: {error.args[0].str()}") from error

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

    def _send(self, topic: str, rows: Sequence[Exposure] | Sequence[Feedback]) -> None:
        outcomes: list[Any] = []  # an error or None for each row; filled by whichever thread polls
        try:
            for row in rows:
                self._producer.produce(
                    topic, encode(row), row.request_id, on_delivery=lambda error, _: outcomes.append(error)
                )
        except (BufferError, self._failure) as error:
            raise SinkFailed(f"Kafka, topic {topic}: {error}") from error
        end = time.monotonic() + 2 * self._seconds
        while len(outcomes) < len(rows) and time.monotonic() < end:
            self._producer.poll(0.01)
        failed = [error for error in outcomes if error is not None]
        if failed or len(outcomes) < len(rows):
            raise SinkFailed(f"Kafka, topic {topic}: {failed[0].str() if failed else 'no word from the brokers'}")
