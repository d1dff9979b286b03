"""The compact policy against a walk that writes one code of one hypothesis at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adagrpo.decoding import sample
from adagrpo.policies.compact import CompactPolicy
from adagrpo.types import Histories

SIZES = (3, 2, 4)
SPACE = torch.tensor(list(itertools.product(*map(range, SIZES))))  # all 24 sequences
ITEM_CODES = SPACE[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:10]]
HISTORIES = Histories(torch.tensor([[1, 5, 9, 2], [7, 3, 0, 0], [4, 0, 0, 0]]), torch.tensor([4, 2, 1]))


def make_policy(dropout: float = 0.0, sizes: tuple[int, ...] = SIZES, codes: Tensor = ITEM_CODES) -> CompactPolicy:
    policy = CompactPolicy(codes, sizes, width=8, layers=2, heads=2, decoder_hidden=12, max_history=4, dropout=dropout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # far from the initial weights, where all codes are about equally likely
        for parameter in policy.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture
def policy() -> CompactPolicy:
    return make_policy().eval()


def walk(policy: CompactPolicy, history: list[int], codes: list[int], temperature: float) -> list[float]:
    """Log-probability of each code: encode one truncated history, then one code of one hypothesis at a time."""
    context = policy.encode(Histories(torch.tensor([history]), torch.tensor([len(history)])))
    state, scores = policy.start(context), []
    for code in codes:
        logits = [value / temperature for value in policy.logits(state)[0, 0].tolist()]
        scores.append(float(logits[code] - torch.tensor(logits, dtype=torch.float64).logsumexp(0)))
        state = policy.advance(state, torch.tensor([[0]]), torch.tensor([[code]]))
    return scores


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_score_is_the_walk(policy, temperature):
    codes = SPACE[torch.randint(24, (3, 5), generator=torch.Generator().manual_seed(2))]
    scores = policy.score(policy.encode(HISTORIES), codes, temperature=temperature)
    expected = [
        [
            walk(policy, HISTORIES.items[b, : HISTORIES.lengths[b]].tolist(), row, temperature)
            for row in codes[b].tolist()
        ]
        for b in range(3)
    ]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_decoder_by_hand(policy):
    context = policy.encode(HISTORIES)
    hidden, expected = context.states[1], []
    for level, code in enumerate([2, 1, 3]):
        expected.append(policy.heads[level](policy.norms[level](hidden)).log_softmax(-1)[code])
        if level < 2:
            update = hidden + policy.enter[level].weight[code]
            hidden = update + policy.feed_forward[level](update)
    scores = policy.score(context[1:2], torch.tensor([[[2, 1, 3]]]))
    torch.testing.assert_close(scores[0, 0], torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(policy, temperature):
    scores = policy.score(policy.encode(HISTORIES), SPACE.expand(3, 24, 3), temperature=temperature)
    probabilities = scores.sum(-1).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3), rtol=1e-5, atol=0)
    assert probabilities.std(1).min() > 0.01


@torch.no_grad()
def test_a_later_code_depends_on_the_ones_before_it(policy):
    scores = policy.score(policy.encode(HISTORIES), torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]).expand(3, 3, 3))
    assert (scores[:, 0, 1] - scores[:, 1, 1]).abs().min() > 1e-4
    assert (scores[:, 0, 2] - scores[:, 2, 2]).abs().min() > 1e-4


@torch.no_grad()
def test_encoding_positions_is_encoding_truncated_histories(policy):
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 0])
    states = policy.encode(HISTORIES, rows, positions).states
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        truncated = Histories(HISTORIES.items[row : row + 1, : position + 1], torch.tensor([position + 1]))
        torch.testing.assert_close(states[index], policy.encode(truncated).states[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy.encode(HISTORIES).states, states[[3, 5, 6]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("differentiable", [False, True])
def test_no_histories_have_no_scores(policy, differentiable):
    with torch.set_grad_enabled(differentiable):
        context = policy.encode(Histories(HISTORIES.items[:0], HISTORIES.lengths[:0]))
        assert len(context) == 0 and policy.score(context, SPACE.expand(0, -1, -1)).shape == (0, 24, 3)


@torch.no_grad()
def test_an_item_is_the_sum_of_its_code_vectors(policy):
    tables = policy.codes.weight.split(SIZES)
    for item in range(10):
        vector = sum(table[code] for table, code in zip(tables, ITEM_CODES[item], strict=True))
        expected = policy.encoder(vector.view(1, 1, -1))[0]
        states = policy.encode(Histories(torch.tensor([[item]]), torch.tensor([1]))).states
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_advance_follows_the_parent_hypothesis(policy):
    context = policy.encode(HISTORIES)
    first = policy.advance(policy.start(context), torch.zeros(3, 3, dtype=torch.int64), torch.arange(3).expand(3, 3))
    parents, codes = torch.tensor([[2, 0, 2, 1]]).expand(3, 4), torch.tensor([[0, 1, 1, 0]]).expand(3, 4)
    logits = policy.logits(policy.advance(first, parents, codes))
    assert logits.shape == (3, 4, 4)
    for hypothesis in range(4):
        lone = policy.start(context)
        for code in (parents[0, hypothesis], codes[0, hypothesis]):
            lone = policy.advance(lone, torch.zeros(3, 1, dtype=torch.int64), code.expand(3, 1))
        torch.testing.assert_close(logits[:, hypothesis], policy.logits(lone)[:, 0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_context_can_be_cut(policy):
    context = policy.encode(HISTORIES)
    assert len(context) == 3 and len(context[1:]) == 2
    assert torch.equal(context[torch.tensor([2, 0])].states, context.states[[2, 0]])


def test_gradients_reach_every_parameter():
    policy = make_policy(dropout=0.2).train()
    torch.manual_seed(0)
    rows, positions = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 0, 1, 0])
    codes = SPACE[torch.randint(24, (7, 5))]
    policy.score(policy.encode(HISTORIES, rows, positions), codes).sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
        if "query_key_value.bias" in name:  # a shift of all keys cancels in the softmax; the others must move
            assert parameter.grad[:8].any() and parameter.grad[16:].any()


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@torch.no_grad()
def test_samples_come_as_often_as_score_says(policy, temperature):
    context, draws = policy.encode(HISTORIES), 10_000
    uniforms = torch.rand(3, draws, 3, generator=torch.Generator().manual_seed(3))
    drawn = sample(policy, context, uniforms, temperature=temperature)
    expected = policy.score(context, SPACE.expand(3, 24, 3), temperature=temperature).sum(-1).exp()
    index = (drawn.codes * torch.tensor([8, 4, 1])).sum(-1)
    frequencies = torch.stack([row.bincount(minlength=24) for row in index]) / draws
    standard_error = (expected * (1 - expected) / draws).sqrt()
    assert ((frequencies - expected).abs() < 5 * standard_error + 1e-6).all()
    torch.testing.assert_close(drawn.log_probs, policy.score(context, drawn.codes, temperature=temperature))


def test_dropout_acts_in_training_only():
    policy = make_policy(dropout=0.5)
    assert not torch.equal(policy.train().encode(HISTORIES).states, policy.encode(HISTORIES).states)
    assert torch.equal(policy.eval().encode(HISTORIES).states, policy.encode(HISTORIES).states)


def test_weights_are_a_function_of_the_seed_and_codes_are_not_among_them():
    first, second, third = (
        CompactPolicy(ITEM_CODES, SIZES, width=8, layers=1, heads=2, decoder_hidden=8, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.codes.weight, second.codes.weight)
    assert not torch.equal(first.codes.weight, third.codes.weight)
    assert "item_codes" not in first.state_dict()


def test_one_level_works():
    policy = make_policy(sizes=(5,), codes=torch.arange(5).unsqueeze(1)).eval()
    histories = Histories(torch.tensor([[1, 2]]), torch.tensor([2]))
    scores = policy.score(policy.encode(histories), torch.arange(5).view(1, 5, 1))
    torch.testing.assert_close(scores.exp().sum(), torch.tensor(1.0))


def test_what_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match=r"item_codes must be \(V, 2\)"):
        CompactPolicy(ITEM_CODES, (3, 2))
    with pytest.raises(ValueError, match="5 positions"):
        policy.encode(Histories(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5])))


def test_another_encoder_is_refused_long_histories_too(policy):
    policy.encoder = torch.nn.Identity()
    histories = Histories(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5]))
    with torch.enable_grad(), pytest.raises(ValueError, match="histories have 5 positions, the policy takes 4"):
        policy.encode(histories)
