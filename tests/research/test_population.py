"""Users who come back: their days can be played again, and the dials of the simulator do what they say."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit

from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.errors import UserError
from research.closed_loop.population import Population, populate

WORLD = Marketplace(
    users=60, items=120, categories=4, styles=2, steps=6, slate_size=5, later_share=0.1, satiation=2.0, dwell_seconds=20
)


def index(column: pl.Series) -> np.ndarray:
    return column.str.slice(1).cast(pl.Int64).to_numpy()


def lists(population: Population, count: int) -> np.ndarray:
    return np.random.default_rng(5).permuted(np.tile(np.arange(WORLD.items), (count, 1)), axis=1)[:, :5]


def test_worlds_without_the_new_dials_are_those_of_before() -> None:
    """The purchases of a world, as they were before satiation, later items and dwell were dials."""
    truth = simulate(Marketplace(users=40, items=80, steps=6, slate_size=5, seed=2)).truth
    assert hashlib.sha256(truth.purchases.astype("<i8").tobytes()).hexdigest()[:16] == "2e7eaa28414732ac"


@pytest.mark.parametrize(
    ("given", "says"),
    [({"later_share": 1.0}, "below 1"), ({"satiation": -1.0}, "0 or more"), ({"later_share": 0.9}, "need")],
)
def test_a_dial_out_of_range_is_refused(given: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(WORLD, **given)


def test_later_items_are_not_in_the_log_and_dwell_is_of_purchases() -> None:
    simulation, population = populate(WORLD)
    shown = set(index(simulation.impressions["item_id"]).tolist())
    assert len(population.later) == 12
    assert not shown & set(population.later.tolist())
    log = simulation.impressions
    assert (log["dwell"] > 0).to_list() == (log["clicked"] == 1).to_list()


def test_the_truth_of_a_tired_user_is_the_utility_of_the_log() -> None:
    simulation, population = populate(WORLD)
    users, truth = population.users, simulation.truth
    row = int(users.bought.argmax())
    tired = users.tired[row]
    bought_last = users.owned[row, users.bought[row] - 1]
    assert tired[population.catalogue.category[bought_last]] >= 1  # it was bought at the last visit but some
    assert truth.items.shape[1] == WORLD.factors + WORLD.categories
    logits = truth.users[row] @ truth.items.T + truth.bias
    part = truth.users[row][WORLD.factors :]
    assert (part <= 0).all()
    rested = truth.users[row][: WORLD.factors] @ truth.items[:, : WORLD.factors].T + truth.bias
    np.testing.assert_allclose(logits - rested, part[population.catalogue.category], rtol=1e-4, atol=1e-5)


def test_satiation_takes_what_it_says_from_a_category() -> None:
    _, population = populate(WORLD)
    rows, items = np.array([3]), np.arange(WORLD.items)[None, :]
    taste = population.tastes(rows)
    population.users.tired[3] = 0.0
    before = population.utility(rows, taste, items)
    population.users.tired[3, 1] = 1.5
    after = population.utility(rows, taste, items)
    of_it = (population.catalogue.category == 1) & (before[0] > 0)
    other = population.catalogue.category != 1
    np.testing.assert_array_equal(before[0, other], after[0, other])
    logits = np.log(before[0, of_it] / (1 - before[0, of_it]))
    np.testing.assert_allclose(after[0, of_it], expit(logits - 3.0), rtol=1e-5)


def test_a_day_that_is_played_again_is_the_same_day(tmp_path: Path) -> None:
    _, first = populate(WORLD)
    first.save(tmp_path / "users.safetensors")
    second = Population.load(WORLD, tmp_path / "users.safetensors")
    for day in range(2):
        days = []
        for population in (first, second):
            rows, taste = population.come(day, 0.5)
            answers = population.answer(day, rows, taste, lists(population, len(rows)))
            days.append((rows, taste, *answers))
        for one, other in zip(*days, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.users.owned[:, :5], second.users.owned[:, :5])


def test_who_comes_does_not_depend_on_what_was_shown_and_nothing_is_bought_twice() -> None:
    _, one = populate(WORLD)
    _, other = populate(WORLD)
    rows, taste = one.come(0, 1.0)
    best = np.argsort(-one.utility(rows, taste, np.tile(np.arange(WORLD.items), (len(rows), 1))), axis=1)[:, :5]
    answers = one.answer(0, rows, taste, best)
    assert (answers.clicked.sum(axis=1) <= 1).all() and answers.clicked.sum() > 5
    assert ((answers.dwell > 0) == answers.clicked.any(axis=1)).all()
    again = one.utility(rows, taste, best)
    assert (again[answers.clicked] == 0).all()
    other.come(0, 1.0)
    np.testing.assert_array_equal(one.come(1, 0.4)[0], other.come(1, 0.4)[0])


def test_value_is_the_probability_of_a_purchase() -> None:
    _, population = populate(replace(WORLD, position_bias=1.0))
    rows, taste = population.come(0, 1.0)
    answers = population.answer(0, rows[:1], taste[:1], np.array([[0, 1]]))
    first, second = answers.utility[0]
    assert answers.value[0] == pytest.approx(1 - (1 - first) * (1 - second / 2))


def test_users_may_buy_more_than_a_log_holds() -> None:
    _, population = populate(replace(WORLD, users=3, threshold=-100.0))
    for day in range(20):
        rows, taste = population.come(day, 1.0)
        open_ = np.array([[i for i in range(WORLD.items) if i not in population.users.owned[row]][:5] for row in rows])
        population.answer(day, rows, taste, open_)
    assert (population.users.bought >= 20).all()
    assert len(population.history(0)) == population.users.bought[0] == len(set(population.history(0)))
