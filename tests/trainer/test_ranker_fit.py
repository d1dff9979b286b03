"""Fitting the ranker: impressions find their history position, losses are those of the ranker, learning at all."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.trainer import RankerFit, fit
from adagrpo.trainer.batches import step_key
from adagrpo.trainer.ranker_fit import Impressions
from adagrpo.types import Histories


def make_ranker(dropout: float = 0.0) -> SequentialRanker:
    return SequentialRanker(24, width=8, layers=1, heads=2, max_history=5, dropout=dropout, slots=4)


def make_table(world, count: int = 400, slots: bool = True) -> pl.DataFrame:
    draw = np.random.default_rng(1)
    users = draw.integers(0, 30, count)
    columns = {
        "user": users.astype(np.int32),
        # from no history at all to beyond the end of the user's training sequence
        "history_length": np.array([draw.integers(0, len(world.rows[user]) + 3) for user in users], np.int32),
        "item": draw.integers(0, 24, count).astype(np.int32),
        "clicked": draw.random(count) < 0.3,
    }
    table = pl.DataFrame(columns)
    return table.with_columns(slot=pl.Series(draw.integers(0, 4, count).astype(np.int32))) if slots else table


def make_task(
    world, kind: str, *, schedule=None, table: pl.DataFrame | None = None, steps: int = 4, negatives: int = 6
):
    ranker = make_ranker()
    shown = None if kind != "impressions" else Impressions.from_table(make_table(world) if table is None else table, 30)
    validate = lambda: {"ndcg@10": float(ranker.items.weight.sum())}  # noqa: E731
    return RankerFit(
        ranker,
        schedule or world.schedule(),
        loss=kind,
        steps=steps,
        validate=validate,
        impressions=shown,
        negatives=negatives,
    )


@pytest.mark.parametrize("slots", [True, False])
def test_impressions_find_their_row_and_position(world, slots):
    """Against a loop over the table; histories longer than `max_history` lose items at the front."""
    table = make_table(world, slots=slots)
    task = make_task(world, "impressions", table=table)
    long = later = spared = 0
    for step in range(task.schedule.steps_per_epoch):
        batch = task.schedule.batches(step)[0]
        expected = []
        for user in batch.users.tolist():
            sequence = world.rows[user]
            lost = len(sequence) - len(sequence[-6:])
            for shown in table.filter(pl.col("user") == user).sort("history_length", maintain_order=True).to_dicts():
                seen = shown["history_length"]
                # the state must have seen the last of the first `seen` items, and be one that the batch holds
                if (seen > lost and seen < len(sequence)) or seen == len(sequence):
                    what = (shown["item"], shown.get("slot", 0), shown["clicked"], 1.0)
                    known = sequence[lost:seen] if seen < len(sequence) else sequence[-5:]
                    expected.append((user, known, *what))
                    long += lost > 0
                    later += seen == len(sequence)
        histories, rows, positions, *columns = task._shown(batch)
        read = zip(rows.tolist(), positions.tolist(), strict=True)
        ends = [(int(histories.users[row]), histories.items[row, : at + 1].tolist()) for row, at in read]
        columns = zip(*(column.tolist() for column in columns), strict=True)
        assert [(*end, *what) for end, what in zip(ends, columns, strict=True)] == expected
        assert bool((positions < histories.lengths[rows]).all())
        assert {*rows.tolist()} == {*range(len(histories.lengths))} or histories is batch.histories
        spared += histories is not batch.histories and len(histories.lengths) <= len(batch.users)
    assert long > 20 and later > 20 and spared > 0


def test_without_later_impressions_the_histories_are_those_of_the_batch(world):
    table = make_table(world)
    lengths = pl.Series([len(world.rows[user]) for user in table["user"].to_list()])
    task = make_task(world, "impressions", table=table.filter(pl.col("history_length") < lengths))
    for step in range(task.schedule.steps_per_epoch):
        batch = task.schedule.batches(step)[0]
        assert task._shown(batch).histories is batch.histories


def test_impressions_are_sorted_by_user_and_need_a_history():
    table = pl.DataFrame(
        {
            "user": [2, 0, 2, 0, 2],
            "history_length": [3, 1, 1, 0, 3],
            "item": [7, 5, 6, 9, 8],
            "slot": [None, 1, 2, 0, 3],
            "clicked": [True, False, True, True, False],
        }
    )
    shown = Impressions.from_table(table, 4)
    assert shown.offsets.tolist() == [0, 1, 1, 4, 4]
    assert shown.history_lengths.tolist() == [1, 1, 3, 3]
    assert shown.items.tolist() == [5, 6, 7, 8]
    assert shown.slots.tolist() == [1, 2, 0, 3]
    assert shown.clicked.tolist() == [False, True, True, False]


def test_a_batch_without_impressions_has_loss_0(world):
    task = make_task(world, "impressions", table=make_table(world).filter(pl.col("user") == 99))
    terms, _ = task.loss(task.begin(0)[0][0])
    terms["loss"].backward()
    assert float(terms["loss"].detach()) == 0.0
    assert not any(bool(p.grad.any()) for p in task.ranker.parameters() if p.grad is not None)


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cross_entropy", "sampled", "impressions"])
def test_the_micro_batches_losses_add_up_to_the_mean_over_the_step(world, kind, accumulation):
    """However the step is cut: of its samples, or of its impressions, each against the same negatives."""
    task = make_task(world, kind, schedule=world.schedule(9, accumulation))
    micros, _ = task.begin(1)
    assert len(micros) == accumulation
    drawn = torch.randint(24, (6,), generator=torch.Generator().manual_seed(step_key(5, 1, 0)))
    torch.manual_seed(step_key(5, 1, 0))
    terms = [task.loss(micro)[0] for micro in micros]
    values, sampled = [], []
    for batch, shown in ((micro.batch, micro.shown) for micro in micros):
        states = task.ranker.states_at(batch.histories, batch.rows, batch.positions)
        if kind == "cross_entropy":
            values.append(task.ranker.next_item_loss(states, batch.targets))
        elif kind == "sampled":
            values.append(task.ranker.sampled_loss(states, batch.targets, drawn))
        else:
            states = task.ranker.states_at(*shown[:3])
            values.append(task.ranker.impression_loss(states, *shown[3:6]))
            sampled.append(task.ranker.sampled_loss(states[shown.clicked], shown.items[shown.clicked], drawn))
    torch.testing.assert_close(sum(term["loss"] for term in terms), torch.cat(values).mean(), rtol=1e-5, atol=0)
    if kind == "impressions":
        actual = sum(term["sampled"] for term in terms if "sampled" in term)
        torch.testing.assert_close(actual, torch.cat(sampled).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("self_normalised", [False, True])
def test_weighted_impressions_count_as_often_as_their_weights_say(world, self_normalised):
    """Against a loop: weight 1 / max(propensity, floor), over the number of impressions or the sum of the weights."""
    drawn = np.random.default_rng(3).random(len(make_table(world)))
    table = make_table(world).with_columns(propensity=pl.Series(drawn))
    task = make_task(world, "impressions", table=table, negatives=0)
    task.impressions = Impressions.from_table(table, 30, propensity_floor=0.2)
    task.self_normalised = self_normalised
    micro = task.begin(0)[0][0]
    batch = micro.batch
    torch.manual_seed(0)
    term = float(task.loss(micro)[0]["loss"].detach())
    histories, *where, weights = task._shown(batch)
    torch.manual_seed(0)
    losses = task.ranker.impression_loss(task.ranker.states_at(histories, *where[:2]), *where[2:]).tolist()
    rows, _, items, slots, _ = (column.tolist() for column in where)
    expected, total = 0.0, 0.0
    for place, loss in enumerate(losses):
        user = int(histories.users[rows[place]])
        alike = table.filter(
            (pl.col("user") == user) & (pl.col("item") == items[place]) & (pl.col("slot") == slots[place])
        )
        known = [1 / max(value, 0.2) for value in alike["propensity"].to_list()]
        weight = float(weights[place])
        assert any(abs(weight - value) < 1e-5 for value in known)
        expected, total = expected + weight * loss, total + weight
    assert term == pytest.approx(expected / (total if self_normalised else len(losses)), rel=1e-5)
    assert total > 1.5 * len(losses)


def test_weighting_by_propensity_removes_the_bias_of_exposure():
    """A world of two items, one shown nine times as often: the weighted mean of clicks is that of uniform exposure."""
    draw = np.random.default_rng(0)
    shown = draw.random(40000) < 0.9  # item 0, else item 1
    rates = np.where(shown, 0.1, 0.6)
    table = pl.DataFrame(
        {
            "user": np.zeros(40000, np.int32),
            "history_length": np.ones(40000, np.int32),
            "item": np.where(shown, 0, 1).astype(np.int32),
            "clicked": draw.random(40000) < rates,
            "propensity": np.where(shown, 0.9, 0.1),
        }
    )
    plain, weighted = Impressions.from_table(table, 1), Impressions.from_table(table, 1, propensity_floor=0.01)
    assert np.average(plain.clicked, weights=plain.weights) == pytest.approx(0.15, abs=0.01)
    assert np.average(weighted.clicked, weights=weighted.weights) == pytest.approx(0.35, abs=0.015)


def test_sampled_negatives_are_keyed_by_the_step(world, tmp_path, same_fit):
    for name in "ab":
        torch.manual_seed(ord(name))
        task = make_task(world, "sampled")
        fit(task.ranker, task, world.settings(), tmp_path / name, seed=2)
    same_fit(tmp_path / "a", tmp_path / "b")


def test_impressions_go_with_their_loss_only(world):
    shown = Impressions.from_table(make_table(world), 30)
    arguments = {"steps": 1, "validate": dict}
    with pytest.raises(ValueError, match="impressions go with"):
        RankerFit(make_ranker(), world.schedule(), loss="cross_entropy", impressions=shown, **arguments)
    with pytest.raises(ValueError, match="impressions go with"):
        RankerFit(make_ranker(), world.schedule(), loss="impressions", **arguments)


@pytest.mark.parametrize("kind", ["cross_entropy", "sampled"])
def test_a_fit_learns_a_cycle(world, tmp_path, kind):
    cycle = world.ragged([[(start + t) % 24 for t in range(6)] for start in range(24)])
    task = make_task(world, kind, schedule=world.schedule(24, training=cycle), steps=150, negatives=16)
    fit(task.ranker, task, world.settings(learning_rate=0.03, validations=0), tmp_path, seed=0)
    items = torch.arange(24)
    histories = Histories(items.unsqueeze(1), torch.ones(24, dtype=torch.int64))
    scores = task.ranker.score(histories, items.expand(24, 24))
    assert torch.equal(scores.argmax(1), (items + 1) % 24)


def test_a_fit_learns_clicks_and_leaves_position_bias_to_the_slot(world, tmp_path):
    """Items are equally good, but slot 0 is clicked always and slot 1 never: the items must not take the blame."""
    draw = np.random.default_rng(0)
    users = draw.integers(0, 30, 600)
    slot = draw.integers(0, 2, 600)
    table = pl.DataFrame(
        {
            "user": users,
            "history_length": np.ones(600, np.int64),
            "item": users % 24,
            "slot": slot,
            "clicked": slot == 0,
        }
    )
    task = make_task(world, "impressions", table=table, steps=60, negatives=0)
    fit(task.ranker, task, world.settings(learning_rate=0.05, validations=0), tmp_path, seed=0)
    bias = task.ranker.slot_bias.weight.detach().squeeze(-1)
    assert bias[0] - bias[1] > 1.5
    histories = Histories(torch.arange(24).unsqueeze(1), torch.ones(24, dtype=torch.int64))
    scores = task.ranker.score(histories, torch.arange(24).expand(24, 24))
    assert scores.std() < 0.25 * (bias[0] - bias[1])


@pytest.mark.parametrize("self_normalised", [False, True])
@pytest.mark.parametrize("kind", ["cross_entropy", "sampled", "impressions"])
def test_how_a_step_is_cut_does_not_change_the_fit(world, tmp_path, kind, self_normalised):
    """1 x 12 histories, 3 x 4 and 12 x 1: the same weights after 8 steps.

    The bias of the keys is left out: no output depends on it, and Adam makes steps of the rounding of its gradient.
    """
    actual = []
    for accumulation in (1, 3, 12):
        task = make_task(world, kind, schedule=world.schedule(12 // accumulation, accumulation), steps=8)
        task.self_normalised = self_normalised and kind == "impressions"
        fit(task.ranker, task, world.settings(learning_rate=1e-3), tmp_path / str(accumulation), seed=5)
        weights = task.ranker.state_dict()
        actual.append({name: part for name, part in weights.items() if not name.endswith("query_key_value.bias")})
    for other in actual[1:]:
        assert all(float((tensor - other[name]).abs().max()) < 1e-6 for name, tensor in actual[0].items())


def test_impressions_without_negatives_are_scored_among_themselves(world):
    task = make_task(world, "impressions", negatives=6)
    micro = task.begin(0)[0][0]
    assert 0 < micro.clicks < len(micro.shown.clicked)
    terms, _ = task.loss(micro)
    other = make_task(world, "impressions", negatives=0)
    without, _ = other.loss(other.begin(0)[0][0])
    assert set(terms) == {"loss", "sampled"} and set(without) == {"loss"}
    torch.testing.assert_close(terms["loss"], without["loss"])
