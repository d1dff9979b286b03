"""The RL split: which positions are kept apart, and that NLL never meets them where it must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adagrpo.data.splits import keyed_uniforms
from adagrpo.trainer import fit
from adagrpo.trainer.post_training import nll_term

SHARE = 0.4


def apart(user: int, place: int, seed: int = 5) -> bool:
    """The slow twin: SplitMix64 over (0, user, place) in Python's integers."""
    mask, state = 2**64 - 1, seed
    for key in (0, user, place):
        state = ((state ^ key) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return (state >> 11) * 2.0**-53 < SHARE


def kept_apart(user: int, length: int) -> list[int]:
    """The places of a sequence that are kept apart, of those that a history of 5 and its target reach."""
    return [place for place in range(max(1, length - 5), length) if apart(user, place)]


def test_the_keyed_numbers_are_uniform_and_their_own():
    users, places = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(100), indexing="ij"))
    numbers = keyed_uniforms(1, users, places)
    assert np.abs(np.bincount((numbers * 10).astype(int)) - 3000).max() < 5 * np.sqrt(2700)
    table = numbers.reshape(300, 100)
    for one, other in (
        (table[:, 1:], table[:, :-1]),
        (table[1:], table[:-1]),
        (numbers, keyed_uniforms(2, users, places)),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(29000)
    assert keyed_uniforms(1, np.array([7]), np.array([9]))[0] == table[7, 9]
    assert keyed_uniforms(1, np.array([9]), np.array([7]))[0] != table[7, 9]


@pytest.mark.parametrize("with_nll", [False, True])
def test_the_masks_are_the_slow_twin_and_do_not_move_with_the_epoch(world, with_nll):
    schedule = replace(world.schedule(), rl_split=SHARE, rl_split_nll=with_nll)
    seen = set()
    for step in range(2 * schedule.steps_per_epoch):
        for batch in schedule.batches(step):
            for row, position, target, nll, rl in zip(
                *(part.tolist() for part in (batch.rows, batch.positions, batch.targets, batch.nll, batch.rl)),
                strict=True,
            ):
                user = int(batch.users[row])
                place = max(0, len(world.rows[user]) - 6) + position + 1
                assert world.rows[user][place] == target
                assert rl == apart(user, place) and nll == (with_nll or not rl)
                seen.add((user, place, rl))
    assert 0.25 < np.mean([rl for _, _, rl in seen]) < 0.55
    assert len({(user, place) for user, place, _ in seen}) == len(seen)


def test_without_a_split_every_sample_is_for_both(world):
    assert all(batch.nll.all() and batch.rl.all() for batch in world.schedule().batches(0))


def test_the_nll_is_the_loop_over_the_positions_that_count(world):
    policy = world.policy()
    (batch,) = replace(world.schedule(), rl_split=SHARE).batches(0)
    assert 0 < batch.nll.sum() < len(batch.nll)
    actual = nll_term(policy, batch, int(batch.nll.sum())).detach()
    values = []
    for row, position, target in zip(
        *(part[batch.nll].tolist() for part in (batch.rows, batch.positions, batch.targets)), strict=True
    ):
        history = batch.histories.items[row, : position + 1].tolist()
        scores = world.walk(policy, history, world.catalog.codes[target].tolist(), 1.0)
        values.append(-float(sum(scores).detach()) / len(scores))
    assert float(actual) == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_sft_does_not_depend_on_the_targets_that_are_kept_apart(world, tmp_path, same_fit, read_fit):
    """The last item of a sequence is the target of one sample and in the history of none."""
    rows = np.random.default_rng(3).integers(0, 24, (30, 6)).tolist()  # of equal length, so that nothing is padded
    ends = list(range(30))
    held = [user for user in ends if apart(user, len(rows[user]) - 1)]
    assert 5 < len(held) < len(ends) - 5

    def trained(name, changed):
        sequences = [[*row[:-1], (row[-1] + 1) % 24] if user in changed else row for user, row in enumerate(rows)]
        schedule = replace(world.schedule(training=world.ragged(sequences)), rl_split=SHARE)
        policy = world.policy()
        fit(policy, world.supervised(policy, schedule), world.settings(), tmp_path / name, seed=0)

    trained("as it is", [])
    trained("kept apart", held)
    same_fit(tmp_path / "as it is", tmp_path / "kept apart")
    trained("another", [next(user for user in ends if user not in held)])
    assert read_fit(tmp_path / "as it is")["logs"] != read_fit(tmp_path / "another")["logs"]


@pytest.mark.parametrize("positions", ["random", "last", "all"])
def test_the_rl_term_is_taken_at_positions_kept_apart(world, spy, positions):
    schedule = replace(world.schedule(), rl_split=SHARE)
    task = world.post_training(world.policy(), schedule, rl_positions=positions)
    chosen = set()
    for step in range(schedule.steps_per_epoch):
        gated, (micro,), _ = world.draw(task, step)
        targets = spy["rollout_miss"][-1][0][1].tolist()
        actual = []
        for b, target in enumerate(targets):
            user = int(gated.histories.users[b])
            row = world.rows[user]
            place = max(0, len(row) - 6) + int(gated.histories.lengths[b])
            assert apart(user, place) and row[place] == target
            assert world.history_of(gated, b) == row[max(0, len(row) - 6) : place]
            actual.append((user, place))
        users = [user for user, _ in actual]
        held = {int(user): kept_apart(int(user), len(world.rows[user])) for user in micro.batch.users}
        if positions == "all":
            assert sorted(actual) == sorted((user, place) for user, places in held.items() for place in places)
        else:
            assert sorted(users) == sorted(user for user, places in held.items() if places)
        if positions == "last":
            assert all(place == held[user][-1] for user, place in actual)
        chosen |= set(actual)
        loss, _ = task.loss(micro)
        assert float(loss["nll"].detach()) == pytest.approx(
            float(nll_term(task.policy, micro.batch, int(micro.batch.nll.sum())).detach())
        )
    assert len(chosen) > 5


def test_a_step_without_rl_samples_or_without_nll_positions(world, tmp_path):
    training = world.ragged([[1, 2], [3, 4]])
    users = [user for user in range(2) if apart(user, 1)]
    assert len(users) in (0, 1, 2)
    for share, name in ((1e-9, "no rl"), (1 - 1e-9, "no nll")):
        schedule = replace(world.schedule(training=training), rl_split=share)
        for arm, anchored in (("anchored", True), ("free", False)):
            policy = world.policy()
            task = world.post_training(policy, schedule, anchored=anchored, gate="all", steps=2)
            result = fit(policy, task, world.settings(), tmp_path / name / arm, seed=0)
            assert result.steps == 2 and all(torch.isfinite(p).all() for p in policy.parameters())
            log = (tmp_path / name / arm / "steps.jsonl").read_text()
            assert "skipped" not in log and ("admission" in log) == (name == "no nll")
