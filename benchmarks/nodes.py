"""Work shared by several machines, which are network namespaces of one host.

    python -m benchmarks.nodes [--only recommend train] [--page docs/how-to/scale.md]     # as root, with the extra ray

Each has an address, interfaces, processes' ports, a /tmp and a home of its own; a folder is mounted in all at one path,
as a network file system would be. `recommend` writes lists over a Ray cluster of three, of which a worker is killed;
`train` fits two arms by `accelerate launch` on two with two processes each, of which one machine is killed, and by the
same command again. Both are compared with one process. A row of nodes.jsonl is a run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.torch import load_file

from adagrpo.pipeline import Run
from adagrpo.pipeline.recommend import PART_USERS
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, to_markdown
from research.rows import add_row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "nodes.jsonl"
ROOT = HERE.parent
MARKS = "<!-- several machines -->", "<!-- end of several machines -->"
USERS = 60_000  # lists
RAY_PORT, TRAIN_PORT = 6379, 29500
ARMS = ("nll", "adagrpo")
PATIENCE = 600.0  # seconds for anything to end


class Node:
    """A machine."""

    def __init__(self, number: int, work: Path, mounted: Path) -> None:
        self.name, self.address, self.mounted = f"adagrpo-{number}", f"10.77.0.{number}", mounted
        self.own = work / self.name
        for folder in ("tmp", "home"):
            (self.own / folder).mkdir(parents=True)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command on it; what it says is appended to `said.txt` of its folder."""
        hidden = f'mount --bind {self.own}/tmp /tmp && exec "$@"'
        command = ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", hidden, "sh", *arguments]
        added = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "HOME": str(self.own / "home"),
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        with (self.own / "said.txt").open("ab") as said:
            return subprocess.Popen(
                command, cwd=self.mounted, env=os.environ | added, stdout=said, stderr=said, start_new_session=True
            )

    def finish(self, arguments: Sequence[str]) -> None:
        """Carry out a command that must end well."""
        if status := wait(self.start(arguments)):
            raise SystemExit(
                f"{' '.join(arguments)} ended with {status}: {(self.own / 'said.txt').read_text()[-2000:]}"
            )

    def kill(self) -> list[str]:
        """Kill all its processes, and return the first words of their commands."""
        found = []
        for pid in _ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError, FileNotFoundError):
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
                os.kill(int(pid), signal.SIGKILL)
        return found


@contextmanager
def nodes(count: int, work: Path, mounted: Path) -> Iterator[list[Node]]:
    """Join machines by a bridge; kill and remove them at the end."""
    made: list[Node] = []
    _ip("link", "add", "adagrpo", "type", "bridge")
    try:
        _ip("link", "set", "adagrpo", "up")
        for number in range(1, count + 1):
            node = Node(number, work, mounted)
            _ip("netns", "add", node.name)
            made.append(node)
            _ip("link", "add", f"adagrpo{number}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
            _ip("link", "set", f"adagrpo{number}", "master", "adagrpo", "up")
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.name, "link", "set", "eth0", "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield made
    finally:
        for node in made:
            node.kill()
            _ip("link", "del", node.name.replace("-", ""))  # with its other end, which goes later than its namespace
            _ip("netns", "del", node.name)
        _ip("link", "del", "adagrpo")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(arguments)}: {done.stderr.strip()} (it takes root)")
    return done.stdout


def wait(process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> int:
    """Return how a process ended."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for something to be there while a process works."""
    started = time.monotonic()
    while not there():
        if process.poll() is not None or time.monotonic() - started > PATIENCE:
            raise SystemExit(f"it did not come so far; the process ended with {process.poll()}")
        time.sleep(0.05)


def adagrpo(*arguments: str) -> list[str]:
    """The command line, which fits in float32."""
    return [sys.executable, "-m", "benchmarks.in_float32", *arguments]


def shop(mounted: Path) -> Run:
    """A small simulated shop with a starting policy and a ranker."""
    recipe = Path(str(sys.modules["adagrpo"].__file__)).parent / "recipes" / "demo-small.yaml"
    settings = [f"train.arms=[{', '.join(ARMS)}]", "reward.kind=sequential", "threads=1"]
    settings += [
        "train.fit.checkpoint_seconds=0",
        "train.fit.accumulation=4",
        "train.fit.batch_size=16",
        "train.fit.epochs=3",
    ]
    run = Run.create(recipe, mounted / "run", settings=settings)
    run.prepare()
    run.tokenize()
    run.sft()
    run.ranker()
    return run


def recommend(work: Path, mounted: Path) -> dict[str, Any]:
    """Lists over a Ray cluster of a head and two workers, one killed when a third of the parts is there."""
    run = shop(mounted)
    items = pl.read_parquet(run.path("prepare", "items.parquet"))["item_id"].to_list()
    draw = np.random.default_rng(0)
    histories = [[items[item] for item in draw.integers(len(items), size=draw.integers(1, 20))] for _ in range(USERS)]
    users = pl.DataFrame({"user_id": [f"new-{user}" for user in range(USERS)], "history": histories})
    users.write_parquet(mounted / "users.parquet")
    command = ["recommend", "--run", "run", "--users", "users.parquet", "--quiet", "--out"]
    with nodes(3, work, mounted) as (head, *workers):
        seconds = -time.monotonic()
        head.finish(adagrpo(*command, "one"))
        seconds += time.monotonic()
        address = f"{head.address}:{RAY_PORT}"
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--object-store-memory=200000000"]
        ray += ["--disable-usage-stats", "--node-ip-address"]
        served = [head.address, "--num-cpus=2", "--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
        head.start([*ray, *served])  # of three actors and the reader, each worker gets one
        for worker in workers:
            worker.start([*ray, worker.address, "--num-cpus=1", f"--address={address}"])
        taken = -time.monotonic()
        time.sleep(30)  # they join
        started = head.start(adagrpo(*command, "ray", "--ray", "3"), {"RAY_ADDRESS": address})
        parts = mounted / "ray"
        until(lambda: len([*parts.glob("part-*.parquet")]) >= USERS // PART_USERS // 3, started)
        killed = workers[1].kill()
        status = wait(started)
        taken += time.monotonic()
        equal = _parts(mounted / "one") == _parts(parts)
    return {
        "machines": 3,
        "killed": f"a worker after {USERS // PART_USERS // 3} of {USERS // PART_USERS} parts",
        "ended": [status],
        "lists": USERS,
        "equal": "byte for byte" if equal else "no",
        "holds": equal and status == 0 and any(one.startswith("ray::Map") for one in killed),  # it had an actor
        "seconds": round(taken),
        "seconds_of_one": round(seconds),
    }


def _parts(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*.parquet"))}


def train(work: Path, mounted: Path) -> dict[str, Any]:
    """Two arms on two machines with two processes each; a machine is killed in the second one, and all go on."""
    run = shop(mounted)
    for copy in ("one", "together"):
        shutil.copytree(run.directory, mounted / copy)
    command = ["train", "--quiet", "--run"]
    with nodes(2, work, mounted) as machines:
        seconds = -time.monotonic()
        machines[0].finish(adagrpo(*command, "one"))
        seconds += time.monotonic()
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision=no"]
        accelerate += [
            "--dynamo_backend=no",
            "--num_cpu_threads_per_process=1",
            "--num_processes=4",
            "--num_machines=2",
        ]
        accelerate += [f"--main_process_ip={machines[0].address}", f"--main_process_port={TRAIN_PORT}"]

        def together() -> list[subprocess.Popen[bytes]]:
            arguments = ["-m", "benchmarks.in_float32", *command, "together"]
            return [
                node.start([*accelerate, f"--machine_rank={rank}", *arguments]) for rank, node in enumerate(machines)
            ]

        taken = -time.monotonic()
        started = together()
        steps = mounted / "together" / ".work" / f"train.{ARMS[1]}" / "steps.jsonl"
        until(lambda: steps.is_file() and len(steps.read_bytes().splitlines()) >= 3, started[0])
        machines[1].kill()
        first = [wait(one) for one in started]
        second = [wait(one) for one in together()]
        taken += time.monotonic()
        away = max(_away(mounted / "one", mounted / "together", arm) for arm in ARMS)
    return {
        "machines": 2,
        "killed": f"a machine in step 3 of {ARMS[1]}",
        "ended": [*first, *second],
        "equal": f"weights to {away:.0e}",
        "holds": second == [0, 0] and first[0] != 0 and away <= 1e-5,
        "seconds": round(taken),
        "seconds_of_one": round(seconds),
    }


def _away(one: Path, other: Path, arm: str) -> float:
    first, second = (load_file(run / "train" / arm / "final" / "model.safetensors") for run in (one, other))
    for weights in (first, second):
        for name in [name for name in weights if name.endswith("query_key_value.bias")]:
            weights[name].view(3, -1)[1] = 0  # of attention's keys: nothing depends on it (`reliability.invariance`)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


RUNS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {"recommend": recommend, "train": train}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last row of each run."""
    latest = {row["run"]: row for row in rows}
    body = [
        (
            name,
            str(row["machines"]),
            row["killed"],
            ", ".join(map(str, row["ended"])),
            row["equal"],
        )
        for name, row in latest.items()
    ]
    header = ["run", "machines", "killed", "exit statuses", "equal to one process"]
    return to_markdown(Table.of(header, body))


def on_page(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A page with the table between its markers."""
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}{after}"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=[*RUNS])
    parser.add_argument("--page", type=Path, help="write the table between the markers of this page")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            work = Path(folder)
            (work / "mounted").mkdir()
            row = {"run": name, **RUNS[name](work, work / "mounted")}
        add_row(RESULTS, row)
        print(row, flush=True)
    rows = list(read_rows(RESULTS))
    if options.page is not None:
        options.page.write_text(on_page(options.page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return 0 if all(row["holds"] for row in {row["run"]: row for row in rows}.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
