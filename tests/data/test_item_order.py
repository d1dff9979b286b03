"""Item numbers: an order by a keyed hash, of which nothing about an item can be read."""

from __future__ import annotations

from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from adagrpo.data import dataset as dataset_module
from adagrpo.data.dataset import KEY, build_dataset, in_hash_order
from adagrpo.data.exposures import write_exposures
from adagrpo.data.logs.interactions import Logs
from adagrpo.lists.sources import Shares, popular_shares
from adagrpo.types import Cases, Ragged

from ..listing import list_cases

NO_REJECTS = pl.DataFrame(schema={"file": pl.String, "row": pl.Int64, "reason": pl.String})
ITEMS = 4000


def growing_log(ids: pl.Series, rng: np.random.Generator) -> pl.DataFrame:
    """Items come out one after another, and what came out last is chosen most: ids ascend by first appearance."""
    released = np.arange(len(ids))
    older = (released - rng.geometric(0.05, len(ids))).clip(min=0)
    rows = np.stack([released, older], axis=1).ravel()
    return pl.DataFrame({"user_id": np.arange(len(rows)) % 97, "timestamp": np.arange(len(rows))}).with_columns(
        ids.gather(rows).alias("item_id")
    )


def logs_of(table: pl.DataFrame) -> Logs:
    return Logs(table.select("user_id", "item_id", "timestamp"), None, NO_REJECTS, len(table), 0)


def first_seen(table: pl.DataFrame, items: pl.DataFrame) -> NDArray[np.int64]:
    """(V,) when each item number first appears."""
    seen = table.group_by("item_id").agg(pl.col("timestamp").min())
    return items.sort("item").join(seen, on="item_id", maintain_order="left")["timestamp"].to_numpy()


def ids_of(kind: str) -> pl.Series:
    numbers = pl.int_range(ITEMS, eager=True)
    return numbers if kind == "integers" else pl.Series([f"B{number:07d}" for number in numbers])


@pytest.mark.parametrize("kind", ["integers", "text"])
def test_numbers_do_not_follow_first_appearance(kind: str) -> None:
    table = growing_log(ids_of(kind), np.random.default_rng(0))
    dataset = build_dataset(logs_of(table))
    when = first_seen(table, dataset.items)
    # Under a random order Spearman's rho has mean 0 and variance 1 / (n - 1); four deviations.
    bound = 4 / np.sqrt(ITEMS - 1)
    assert abs(spearmanr(np.arange(ITEMS), when).statistic) < bound
    neighbours = np.corrcoef(when[1:], when[:-1])[0, 1]  # nor do neighbours appear together
    assert abs(neighbours) < bound
    by_id = dataset.items.sort("item_id").with_columns(item=pl.int_range(ITEMS))
    assert spearmanr(np.arange(ITEMS), first_seen(table, by_id)).statistic > 0.999  # as it was by sorted id


def test_the_order_of_rows_changes_nothing() -> None:
    table = growing_log(ids_of("text"), np.random.default_rng(1))
    one, other = (build_dataset(logs_of(rows)) for rows in (table, table.sample(fraction=1, shuffle=True, seed=2)))
    assert one.items.equals(other.items) and one.interactions.equals(other.interactions)


def test_the_order_is_that_of_a_loop_and_of_every_machine() -> None:
    numbers = pl.Series(np.random.default_rng(3).permutation(1000))
    twin = sorted(range(1000), key=lambda name: blake2b(str(name).encode(), digest_size=8, key=KEY).digest())
    actual = in_hash_order(numbers)
    assert actual.to_list() == twin and actual.dtype == pl.Int64
    assert in_hash_order(numbers.cast(pl.String)).to_list() == [str(name) for name in twin]
    text = " ".join(map(str, twin)).encode()
    assert sha256(text).hexdigest() == "00eeb2fd1083eb7349c6f74e04f5d7995c41299708e3f9eb548482fa111fd2ce"
    assert in_hash_order(numbers, b"another").to_list() != twin


def test_equal_hashes_are_ordered_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"i{number}" for number in range(2000)]
    full = {name: blake2b(name.encode(), digest_size=8, key=KEY).digest() for name in names}
    few = {name: bytes(7) + bytes([digest[0] % 4]) for name, digest in full.items()}

    class Few:
        def __init__(self, data: bytes, **_: object) -> None:
            self.data = data

        def digest(self) -> bytes:
            return few[self.data.decode()]

    monkeypatch.setattr(dataset_module, "blake2b", Few)
    assert in_hash_order(pl.Series(names[::-1])).to_list() == sorted(names, key=lambda name: (few[name], name))


def test_other_items_do_not_change_which_of_two_comes_first() -> None:
    every, some = in_hash_order(pl.Series(range(500))), in_hash_order(pl.Series(range(0, 500, 3)))
    assert [name for name in every if name % 3 == 0] == some.to_list()


def test_logs_without_order_are_numbered_alike(tmp_path: Path) -> None:
    rows = [(user, item, (user + item) % 3 == 0) for user in range(20) for item in range(user, user + 12)]
    shown = pl.DataFrame(rows, schema=["user_id", "item_id", "clicked"], orient="row")
    nothing = pl.DataFrame(schema={"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64})
    write_exposures(Logs(nothing, shown, NO_REJECTS, len(shown), 0), None, None, tmp_path, held_out=0.1, seed=0)
    written = pl.read_parquet(tmp_path / "items.parquet")["item_id"]
    assert written.to_list() == in_hash_order(shown["item_id"]).cast(pl.String).to_list()


def test_ties_are_broken_as_chance_would() -> None:
    """Popularity where ten items lead, thirty tie behind them, and what is bought next is the newest of those."""
    names = pl.Series(range(40))
    counts = np.array([5] * 10 + [2] * 30)
    targets = np.arange(30, 40)  # of the tied ones, the last to appear
    width = 20  # the ten that lead and ten of the thirty: a tied target is among them with probability 1/3

    def hit_rate(order: list[int]) -> float:
        number = {name: place for place, name in enumerate(order)}
        values = np.array([number[name] for name in range(40) for _ in range(counts[name])], dtype=np.int32)
        cases = Cases(
            np.arange(10, dtype=np.int32),
            Ragged(np.zeros(10, dtype=np.int32), np.arange(11, dtype=np.int64)),
            np.array([number[name] for name in targets], dtype=np.int32),
        )
        source = Shares(popular_shares(np.bincount(values, minlength=40)))
        lists = list_cases(source, cases, batch_size=10, width=width)
        return float((lists == cases.targets[:, None]).any(axis=1).mean())

    keys = [number.to_bytes(2, "big") for number in range(300)]
    rates = np.array([hit_rate(in_hash_order(names, key).to_list()) for key in keys])
    # The hits of one order are hypergeometric: 10 drawn of 30 of which 10 are targets; variance over 10 ** 2 targets.
    deviation = np.sqrt(10 * (1 / 3) * (2 / 3) * (20 / 29)) / 10
    assert rates.mean() == pytest.approx(1 / 3, abs=4 * deviation / np.sqrt(len(keys)))
    assert rates.std() == pytest.approx(deviation, rel=0.2)
    ascending, descending = hit_rate(list(range(40))), hit_rate(list(range(39, -1, -1)))
    assert abs(ascending - descending) > 0.3  # an order by first appearance is read from the ties
