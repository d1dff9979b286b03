"""What is said of the memory of pairs and Semantic IDs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo.config.tokenizer import TokenizerConfig
from adagrpo.errors import UserError
from adagrpo.pipeline import Run, counting_room
from adagrpo.pipeline.counting_room import check_pair_room, tokenize_memory
from adagrpo.types import Ragged


def test_a_million_items_fit_where_they_did_not_by_a_bound_on_each_part() -> None:
    options = TokenizerConfig(vectors={"attributes": 1.0, "cooccurrence": 1.0})
    parts = tokenize_memory(options, 1_000_000, 100_000_000, 600_000_000)
    assert parts["log"] == 800_000_000
    assert parts["pairs"] == 24 * 2**27 + 56 * 2**25  # what is kept, twice, and a block
    assert parts["quantisation"] == 3 * 4 * 256_000_000 + 8 * 2**18 * 256 + 4 * 2**26
    longer = tokenize_memory(options, 1_000_000, 1_000_000_000, 6_000_000_000)
    assert longer | {"log": 0} == parts | {"log": 0}  # the rest does not grow with the log


def test_pairs_of_trees_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Ragged(np.arange(7, dtype=np.int32), np.array([0, 4, 7]))
    monkeypatch.setattr(counting_room, "free_memory", lambda device: 28 * 25)
    check_pair_room(training, 100)  # 16 + 9 entries at most
    monkeypatch.setattr(counting_room, "free_memory", lambda device: 28 * 25 - 1)
    with pytest.raises(
        UserError, match=r"up to 25 pairs of 100 items .* up to 700 B of memory; there are 699 B"
    ) as said:
        check_pair_room(training, 100)
    assert "\n" not in str(said.value)
    check_pair_room(training, 4)  # no more than there are pairs of items


def test_tokenize_is_refused_before_anything_is_made(
    copied: Path, data: Path, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting_room, "free_memory", lambda device: 1000)
    run: Run = world.run(copied, data, tokenizer={"width": 7})
    before = run.path("tokenize", "codes.parquet").read_bytes()
    with pytest.raises(UserError, match=r"tokenize: 30 items; about .* there are 1 kB of memory; take a lower") as said:
        run.tokenize()
    assert "\n" not in str(said.value) and run.path("tokenize", "codes.parquet").read_bytes() == before
