"""What every policy must be: the same tests for the compact policy, the hybrid one and causal language models."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adagrpo.decoding import beam_search, beam_search_both, sample, score_sequences
from adagrpo.policies import CompactPolicy, HybridPolicy
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import from_configuration
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer import TrainingBatch
from adagrpo.trainer.checkpoints import load_weights, save_weights
from adagrpo.trainer.post_training import nll_term
from adagrpo.types import Histories

SIZES = (3, 2, 4)
CODES = torch.tensor(list(itertools.product(*map(range, SIZES))))[
    torch.randperm(24, generator=torch.Generator().manual_seed(0))[:10]
]
HISTORIES = Histories(torch.tensor([[1, 5, 9, 2], [7, 3, 0, 0], [4, 0, 0, 0]]), torch.tensor([4, 2, 1]))
ROWS, POSITIONS = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 0, 1, 0])
TARGETS = torch.tensor([5, 9, 2, 6, 3, 1, 8])  # the next item, and one that the history does not hold at its end
LM = {
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
TEMPLATES = {"qwen3-template": ((1, 0), (0, 1, 1)), "gpt2-template": ((1,), (0,))}  # a text before and after a history


READERS: dict[type[Any], Callable[[Any], nn.Module]] = {  # what reads a policy's histories
    CausalLMPolicy: lambda policy: policy.lm.base_model,
    CompactPolicy: lambda policy: policy.encoder,
    HybridPolicy: lambda policy: policy.compact.encoder,
}


def make(kind: str, *, seed: int = 0, spread: float = 0.3) -> Any:
    """A policy far from its initial weights, where all codes are about equally likely."""
    model_type = kind.removesuffix("-template")
    if model_type in LM:
        preamble, suffix = TEMPLATES.get(kind, ((), ()))
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        inner = {} if model_type == "gpt2" else {"intermediate_size": 24}
        options = {"model_type": model_type, **shape, **inner, **LM[model_type]}
        model, vocabulary = from_configuration(options, SIZES, seed=seed)
        policy: nn.Module = CausalLMPolicy(model, vocabulary, CODES, max_history=4, preamble=preamble, suffix=suffix)
    else:
        policy = CompactPolicy(
            CODES, SIZES, width=8, layers=2, heads=2, decoder_hidden=12, max_history=4, dropout=0.0, seed=seed
        )
        if kind == "hybrid":
            policy = HybridPolicy(
                policy, Catalog.from_codes(CODES, SIZES).trie, negatives=0, item_dropout=0.0, seed=seed
            )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return policy.eval()


@pytest.fixture(scope="module", params=["compact", "hybrid", *LM, *TEMPLATES])
def frozen(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


@pytest.fixture
def policy(frozen: Any) -> Any:
    """A policy of a test's own."""
    return copy.deepcopy(frozen)


def space(policy: Any) -> Tensor:
    """(S, L) every sequence of codes that the policy can write."""
    return torch.cartesian_prod(*(torch.arange(size) for size in policy.level_sizes))


def some_codes(policy: Any, samples: int, group: int) -> Tensor:
    everything = space(policy)
    return everything[torch.randint(len(everything), (samples, group), generator=torch.Generator().manual_seed(2))]


def alone(row: int, length: int) -> Histories:
    return Histories(HISTORIES.items[row : row + 1, :length], torch.tensor([length]))


def walk(policy: Any, histories: Histories, codes: list[int], temperature: float) -> list[Tensor]:
    """Log-probability of each code: one history, one hypothesis, one code at a time."""
    state, scores = policy.start(policy.encode(histories)), []
    for code in codes:
        logits = policy.logits(state)[0, 0].double() / temperature
        scores.append((logits[code] - logits.logsumexp(0)).float())
        state = policy.advance(state, torch.tensor([[0]]), torch.tensor([[code]]))
    return scores


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_score_is_the_steps(policy, temperature, differentiable):
    codes = some_codes(policy, 3, 5)
    with torch.set_grad_enabled(differentiable):
        scores = policy.score(policy.encode(HISTORIES), codes, temperature=temperature)
    assert scores.shape == (3, 5, 3) and scores.dtype == torch.float32
    with torch.no_grad():
        expected = [
            [torch.stack(walk(policy, alone(b, int(HISTORIES.lengths[b])), row, temperature)) for row in group]
            for b, group in enumerate(codes.tolist())
        ]
    torch.testing.assert_close(
        scores.detach(), torch.stack([torch.stack(group) for group in expected]), rtol=1e-5, atol=5e-6
    )


@torch.no_grad()
def test_shapes(policy):
    context = policy.encode(HISTORIES)
    state = policy.start(context)
    assert len(context) == 3 and state.level == 0
    assert len(policy.level_sizes) == 3
    for level, (size, width) in enumerate(zip(policy.level_sizes, (1, 4, 6), strict=True)):
        assert policy.logits(state).shape == (3, width, size)
        assert policy.logits(state).dtype == torch.float32
        new = (4, 6, 2)[level]
        state = policy.advance(state, torch.zeros(3, new, dtype=torch.int64), torch.ones(3, new, dtype=torch.int64))
        assert state.level == level + 1


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(policy, temperature):
    codes = space(policy).expand(3, -1, 3)
    probabilities = policy.score(policy.encode(HISTORIES), codes, temperature=temperature).sum(-1).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3), rtol=1e-5, atol=0)
    assert probabilities.std(1).min() > 1e-3


@torch.no_grad()
def test_hypotheses_follow_their_parents(policy):
    context = policy.encode(HISTORIES)
    first = policy.advance(policy.start(context), torch.zeros(3, 3, dtype=torch.int64), torch.arange(3).expand(3, 3))
    parents, codes = torch.tensor([[2, 0, 2, 1]]).expand(3, 4), torch.tensor([[0, 1, 1, 0]]).expand(3, 4)
    logits = policy.logits(policy.advance(first, parents, codes)).log_softmax(-1)
    for hypothesis in range(4):
        lone = policy.start(context)
        for code in (parents[0, hypothesis], codes[0, hypothesis]):
            lone = policy.advance(lone, torch.zeros(3, 1, dtype=torch.int64), code.expand(3, 1))
        expected = policy.logits(lone)[:, 0].log_softmax(-1)
        torch.testing.assert_close(logits[:, hypothesis], expected, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_a_position_is_a_truncated_history(policy):
    codes = some_codes(policy, 7, 4)
    scores = policy.score(policy.encode(HISTORIES, ROWS, POSITIONS), codes)
    for n, (row, position) in enumerate(zip(ROWS.tolist(), POSITIONS.tolist(), strict=True)):
        lone = policy.score(policy.encode(alone(row, position + 1)), codes[n : n + 1])
        torch.testing.assert_close(scores[n], lone[0], rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_what_comes_later_is_not_seen(policy):
    codes = some_codes(policy, 7, 4)
    changed = HISTORIES.items.clone()
    changed[0, 3], changed[1, 2:], changed[2, 1:] = 8, 9, 9  # the last item of a history, and padding
    scores, others = (
        policy.score(policy.encode(Histories(items, HISTORIES.lengths), ROWS, POSITIONS), codes)
        for items in (HISTORIES.items, changed)
    )
    assert (scores[3] - others[3]).abs().max() > 1e-3
    kept = torch.arange(7) != 3
    torch.testing.assert_close(scores[kept], others[kept], rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(policy):
    codes = some_codes(policy, 3, 5)
    whole = policy.score(policy.encode(HISTORIES), codes)
    for b in range(3):
        lone = policy.score(policy.encode(alone(b, int(HISTORIES.lengths[b]))), codes[b : b + 1])
        torch.testing.assert_close(whole[b : b + 1], lone, rtol=1e-5, atol=5e-6)
        torch.testing.assert_close(
            whole[b : b + 1, :2], policy.score(policy.encode(HISTORIES), codes[:, :2])[b : b + 1], rtol=1e-5, atol=5e-6
        )


@torch.no_grad()
def test_the_context_can_be_cut(policy):
    codes = some_codes(policy, 3, 5)
    context = policy.encode(HISTORIES)
    whole = policy.score(context, codes)
    for rows in (torch.tensor([2, 0]), slice(1, None)):
        cut = context[rows]
        assert len(cut) == 2
        torch.testing.assert_close(policy.score(cut, codes[rows]), whole[rows], rtol=1e-5, atol=5e-6)
        drawn = sample(policy, cut, torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(policy.score(cut, drawn.codes), drawn.log_probs, rtol=1e-5, atol=5e-6)


@torch.no_grad()
def test_a_history_is_read_once_for_everything(policy):
    reader = READERS[type(policy)](policy)
    widths = []
    reader.register_forward_hook(
        lambda module, args, kwargs, output: widths.append((*args, *kwargs.values())[0].shape[1]), with_kwargs=True
    )
    context = policy.encode(HISTORIES)
    policy.score(context, some_codes(policy, 3, 1))
    sample(policy, context, torch.rand(3, 6, 3))
    beam_search(policy, context, 5)
    if not isinstance(policy, CausalLMPolicy):
        assert widths == [4]
        return
    # what a language model reads after its prompt are the codes of each: 1 x 2, then 6 and 6, then 4 or 5 and 5;
    # and each time what comes between the history and them
    before, after = len(policy.preamble), len(policy.suffix)
    between = [after] if after else []
    assert widths == [before + 4 * 3, after + 2, *between, 6, 6, *between, 4, 5]


@torch.no_grad()
def test_beam_search_finds_what_scoring_everything_finds(policy):
    context, codes = policy.encode(HISTORIES), space(policy)
    beams = beam_search(policy, context, len(codes))
    totals, order = policy.score(context, codes.expand(3, -1, 3)).sum(-1).sort(descending=True)
    torch.testing.assert_close(beams.scores, totals, rtol=1e-5, atol=1e-5)
    assert torch.equal(beams.codes[:, :10], codes[order][:, :10])


@pytest.mark.parametrize("constrained", [False, True])
@torch.no_grad()
def test_a_beam_knows_what_score_says(policy, constrained):
    context, trie = policy.encode(HISTORIES), Catalog.from_codes(CODES, policy.level_sizes).trie
    beams = beam_search(policy, context, 8, trie=trie if constrained else None)
    scores = score_sequences(policy, context, beams.codes)
    torch.testing.assert_close(beams.log_probs, scores, rtol=1e-6, atol=1e-6)
    both = beam_search_both(policy, context, 8, trie=trie)[0 if constrained else 1]
    torch.testing.assert_close(both.log_probs, scores, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_samples_come_as_often_as_score_says(policy):
    context, draws, codes = policy.encode(HISTORIES), 600, space(policy)
    drawn = sample(policy, context, torch.rand(3, draws, 3, generator=torch.Generator().manual_seed(3)))
    expected = policy.score(context, codes.expand(3, -1, 3)).sum(-1).exp()
    sizes = policy.level_sizes
    index = (drawn.codes * torch.tensor([sizes[1] * sizes[2], sizes[2], 1])).sum(-1)
    frequencies = torch.stack([row.bincount(minlength=len(codes)) for row in index]) / draws
    standard_error = (expected * (1 - expected) / draws).sqrt()
    often = expected * draws > 5
    assert often.sum() > 12
    assert ((frequencies - expected).abs() < 5 * standard_error)[often].all()


def test_the_loss_at_all_positions_is_that_of_each_history(policy):
    losses = policy.supervised_loss(policy.encode(HISTORIES, ROWS, POSITIONS), TARGETS)
    assert losses.shape == (7,)
    for n, (row, position) in enumerate(zip(ROWS.tolist(), POSITIONS.tolist(), strict=True)):
        lone = policy.supervised_loss(policy.encode(alone(row, position + 1)), TARGETS[n : n + 1])
        torch.testing.assert_close(losses[n : n + 1], lone, rtol=1e-5, atol=5e-6)


def test_a_policy_says_whether_its_loss_is_its_own_nll(policy):
    context = policy.encode(HISTORIES, ROWS, POSITIONS)
    loss = policy.supervised_loss(context, TARGETS)
    stated = -policy.score(context, CODES[TARGETS].unsqueeze(1)).mean(-1).squeeze(1)
    assert torch.allclose(loss, stated, rtol=1e-5, atol=1e-6) == policy.trains_on_nll


@pytest.mark.parametrize("shared", [False, True])
def test_a_micro_batch_without_nll_positions_has_no_loss_and_moves_nothing(policy, shared):
    no, yes = (torch.full((7,), value) for value in (False, True))
    batch = TrainingBatch(np.arange(3), HISTORIES, ROWS, POSITIONS, TARGETS, no, yes, np.zeros(3, np.int64))
    loss = nll_term(policy.train(), batch, 1, policy.encode(HISTORIES, ROWS, POSITIONS) if shared else None)
    assert loss.item() == 0
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


@pytest.mark.parametrize("term", ["score", "loss"])
def test_gradients_are_those_of_each_sequence_alone(policy, term):
    """The shared context against one pass for each completion, all parameters."""
    codes, weights = some_codes(policy, 7, 4), torch.randn(7, 4, 1, generator=torch.Generator().manual_seed(5))

    def together() -> Tensor:
        context = policy.encode(HISTORIES, ROWS, POSITIONS)
        if term == "loss":
            return policy.supervised_loss(context, TARGETS).sum()
        return (policy.score(context, codes) * weights).sum()

    def one_by_one() -> Tensor:
        total = torch.zeros(())
        for n, (row, position) in enumerate(zip(ROWS.tolist(), POSITIONS.tolist(), strict=True)):
            histories = alone(row, position + 1)
            if term == "loss":
                total = total + policy.supervised_loss(policy.encode(histories), TARGETS[n : n + 1]).sum()
                continue
            for g in range(4):
                scores = torch.stack(walk(policy, histories, codes[n, g].tolist(), 1.0))
                total = total + (scores * weights[n, g]).sum()
        return total

    parameters = dict(policy.named_parameters())
    actual, expected = (
        torch.autograd.grad(way(), list(parameters.values()), allow_unused=True) for way in (together, one_by_one)
    )
    scale = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for name, one, other in zip(parameters, actual, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_one_context_for_the_loss_and_the_scores_has_the_gradients_of_two(policy):
    """A target in the middle of a history may be another item than the one that follows there."""
    assert policy.same_in_training
    chosen, codes = torch.tensor([1, 4, 6]), some_codes(policy, 3, 5)
    for rows in (torch.arange(7), torch.tensor([0, 1, 2, 4, 6])):
        for targets in (TARGETS, TARGETS.roll(1)):
            actual = []
            for shared in (True, False):
                lone = copy.deepcopy(policy).train()
                context = lone.encode(HISTORIES, ROWS, POSITIONS)
                loss = lone.supervised_loss(context[rows], targets[rows]).sum()
                second = context if shared else lone.encode(HISTORIES, ROWS, POSITIONS)
                (loss + lone.score(second[chosen], codes).square().mean()).backward()
                actual.append([parameter.grad for parameter in lone.parameters()])
            for one, other in zip(*actual, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(policy):
    context = policy.encode(HISTORIES, ROWS, POSITIONS)
    (policy.score(context, some_codes(policy, 7, 5)).sum() + policy.supervised_loss(context, TARGETS).sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@torch.no_grad()
def test_weights_come_back_from_a_checkpoint(policy, request, tmp_path: Path):
    save_weights(tmp_path, policy.state_dict(), 7)
    other = make(request.node.callspec.params["frozen"], seed=3)
    codes = some_codes(policy, 3, 5)
    expected = policy.score(policy.encode(HISTORIES), codes)
    assert not torch.allclose(other.score(other.encode(HISTORIES), codes), expected)
    assert load_weights(tmp_path, other) == 7
    assert torch.equal(other.score(other.encode(HISTORIES), codes), expected)


def test_too_long_a_history_is_refused(policy):
    with pytest.raises(ValueError, match="5 positions"):
        policy.encode(Histories(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5])))
