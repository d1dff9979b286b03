"""The exposure log in an object store that speaks S3: an object of JSON lines for each call. Needs the extra `s3`.

    PREFIX/exposures/2026-11-26/<time>-<random>.jsonl     a row a line, as `adagrpo.serving.exposure_log.encode` has it
    PREFIX/feedback/2026-11-26/...

A row is durable once the store has answered. The store is not asked for ids, so a retry writes a second row; whoever
reads keeps the first of each, in the order of the names. Put answers together before they are written: an object for
each of them is slow and dear.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from adagrpo.errors import UserError
from adagrpo.serving.exposure_log import Exposure, Feedback, FeedbackCounts, SinkFailed, encode

__all__ = ["ObjectSink"]


class ObjectSink:
    """An `ExposureSink` that writes objects into a bucket."""

    def __init__(self, bucket: str, prefix: str = "exposures", **options: Any) -> None:
        """Make a client; a bucket that is not there is found by the first write.

        Args:
            bucket: to write into.
            prefix: of all names.
            options: of `boto3.client`, such as `endpoint_url`.

        Raises:
            UserError: the extra is missing.
        """
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise UserError("exposures in S3: needs boto3; pip install 'adagrpo[s3]'") from error
        self._client, self._bucket, self._prefix = boto3.client("s3", **options), bucket, prefix
        self._failures = (BotoCoreError, ClientError)

    def write(self, rows: Sequence[Exposure]) -> list[Exposure]:
        """See `ExposureSink.write`; the rows themselves come back."""
        self._put("exposures", rows)
        return list(rows)

    def feedback(self, rows: Sequence[Feedback]) -> FeedbackCounts:
        """See `ExposureSink.feedback`; nothing is known of what came before."""
        self._put("feedback", rows)
        return FeedbackCounts(len(rows), 0, 0)

    def close(self) -> None:
        """See `ExposureSink.close`."""
        self._client.close()

    def _put(self, kind: str, rows: Sequence[Exposure] | Sequence[Feedback]) -> None:
        now = datetime.now(UTC)
        name = f"{self._prefix}/{kind}/{now:%Y-%m-%d}/{now:%H%M%S.%f}-{secrets.token_hex(8)}.jsonl"
        body = "".join(f"{encode(row)}\n" for row in rows).encode()
        try:
            self._client.put_object(Bucket=self._bucket, Key=name, Body=body, ContentType="application/x-ndjson")
        except self._failures as error:
            raise SinkFailed(f"s3://{self._bucket}/{name}: {error}") from error
