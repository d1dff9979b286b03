"""Dropout and the causal encoder that the policy and the ranker share."""

from __future__ import annotations

import pytest
import torch

from adagrpo import networks
from adagrpo.networks import CausalEncoder, Dropout, FeedForward, _attend, initialise, linear_weights_in


def encoder(dropout: float = 0.0) -> CausalEncoder:
    module = CausalEncoder(width=8, layers=2, heads=2, max_length=6, dropout=dropout)
    initialise(module, std=0.5, generator=torch.Generator().manual_seed(0))
    return module


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_dropout_keeps_its_rate_and_the_expectation(rate):
    torch.manual_seed(0)
    outputs = Dropout(rate)(torch.ones(1_000_001))
    kept = outputs != 0
    threshold = round(rate * 256)
    assert torch.equal(outputs[kept].unique(), torch.tensor([256 / (256 - threshold)]))
    # 5 standard errors of a share over 1e6 draws are at most 0.0025
    assert abs(1 - float(kept.float().mean()) - threshold / 256) < 0.0025
    assert abs(float(outputs.mean()) - 1) < 0.005


def test_dropout_is_a_function_of_the_global_seed():
    inputs, module = torch.rand(7, 13) + 1, Dropout(0.5)
    torch.manual_seed(3)
    first, second = module(inputs), module(inputs)
    torch.manual_seed(3)
    assert torch.equal(module(inputs), first)
    assert not torch.equal(first, second)


def test_dropped_elements_are_independent_of_their_place():
    # 8 bytes come from one random word: neither neighbours nor places modulo 8 may depend on one another
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(80_000)) != 0).float().view(-1, 8)
    assert (kept.mean(0) - 0.5).abs().max() < 0.025
    assert (kept.T.corrcoef() - torch.eye(8)).abs().max() < 0.05


def test_dropout_is_the_identity_in_evaluation_and_at_rate_0():
    inputs = torch.rand(5)
    assert Dropout(0.5).eval()(inputs) is inputs
    assert Dropout(0.0)(inputs) is inputs


def test_dropout_passes_the_gradient_of_what_it_kept():
    inputs = torch.rand(100, requires_grad=True)
    outputs = Dropout(0.25)(inputs)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, torch.where(outputs != 0, 256 / 192, 0.0))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_a_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match="dropout rate"):
        Dropout(rate)


# ---------------------------------------------------------------- encoder


@pytest.mark.parametrize("changed", range(1, 6))
def test_no_state_depends_on_a_later_item(changed):
    module = encoder()
    inputs = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    other = inputs.clone()
    other[:, changed, 0] += 1.0  # not all components: pre-norm does not see a constant shift
    before, after = module(inputs), module(other)
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=1e-5, atol=1e-6)
    assert (before[:, changed:] - after[:, changed:]).abs().amax(-1).min() > 1e-3


def test_every_state_depends_on_the_first_item():
    module, inputs = encoder(), torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    other = inputs.clone()
    other[:, 0, 0] += 1.0
    assert (module(inputs) - module(other)).abs().amax(-1).min() > 1e-3


def test_padding_on_the_right_changes_no_real_state():
    module = encoder()
    inputs = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    for length in range(1, 7):
        torch.testing.assert_close(module(inputs)[:, :length], module(inputs[:, :length]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [6, 70])  # plain products, and the fused kernel
def test_the_states_of_some_positions_are_those_of_all(length):
    module = CausalEncoder(width=8, layers=2, heads=2, max_length=length, dropout=0.0)
    initialise(module, std=0.5, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(4, length, 8, generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, 2, length - 1, 1])
    whole = module(inputs)
    torch.testing.assert_close(module(inputs, ends), whole[range(4), ends].unsqueeze(1), rtol=1e-5, atol=1e-6)


def test_order_decides_a_state():
    inputs = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    states, swapped = encoder()(inputs), encoder()(inputs[:, [1, 0, 2]])
    assert (states[0, 2] - swapped[0, 2]).abs().max() > 1e-3


def test_the_size_of_what_is_read_does_not_matter():
    inputs = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder()(inputs), encoder()(100 * inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["plain", "fused"])
def test_a_block_is_attention_plus_feed_forward_by_hand(kernel, monkeypatch):
    monkeypatch.setattr(networks, "_SHORT", 64 if kernel == "plain" else 0)
    module = CausalEncoder(width=4, layers=1, heads=2, max_length=3, dropout=0.0)
    initialise(module, std=0.5, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    block = module.blocks[0]
    x = module.enter(inputs[0])
    further = block.distances.weight.T  # (heads, T)
    packed = block.query_key_value(block.norm(x))
    attended = torch.zeros(3, 4)
    for head in range(2):
        query, key, value = (packed[:, 4 * part + 2 * head : 4 * part + 2 * head + 2] for part in range(3))
        for t in range(3):
            weights = torch.stack([query[t] @ key[s] / 2**0.5 + further[head, t - s] for s in range(t + 1)]).softmax(0)
            attended[t, 2 * head : 2 * head + 2] = sum(w * value[s] for s, w in enumerate(weights))
    x = x + block.leave(attended)
    x = x + block.feed_forward(x)
    torch.testing.assert_close(module(inputs)[0], module.norm(x), rtol=1e-5, atol=1e-6)


def test_the_encoder_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="7 positions"):
        encoder()(torch.zeros(1, 7, 8))
    with pytest.raises(ValueError, match="multiple of heads"):
        CausalEncoder(width=8, layers=1, heads=3, max_length=4, dropout=0.0)


def test_initialise_is_a_function_of_its_generator_and_std():
    first, second = FeedForward(64, 256, 0.0), FeedForward(64, 256, 0.0)
    for module in (first, second):
        initialise(module, std=0.02, generator=torch.Generator().manual_seed(5))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert abs(float(first.enter.weight.detach().std()) - 0.02) < 0.001
    assert not first.enter.bias.any() and not first.leave.bias.any()
    assert torch.equal(first.norm.weight, torch.ones(64))


@pytest.mark.parametrize("length", [1, 5, 64, 65])  # plain products up to 64 positions, the fused kernel past that
def test_attention_is_causal_attention_with_its_gradient(length):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, length, 4, generator=generator).requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, length, 4, generator=generator)
    bias = torch.randn(3, length, length, generator=generator)
    actual = _attend(*parts, bias)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (parts[0] @ parts[1].mT / 2 + bias).masked_fill(later, -torch.inf)
    expected = scores.softmax(-1) @ parts[2]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad((output * weights).sum(), parts) for output in (actual, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_weights_that_are_converted_once_give_what_autocast_gives():
    module = encoder().eval()
    inputs = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    low = linear_weights_in(module, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low(inputs), module(inputs))
        assert not torch.equal(low(inputs), low(inputs.flip(0)))
    assert low.blocks[0].distances.weight is module.blocks[0].distances.weight  # shared
    assert low.blocks[0].leave.weight.dtype == torch.bfloat16 and module.blocks[0].leave.weight.dtype == torch.float32
