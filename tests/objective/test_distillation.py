"""The reward as a teacher: hand-worked groups, loops, and the gradients that training takes."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo.objective import best_of_n_loss, group_mass, listwise_distillation, validity_margin


def group(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Log-probabilities (6, 5, 3), teacher (6, 5), items (6, 5) and codes (6, 5, 3), with repeats and invalid rollouts.

    Of six sequences the last two name no item, of which the one is ignored and the other the fifth group's only one.
    """
    generator = torch.Generator().manual_seed(seed)
    rollouts = torch.randint(0, 6, (6, 5), generator=generator)
    rollouts[4] = 5
    rollouts[5] = 2
    items = rollouts.masked_fill(rollouts >= 4, -1)
    space = torch.randperm(27, generator=generator)[:6]
    codes = torch.stack([space // 9, space // 3 % 3, space % 3], dim=1)[rollouts]
    log_probs = -torch.rand(6, 3, generator=generator, dtype=torch.float64)[rollouts]  # of the sequence alone
    target_logits = torch.randn(6, generator=generator, dtype=torch.float64)[rollouts]
    return {
        "log_probs": log_probs,
        "target_logits": target_logits.masked_fill(items < 0, torch.nan),
        "items": items,
        "codes": codes,
        "ignored": rollouts == 4,
    }


def sides(given: dict[str, torch.Tensor], b: int) -> tuple[dict[int, float], dict[int, float]]:
    """Of one group: `p` by the place of each distinct rollout, and `q` by that of each distinct item."""
    codes = given["codes"][b].tolist()
    places = [g for g in range(len(codes)) if codes[g] not in codes[:g] and not given["ignored"][b, g]]
    p = {g: math.exp(float(given["log_probs"][b, g].detach().sum())) for g in places}
    q = {g: math.exp(float(given["target_logits"][b, g].detach())) for g in places if given["items"][b, g] >= 0}
    return {g: v / sum(p.values()) for g, v in p.items()}, {g: v / sum(q.values()) for g, v in q.items()}


def test_distillation_equals_the_loop_over_distinct_rollouts() -> None:
    arguments = group()
    actual = listwise_distillation(**arguments)
    mixed = ignored = 0
    for b in range(6):
        p, q = sides(arguments, b)
        assert float(actual[b]) == pytest.approx(sum(q[g] * math.log(q[g] / p[g]) for g in q), abs=1e-12)
        mixed += 0 < len(q) < len(p)
        ignored += bool(arguments["ignored"][b].any()) and len(q) > 0
    assert mixed >= 1 and ignored >= 1 and actual[4] == 0 and actual[5] == 0  # no item, and one item five times


def test_a_policy_that_is_its_distillation_target_has_nothing_to_learn() -> None:
    arguments = group(seed=1)
    valid = arguments["items"] >= 0
    for b in range(6):  # the valid part of each group alone
        if not valid[b].any():
            continue
        kept = {name: value[b : b + 1, valid[b]] for name, value in arguments.items()}
        log_probs = kept["log_probs"].requires_grad_()
        loss = listwise_distillation(
            log_probs, log_probs.detach().sum(-1) + 7.0, kept["items"], kept["codes"], kept["ignored"]
        )
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
        (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_distillation_has_the_gradient_p_minus_q_also_where_a_rollout_is_invalid() -> None:
    arguments = group(seed=2)
    log_probs, target_logits = arguments["log_probs"].requires_grad_(), arguments["target_logits"].requires_grad_()
    gradient, none = torch.autograd.grad(
        listwise_distillation(**arguments).sum(), (log_probs, target_logits), allow_unused=True
    )
    assert none is None and torch.isfinite(gradient).all()
    pushed_down = 0
    for b in range(6):
        p, q = sides(arguments, b)
        expected = torch.zeros(5, dtype=torch.float64)
        for g in p if q else ():
            expected[g] = p[g] - q.get(g, 0.0)
            pushed_down += g not in q
        torch.testing.assert_close(gradient[b], expected.unsqueeze(1).expand(-1, 3), rtol=1e-9, atol=1e-12)
    assert pushed_down >= 2


def test_best_of_n_is_the_nll_of_the_best_valid_rollout() -> None:
    log_probs = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]] * 4).requires_grad_()
    rewards = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1], [9.0, 0.1, math.nan], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, True], [True, True, True], [False, True, False], [False, False, False]])
    actual = best_of_n_loss(log_probs, rewards, valid)
    assert actual.tolist() == [5.5, 1.5, 3.5, 0.0]
    (gradient,) = torch.autograd.grad(actual.sum(), log_probs)
    assert gradient[:, :, 0].tolist() == [[0, 0, -0.5], [-0.5, 0, 0], [0, -0.5, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["target_logits", "items", "codes", "ignored"])
def test_a_wrong_shape_is_named(name: str) -> None:
    arguments = group()
    with pytest.raises(ValueError, match=name):
        listwise_distillation(**arguments | {name: arguments[name][:, :-1]})


def test_the_validity_margin_pushes_only_what_is_no_item_and_too_high() -> None:
    whole = torch.tensor([[-1.0, -3.0, -3.5, -9.0], [-1.0, -2.0, -1.5, -3.5], [-1.0, -2.0, -3.0, -4.0]])
    real = torch.tensor([[True, True, False, False], [True, True, False, False], [False, False, False, False]])
    log_probs = torch.stack([0.25 * whole, 0.75 * whole], 2).requires_grad_()
    actual = validity_margin(log_probs, real)
    assert actual.tolist() == [0.125, 0.375, 0.0]  # (1 - 3.5 + 3) / 4; (1 - 1.5 + 2) / 4 and 1 below, which is enough
    (gradient,) = torch.autograd.grad(actual.sum(), log_probs)
    assert gradient[:, :, 1].tolist() == [[0, 0, 0.25, 0], [0, 0, 0.25, 0], [0, 0, 0, 0]]
    assert validity_margin(log_probs, torch.ones_like(real)).tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="real"):
        validity_margin(log_probs, real[:, :-1])


def test_the_margin_is_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = -4 * torch.rand(50, 12, 3, generator=generator)
    # from groups without an item to groups of nothing else
    real = torch.rand(50, 12, generator=generator) < torch.linspace(0, 1, 50).unsqueeze(1)
    actual = validity_margin(log_probs, real)
    for b in range(50):
        whole = log_probs[b].sum(-1).tolist()
        floor = min((v for v, ok in zip(whole, real[b].tolist(), strict=True) if ok), default=float("inf"))
        above = [max(0.0, 1 + v - floor) for v, ok in zip(whole, real[b].tolist(), strict=True) if not ok]
        assert float(actual[b]) == pytest.approx(sum(above) / 12, rel=1e-4, abs=1e-5)


def test_the_mass_of_a_group_equals_the_loop_over_distinct_rollouts() -> None:
    given = group(seed=3)
    given["log_probs"] = given["log_probs"] - 1.0  # so that no group holds everything
    reference = given["log_probs"] - 0.3 * torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(1)).double()
    for b in range(6):  # equal rollouts have equal probabilities
        for g in range(5):
            first = next(h for h in range(5) if torch.equal(given["codes"][b, h], given["codes"][b, g]))
            reference[b, g] = reference[b, first]
    held = group_mass(given["log_probs"], reference, given["items"], given["codes"], given["ignored"])
    taught = 0
    for b in range(6):
        codes = given["codes"][b].tolist()
        places = [g for g in range(5) if codes[g] not in codes[:g] and not given["ignored"][b, g]]
        if not any(given["items"][b, g] >= 0 for g in places):
            assert float(held.losses[b]) == 0
            continue
        now, start = (sum(math.exp(float(v[b, g].sum())) for g in places) for v in (given["log_probs"], reference))
        expected = math.log(start / now) + (1 - start) / start * math.log((1 - start) / (1 - now))
        assert float(held.losses[b]) == pytest.approx(expected, abs=1e-9)
        assert (float(held.mass[b]), float(held.start[b])) == (pytest.approx(now), pytest.approx(start))
        taught += 1
    assert taught >= 3


def test_distillation_with_the_mass_is_the_divergence_of_whole_distributions_over_the_mass_of_the_start() -> None:
    now, start = torch.tensor([0.2, 0.1, 0.1]).double(), torch.tensor([0.3, 0.1, 0.2]).double()
    items, codes = torch.tensor([[4, 7, -1]]), torch.tensor([[[0], [1], [2]]])
    rewards, ignored = torch.tensor([[0.0, math.log(2.0), math.nan]]).double(), torch.zeros(1, 3, dtype=torch.bool)
    log_probs, reference = now.log().view(1, 3, 1), start.log().view(1, 3, 1)
    ordered = listwise_distillation(log_probs, reference.sum(-1) + rewards, items, codes, ignored)
    held = group_mass(log_probs, reference, items, codes, ignored)
    # the group held .6; of that .3 : .1 · 2 = 3 : 2 goes to the items, nothing to the third; .4 stays with all else
    whole = 0.36 * math.log(0.36 / 0.2) + 0.24 * math.log(0.24 / 0.1) + 0.4 * math.log(0.4 / 0.6)
    assert float(ordered + held.losses) == pytest.approx(whole / 0.6)


def test_the_mass_pulls_a_group_back_and_distillation_alone_does_not() -> None:
    reference = torch.tensor([[[0.4], [0.2]]]).double().log()
    log_probs = (reference - math.log(4.0)).requires_grad_()  # the order is kept, three quarters of the mass are gone
    items, codes = torch.tensor([[4, 7]]), torch.tensor([[[0], [1]]])
    ignored = torch.zeros(1, 2, dtype=torch.bool)
    alone = listwise_distillation(log_probs, reference.sum(-1), items, codes, ignored)
    (gradient,) = torch.autograd.grad(alone.sum(), log_probs)
    assert float(alone.detach()) == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-12
    held = group_mass(log_probs, reference, items, codes, ignored)
    (gradient,) = torch.autograd.grad(held.losses.sum(), log_probs)
    # of log M it is -1 + M / (1 - M) · (1 - M_0) / M_0 = -1 + (.15 / .85) (.4 / .6), shared out as the rollouts have it
    slope = -1 + 0.15 / 0.85 * 0.4 / 0.6
    assert gradient.flatten().tolist() == pytest.approx([slope * 2 / 3, slope / 3])


@pytest.mark.parametrize("log_probability", [0.0, -1e-9, -80.0])
def test_the_mass_is_finite_at_its_ends(log_probability: float) -> None:
    log_probs = torch.full((2, 2, 1), log_probability, requires_grad=True)
    codes, items = torch.tensor([[[0], [1]], [[0], [1]]]), torch.tensor([[4, 7], [-1, -1]])
    ignored = torch.zeros(2, 2, dtype=torch.bool)
    held = group_mass(log_probs, torch.full((2, 2, 1), -1.0), items, codes, ignored)
    (gradient,) = torch.autograd.grad(held.losses.sum(), log_probs)
    assert torch.isfinite(held.losses).all() and torch.isfinite(gradient).all()
    assert float(held.losses[1].detach()) == 0 and gradient[1].abs().max() == 0  # a group without an item
