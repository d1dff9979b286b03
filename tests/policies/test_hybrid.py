"""The hybrid policy: the pool of decoder and item head against a walk over the catalogue, item by item."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from adagrpo.decoding import beam_search, sample
from adagrpo.policies import CompactPolicy, HybridPolicy, hybrid
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories

SIZES = (3, 2, 4)
SPACE = torch.tensor(list(itertools.product(*map(range, SIZES))))  # all 24 sequences
ITEM_CODES = SPACE[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:10]]
ITEMS = torch.arange(10)
HISTORIES = Histories(torch.tensor([[1, 5, 9, 2], [7, 3, 0, 0], [4, 0, 0, 0]]), torch.tensor([4, 2, 1]))
TARGETS = torch.tensor([3, 0, 8])


def make_policy(**options: float) -> HybridPolicy:
    compact = CompactPolicy(ITEM_CODES, SIZES, width=8, layers=1, heads=2, decoder_hidden=12, max_history=4, dropout=0)
    policy = HybridPolicy(compact, Trie.build(ITEM_CODES, SIZES), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # far from the initial weights, where everything is about equally likely
        for parameter in policy.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return policy.eval()


def space(codes: torch.Tensor) -> torch.Tensor:
    return codes.unsqueeze(0).expand(3, -1, -1)


@torch.no_grad()
def test_the_head_alone_is_a_softmax_over_items():
    policy = make_policy(item_weight=1.0, smoothing=0.0)
    context = policy.encode(HISTORIES)
    expected = policy.item_logits(context, ITEMS).log_softmax(-1)
    torch.testing.assert_close(policy.score(context, space(ITEM_CODES)).sum(-1), expected, rtol=1e-5, atol=1e-5)
    # nothing is left for sequences that name no item
    total = policy.score(context, space(SPACE)).sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(3), rtol=1e-5, atol=0)


@torch.no_grad()
def test_without_the_head_it_is_the_decoder():
    policy = make_policy(item_weight=0.0)
    context = policy.encode(HISTORIES)
    expected = policy.compact.score(context.compact, space(SPACE))
    torch.testing.assert_close(policy.score(context, space(SPACE)), expected, rtol=1e-5, atol=1e-5)


def item_probabilities(policy: HybridPolicy, b: int) -> list[float]:
    """What the head gives each item, by its definition."""
    context = policy.encode(HISTORIES)
    logits = policy.item_logits(context, ITEMS)[b].double()
    if policy.prefix == 0:
        return logits.softmax(0).tolist()
    query = policy.item_states(context)[b].double().detach()
    vectors = (policy.items.weight + policy.compact.code_vectors(ITEMS)).double().detach()
    biases = policy.bias.weight.double().detach()
    below: dict[tuple[int, ...], list[int]] = {}
    for item, codes in enumerate(ITEM_CODES.tolist()):
        below.setdefault(tuple(codes[: policy.prefix]), []).append(item)
    of_prefix = [
        float(query @ vectors[items].mean(0) + biases[items].mean()) + math.log(len(items)) for items in below.values()
    ]
    probabilities = [0.0] * len(ITEMS)
    for items, share in zip(below.values(), torch.tensor(of_prefix).softmax(0).tolist(), strict=True):
        for item, within in zip(items, logits[items].softmax(0).tolist(), strict=True):
            probabilities[item] = share * within
    return probabilities


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("temperature", "many"), [(1.0, 2**22), (0.7, 2**22), (1.0, 0)])
@torch.no_grad()
def test_the_pool_by_hand(temperature, many, prefix, monkeypatch):
    monkeypatch.setattr(hybrid, "_MANY", many)  # from here on the last level is made prefix by prefix
    policy = make_policy(item_weight=0.3, smoothing=0.05, prefix=prefix)
    context = policy.encode(HISTORIES)
    scores = policy.score(context, space(SPACE), temperature=temperature)
    items = [item_probabilities(policy, b) for b in range(3)]
    for b, s in itertools.product(range(3), range(24)):
        prefix: tuple[int, ...] = ()
        state = policy.compact.start(context.compact)
        for level, code in enumerate(SPACE[s].tolist()):
            decoder = policy.compact.logits(state)[b, 0].log_softmax(-1).tolist()
            below = [
                sum(p for p, row in zip(items[b], ITEM_CODES.tolist(), strict=True) if row[: level + 1] == [*prefix, k])
                for k in range(SIZES[level])
            ]
            pooled = decoder
            if sum(below) > 0:
                head = [math.log(0.95 * mass / sum(below) + 0.05 / SIZES[level]) for mass in below]
                pooled = [0.7 * p + 0.3 * q for p, q in zip(decoder, head, strict=True)]
            logits = torch.tensor(pooled, dtype=torch.float64) / temperature
            expected = float(logits[code] - logits.logsumexp(0))
            assert float(scores[b, s, level]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            state = policy.compact.advance(state, torch.zeros(3, 1).long(), torch.full((3, 1), code))
            prefix = (*prefix, code)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(prefix):
    policy = make_policy(prefix=prefix)
    total = policy.score(policy.encode(HISTORIES), space(SPACE)).sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("constrained", "prefix"), [(False, 0), (True, 0), (False, 2), (True, 2), (True, 1)])
@torch.no_grad()
def test_beam_search_finds_what_scoring_everything_finds(constrained, prefix):
    policy = make_policy(prefix=prefix)
    context = policy.encode(HISTORIES)
    codes = ITEM_CODES if constrained else SPACE
    beams = beam_search(policy, context, 24, trie=policy.trie if constrained else None)
    totals, order = policy.score(context, space(codes)).sum(-1).sort(descending=True)
    count = len(codes)
    torch.testing.assert_close(beams.scores[:, :count], totals, rtol=1e-5, atol=1e-5)
    assert torch.equal(beams.codes[:, :count], codes[order])


@torch.no_grad()
def test_sampling_and_scoring_agree():
    policy = make_policy()
    context = policy.encode(HISTORIES)
    drawn = sample(policy, context, torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(policy.score(context, drawn.codes), drawn.log_probs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 2])
@torch.no_grad()
def test_a_context_can_be_cut_before_and_after_the_head_has_spoken(prefix):
    policy = make_policy(prefix=prefix)
    context = policy.encode(HISTORIES)
    whole = policy.score(context, space(SPACE))
    has_text = policy.start(context)
    assert has_text.level == 0 and len(context) == 3
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(policy.score(context[rows], space(SPACE)[:2]), whole[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@torch.no_grad()
def test_a_frozen_policy_says_the_same(prefix):
    policy = make_policy(prefix=prefix)
    frozen = policy.frozen()
    expected = policy.score(policy.encode(HISTORIES), space(SPACE))
    assert torch.equal(frozen.score(frozen.encode(HISTORIES), space(SPACE)), expected)
    policy.items.weight.add_(1.0)  # that is what frozen means: only a new copy sees it
    assert not torch.equal(policy.score(policy.encode(HISTORIES), space(SPACE)), expected)


@pytest.mark.parametrize("prefix", [0, 2])
@torch.no_grad()
def test_item_vectors_are_computed_when_a_policy_is_frozen_and_not_for_its_requests(monkeypatch, prefix):
    policy = make_policy(prefix=prefix)
    frozen = policy.frozen()
    calls: list[str] = []
    for name in ("_item_vectors", "_prefix_vectors"):
        original = getattr(HybridPolicy, name)

        def counted(self, *arguments, original=original, name=name):
            calls.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(HybridPolicy, name, counted)
    for _ in range(3):
        beam_search(frozen, frozen.encode(HISTORIES), 10, trie=policy.trie)
    assert calls == []
    policy.items.weight.add_(torch.randn(policy.items.weight.shape, generator=torch.Generator().manual_seed(2)))
    again = policy.frozen()  # as when a model is exchanged: nothing of the former one is kept
    assert calls == (["_item_vectors", "_prefix_vectors"] if prefix else ["_item_vectors"])
    found = beam_search(again, again.encode(HISTORIES), 10, trie=policy.trie)
    expected = beam_search(policy, policy.encode(HISTORIES), 10, trie=policy.trie)
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.codes, expected.codes)
    former = beam_search(frozen, policy.encode(HISTORIES), 10, trie=policy.trie)
    assert not torch.equal(former.scores, expected.scores)


def test_the_head_speaks_once_a_context_without_gradients_and_again_with_them(monkeypatch):
    policy = make_policy()
    calls = []
    monkeypatch.setattr(
        policy, "item_states", lambda context: calls.append(1) or HybridPolicy.item_states(policy, context)
    )
    context = policy.encode(HISTORIES)
    for _ in range(2):
        beam_search(policy, context, 5, trie=policy.trie)
    sample(policy, context, torch.rand(3, 4, 3))
    with torch.no_grad():
        policy.score(context, space(SPACE))
    assert len(calls) == 1
    policy.score(context, space(ITEM_CODES[:2])).sum().backward()  # what was kept has no gradient
    assert len(calls) == 2 and bool(policy.project.weight.grad.any())


def test_each_expert_learns_by_itself():
    policy = make_policy(negatives=0, loss_weight=0.25)
    context = policy.encode(HISTORIES)
    decoder = -policy.compact.score(context.compact, ITEM_CODES[TARGETS].unsqueeze(1)).mean((1, 2))
    head = functional.cross_entropy(policy.item_logits(context, ITEMS), TARGETS, reduction="none")
    torch.testing.assert_close(policy.supervised_loss(context, TARGETS), decoder + 0.25 * head, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_sampled_negatives_leave_out_the_target_and_count_it_once():
    policy = make_policy(negatives=500, loss_weight=2.0)
    context = policy.encode(HISTORIES)
    torch.manual_seed(3)
    actual = policy.supervised_loss(context, TARGETS)
    torch.manual_seed(3)
    drawn = torch.randint(10, (500,)).tolist()
    logits = policy.item_logits(context, ITEMS)
    decoder = policy.compact.supervised_loss(context.compact, TARGETS)
    for b, target in enumerate(TARGETS.tolist()):
        others = torch.stack([logits[b, item] for item in drawn if item != target])
        expected = torch.cat([logits[b, target].unsqueeze(0), others]).logsumexp(0) - logits[b, target]
        assert float(actual[b]) == pytest.approx(float(decoder[b] + 2.0 * expected), rel=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("negatives", [0, 8])
def test_no_samples_have_no_loss(negatives, prefix):
    policy = make_policy(negatives=negatives, prefix=prefix).train()
    none = torch.zeros(0, dtype=torch.int64)
    loss = policy.supervised_loss(policy.encode(HISTORIES, none, none), none)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert not any(bool(parameter.grad.any()) for parameter in policy.parameters())


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.usefixtures("two_threads")
def test_no_histories_have_no_scores(differentiable, prefix):
    policy = make_policy(prefix=prefix)
    with torch.set_grad_enabled(differentiable):
        context = policy.encode(Histories(HISTORIES.items[:0], HISTORIES.lengths[:0]))
        assert len(context) == 0 and policy.score(context, SPACE.expand(0, -1, -1)).shape == (0, 24, 3)


@pytest.mark.parametrize("prefix", [1, 2])
@torch.no_grad()
def test_the_loss_over_prefixes_is_that_of_the_item_among_all(prefix):
    policy = make_policy(negatives=0, loss_weight=0.5, prefix=prefix)
    context = policy.encode(HISTORIES)
    decoder = policy.compact.supervised_loss(context.compact, TARGETS)
    head = [-math.log(item_probabilities(policy, b)[target]) for b, target in enumerate(TARGETS.tolist())]
    actual = policy.supervised_loss(context, TARGETS)
    torch.testing.assert_close(actual, decoder + 0.5 * torch.tensor(head), rtol=1e-5, atol=1e-6)


def test_sampled_prefixes_leave_out_that_of_the_target():
    policy = make_policy(negatives=300, prefix=2)
    context = policy.encode(HISTORIES)
    torch.manual_seed(3)
    actual = policy.supervised_loss(context, TARGETS)
    actual.sum().backward()
    assert policy.items.weight.grad is not None and bool(policy.items.weight.grad[TARGETS].any(1).all())
    actual = actual.detach()
    prefixes = sorted({tuple(codes[:2]) for codes in ITEM_CODES.tolist()})
    torch.manual_seed(3)
    drawn = torch.randint(len(prefixes), (300,)).tolist()
    decoder = policy.compact.supervised_loss(context.compact, TARGETS).detach()
    for b, target in enumerate(TARGETS.tolist()):
        items = item_probabilities(policy, b)
        mass = dict.fromkeys(prefixes, 0.0)
        for item, codes in enumerate(ITEM_CODES.tolist()):
            mass[tuple(codes[:2])] += items[item]
        own = tuple(ITEM_CODES[target, :2].tolist())
        others = sum(mass[prefixes[node]] for node in drawn if prefixes[node] != own)
        expected = math.log((mass[own] + others) / mass[own]) + math.log(mass[own] / items[target])
        assert float(actual[b]) == pytest.approx(float(decoder[b]) + expected, rel=1e-5)


def test_an_item_that_the_tree_does_not_hold_teaches_the_decoder_alone():
    policy = make_policy(prefix=2)
    policy.trie = Trie.build(ITEM_CODES[:8], SIZES)
    context = policy.encode(HISTORIES)
    loss, decoder = policy.supervised_loss(context, TARGETS), policy.compact.supervised_loss(context.compact, TARGETS)
    assert (loss == decoder).tolist() == [False, False, True]  # the last target is item 8


@pytest.mark.parametrize("prefix", [-1, 3])
def test_a_prefix_is_shorter_than_the_codes(prefix):
    with pytest.raises(ValueError, match=f"below the 3 levels, got {prefix}"):
        make_policy(prefix=prefix)


def test_item_dropout_leaves_the_codes_and_only_while_training():
    policy = make_policy(item_dropout=0.999999)
    policy.train()
    codes_alone = policy.compact.encode(HISTORIES).states
    torch.testing.assert_close(policy.encode(HISTORIES).compact.states, codes_alone)
    policy.eval()
    vectors = policy.items(HISTORIES.items) + policy.compact.code_vectors(HISTORIES.items)
    expected = policy.compact.encode_vectors(vectors, HISTORIES.lengths, None, None).states
    torch.testing.assert_close(policy.encode(HISTORIES).compact.states, expected)
    assert not torch.allclose(expected, codes_alone)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_gradient_of_a_rollout_reaches_both_experts(prefix):
    policy = make_policy(prefix=prefix)
    policy.score(policy.encode(HISTORIES), space(ITEM_CODES[:2])).sum().backward()
    for name in ("items.weight", "bias.weight", "project.weight", "compact.codes.weight", "compact.heads.0.weight"):
        gradient = policy.get_parameter(name).grad
        assert gradient is not None and bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0, name


def test_the_gradient_of_a_score_is_finite_where_a_prefix_has_almost_no_mass():
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    compact = CompactPolicy(codes, (2, 2), width=8, layers=1, heads=2, decoder_hidden=12, max_history=4, dropout=0)
    policy = HybridPolicy(compact, Trie.build(codes, (2, 2)), item_weight=0.5, smoothing=0.01).eval()
    with torch.no_grad():
        for table in (policy.items, policy.compact.codes):  # the logit of an item is its bias
            table.weight.zero_()
        policy.bias.weight.copy_(torch.tensor([[0.0], [0.0], [-45.0], [-45.0]]))
    histories = Histories(torch.tensor([[0]]), torch.tensor([1]))
    score = policy.score(policy.encode(histories), torch.tensor([[[1, 0]]]))
    assert bool(score.isfinite().all())
    score.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)
    # d/db_0 of log(.99 q_k + .005) is ±.25 * .99 / (.495 + .005) = ±.495 at q = 1/2; half of it is in the logits of the
    # pool, one up and one down, and d log π(0) is 1 - π(0) of their difference
    expected = 0.495 * (1 - float(score[0, 0, 1].detach().exp()))
    assert policy.bias.weight.grad[2:].flatten().tolist() == pytest.approx([expected, -expected], rel=1e-4)


def test_initial_weights_are_a_function_of_the_seed():
    weights = []
    for seed in (0, 0, 1):
        compact = CompactPolicy(ITEM_CODES, SIZES, width=8, layers=1, heads=2, decoder_hidden=12, max_history=4)
        weights.append(HybridPolicy(compact, Trie.build(ITEM_CODES, SIZES), seed=seed).items.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
