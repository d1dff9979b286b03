"""Sharded weights: what the launcher may ask for, the files of a checkpoint, and two processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from adagrpo.config.models import LanguageModelConfig
from adagrpo.errors import UserError
from adagrpo.pipeline.stages.fitting import check_shardable
from adagrpo.pipeline.written import is_written
from adagrpo.trainer.checkpoints import _Stored, _write_part
from adagrpo.trainer.processes import LostProcess, Processes
from adagrpo.trainer.sharding import sharded, whole_tensors

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reliability import sharding

TENSORS = {
    "five": torch.arange(10.0).view(5, 2),
    "one": torch.ones(1, 3),
    "eight": torch.arange(8.0),
    "step": torch.tensor(7.0),
}


@contextmanager
def process(rank: int, count: int) -> Iterator[Processes]:
    """This process as one of several, which it hears nothing of."""
    distributed.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
    try:
        yield Processes(rank, count)
    finally:
        distributed.destroy_process_group()


def rows(tensor: torch.Tensor, rank: int, count: int) -> DTensor:
    """A tensor of which this process has the rows that `torch.chunk` gives it."""
    parts = torch.chunk(tensor, count)
    own = parts[rank] if rank < len(parts) else tensor[:0]
    mesh = init_device_mesh("cpu", (count,))
    options = {"shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, **options)


def write(folder: Path, count: int) -> None:
    for rank in range(count):
        with process(rank, count) as own:
            tensors = {name: rows(one, rank, count) if one.ndim else one for name, one in TENSORS.items()}
            _write_part(tensors, folder / "model.safetensors", own if count > 1 else Processes(), "0" * 16)


@pytest.mark.parametrize("wrote", [2, 3])
@pytest.mark.parametrize("reads", [1, 2, 4])
def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path: Path, wrote: int, reads: int):
    write(tmp_path, wrote)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"model-{rank + 1:05d}-of-{wrote:05d}.safetensors" for rank in range(wrote)]
    assert all(map(is_written, files))
    for rank in range(reads):
        with process(rank, reads):
            stored = _Stored(tmp_path / "model.safetensors")
            assert set(stored.names) == TENSORS.keys()
            for name, tensor in TENSORS.items():
                assert torch.equal(stored.like(name, tensor), tensor)
                if tensor.ndim:
                    like = rows(tensor, rank, reads)
                    assert torch.equal(stored.like(name, like).to_local(), like.to_local())
                    assert stored.like(name, like).shape == tensor.shape
            count_of_steps = stored.like("step", rows(TENSORS["five"], rank, reads))
            assert not isinstance(count_of_steps, DTensor) and count_of_steps == 7


def test_whole_weights_are_read_in_parts(tmp_path: Path):
    own = Processes()
    _write_part(TENSORS, tmp_path / "model.safetensors", own, "0" * 16)
    with process(1, 2):
        stored = _Stored(tmp_path / "model.safetensors")
        assert stored.like("five", rows(TENSORS["five"], 1, 2)).to_local().tolist() == [[6, 7], [8, 9]]


def test_a_missing_part_is_named(tmp_path: Path):
    write(tmp_path, 2)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing, or some of its parts are"):
        _Stored(tmp_path / "model.safetensors")
    assert not is_written("model-1-of-2.safetensors")


def test_what_is_not_divided_stays():
    assert whole_tensors(TENSORS, kept=True) == TENSORS
    assert whole_tensors(TENSORS, kept=False) == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"FSDP_VERSION: weights are sharded by FSDP2, got 1; launch with --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, r"FSDP_OFFLOAD_PARAMS: not supported, must be false"),
    ],
)
def test_a_launcher_that_asks_for_something_else_is_told(monkeypatch, asked, message):
    pytest.importorskip("transformers")
    monkeypatch.setattr("adagrpo.trainer.sharding._language_model", lambda model: model)
    for name, value in {"ACCELERATE_USE_FSDP": "true", **asked}.items():
        monkeypatch.setenv(name, value)
    both = Processes(0, 2)
    with pytest.raises(UserError, match=message), sharded([nn.Linear(1, 1)], both):
        raise AssertionError("it began")
    with sharded([nn.Linear(1, 1)], Processes()):
        pass  # one alone has nothing to divide


def test_an_exchange_that_fails_is_a_lost_process(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("adagrpo.trainer.sharding._language_model", lambda model: model)
    monkeypatch.setattr("adagrpo.trainer.sharding._Sharded", lambda *_: None)
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    both = Processes(0, 2)
    with pytest.raises(LostProcess), sharded([nn.Linear(1, 1)], both):
        assert both.lockstep is not None
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error")
    assert both.lockstep is None
    with pytest.raises(RuntimeError, match="shape"), sharded([nn.Linear(1, 1)], both):
        raise RuntimeError("shape")


@pytest.mark.parametrize("key", ["frozen_epochs", "lora_rank"])
def test_what_does_not_go_with_sharded_weights_is_refused(monkeypatch, key):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    lm = LanguageModelConfig(config={}, **{key: 1})
    run = SimpleNamespace(config=SimpleNamespace(policy=SimpleNamespace(lm=lm)), processes=Processes(0, 2))
    with pytest.raises(UserError, match=f"policy.lm.{key}: not with sharded weights, set it to 0"):
        check_shardable(run)
    run.processes = Processes()
    check_shardable(run)


def test_the_slurm_script_launches_each_verb_on_every_node(tmp_path: Path):
    """With stand-ins: `srun` begins its command on two nodes, `accelerate` says how it was called."""
    stand_ins = {
        "scontrol": "printf 'first\\nsecond\\n'",
        "srun": 'shift 2; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        "accelerate": 'echo "$@"',
    }
    for name, content in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "n[1-2]", "JOB_ID": "10007", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"SLURM_CPUS_PER_TASK": "32"}
    script = ["bash", str(Path(__file__).parents[2] / "deploy" / "train.sbatch")]
    options = {"env": {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}, "text": True, "capture_output": True}
    said = subprocess.run([*script, "runs/two words"], check=True, **options).stdout.splitlines()
    common = "launch --use_fsdp --fsdp_version 2 --num_machines 2 --machine_rank {} --num_processes 8"
    place = "--main_process_ip first --main_process_port 20007 -m adagrpo {} --run runs/two words"
    assert said == [
        f"{common.format(node)} {place.format(verb)}" for verb in ("sft", "ranker", "train") for node in (0, 1)
    ]
    assert "usage: sbatch deploy/train.sbatch RUN" in subprocess.run(script, check=False, **options).stderr


@pytest.mark.slow  # a process, and forks that fit a language model five times
def test_two_that_share_the_weights_are_as_one_and_go_on_from_each_other_s_checkpoints(tmp_path: Path):
    """With SGD and without clipping: Adam and a clipped gradient hide a mean in the place of a sum."""
    found = sharding.measured("short", tmp_path, 4)
    assert max(together for together, _ in found["equal"].values()) < 1e-6
    resumed = found["resume"]
    assert resumed["ends"] == [[sharding.LOST, -9], [-9], [0, 0]]
    sharded_names = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    first, second, third = map(set, resumed["files"])
    assert first == third == sharded_names and second == sharded_names | {"model.safetensors"}
    assert resumed["equal"], "to the bit"
    assert resumed["steps"] == [4, 4]
    assert resumed["admission"][1] > 0
