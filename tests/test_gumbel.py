"""Drawing without replacement against loops, and against the probabilities of drawing one after the other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from adagrpo.decoding import gumbel_top_k
from adagrpo.errors import NotFinite
from adagrpo.semantic_ids.trie import Trie


class Table:
    """A policy of two levels: logits (3,) of the first code, (3, 4) of the second; a context is how many samples."""

    level_sizes = (3, 4)

    def __init__(self, scale: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(3, generator=generator) * scale
        self.second = torch.randn(3, 4, generator=generator) * scale

    def start(self, context: int) -> tuple[int, Tensor]:
        return 0, torch.zeros(context, 1, dtype=torch.int64)

    def logits(self, state: tuple[int, Tensor]) -> Tensor:
        level, prefixes = state
        return self.second[prefixes] if level else self.first.expand(*prefixes.shape, 3)

    def advance(self, state: tuple[int, Tensor], parents: Tensor, codes: Tensor) -> tuple[int, Tensor]:
        return state[0] + 1, codes

    def log_probs(self, temperature: float = 1.0, allowed: Tensor | None = None) -> dict[tuple[int, int], list[float]]:
        """Both codes' log-probabilities of every sequence, of what is allowed."""
        found = {}
        pairs = list(itertools.product(range(3), range(4))) if allowed is None else [tuple(a) for a in allowed.tolist()]
        heads = {a for a, _ in pairs}
        first = {a: math.exp(float(self.first[a]) / temperature) for a in heads}
        for a, b in pairs:
            second = {c: math.exp(float(self.second[a, c]) / temperature) for d, c in pairs if d == a}
            found[a, b] = [math.log(first[a] / sum(first.values())), math.log(second[b] / sum(second.values()))]
        return found


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return -(-torch.rand(shape, generator=generator).log()).log()


@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("constrained", [False, True])
def test_draws_follow_the_loop(group, temperature, constrained):
    policy, samples = Table(), 6
    allowed = torch.tensor([[0, 1], [0, 3], [1, 0], [1, 1], [1, 2], [2, 2], [2, 3]]) if constrained else None
    trie = None if allowed is None else Trie.build(allowed, (3, 4))
    drawn = gumbel_top_k(policy, samples, group, torch.Generator().manual_seed(1), temperature=temperature, trie=trie)
    generator = torch.Generator().manual_seed(1)
    log_probs = policy.log_probs(temperature, allowed)
    roots, first = noise((samples, 1), generator), noise((samples, 1, 3), generator)
    kept = min(group + 1, 3)
    second = noise((samples, kept, 4), generator)
    for b in range(samples):
        lanes = [((), 0.0, float(roots[b, 0]))]
        for level, gumbels in enumerate((first, second)):
            grown = []
            for lane, (codes, total, maximum) in enumerate(lanes):
                children = {}
                for code in range(policy.level_sizes[level]):
                    ways = [value for key, value in log_probs.items() if key[: level + 1] == (*codes, code)]
                    if ways:
                        children[code] = (total + ways[0][level], float(gumbels[b, lane, code]))
                highest = max(phi + g for phi, g in children.values())
                for code, (phi, g) in children.items():
                    shifted = -math.log(math.exp(-maximum) - math.exp(-highest) + math.exp(-(phi + g)))
                    grown.append(((*codes, code), phi, shifted))
            lanes = sorted(grown, key=lambda lane: -lane[2])[: group + 1]
        threshold = lanes[group][2] if len(lanes) > group else -math.inf
        for g, (codes, total, _) in enumerate(lanes[:group]):
            assert tuple(drawn.codes[b, g].tolist()) == codes
            torch.testing.assert_close(drawn.log_probs[b, g].tolist(), log_probs[codes], rtol=1e-5, atol=1e-5)
            inclusion = 1 - math.exp(-math.exp(total - threshold))
            assert drawn.inclusion[b, g].item() == pytest.approx(inclusion, rel=1e-3)  # cancels in float32


def test_pairs_come_as_often_as_drawing_one_after_the_other():
    policy, draws = Table(), 20_000
    drawn = gumbel_top_k(policy, draws, 2, torch.Generator().manual_seed(2))
    probabilities = {codes: math.exp(sum(both)) for codes, both in policy.log_probs().items()}
    counted = {}
    for one, other in drawn.codes.tolist():
        key = tuple(one), tuple(other)
        counted[key] = counted.get(key, 0) + 1
    for (one, p), (other, q) in itertools.permutations(probabilities.items(), 2):
        expected = p * q / (1 - p)
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(counted.get((one, other), 0) / draws - expected) < 5 * error + 3 / draws
    assert all(one != other for one, other in counted)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_weighted_by_inclusion_it_estimates_the_mean(group):
    policy, draws = Table(), 20_000
    drawn = gumbel_top_k(policy, draws, group, torch.Generator().manual_seed(3))
    value = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    of_drawn = value[drawn.codes[..., 0], drawn.codes[..., 1]]
    estimates = (drawn.log_probs.sum(-1).exp() / drawn.inclusion * of_drawn).sum(-1)
    expected = sum(math.exp(sum(both)) * float(value[codes]) for codes, both in policy.log_probs().items())
    assert abs(float(estimates.mean()) - expected) < 5 * float(estimates.std()) / math.sqrt(draws)


def test_all_there_is_and_nothing_twice():
    allowed = torch.tensor([[0, 1], [1, 0], [1, 3]])
    drawn = gumbel_top_k(Table(), 4, 5, torch.Generator().manual_seed(0), trie=Trie.build(allowed, (3, 4)))
    for codes, log_probs, inclusion in zip(*drawn, strict=True):
        assert sorted(codes[:3].tolist()) == allowed.tolist()
        assert codes[3:].tolist() == [[-1, -1]] * 2
        assert inclusion.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
        assert log_probs[:3].isfinite().all() and (log_probs[3:] == -torch.inf).all()
    every = gumbel_top_k(Table(), 2, 30, torch.Generator().manual_seed(0))
    assert every.codes.shape == (2, 30, 2)
    assert len({tuple(codes) for codes in every.codes[0, :12].tolist()}) == 12
    torch.testing.assert_close(every.log_probs[0, :12].sum(-1).exp().sum(), torch.tensor(1.0))


def test_what_cannot_be_drawn_is_said():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="group must be at least 1"):
        gumbel_top_k(Table(), 2, 0, generator)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        gumbel_top_k(Table(), 2, 1, generator, temperature=0.0)
    policy = Table()
    policy.first[0] = torch.nan
    with pytest.raises(NotFinite, match="level 1"):
        gumbel_top_k(policy, 2, 1, generator)
