"""NLL on every position: a loop over samples, and learning at all."""

from __future__ import annotations

import pytest
import torch

from adagrpo.trainer import Supervised, fit
from adagrpo.trainer.post_training import nll_term
from adagrpo.types import Histories


def slow_nll(policy, codes: torch.Tensor, samples: list[tuple[list[int], int]]) -> torch.Tensor:
    """Mean over samples of `-(1/L) Σ_l log π(c_l | x, c_<l)`, one sample at a time."""
    losses = []
    for history, target in samples:
        context = policy.encode(Histories(torch.tensor([history]), torch.tensor([len(history)])))
        losses.append(-policy.score(context, codes[target].view(1, 1, -1)).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (3, 3)])
def test_the_terms_of_a_step_add_up_to_the_mean_over_its_samples(world, batch_size, accumulation):
    policy, schedule = world.policy(), world.schedule(batch_size, accumulation)
    task = world.supervised(policy, schedule)
    micros, logged = task.begin(1)
    assert logged == {} and len(micros) == accumulation
    samples = []
    for batch in schedule.batches(1):
        for row, length in enumerate(batch.histories.lengths.tolist()):
            kept = world.rows[batch.users[row]][-6:]
            assert len(kept) == length + 1
            samples += [(kept[:t], kept[t]) for t in range(1, len(kept))]
    total = sum(task.loss(micro)[0]["nll"] for micro in micros)
    expected = slow_nll(policy, world.catalog.codes, samples)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    parameters = list(policy.parameters())
    actual, desired = (torch.autograd.grad(value, parameters, materialize_grads=True) for value in (total, expected))
    for one, other in zip(actual, desired, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_loss_uses_dropout(world):
    policy = world.policy(dropout=0.5).eval()
    task = world.supervised(policy)
    micros, _ = task.begin(0)
    assert not torch.equal(task.loss(micros[0])[0]["nll"], task.loss(micros[0])[0]["nll"])


def test_the_term_is_divided_by_the_count_of_the_whole_step(world):
    policy, batch = world.policy(), world.schedule().batches(0)[0]
    one, ten = (nll_term(policy, batch, total) for total in (1, 10))
    torch.testing.assert_close(one, 10 * ten)


def test_a_fit_learns_a_cycle(world, tmp_path):
    cycle = world.ragged([[(start + t) % 24 for t in range(6)] for start in range(24)])
    policy = world.policy(spread=0.0)
    schedule = world.schedule(batch_size=24, training=cycle)

    def accuracy() -> dict[str, float]:
        policy.eval()
        items = torch.arange(24)
        context = policy.encode(Histories(items.unsqueeze(1), torch.ones(24, dtype=torch.int64)))
        scores = policy.score(context, world.catalog.codes.expand(24, 24, 3)).sum(-1)
        return {"ndcg@10": float((scores.argmax(1) == (items + 1) % 24).float().mean())}

    task = Supervised(policy, world.catalog.codes, schedule, steps=120, validate=accuracy)
    result = fit(policy, task, world.settings(validations=1), tmp_path, seed=0)
    assert result.validation[0]["ndcg@10"] < 0.2 and result.validation[-1]["ndcg@10"] == 1.0


def test_there_is_no_state_between_steps(world):
    task = world.supervised(world.policy())
    assert task.state() == {} and task.load_state({}) is None and task.stride == 1
