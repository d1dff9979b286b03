"""Where an exposure log is, as it is given on the command line, and what opens it.

    exposures/                            a folder, see `adagrpo.serving.exposure_store`
    s3://BUCKET/PREFIX                    see `adagrpo.serving.exposure_objects`; the rest is boto3's environment
    kafka://HOST:PORT,HOST:PORT/PREFIX    PREFIX.exposures and PREFIX.feedback, see `adagrpo.serving.exposure_kafka`

Secrets are never part of an address, where other users of the machine could read them. Keys of S3 come from where boto3
looks for them, options of Kafka from the file that `ADAGRPO_KAFKA_OPTIONS` names: `name=value` lines of librdkafka.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.serving.exposure_kafka import KafkaSink
from adagrpo.serving.exposure_log import ExposureSink
from adagrpo.serving.exposure_objects import ObjectSink
from adagrpo.serving.exposure_store import LocalExposureLog

__all__ = ["KAFKA_OPTIONS", "KafkaAddress", "ObjectAddress", "check_log", "open_log", "parse_address"]

KAFKA_OPTIONS = "ADAGRPO_KAFKA_OPTIONS"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")
BROKER = re.compile(r"[^\s,/:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")


class ObjectAddress(NamedTuple):
    """A place in a bucket."""

    bucket: str
    prefix: str

    def sink(self) -> ObjectSink:
        """What writes there."""
        return ObjectSink(self.bucket, self.prefix)


class KafkaAddress(NamedTuple):
    """Two topics of a cluster."""

    options: dict[str, Any]  # of librdkafka
    exposures: str
    feedback: str

    def sink(self) -> KafkaSink:
        """What writes there."""
        return KafkaSink(self.options, exposures=self.exposures, feedback=self.feedback)


def parse_address(text: str | Path) -> Path | ObjectAddress | KafkaAddress:
    """What an address names.

    Raises:
        UserError: it is neither a folder nor one of the two forms above.
    """
    kind, is_address, rest = str(text).partition("://")
    if isinstance(text, Path) or not is_address:
        return Path(text)
    place, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if kind == "s3":
        if not BUCKET.fullmatch(place):
            raise UserError(f"--exposures {text}: {place or 'nothing'} is no name of a bucket; give s3://BUCKET/PREFIX")
        return ObjectAddress(place, prefix or "exposures")
    if kind == "kafka":
        if not all(map(BROKER.fullmatch, place.split(","))):
            raise UserError(f"--exposures {text}: give kafka://HOST:PORT,HOST:PORT/PREFIX")
        if prefix and not TOPIC.fullmatch(prefix):
            raise UserError(f"--exposures {text}: {prefix} is no beginning of a topic's name (letters, digits, . _ -)")
        topics = prefix or "adagrpo"
        return KafkaAddress(
            _kafka_options() | {"bootstrap.servers": place}, f"{topics}.exposures", f"{topics}.feedback"
        )
    raise UserError(f"--exposures {text}: takes a folder, s3://BUCKET/PREFIX or kafka://HOST:PORT/PREFIX")


def open_log(text: str | Path) -> ExposureSink:
    """The sink of an address; nothing is asked of a broker or a store yet.

    Raises:
        UserError: no such address, the extra is missing, or the folder cannot be used.
    """
    address = parse_address(text)
    return LocalExposureLog(address) if isinstance(address, Path) else address.sink()


def check_log(text: str | Path) -> None:
    """Make the folder of a log, or ask a bucket or a cluster whether rows could be written to it.

    Raises:
        UserError: they could not.
    """
    address = parse_address(text)
    if isinstance(address, Path):
        LocalExposureLog(address).close()
        return
    sink = address.sink()
    try:
        sink.check()
    finally:
        sink.close()


def _kafka_options() -> dict[str, Any]:
    """What the file of options says.

    Raises:
        UserError: it cannot be read, or a line is not `name=value`.
    """
    name = os.environ.get(KAFKA_OPTIONS)
    if not name:
        return {}
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{KAFKA_OPTIONS}: {name} cannot be read ({error})") from error
    options: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        key, there, value = line.partition("=")
        if line.strip() and not line.lstrip().startswith("#"):
            if not there:
                raise UserError(f"{name}, line {number}: is not name=value")  # which may be a secret: not repeated
            options[key.strip()] = value.strip()
    return options
