"""The loss of post-training against a slow twin, iterations over a batch, and whole fits."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import warnings

import pytest
import torch
from torch import Tensor

from adagrpo.objective.terms import TERMS, RewardTerm, TermLoss
from adagrpo.trainer import fit
from adagrpo.types import Histories


def gradients(policy, terms: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(terms, list(policy.parameters()), materialize_grads=True))


def slow_group(world, task, judged, b: int, old: Tensor | None) -> tuple[Tensor, int]:
    """GRPO of one sample, and how many of its codes are clipped."""
    options, table = task.objective, task.reward.table
    grpo = options.of_term("grpo")
    history = world.history_of(judged, b)
    group = judged.rollouts.codes[b].tolist()
    catalogue = task.catalog.codes.tolist()
    items = [catalogue.index(codes) if codes in catalogue else None for codes in group]
    rewards = [None if item is None else float(table[history[-1], item]) for item in items]
    loss, clipped = torch.zeros(()), 0
    for g, advantage in enumerate(world.slow_advantages(rewards, grpo["invalid_penalty"])):
        scores = world.walk(task.policy, history, group[g], options.temperature)
        reference = world.walk(task.starting_policy, history, group[g], options.temperature)
        for level, score in enumerate(scores):
            before = score.detach() if old is None else old[b, g, level]
            w = (score - before).exp()
            kept = w.clamp(1 - grpo["epsilon"], 1 + grpo["epsilon_high"])
            clipped += bool((w != kept) and (w * advantage > kept * advantage))
            kl = (reference[level] - score).exp() - (reference[level] - score) - 1
            loss = loss - (torch.minimum(w * advantage, kept * advantage) - grpo["beta"] * kl) / len(scores) / len(
                group
            )
    return loss, clipped


def slow_grpo(world, task, judged, old: Tensor | None = None) -> tuple[Tensor, float]:
    """`(λ / B_rl) Σ_b gate_b · GRPO_b`, and the share of clipped codes among those admitted."""
    samples = len(judged.decision.admitted)
    total, clipped, admitted = torch.zeros(()), 0, judged.decision.admitted.nonzero().squeeze(1).tolist()
    for b in admitted:
        loss, count = slow_group(world, task, judged, b, old)
        total, clipped = total + loss, clipped + count
    return task.arm.lambda_ / samples * total, clipped / (len(admitted) * judged.rollouts.log_probs[0].numel())


def perturb(policy) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- the gated term


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.4, "lambda_": 2.5, "grpo": {"invalid_penalty": 0.3}},
        {"grpo": {"beta": 0.5}},
        {"inject_target": True},
    ],
)
def test_the_term_is_the_slow_twin(world, options):
    policy = world.policy()
    start = copy.deepcopy(policy)
    task = world.post_training(policy, gate="difficulty", control_of="rollout_miss", miss_min=1.0, **options)
    task.starting_policy.load_state_dict(start.state_dict())
    perturb(policy)  # so that the KL to the starting policy is not 0
    gated, (micro,), _ = world.draw(task)
    assert 0 < len(micro.admitted) < 8 == len(gated.decision.admitted)
    terms, logged = task.loss(micro)
    expected, _ = slow_grpo(world, task, gated)
    torch.testing.assert_close(terms["grpo"], expected, rtol=1e-4, atol=1e-6)
    assert logged["clip_fraction"] == 0.0
    assert_close(gradients(policy, terms["grpo"]), gradients(policy, expected))


def test_what_a_term_logs_may_have_a_gradient(world, monkeypatch):
    def logs_its_loss(groups):
        losses = -groups.log_probs.mean((1, 2))
        return TermLoss(losses, {"of_all": losses.mean()})

    monkeypatch.setitem(TERMS, "best_of_n", RewardTerm("best_of_n", logs_its_loss))
    task = world.post_training(world.policy(), gate="all", term="best_of_n", lambda_=1.0)
    _, (micro,), _ = world.draw(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms, logged = task.loss(micro)
    assert terms["best_of_n"].requires_grad and logged["of_all"] > 0


@pytest.mark.parametrize(("weight", "exclude"), [(0.0, False), (2.0, False), (2.0, True)])
def test_distillation_teaches_the_order_of_the_re_ranked_group(world, weight, exclude):
    policy = world.policy()
    options = {"miss_min": 0.8, "distill": {"reward_weight": weight}, "exclude_history": exclude}
    task = world.post_training(policy, gate="difficulty", term="distill", lambda_=2.5, **options)
    gated, (micro,), _ = world.draw(task)
    perturb(policy)
    terms, _ = task.loss(micro)
    expected = torch.zeros(())
    for b in gated.decision.admitted.nonzero().squeeze(1).tolist():
        history, q, p, seen = world.history_of(gated, b), [], [], []
        for g, item in enumerate(gated.rollouts.items[b].tolist()):
            codes = gated.rollouts.codes[b, g].tolist()
            whole = [item for item in gated.histories.whole[b].tolist() if item >= 0]
            repeats = codes in task.catalog.codes[whole].tolist()
            if codes in seen or (exclude and repeats):  # what repeats the history is on neither side
                continue
            seen.append(codes)
            p.append(sum(world.walk(policy, history, codes, 1.0)))
            before = sum(world.walk(task.starting_policy, history, codes, 1.0)).detach()
            q.append(before + weight * gated.rewards[b, g] if item >= 0 else torch.tensor(-1e9))
        teacher, student = torch.stack(q).log_softmax(0), torch.stack(p).log_softmax(0)
        expected = expected + 2.5 * (teacher.exp() * (teacher - student)).sum() / 8
    torch.testing.assert_close(terms["distill"], expected, rtol=1e-4, atol=1e-6)
    assert_close(gradients(policy, terms["distill"]), gradients(policy, expected))


@pytest.mark.parametrize("exclude", [False, True])
def test_the_validity_margin_stands_beside_distillation(world, exclude):
    """Whatever names an item is real, also what repeats the history and is left out as a rollout."""
    policy = world.policy()
    options = {"exclude_history": exclude, "rollout": "beam", "num_generations": 12, "miss_min": 0.8}
    arguments = {"gate": "difficulty", "term": "distill", "lambda_": 2.5, **options}
    task = world.post_training(policy, distill={"validity_weight": 3.0}, **arguments)
    plain = world.post_training(policy, **arguments)
    gated, (micro,), _ = world.draw(task)
    _, (same,), _ = world.draw(plain)
    perturb(policy)
    catalogue, expected, pushed = task.catalog.codes.tolist(), torch.zeros(()), 0
    for b in gated.decision.admitted.nonzero().squeeze(1).tolist():
        group = gated.rollouts.codes[b].tolist()
        scores = [sum(world.walk(policy, world.history_of(gated, b), codes, 1.0)) for codes in group]
        least = min(float(score.detach()) for score, codes in zip(scores, group, strict=True) if codes in catalogue)
        high = [
            s
            for s, codes in zip(scores, group, strict=True)
            if codes not in catalogue and float(s.detach()) > least - 1
        ]
        expected = expected + 2.5 * 3.0 * sum(score - least + 1 for score in high) / 12 / 8
        pushed += len(high)
    assert pushed > 5
    actual = task.loss(micro)[0]["distill"] - plain.loss(same)[0]["distill"]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert_close(gradients(policy, actual), gradients(policy, expected))


@pytest.mark.parametrize("positions", ["random", "last", "all", "end"])
@pytest.mark.parametrize("term", ["grpo", "distill"])
def test_without_dropout_one_context_serves_both_terms_with_the_same_gradients(world, monkeypatch, positions, term):
    """At the ends of histories the groups belong to no sample of the batch, so each term has a context of its own."""
    actual, encoded = [], []
    for same in (True, False):
        policy = world.policy()
        assert policy.same_in_training
        task = world.post_training(policy, gate="all", term=term, rl_positions=positions)
        micros = task.begin(0)[0]
        with monkeypatch.context() as patch:
            patch.setattr(type(policy), "same_in_training", same)
            calls, encode = [], type(policy).encode
            patch.setattr(
                type(policy), "encode", lambda *given, calls=calls, encode=encode: calls.append(1) or encode(*given)
            )
            terms = [term for micro in micros for term in task.loss(micro)[0].values()]
        torch.stack(terms).sum().backward()
        actual.append([parameter.grad for parameter in policy.parameters()])
        encoded.append(len(calls))
    for one, other in zip(*actual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert encoded == ([2, 2] if positions == "end" else [1, 2])
    assert not world.policy(dropout=0.5).same_in_training


def test_best_of_n_is_nll_on_the_best_rollout(world):
    policy = world.policy()
    task = world.post_training(policy, gate="all", term="best_of_n")
    gated, (micro,), _ = world.draw(task)
    terms, _ = task.loss(micro)
    expected = torch.zeros(())
    for b in gated.decision.admitted.nonzero().squeeze(1).tolist():
        best = max(range(6), key=lambda g: (bool(gated.rollouts.valid[b, g]), float(gated.rewards[b, g]), -g))
        walked = world.walk(policy, world.history_of(gated, b), gated.rollouts.codes[b, best].tolist(), 1.0)
        expected = expected - sum(walked) / len(walked) / 8
    torch.testing.assert_close(terms["best_of_n"], expected, rtol=1e-4, atol=1e-6)
    assert set(terms) == {"nll", "best_of_n"}


def test_beta_pulls_towards_the_starting_policy(world):
    policy = world.policy()
    pulled = world.post_training(policy, gate="all", grpo={"beta": 2.0})
    free = world.post_training(policy, gate="all", grpo={"beta": 0.0})
    at_start = [task.loss(world.draw(task)[1][0])[0]["grpo"] for task in (pulled, free)]
    torch.testing.assert_close(*at_start)  # the KL is 0 there, and so is its gradient
    assert_close(*(gradients(policy, term) for term in at_start))
    perturb(policy)
    gated, micros, values = world.draw(pulled)
    difference = pulled.loss(micros[0])[0]["grpo"] - free.loss(world.draw(free)[1][0])[0]["grpo"]
    log_ratio = gated.reference - gated.rollouts.log_probs
    kl = log_ratio.exp() - log_ratio - 1
    admitted = gated.decision.admitted
    torch.testing.assert_close(difference, 2.0 * kl[admitted].mean((1, 2)).sum() / 8, rtol=1e-4, atol=1e-5)
    assert values["kl"] == pytest.approx(float(kl.mean()), rel=1e-4) and values["kl"] > 0.001


def test_the_starting_policy_stays_where_it_was(world, tmp_path):
    policy, before = world.policy(), world.policy().state_dict()
    task = world.post_training(policy, gate="all", grpo={"beta": 0.1}, steps=2)
    fit(policy, task, world.settings(), tmp_path, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.starting_policy.state_dict().items())
    assert not any(parameter.requires_grad for parameter in task.starting_policy.parameters())
    assert not torch.equal(policy.codes.weight, before["codes.weight"])


def test_a_rejected_sample_cannot_move_the_gradient(world):
    policy = world.policy()
    task = world.post_training(policy, gate="rollout_miss", miss_min=0.0, q_min=0.6, negatives=3)
    gated, (micro,), _ = world.draw(task)
    rejected = ~gated.decision.admitted
    assert rejected.any() and not rejected.all()
    expected = gradients(policy, task.loss(micro)[0]["grpo"])
    garbage = gated._replace(
        rewards=gated.rewards.masked_fill(rejected.unsqueeze(1), torch.nan),
        scored=gated.scored._replace(
            rollouts=gated.rollouts._replace(
                codes=gated.rollouts.codes.masked_fill(rejected.view(-1, 1, 1), 2),
                log_probs=gated.rollouts.log_probs.masked_fill(rejected.view(-1, 1, 1), torch.inf),
            )
        ),
    )
    actual = gradients(policy, task.loss(micro._replace(groups=garbage))[0]["grpo"])
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))


class Twisted:
    """Another reward's scores, except in the first rows, where they are turned around and stretched."""

    def __init__(self, inner, rows: int) -> None:
        self.inner, self.rows = inner, rows

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        scores = self.inner.score(histories, items)
        scores[: self.rows] = 7 - 3 * scores[: self.rows]
        return scores


def test_the_rewards_of_rejected_samples_change_nothing_end_to_end(world, monkeypatch):
    actual = []
    for rows in (0, 3):
        policy = world.policy()
        task = world.post_training(
            policy, reward=Twisted(copy.copy(world.reward), rows), gate="rollout_miss", q_min=0.0, reward_floor=0.0
        )
        easy = torch.tensor([0.0] * 3 + [1.0] * 5)
        monkeypatch.setattr("adagrpo.groups.gated.rollout_miss", lambda *_, easy=easy: easy)
        gated, (micro,), _ = world.draw(task)
        assert not gated.decision.admitted[:3].any() and gated.decision.admitted[3:].any()
        actual.append((gated.rewards[:3], gradients(policy, task.loss(micro)[0]["grpo"])))
    assert not torch.allclose(actual[0][0], actual[1][0])
    assert all(torch.equal(one, other) for one, other in zip(actual[0][1], actual[1][1], strict=True))


def test_rejected_samples_count_in_the_divisor(world):
    policy = world.policy()
    task = world.post_training(policy, gate="all", reward_floor=0.0)
    gated, (micro,), _ = world.draw(task)
    lone = gated.decision.admitted.nonzero().squeeze(1)[:1]
    only = gated._replace(decision=gated.decision._replace(admitted=torch.arange(8) == lone))
    term = task.loss(micro._replace(groups=only, admitted=lone))[0]["grpo"]
    assert term.item() == pytest.approx(
        slow_group(world, task, gated, int(lone), None)[0].item() / 8, rel=1e-4, abs=1e-6
    )


def test_the_groups_do_not_depend_on_how_a_step_is_cut(world):
    whole = world.post_training(world.policy(), world.schedule(8))
    cut = world.post_training(world.policy(), world.split(world.schedule(8), 2))
    one, (micro,), values = world.draw(whole)
    four, micros, others = world.draw(cut)
    assert len(micros) == 4 and all(part.groups is four for part in micros)
    assert torch.equal(torch.cat([part.admitted for part in micros]), micro.admitted)
    assert [part.admitted.tolist() for part in micros] == [
        [b for b in micro.admitted.tolist() if b // 2 == index] for index in range(4)
    ]
    for name in ("codes", "items"):
        assert torch.equal(getattr(one.rollouts, name), getattr(four.rollouts, name))
    assert torch.equal(one.histories.items, four.histories.items)
    assert all(torch.equal(a, b) for a, b in zip(one.decision, four.decision, strict=True))
    torch.testing.assert_close(*(world.advantages(whole, actual) for actual in (one, four)), rtol=1e-5, atol=1e-6)
    assert values == pytest.approx(others, rel=1e-5)
    losses = [task.loss(part)[0] for task, parts in ((whole, [micro]), (cut, micros)) for part in parts]
    for name in ("nll", "grpo"):
        summed = sum(terms[name] for terms in losses[1:] if name in terms)
        torch.testing.assert_close(losses[0][name], summed, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- more than one iteration


def test_a_second_iteration_takes_the_ratio_to_what_was_sampled(world):
    policy = world.policy()
    task = world.post_training(policy, gate="all", num_iterations=2, temperature=1.2, grpo={"epsilon": 0.1}, steps=3)
    assert task.steps == 6 and task.stride == 2
    gated, micros, _ = world.draw(task)
    terms, logged = task.loss(micros[0])
    expected, _ = slow_grpo(world, task, gated, gated.rollouts.log_probs)
    torch.testing.assert_close(terms["grpo"], expected, rtol=1e-4, atol=1e-6)
    assert logged["clip_fraction"] == 0.0  # nothing has moved yet
    perturb(policy)
    again, values = task.begin(1)
    assert again is micros and values == {}
    policy.eval()
    terms, logged = task.loss(micros[0])
    expected, clipped = slow_grpo(world, task, gated, gated.rollouts.log_probs)
    torch.testing.assert_close(terms["grpo"], expected, rtol=1e-4, atol=1e-6)
    assert_close(gradients(policy, terms["grpo"]), gradients(policy, expected))
    assert logged["clip_fraction"] == pytest.approx(clipped) and clipped > 0
    assert not torch.allclose(expected, slow_grpo(world, task, gated)[0])
    assert world.draw(task, 2)[1][0].batch.users.tolist() == world.schedule().batches(1)[0].users.tolist()


def test_batches_repeat_in_a_fit(world, tmp_path):
    policy, users = world.policy(), []
    task = world.post_training(policy, num_iterations=2, steps=3)
    original = task.loss
    task.loss = lambda micro: users.append(micro.batch.users.tolist()) or original(micro)  # type: ignore[method-assign]
    fit(policy, task, world.settings(), tmp_path, seed=0)
    expected = [world.schedule().batches(step)[0].users.tolist() for step in range(3)]
    assert users == [batch for batch in expected for _ in range(2)]


# ---------------------------------------------------------------- whole fits


@pytest.mark.parametrize(
    "options", [{"gate": "none"}, {"tau_reward": 0.0}, {"gate": "all", "reward_floor": 1e6}, {"tau": 0.0, "rho": 1.0}]
)
def test_with_nothing_admitted_a_fit_is_continued_nll_bit_for_bit(world, tmp_path, read_fit, options):
    for row in world.rows:  # every logged item is put below whatever never follows its history: q is below 1
        for last, following in itertools.pairwise(row):
            world.reward.table[last, following] = -10.0 - following
    policy = world.policy(dropout=0.2)
    task = world.supervised(policy, world.schedule(4, 2), steps=6)
    fit(policy, task, world.settings(), tmp_path / "nll", seed=3)
    policy = world.policy(dropout=0.2)
    task = world.post_training(policy, world.schedule(4, 2), steps=6, term_norms_every=2, **options)
    fit(policy, task, world.settings(), tmp_path / "post", seed=3)
    one, other = read_fit(tmp_path / "nll"), read_fit(tmp_path / "post")
    assert one["logs"]["validation.jsonl"] == other["logs"]["validation.jsonl"] and one["steps"] == other["steps"]
    for name, weights in one["weights"].items():
        assert all(torch.equal(tensor, other["weights"][name][key]) for key, tensor in weights.items())
    losses = [[json.loads(row)["nll"] for row in actual["logs"]["steps.jsonl"].splitlines()] for actual in (one, other)]
    assert losses[0] == losses[1]


def test_grpo_alone_with_nothing_admitted_moves_nothing(world, tmp_path):
    policy, before = world.policy(), world.policy().state_dict()
    task = world.post_training(policy, gate="none", anchored=False, steps=2)
    fit(policy, task, world.settings(weight_decay=0.0), tmp_path, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_grpo_alone_raises_the_reward(world, tmp_path):
    policy = world.policy()
    task = world.post_training(policy, gate="all", anchored=False, steps=25, num_generations=16)
    rewards: list[dict[str, float]] = []
    fit(policy, task, world.settings(validations=0), tmp_path, seed=0, report=lambda *args: rewards.append(args[2]))
    assert all("nll" not in values for values in rewards)
    first, last = (statistics.fmean(v["reward"] for v in part) for part in (rewards[:4], rewards[-4:]))
    assert last > first + 0.25
    invalid = [statistics.fmean(v["invalid_share"] for v in part) for part in (rewards[:4], rewards[-4:])]
    assert invalid[1] < invalid[0]
