"""Sequences that stay on disk: the same values, the same batches, and pages that are given back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.data import prepared
from adagrpo.data.prepared import MappedRagged, load_training
from adagrpo.data.sequences import emptied
from adagrpo.trainer.batches import BatchSchedule, TrainingBatch
from adagrpo.types import Ragged

LENGTHS = np.array([3, 0, 1, 7, 12, 2, 0, 5])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the prepared training of eight users."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(len(LENGTHS)), LENGTHS).astype(np.int32)
    table = {"user": users, "item": rng.integers(0, 9, len(users)).astype(np.int32)}
    pl.DataFrame(table).write_parquet(tmp_path / "train.parquet", row_group_size=4)
    pl.DataFrame({"user": np.arange(len(LENGTHS), dtype=np.int32)}).write_parquet(tmp_path / "users.parquet")
    return tmp_path


@pytest.fixture
def mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MappedRagged:
    """That training, copied and counted five rows at a time."""
    monkeypatch.setattr(prepared, "_HELD", 0)
    monkeypatch.setattr(prepared, "_ROWS", 5)
    monkeypatch.setattr("adagrpo.data.prepared._ROWS", 5)
    monkeypatch.setattr("adagrpo.types.COUNTED", 4)
    training = load_training(folder)
    assert isinstance(training, MappedRagged)
    return training


def test_the_values_are_those_in_memory_before_and_after_pages_are_given_back(
    folder: Path, mapped: MappedRagged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_HELD", 1000)
    held = load_training(folder)
    assert type(held) is Ragged and len(held.values) == LENGTHS.sum() and held.lengths.tolist() == LENGTHS.tolist()
    for _ in range(2):
        np.testing.assert_array_equal(mapped.values, held.values)
        np.testing.assert_array_equal(mapped.offsets, held.offsets)
        assert mapped.counts(9).tolist() == held.counts(9).tolist() == np.bincount(held.values, minlength=9).tolist()
        mapped.release()
    assert sorted(path.name for path in folder.iterdir()) == ["train.parquet", "users.parquet"]


def test_a_folder_that_cannot_be_written_is_read_into_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mapped: MappedRagged
) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    held = load_training(folder)
    assert type(held) is Ragged
    np.testing.assert_array_equal(held.values, mapped.values)


def test_batches_from_disk_are_those_from_memory(mapped: MappedRagged) -> None:
    held = Ragged(np.array(mapped.values), mapped.offsets)
    for rl_split in (0.0, 0.4):
        one, other = (BatchSchedule(rows, 4, 2, 2, 3, rl_split) for rows in (mapped, held))
        assert one.steps_per_epoch == other.steps_per_epoch == 2
        for step in range(5):
            check_equal(one.batches(step), other.batches(step))


def test_users_that_are_left_out_are_as_those_of_empty_sequences(mapped: MappedRagged) -> None:
    out = np.array([True, False, False, False, True, False, False, False])
    one, other = (
        BatchSchedule(mapped, 4, 2, 1, 3, left_out=out),
        BatchSchedule(emptied(mapped, out), 4, 2, 1, 3),
    )
    seen: set[int] = set()
    for step in range(one.steps_per_epoch):
        check_equal(one.batches(step), other.batches(step))
        seen |= {int(user) for batch in one.batches(step) for user in batch.users}
    assert seen == {3, 5, 7}


def check_equal(one: list[TrainingBatch], other: list[TrainingBatch]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.users, second.users)
        assert first.histories.items.equal(second.histories.items)
        for name in ("rows", "positions", "targets", "nll", "rl"):
            assert getattr(first, name).equal(getattr(second, name))
