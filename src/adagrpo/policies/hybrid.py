"""The hybrid policy: a Semantic-ID decoder and an item-level head over one encoder, pooled into one distribution.

    q(i | x) = softmax_i(g(h) · e_i + b_i),  e_i = item_i + Σ_l E_l[c_l(i)]     q(c_l | x, c_<l) = m(c_<l c_l) / m(c_<l)
    log π(c_l | x, c_<l) = (1 - w) log p(c_l | ..) + w log((1 - η) q(c_l | ..) + η / K_l) + const

`p` is the compact policy's decoder, `m(prefix)` the probability of all items below a prefix. η keeps hallucination
visible; outside the catalogue only the decoder counts.

Source: LIGER (Yang et al. 2024); Hinton's product of experts (2002). Departure: dense scores take part in the search
instead of ranking its result, so the policy is a proper distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from adagrpo.errors import UserError
from adagrpo.networks import initialise, sampled_softmax_loss
from adagrpo.policies import compact
from adagrpo.policies.compact import CompactContext, CompactPolicy, CompactState
from adagrpo.policies.item_head import (
    HeadScores,
    HeadTable,
    crowded,
    exponentials,
    leaf_logits,
    leaves_below,
    shares_below,
    shares_of_branches,
    shares_of_codes,
    shares_within,
    sums_by_node,
    upwards,
)
from adagrpo.policies.spec import PolicySpec
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories

_TINY = 1e-30
_MANY = 2**22  # item logits; above, the last level is computed only for the prefixes that need it


@dataclass(eq=False)
class HybridContext:
    """Encoded samples with the scores of the item head."""

    compact: CompactContext  # N samples
    head_scores: HeadScores | None = None  # there once decoding without gradients began

    def __len__(self) -> int:
        return len(self.compact)

    def __getitem__(self, rows: Tensor | slice) -> HybridContext:
        return HybridContext(self.compact[rows], None if self.head_scores is None else self.head_scores.of(rows))


@dataclass(frozen=True)
class HybridState:
    """Decoder state of the compact policy, and nodes of hypotheses."""

    compact: CompactState
    nodes: Tensor  # (B, W) int64, -1 where the prefix is in no item's codes
    head_scores: HeadScores

    @property
    def level(self) -> int:
        """Number of codes written."""
        return self.compact.level


class HybridPolicy(nn.Module):
    """Hybrid policy, on the device of its trie; implements `adagrpo.policies.policy.Policy`."""

    small = True
    trains_on_nll = False  # each expert has its own loss
    checkpoint_files: Mapping[str, str] = MappingProxyType({})  # the run's configuration describes the weights
    item_tables = ("items.weight", "bias.weight")  # of a row an item

    def __init__(
        self,
        compact: CompactPolicy,
        trie: Trie,
        *,
        item_dropout: float = 0.5,  # share of history items that enter as codes only in training
        item_weight: float = 0.5,
        smoothing: float = 0.01,
        loss_weight: float = 1.0,  # of the head's cross-entropy relative to the NLL
        negatives: int = 2048,  # uniform samples for it, shared by a batch; 0: all items
        prefix: int = 0,  # 0: a softmax over all items; `p`: one over prefixes of `p` codes and one below each
        seed: int = 0,
    ) -> None:
        """Join an item head to a compact policy; `item_weight` is `w`, in [0, 1], and `smoothing` `η`."""
        super().__init__()
        if not 0 <= prefix < trie.num_levels:
            raise ValueError(f"prefix must be 0 or more and below the {trie.num_levels} levels, got {prefix}")
        width, count = compact.codes.embedding_dim, len(compact.item_codes)
        self.item_dropout, self.item_weight, self.smoothing = item_dropout, item_weight, smoothing
        self.loss_weight, self.negatives, self.prefix = loss_weight, negatives, prefix
        self.trie = trie
        self.items = nn.Embedding(count, width)
        self.bias = nn.Embedding(count, 1)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        initialise(self, std=0.02, generator=torch.Generator().manual_seed(seed + 1))
        nn.init.zeros_(self.bias.weight)
        with torch.no_grad():  # near the identity: state and item vectors start in the same space
            self.project.weight += torch.eye(width)
        self.compact, self.level_sizes = compact, compact.level_sizes
        self._leaves: HeadTable | None = None  # of the items by leaf, where the policy is frozen
        self._prefixes: HeadTable | None = None  # of the prefixes by node, likewise

    @property
    def same_in_training(self) -> bool:
        return self.item_dropout == 0 and self.compact.same_in_training

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> HybridContext:
        vectors = self.items(histories.items)
        if self.training and self.item_dropout > 0:
            kept = torch.rand(histories.items.shape, device=vectors.device) >= self.item_dropout
            vectors = vectors * kept.unsqueeze(-1)
        vectors = vectors + self.compact.code_vectors(histories.items)
        return HybridContext(self.compact.encode_vectors(vectors, histories.lengths, rows, positions))

    def frozen(self) -> HybridPolicy:
        """Return a copy with precomputed item vectors, see `Policy.frozen`."""
        copied = copy.copy(self)
        with torch.no_grad():
            copied._leaves = HeadTable(self._item_vectors(self.trie.items), self.bias(self.trie.items))
            copied._prefixes = HeadTable(*self._prefix_vectors()) if self.prefix else None
        return copied

    @torch.no_grad()
    def borrow(self, weights: Tensor) -> None:  # (N, V - N) sparse
        """Set the weights of the last `N` items to means: `item_i = Σ_j w_j item_j`, rows of sum 1."""
        for table in (self.items.weight, self.bias.weight):
            table[weights.shape[1] :] = weights @ table[: weights.shape[1]]

    def item_states(self, context: HybridContext) -> Tensor:
        """Return the (N, D) queries of the item head, `g(h)`."""
        output: Tensor = self.project(self.norm(context.compact.states))
        return output

    def item_logits(self, context: HybridContext, items: Tensor) -> Tensor:
        """Return the (N, I) float32 logits of `items` (I,)."""
        vectors = self._item_vectors(items)
        return functional.linear(self.item_states(context), vectors, self.bias(items).squeeze(-1)).float()

    def supervised_loss(self, context: HybridContext, targets: Tensor) -> Tensor:
        """Return the decoder's (N,) NLL, nats per code, plus the head's weighted loss."""
        decoder = self.compact.supervised_loss(context.compact, targets)
        if self.prefix:
            head = self._prefix_loss(context, targets)
        elif self.negatives == 0:
            every = torch.arange(self.items.num_embeddings, device=targets.device)
            head = functional.cross_entropy(self.item_logits(context, every), targets, reduction="none")
        else:
            drawn = torch.randint(self.items.num_embeddings, (self.negatives,), device=targets.device)
            states = self.item_states(context)
            positive = (states * self._item_vectors(targets)).sum(-1) + self.bias(targets).squeeze(-1)
            vectors, bias = self._item_vectors(drawn), self.bias(drawn).squeeze(-1)
            head = sampled_softmax_loss(states, positive, vectors, bias, targets, drawn)
        return decoder + self.loss_weight * head

    def _prefix_loss(self, context: HybridContext, targets: Tensor) -> Tensor:  # (N,), 0 for targets outside the tree
        leaf = self.trie.leaf_of[targets.clamp(max=len(self.trie.leaf_of) - 1)]
        known = leaf >= 0
        leaves, states = leaf[known], self.item_states(context)[known]
        ranges, count = self.trie.leaf_ranges[self.prefix], self.trie.node_counts[self.prefix]
        nodes = torch.searchsorted(ranges, leaves, right=True) - 1
        if self.negatives == 0:
            vectors, bias = self._prefix_vectors()
            logits = functional.linear(states, vectors, bias.squeeze(-1)).float()
            among = functional.cross_entropy(logits, nodes, reduction="none")
        else:
            drawn = torch.randint(count, (self.negatives,), device=targets.device)
            vectors, bias = self._prefix_vectors(drawn)
            own, own_bias = self._prefix_vectors(nodes)
            positive = (states * own).sum(-1) + own_bias.squeeze(-1)
            among = sampled_softmax_loss(states, positive, vectors, bias.squeeze(-1), nodes, drawn)
        below = leaves_below(self.trie, self.prefix, nodes.unsqueeze(1))
        shares = shares_within(below, leaf_logits(below, states, self._leaf_vectors))
        within = shares[below.counts.cumsum(0) - below.counts + leaves - ranges[nodes]]
        return torch.zeros(len(targets), device=targets.device).index_put(
            (known,), among - within.clamp(min=_TINY).log()
        )

    def start(self, context: HybridContext) -> HybridState:
        head_scores = None if torch.is_grad_enabled() else context.head_scores
        if head_scores is None:
            head_scores = self._head_scores(context)
            if not torch.is_grad_enabled():
                context.head_scores = head_scores
        nodes = torch.zeros(len(context), 1, dtype=torch.int64, device=context.compact.states.device)
        return HybridState(self.compact.start(context.compact), nodes, head_scores)

    def logits(self, state: HybridState) -> Tensor:
        """Return the pool's (B, W, K_l) float32 log-probabilities, up to a constant per hypothesis."""
        decoder = self.compact.logits(state.compact)
        size, (queries, masses) = decoder.shape[-1], state.head_scores
        weights = torch.where((state.nodes >= 0).unsqueeze(-1), 1 - self.item_weight, 1.0)
        # nobody else has the decoder's logits; where no gradient is wanted they need not be written again elsewhere
        pooled = decoder * weights if torch.is_grad_enabled() else decoder.mul_(weights)
        # the head's gain over a code of no item, whose share is the floor η / K: log(((1 - η) q + η / K) / (η / K))
        gain = (1 - self.smoothing) / max(self.smoothing / size, _TINY)
        known = masses[state.level : state.level + 2]  # of the nodes, and of those below; or the latter wait
        if len(known) == 2 and crowded(self.trie, state.level):
            share = shares_of_codes(self.trie, state.level, state.nodes, known[0], known[1])
            return pooled.add(torch.log1p(share * gain), alpha=self.item_weight)
        branches = self.trie.branches(state.level, state.nodes)
        if len(known) == 2:
            share = shares_of_branches(state.nodes, branches, known[0], known[1])
        else:
            share = shares_below(self.trie, state.level, state.nodes, branches, queries, self._leaf_vectors)
        head = self.item_weight * torch.log1p(share * gain)
        pooled.view(-1).index_add_(0, branches.parents * size + branches.codes, head)
        return pooled

    def advance(self, state: HybridState, parents: Tensor, codes: Tensor) -> HybridState:
        nodes = self.trie.child(state.level, state.nodes.gather(1, parents), codes)
        return HybridState(self.compact.advance(state.compact, parents, codes), nodes, state.head_scores)

    def score(self, context: HybridContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        hypotheses = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
        state, scores = self.start(context), []
        for level in range(codes.shape[2]):
            log_probs = (self.logits(state) / temperature).log_softmax(-1).expand(-1, codes.shape[1], -1)
            scores.append(log_probs.gather(-1, codes[..., level : level + 1]))
            state = self.advance(state, torch.zeros_like(hypotheses) if level == 0 else hypotheses, codes[..., level])
        return torch.cat(scores, dim=-1)

    def _item_vectors(self, items: Tensor) -> Tensor:
        vectors: Tensor = self.items(items) + self.compact.code_vectors(items)
        return vectors

    def _leaf_vectors(self, leaves: Tensor) -> tuple[Tensor, Tensor]:
        if self._leaves is not None:
            return self._leaves.vectors().index_select(0, leaves), self._leaves.bias.index_select(0, leaves).squeeze(-1)
        items = self.trie.items.index_select(0, leaves)
        return self._item_vectors(items), self.bias(items).squeeze(-1)

    def _prefix_vectors(self, nodes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, D) and (n, 1) biases of prefixes; logits bound log-mass from below (Jensen)."""
        if nodes is None:
            nodes = torch.arange(self.trie.node_counts[self.prefix], device=self.bias.weight.device)
        below = leaves_below(self.trie, self.prefix, nodes)
        items, offsets = self.trie.items.index_select(0, below.leaves), below.counts.cumsum(0) - below.counts
        mean = functional.embedding_bag(items, self.items.weight, offsets, mode="mean")
        rows, levels = self.compact.code_rows.index_select(0, items).flatten(), self.trie.num_levels
        codes = functional.embedding_bag(rows, self.compact.codes.weight, offsets * levels, mode="mean")
        bias = functional.embedding_bag(items, self.bias.weight, offsets, mode="mean")
        return mean + levels * codes, bias + below.counts.log().unsqueeze(-1)

    def _head_scores(self, context: HybridContext) -> HeadScores:
        """Masses of levels 0 .. p, or of all levels not left to `shares_below`."""
        queries, frozen = self.item_states(context), self._prefixes if self.prefix else self._leaves
        if frozen is not None:
            vectors, bias = frozen.vectors(), frozen.bias  # (n, D) and (n, 1) of the head's first softmax
        elif self.prefix:
            vectors, bias = self._prefix_vectors()
        else:
            vectors, bias = self._item_vectors(self.trie.items), self.bias(self.trie.items)
        level = self.prefix or self.trie.num_levels
        items, prefixes = self.trie.node_counts[-1], self.trie.node_counts[-2]
        if torch.is_grad_enabled():
            logits = functional.linear(queries, vectors).float() + bias.squeeze(-1)
            masses = functional.pad(logits.softmax(-1), (1, 0))
        elif self.prefix or items * len(queries) < _MANY or items > 64 * prefixes:
            masses = exponentials(vectors, queries, bias)
        else:  # computing item logits twice beats keeping them
            level -= 1
            masses = sums_by_node(vectors, queries, bias, self.trie.first[level])
        return HeadScores(queries, upwards(self.trie, masses, level))


def build(spec: PolicySpec) -> HybridPolicy:
    """Build the policy of a run; UserError if `item_prefix` is not below the number of levels."""
    options, levels = spec.options, len(spec.catalog.level_sizes)
    if options.item_prefix >= levels:
        raise UserError(
            f"policy.item_prefix: must be below the {levels} levels of the codes, got {options.item_prefix}"
        )
    return HybridPolicy(
        compact.build(spec),
        spec.catalog.trie,
        item_dropout=options.item_dropout,
        item_weight=options.item_weight,
        loss_weight=options.item_loss_weight,
        negatives=options.item_negatives,
        prefix=options.item_prefix,
        seed=spec.seed,
    )
