"""The exposure log in an object store that speaks S3: an object of JSON lines for each call. Needs the extra `s3`.

    PREFIX/exposures/2026-11-26/<time>-<random>.jsonl     a row a line, as `adagrpo.serving.exposure_log.encode` has it
    PREFIX/feedback/2026-11-26/...

A row is durable once the store has answered. The store is not asked for ids, so a retry writes a second row; whoever
reads keeps the first of each, in the order of the names. Answers are put together before they come here, feedback is
here: an object for each of them would be slow and dear.

A store that is away is given up after seconds, since whoever asked for a list waits for it. A try that failed for the
client may have come to the store all the same, so there can be rows of lists that nobody was shown.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from adagrpo.errors import UserError
from adagrpo.serving.batching import MicroBatcher, Overloaded
from adagrpo.serving.exposure_log import Exposure, Feedback, FeedbackCounts, SinkFailed, encode

__all__ = ["ObjectSink", "object_client"]

TOGETHER, WAITING = 256, 1024  # calls of feedback that share an object, and that may wait
# The time of a request is 2 s, and rows of the next wait for these. A second try has the same name: no second row.
PATIENCE = {"connect_timeout": 1, "read_timeout": 2, "retries": {"total_max_attempts": 2, "mode": "standard"}}


def object_client(**options: Any) -> tuple[Any, tuple[type[Exception], ...]]:
    """A client of S3, and what it raises.

    Args:
        options: of `boto3.client`; what is not given comes from the environment, as ever with boto3.

    Raises:
        UserError: the extra is missing, or an option is wrong.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise UserError("exposures in S3: needs boto3; pip install 'adagrpo[s3]'") from error
    try:
        client = boto3.Session().client("s3", **{"config": Config(**PATIENCE), **options})
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"exposures in S3: {error}") from error
    return client, (BotoCoreError, ClientError)


class ObjectSink:
    """An `ExposureSink` that writes objects into a bucket."""

    def __init__(self, bucket: str, prefix: str = "exposures", **options: Any) -> None:
        """Make a client; a bucket that is not there is found by the first write.

        Args:
            bucket: to write into.
            prefix: of all names.
            options: of `boto3.client`, such as `endpoint_url`.

        Raises:
            UserError: the extra is missing, or an option is wrong.
        """
        self._client, self._failures = object_client(**options)
        self._bucket, self._prefix = bucket, prefix
        self._feedback = MicroBatcher[Sequence[Feedback], None](self._put_feedback, most=TOGETHER, waiting=WAITING)

    def check(self) -> None:
        """Ask for the bucket.

        Raises:
            UserError: there is none, the key may not see it, or the store does not answer.
        """
        place = f"s3://{self._bucket}"
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}/", MaxKeys=1)
        except self._failures as error:
            raise UserError(f"{place}: {error}") from error

    def write(self, rows: Sequence[Exposure]) -> list[Exposure]:
        """See `ExposureSink.write`; the rows themselves come back."""
        self._put("exposures", rows)
        return list(rows)

    def feedback(self, rows: Sequence[Feedback]) -> FeedbackCounts:
        """See `ExposureSink.feedback`; nothing is known of what came before."""
        try:
            self._feedback.submit(rows).result()
        except Overloaded as error:
            raise SinkFailed(f"s3://{self._bucket}: {error}") from error
        return FeedbackCounts(len(rows), 0, 0)

    def close(self) -> None:
        """See `ExposureSink.close`."""
        self._feedback.close()
        self._client.close()

    def _put_feedback(self, calls: Sequence[Sequence[Feedback]]) -> list[None]:
        self._put("feedback", [row for rows in calls for row in rows])
        return [None] * len(calls)

    def _put(self, kind: str, rows: Sequence[Exposure] | Sequence[Feedback]) -> None:
        now = datetime.now(UTC)
        name = f"{self._prefix}/{kind}/{now:%Y-%m-%d}/{now:%H%M%S.%f}-{secrets.token_hex(8)}.jsonl"
        body = "".join(f"{encode(row)}\n" for row in rows).encode()
        try:
            self._client.put_object(Bucket=self._bucket, Key=name, Body=body, ContentType="application/x-ndjson")
        except self._failures as error:
            raise SinkFailed(f"s3://{self._bucket}/{name}: {error}") from error
