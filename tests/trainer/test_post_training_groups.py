"""The groups of post-training: what is drawn, judged and gated, and the mistakes that peers have made there."""

from __future__ import annotations

import copy
import json
import statistics
from collections import defaultdict

import pytest
import torch

from adagrpo.decoding import beam_search, score_sequences
from adagrpo.groups.gated import gated_groups, update_running_std
from adagrpo.groups.score import read_rewards
from adagrpo.objective import GATES
from adagrpo.trainer.batches import group_step

WITHOUT_TRUTH = [name for name, gate in GATES.items() if not gate.reads_truth]


# ---------------------------------------------------------------- the gate


def test_the_gate_is_the_slow_twin(world, spy):
    task = world.post_training(world.policy(), gate="rollout_miss", miss_min=0.7, q_min=0.6, negatives=3)
    seen = set()
    for step in range(6):
        gated, _, _ = world.draw(task, step)
        negatives = spy["in_batch_negatives"][-1][2].tolist()
        targets = spy["rollout_miss"][-1][0][1].tolist()
        for b, target in enumerate(targets):
            reward = world.reward.table[world.history_of(gated, b)[-1]].tolist()
            items = gated.rollouts.items[b].tolist()
            distinct = {item for item in items if item >= 0}
            others = (distinct | {item for item in negatives[b] if item >= 0}) - {target}
            points = sum((reward[target] > reward[n]) + 0.5 * (reward[target] == reward[n]) for n in others)
            values = [reward[item] for item in distinct]
            if len(distinct) < 2 or max(values) - min(values) <= 1e-3 * task.running_std:
                expected = "degenerate"
            elif 1 - items.count(target) / len(items) < 0.7:
                expected = "easy"
            else:
                expected = "admitted" if others and points / len(others) >= 0.6 else "undiscriminated"
            assert [name for name, field in gated.decision._asdict().items() if field[b]] == [expected]
            assert target not in negatives[b] and not set(negatives[b]) & set(world.history_of(gated, b))
            seen.add(expected)
    assert {"admitted", "easy", "undiscriminated"} <= seen


@pytest.mark.parametrize("gate", WITHOUT_TRUTH)
@pytest.mark.parametrize("floor", [1e-3, 1.5])
def test_every_sample_has_one_outcome(world, gate, floor):
    task = world.post_training(world.policy(), gate=gate, reward_floor=floor)
    for step in range(4):
        gated, (micro, *_), values = world.draw(task, step)
        shares = [value for name, value in values.items() if name == "admission" or name.startswith("rejected_")]
        assert len(shares) == 5 and sum(shares) == pytest.approx(1.0)
        assert torch.stack([*gated.decision]).sum(0).eq(1).all()
        assert values["admission"] == len(micro.admitted) / len(gated.decision.admitted)
        if gate == "none":
            assert values["admission"] == 0


def test_the_random_gate_admits_as_many_as_its_shadow(world):
    shadow = world.post_training(world.policy())
    tasks = {gate: world.post_training(world.policy(), gate=gate) for gate in ("random", "inverted")}
    moved = 0
    for step in range(6):
        truth, _, _ = world.draw(shadow, step)
        actual = {gate: world.draw(task, step)[0] for gate, task in tasks.items()}
        for gated in actual.values():
            assert torch.equal(gated.rollouts.codes, truth.rollouts.codes)
            assert torch.equal(gated.rewards.nan_to_num(), truth.rewards.nan_to_num())
            assert not (gated.decision.admitted & truth.decision.degenerate).any()
        assert actual["random"].decision.admitted.sum() == truth.decision.admitted.sum()
        moved += int((actual["random"].decision.admitted != truth.decision.admitted).sum())
        left = ~truth.decision.admitted & ~truth.decision.degenerate
        assert not (actual["inverted"].decision.admitted & ~left).any()
        assert actual["inverted"].decision.admitted.sum() == min(truth.decision.admitted.sum(), left.sum())
    assert moved > 0


def test_the_shuffled_gate_is_scored_and_taught_by_shuffled_rewards(world, spy):
    fake, true = world.post_training(world.policy(), gate="shuffled"), world.post_training(world.policy())
    differ = 0
    for step in range(4):
        gated, _, values = world.draw(fake, step)
        (candidates, scores, _), _, moved = spy["shuffled"][-1]
        real = candidates.items >= 0
        for row in range(len(scores)):  # the same numbers, for other items
            assert sorted(moved[row][real[row]].tolist()) == sorted(scores[row][real[row]].tolist())
        rewards = read_rewards(candidates, moved).rollouts
        for b in range(len(rewards)):
            group = [None if bad else float(r) for r, bad in zip(rewards[b], rewards[b].isnan(), strict=True)]
            torch.testing.assert_close(
                world.advantages(fake, gated)[b], torch.tensor(world.slow_advantages(group, 1.0)), rtol=1e-4, atol=1e-5
            )
        assert values["admission"] == values["shuffled_admission"]
        truth, _, others = world.draw(true, step)
        assert others["shuffled_admission"] == values["shuffled_admission"]
        assert others["reward"] == pytest.approx(values["reward"])  # what is logged is the true reward
        assert torch.equal(truth.rollouts.codes, gated.rollouts.codes)
        differ += int((truth.decision.admitted != gated.decision.admitted).sum())
    assert differ > 0


@torch.no_grad()
def test_difficulty_is_the_slow_twin(world, spy):
    targets = torch.cat([batch.targets for batch in world.schedule().batches(0)])
    task = world.post_training(world.policy(), gate="rollout_miss", temperature=1.3, rl_positions="all")
    gated, _, _ = world.draw(task)
    actual = spy["gather_evidence"][-1][2].miss
    for b, target in enumerate(targets.tolist()):
        items = gated.rollouts.items[b].tolist()
        assert float(actual[b]) == pytest.approx(1 - items.count(target) / len(items), rel=1e-4, abs=1e-5)


def test_the_spread_of_rewards_runs(world, spy):
    task = world.post_training(world.policy())
    expected = 0.0
    for step in range(3):
        gated, _, _ = world.draw(task, step)
        last = [world.history_of(gated, b)[-1] for b in range(len(gated.rewards))]
        pairs = [(last[b], item) for b, row in enumerate(gated.rollouts.items.tolist()) for item in row if item >= 0]
        now = statistics.stdev(float(world.reward.table[pair]) for pair in pairs)
        expected = now if step == 0 else 0.9 * expected + 0.1 * now
        assert task.running_std == pytest.approx(expected, rel=1e-5)
        assert float(spy["degenerate_groups"][-1][1]["running_std"]) == pytest.approx(expected, rel=1e-5)
    other = world.post_training(world.policy())
    other.load_state(json.loads(json.dumps(task.state())))
    assert other.running_std == task.running_std
    for nothing in (torch.empty(0), torch.tensor([3.0])):
        assert update_running_std(task.running_std, nothing) == task.running_std


def test_an_injected_target_is_in_every_group_and_not_in_its_difficulty(world, spy):
    task = world.post_training(world.policy(), gate="rollout_miss", inject_target=True, rl_positions="last")
    plain = world.post_training(world.policy(), rl_positions="last")
    for step in range(3):
        free, _, _ = world.draw(plain, step)
        gated, _, values = world.draw(task, step)
        (drawn, targets, *_), _, _ = spy["inject_target"][-1]
        assert torch.equal(drawn.codes, free.rollouts.codes)  # the draws are those of the run without it
        actual = (gated.rollouts.items == targets.unsqueeze(1)).any(1)
        assert actual.all() and values["contains_target"] == 1.0
        was_there = (drawn.items == targets.unsqueeze(1)).any(1)
        assert not was_there.all()
        misses = [1 - row.count(target) / 6 for row, target in zip(drawn.items.tolist(), targets.tolist(), strict=True)]
        assert spy["gather_evidence"][-1][2].miss.tolist() == pytest.approx(misses)
        for b in (~was_there).nonzero().squeeze(1).tolist():
            codes = world.catalog.codes[targets[b]].tolist()
            assert gated.rollouts.codes[b, -1].tolist() == codes
            scores = torch.stack(world.walk(task.policy, world.history_of(gated, b), codes, 1.0)).detach()
            torch.testing.assert_close(gated.rollouts.log_probs[b, -1], scores, rtol=1e-5, atol=1e-6)
            assert torch.equal(gated.rollouts.codes[b, :-1], drawn.codes[b, :-1])


# ---------------------------------------------------------------- rollouts


def test_an_invalid_rollout_gets_the_penalty_and_is_never_scored(world):
    task = world.post_training(world.policy(), grpo={"invalid_penalty": 2.5}, rl_positions="all")
    gated, _, values = world.draw(task)
    invalid = ~gated.rollouts.valid
    catalogue = world.catalog.codes.tolist()
    assert invalid.flatten().tolist() == [c not in catalogue for c in gated.rollouts.codes.flatten(0, 1).tolist()]
    assert 0 < invalid.float().mean() < 1 and values["invalid_share"] == pytest.approx(float(invalid.float().mean()))
    advantages = world.advantages(task, gated)
    assert (advantages[invalid] == -2.5).all()
    (asked,) = task.reward.asked  # one call for the whole step
    for b, row in enumerate(asked.tolist()):
        items = [item for item in row if item >= 0]
        assert len(items) == len(set(items)) and set(gated.rollouts.items[b][~invalid[b]].tolist()) <= set(items)
    assert values["scored_pairs"] == int((asked >= 0).sum())
    for b in range(len(advantages)):
        last, items = world.history_of(gated, b)[-1], gated.rollouts.items[b].tolist()
        rewards = [None if item < 0 else float(world.reward.table[last, item]) for item in items]
        expected = torch.tensor(world.slow_advantages(rewards, 2.5))
        torch.testing.assert_close(advantages[b], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_constrained_rollouts_are_items_and_scored_as_they_were_drawn(world, temperature):
    policy = world.policy()
    task = world.post_training(policy, constrained=True, temperature=temperature, gate="all", num_iterations=2)
    gated, (micro,), values = world.draw(task)
    assert gated.rollouts.valid.all() and values["invalid_share"] == 0.0
    expected = score_sequences(
        policy, policy.encode(gated.histories), gated.rollouts.codes, temperature=temperature, trie=world.catalog.trie
    )
    torch.testing.assert_close(gated.rollouts.log_probs, expected.detach(), rtol=1e-5, atol=1e-6)
    # at the sampling policy every ratio is 1, so the term is minus the mean advantage of the admitted groups
    admitted = gated.decision.admitted
    term = task.loss(micro)[0]["grpo"].detach()
    expected = -world.advantages(task, gated)[admitted].mean(1).sum() / 8
    torch.testing.assert_close(term, expected, rtol=1e-4, atol=1e-5)


def test_beam_groups_are_the_policys_own_best(world):
    policy = world.policy()
    task = world.post_training(policy, rollout="beam", gate="all", temperature=1.5)
    gated, (micro,), _ = world.draw(task)
    codes = gated.rollouts.codes
    assert all(len(set(map(tuple, group))) == 6 for group in codes.tolist())
    scores = policy.score(policy.encode(gated.histories), codes).detach()
    torch.testing.assert_close(gated.rollouts.log_probs, scores, rtol=1e-5, atol=1e-6)
    assert (scores.sum(-1).diff(dim=1) <= 1e-6).all()
    assert torch.isfinite(task.loss(micro)[0]["grpo"])


@pytest.mark.parametrize("rollout", ["sample", "beam"])
@pytest.mark.parametrize(
    ("options", "scored"),
    [({}, 0), ({"inject_target": True}, 1), ({"rl_positions": "end"}, 0)],
)
def test_targets_are_scored_once_and_only_where_they_are_injected(world, rollout, options, scored, monkeypatch):
    policy = world.policy()
    task = world.post_training(policy, rollout=rollout, gate="all", **options)
    calls, score = [], policy.score
    monkeypatch.setattr(policy, "score", lambda *args, **given: calls.append(args) or score(*args, **given))
    _, (micro,), _ = world.draw(task)
    assert [args[1].shape for args in calls] == [(8, 1, 3)] * scored
    task.loss(micro)
    assert len(calls) == scored + 1  # with gradients


@pytest.mark.parametrize("constrained", [True, False])
def test_evaluation_between_steps_does_not_change_rollouts(world, constrained):
    quiet = world.post_training(world.policy(), constrained=constrained)
    watched = world.post_training(world.policy(), constrained=constrained)
    for step in range(3):
        expected, _, _ = world.draw(quiet, step)
        actual, _, _ = world.draw(watched, step)
        assert torch.equal(actual.rollouts.codes, expected.rollouts.codes)
        context = watched.policy.encode(actual.histories)
        for trie in (world.catalog.trie, None):
            beam_search(watched.policy, context, 10, trie=trie)
        watched.validate()
        torch.rand(step + 1)  # nor does anybody else who draws from the global generator
        if constrained:
            assert actual.rollouts.valid.all()


def test_rollouts_are_a_function_of_seed_and_step(world):
    task = world.post_training(world.policy())
    later = [world.draw(task, step)[0].rollouts.codes for step in (2, 1, 0)]
    other = world.post_training(world.policy())
    earlier = [world.draw(other, step)[0].rollouts.codes for step in (0, 1, 2)]
    assert all(torch.equal(one, two) for one, two in zip(earlier, later[::-1], strict=True))
    assert not torch.equal(earlier[0], world.draw(other, 4)[0].rollouts.codes)


@pytest.mark.parametrize("positions", ["random", "last", "all", "end"])
def test_whoever_draws_a_step_without_a_task_has_its_groups(world, positions):
    """As the ranker's report does: the samples of the step, the four steps, and the running deviation handed on."""
    task = world.post_training(world.policy(), world.schedule(4, 2), gate="all", rl_positions=positions)
    running_std = 0.0
    for step in range(3):
        trained, micros, _ = world.draw(task, step)
        part = group_step(task.schedule, step, task.objective, torch.device("cpu"))
        assert len(part.samples) == len(micros)
        assert torch.cat([samples.targets for samples in part.samples]).tolist() == trained.targets.tolist()
        arguments = (task.policy, world.catalog, world.reward, *part.joined(), task.objective, part.generator)
        actual = gated_groups(*arguments, gate="all", running_std=running_std)
        running_std = actual.running_std
        assert running_std == task.running_std
        for one, other in (
            (actual.histories, trained.histories),
            (actual.rollouts[:3], trained.rollouts[:3]),
            (actual.scored.rewards, trained.scored.rewards),
            (actual.scored.shuffled_rewards, trained.scored.shuffled_rewards),
            (actual.evidence, trained.evidence),
            (actual.decision, trained.decision),
        ):
            torch.testing.assert_close(tuple(one), tuple(other), rtol=0, atol=0, equal_nan=True)


def test_only_the_nll_pass_uses_dropout(world):
    policy = world.policy(dropout=0.5).train()
    task = world.post_training(policy, gate="all")
    passes: list[bool] = []
    policy.encoder.register_forward_hook(lambda module, *_: passes.append(module.training))
    gated, (micro,), _ = world.draw(task)
    assert passes == [False]
    first, second = (task.loss(micro)[0] for _ in range(2))
    assert passes == [False, True, False, True, False]
    assert not torch.equal(first["nll"], second["nll"]) and torch.equal(first["grpo"], second["grpo"])
    scores = policy.eval().score(policy.encode(gated.histories), gated.rollouts.codes).detach()
    torch.testing.assert_close(gated.rollouts.log_probs, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("swap", [False, True])
def test_equal_histories_with_different_targets_are_scored_by_their_own(world, spy, swap):
    good, bad = (4, 3) if swap else (3, 4)
    table = (torch.arange(24.0) / 100).repeat(24, 1)
    table[2, good], table[2, bad] = 100.0, -100.0
    reward = copy.copy(world.reward)
    reward.table = table
    training = world.ragged([[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 2, 4]])
    task = world.post_training(
        world.policy(),
        world.schedule(training=training),
        reward=reward,
        rl_positions="last",
        gate="rollout_miss",
        miss_min=0.0,
        q_min=0.95,
        reward_floor=0.0,
    )
    gated, _, values = world.draw(task)
    targets = spy["rollout_miss"][-1][0][1]
    assert sorted(targets.tolist()) == [3, 3, 4, 4]
    assert gated.decision.admitted.tolist() == (targets == good).tolist()
    assert gated.decision.undiscriminated.tolist() == (targets == bad).tolist()
    assert values["admission"] == 0.5


# ---------------------------------------------------------------- which samples


@pytest.mark.parametrize("rl_positions", ["all", "last", "random"])
def test_rl_positions_choose_what_they_say(world, spy, rl_positions):
    task = world.post_training(world.policy(), world.schedule(4, 2), rl_positions=rl_positions)
    cuts = defaultdict(set)
    for step in range(12):
        gated, micros, _ = world.draw(task, step)
        targets = spy["rollout_miss"][-1][0][1].tolist()
        actual = [(tuple(world.history_of(gated, b)), target) for b, target in enumerate(targets)]
        possible = []
        for micro in micros:
            for user in micro.batch.users.tolist():
                kept = world.rows[user][-6:]
                possible.append((user, [(tuple(kept[:t]), kept[t]) for t in range(1, len(kept))]))
        if rl_positions == "all":
            assert actual == [sample for _, samples in possible for sample in samples]
            continue
        assert len(actual) == len(possible)
        for sample, (user, samples) in zip(actual, possible, strict=True):
            assert sample in (samples if rl_positions == "random" else samples[-1:])
            if len(samples) > 2:
                cuts[user].add(len(sample[0]))
    if rl_positions == "random":  # three epochs, five positions: most users are cut at more than one place
        assert sum(len(lengths) > 1 for lengths in cuts.values()) > len(cuts) / 2
        assert {1, 5} <= set.union(*cuts.values())


@pytest.mark.parametrize("term", ["grpo", "distill", "best_of_n"])
def test_at_the_ends_the_whole_history_is_seen_and_no_logged_item(world, spy, term):
    task = world.post_training(world.policy(), world.schedule(4, 2), gate="all", term=term, rl_positions="end")
    gated, micros, values = world.draw(task)
    users = [user for micro in micros for user in micro.batch.users.tolist()]
    assert [world.history_of(gated, b) for b in range(len(users))] == [world.rows[user][-5:] for user in users]
    assert gated.histories.users.tolist() == users
    assert gated.targets.eq(-1).all() and not spy["rollout_miss"]
    assert "contains_target" not in values and "shuffled_admission" not in values
    asked = task.reward.asked[-1]
    for b in range(len(users)):
        row = world.reward.table[world.history_of(gated, b)[-1]]
        items = gated.rollouts.items[b]
        assert set(asked[b].tolist()) - {-1} == set(items.tolist()) - {-1}  # the rollouts and nothing else
        torch.testing.assert_close(gated.rewards[b][items >= 0], row[items[items >= 0]], rtol=0, atol=0)
    terms, _ = task.loss(micros[0])
    assert float(terms[term].detach()) != 0.0 and terms[term].requires_grad


@pytest.mark.parametrize("rollout", ["sample", "beam"])
@pytest.mark.parametrize("term", ["grpo", "distill"])
def test_at_the_ends_shuffled_permutes_the_rewards_of_each_group_and_admits_it(world, rollout, term):
    options = {"rl_positions": "end", "rollout": rollout, "term": term, "grpo": {"beta": 0.1}}
    tasks = [world.post_training(world.policy(), gate=gate, **options) for gate in ("all", "shuffled")]
    (true, (micro, *_), output), (fake, (micro_fake, *_), told_fake) = (world.draw(task) for task in tasks)
    for task, arguments in zip(tasks, (micro, micro_fake), strict=True):
        task.loss(arguments)[0][term].backward()
    slopes = [torch.cat([p.grad.flatten() for p in task.policy.parameters() if p.grad is not None]) for task in tasks]
    assert not torch.allclose(*slopes)  # the loss reads what was permuted
    assert torch.equal(true.rollouts.codes, fake.rollouts.codes) and torch.equal(true.reference, fake.reference)
    assert torch.equal(true.decision.admitted, fake.decision.admitted) and true.decision.admitted.any()
    assert output["reward"] == told_fake["reward"]  # what is logged is what the reward said
    moved = 0
    for items, right, wrong in zip(true.rollouts.items, true.rewards, fake.rewards, strict=True):
        pairs = [dict(zip(items.tolist(), rewards.tolist(), strict=True)) for rewards in (right, wrong)]
        for actual in pairs:
            actual.pop(-1, None)
        assert sorted(pairs[0].values()) == sorted(pairs[1].values())  # an item has one reward, wherever it is drawn
        assert all(pairs[1][i] == r for i, r in zip(items.tolist(), wrong.tolist(), strict=True) if i >= 0)
        moved += pairs[0] != pairs[1]
    assert moved > len(true.rewards) / 2


def test_a_degenerate_group_at_an_end_is_not_admitted(world):
    flat = type(world.reward)(torch.zeros_like(world.reward.table))
    task = world.post_training(world.policy(), gate="all", rl_positions="end", reward=flat)
    gated, _, values = world.draw(task)
    assert gated.decision.degenerate.all() and values["admission"] == 0
    closed = world.post_training(world.policy(), gate="none", rl_positions="end")
    assert world.draw(closed)[2]["rejected_closed"] == 1


@pytest.mark.parametrize("rl_positions", ["random", "last", "all", "end"])
@pytest.mark.parametrize("rollout", ["sample", "beam"])
def test_a_rollout_of_the_history_can_count_as_invalid(world, rl_positions, rollout):
    options = {"gate": "all", "rl_positions": rl_positions, "rollout": rollout, "num_generations": 12}
    plain, _, _ = world.draw(world.post_training(world.policy(), **options))
    gated, _, values = world.draw(world.post_training(world.policy(), exclude_history=True, **options))
    assert torch.equal(plain.rollouts.codes, gated.rollouts.codes)
    dropped = older = 0
    for b in range(len(gated.targets)):
        row, seen = world.rows[int(gated.histories.users[b])], world.history_of(gated, b)
        cut = max(0, len(row) - (5 if rl_positions == "end" else 6))  # what the policy does not see of it
        end = cut + len(seen)
        following = [] if rl_positions == "end" else [int(gated.targets[b])]
        assert row[cut:end] == seen and row[end : end + 1] == following
        history = row[:end]
        for before, after in zip(plain.rollouts.items[b].tolist(), gated.rollouts.items[b].tolist(), strict=True):
            assert after == (-1 if before in history else before)
            dropped += before in history
            older += before in history and before not in seen
    assert dropped > older > 0
    assert values["invalid_share"] == pytest.approx(float((gated.rollouts.items < 0).float().mean()))


def test_every_group_is_scored_with_its_own_history(world):
    task = world.post_training(world.policy(), world.schedule(4, 2), rl_positions="all")
    gated, _, _ = world.draw(task)
    assert not gated.histories.items[
        torch.arange(gated.histories.items.shape[1]) >= gated.histories.lengths.unsqueeze(1)
    ].any()
    for b in range(0, len(gated.rewards), 3):
        scores = torch.stack(
            world.walk(task.policy, world.history_of(gated, b), gated.rollouts.codes[b, 0].tolist(), 1.0)
        )
        torch.testing.assert_close(gated.rollouts.log_probs[b, 0], scores.detach(), rtol=1e-5, atol=1e-6)


def test_a_history_is_encoded_once_for_all_its_rollouts(world, monkeypatch):
    """Peers encode the prompt again for each of the G completions, for the policy and for its reference."""
    task = world.post_training(world.policy(), num_generations=6, grpo={"beta": 0.1})
    encoded = []
    for policy in (task.policy, task.starting_policy):
        original = policy.encode

        def counted(histories, *arguments, original=original):
            encoded.append(len(histories.lengths))
            return original(histories, *arguments)

        monkeypatch.setattr(policy, "encode", counted)
    gated, _, _ = world.draw(task, 0)
    samples = gated.rollouts.items.shape[0]
    assert gated.rollouts.items.shape[1] == 6
    assert encoded == [samples, samples]  # once by the policy, once by the reference
