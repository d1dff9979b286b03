"""The hybrid policy: a Semantic-ID decoder and an item-level head over one encoder, pooled into one distribution.

The decoder of the compact policy writes codes, `p(c_l | x, c_<l)`. The head is that of a sequential recommender: a
softmax over all items, whose mass falls on the tree of the catalogue's codes,

    q(i | x) = softmax_i(g(h) · e_i + b_i),  e_i = item_i + Σ_l E_l[c_l(i)]     q(c_l | x, c_<l) = m(c_<l c_l) / m(c_<l)

with `m(prefix)` the probability of all items below a prefix. Code by code the two are pooled geometrically:

    log π(c_l | x, c_<l) = (1 - w) log p(c_l | ..) + w log((1 - η) q(c_l | ..) + η / K_l) + const

The decoder generalises over items that share a prefix, the head remembers the single item and tells apart what shares
its prefix; an item enters the encoder both as its codes and as itself, the latter with dropout so that the codes are
used too. Everything else (sampling, scoring, beam search, GRPO) sees one policy over codes. η leaves codes that name
no item a chance, so that hallucination stays visible; where a prefix has left the catalogue, only the decoder speaks.

Source: LIGER (Yang et al. 2024) joins generative and dense retrieval, ranking the beam by the dense score; the pool of
experts is Hinton's product (2002) with weights that sum to one. Where we depart: the dense scores take part in the
search itself, so no second ranking stage is needed and the result is a proper distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adagrpo.networks.layers import initialise
from adagrpo.networks.sampled_softmax import sampled_softmax_loss
from adagrpo.policies.compact import CompactContext, CompactPolicy, CompactState
from adagrpo.semantic_ids.trie import Trie
from adagrpo.types import Histories

__all__ = ["HybridContext", "HybridPolicy", "HybridState"]

_TINY = 1e-30
_BLOCK = 2**18  # logits


@dataclass(eq=False)
class HybridContext:
    """Encoded samples, and what the item head says about them."""

    compact: CompactContext  # N samples
    masses: tuple[Tensor, ...] | None = None  # see `HybridPolicy._masses`; there once decoding without gradients began

    def __len__(self) -> int:
        return len(self.compact)

    def __getitem__(self, rows: Tensor | slice) -> HybridContext:
        masses = None if self.masses is None else tuple(mass[:, rows] for mass in self.masses)
        return HybridContext(self.compact[rows], masses)


@dataclass(frozen=True)
class HybridState:
    """Decoder state: that of the compact policy, and each hypothesis's node in the tree."""

    compact: CompactState
    nodes: Tensor  # (B, W) int64, -1 where the prefix is in no item's codes
    masses: tuple[Tensor, ...]

    @property
    def level(self) -> int:
        """How many codes have been written."""
        return self.compact.level


class HybridPolicy(nn.Module):
    """See the module's text; implements `adagrpo.policies.policy.Policy`. Lives on the device of the trie."""

    item_tables = ("items.weight", "bias.weight")  # of a row an item

    def __init__(
        self,
        compact: CompactPolicy,
        trie: Trie,
        *,
        item_dropout: float = 0.5,
        item_weight: float = 0.5,
        smoothing: float = 0.01,
        loss_weight: float = 1.0,
        negatives: int = 2048,
        seed: int = 0,
    ) -> None:
        """Join a head to a compact policy.

        Args:
            compact: encoder and decoder.
            trie: of the same catalogue.
            item_dropout: share of the items of a history that enter as their codes alone while training.
            item_weight: `w`, the share of the item head in the pool, in [0, 1].
            smoothing: `η`.
            loss_weight: of the head's cross-entropy beside the NLL of the decoder.
            negatives: uniformly sampled for that cross-entropy, shared by a batch; 0 takes the whole catalogue.
            seed: of the initial weights.
        """
        super().__init__()
        width, count = compact.codes.embedding_dim, len(compact.item_codes)
        self.item_dropout, self.item_weight, self.smoothing = item_dropout, item_weight, smoothing
        self.loss_weight, self.negatives = loss_weight, negatives
        self.trie = trie
        self.items = nn.Embedding(count, width)
        self.bias = nn.Embedding(count, 1)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        initialise(self, std=0.02, generator=torch.Generator().manual_seed(seed + 1))
        nn.init.zeros_(self.bias.weight)
        with torch.no_grad():  # near the identity: state and item vectors start in the same space
            self.project.weight += torch.eye(width)
        self.compact = compact
        self._vectors: Tensor | None = None  # of the items by leaf, where the policy is frozen
        self._biases: Tensor | None = None  # (V, 1) likewise
        self._low: Tensor | None = None  # the same in the precision of autocast, once that was asked for

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`."""
        return self.compact.level_sizes

    @property
    def same_in_training(self) -> bool:
        """See `Policy.same_in_training`; what is drawn for the head's loss does not touch the context."""
        return self.item_dropout == 0 and self.compact.same_in_training

    @property
    def trains_on_nll(self) -> bool:
        """False: each expert has a loss of its own, and none is the pool's, see `Policy.trains_on_nll`."""
        return False

    @property
    def body_parameters(self) -> Sequence[nn.Parameter]:
        """None: all train together."""
        return ()

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        """None: the run's configuration says what the weights are of."""
        return {}

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> HybridContext:
        """Encode histories into samples, see `Policy.encode`; the head waits until decoding asks for it."""
        vectors = self.items(histories.items)
        if self.training and self.item_dropout > 0:
            kept = torch.rand(histories.items.shape, device=vectors.device) >= self.item_dropout
            vectors = vectors * kept.unsqueeze(-1)
        vectors = vectors + self.compact.code_vectors(histories.items)
        return HybridContext(self.compact.encode_vectors(vectors, histories.lengths, rows, positions))

    def frozen(self) -> HybridPolicy:
        """See `Policy.frozen`: the vectors of all items are computed once."""
        copied = copy.copy(self)
        with torch.no_grad():
            copied._vectors, copied._low = self._item_vectors(self.trie.items), None
            copied._biases = self.bias(self.trie.items)
        return copied

    @torch.no_grad()
    def borrow(
        self,
        weights: Tensor,  # (N, V - N) sparse
    ) -> None:
        """Give the last `N` items what items that they are like have beside their codes: `item_i = Σ_j w_j item_j`.

        Args:
            weights: `w`, rows of sum 1; the biases too are the means under them.
        """
        for table in (self.items.weight, self.bias.weight):
            table[weights.shape[1] :] = weights @ table[: weights.shape[1]]

    def item_states(self, context: HybridContext) -> Tensor:
        """(N, D) queries of the item head, `g(h)`."""
        output: Tensor = self.project(self.norm(context.compact.states))
        return output

    def item_logits(self, context: HybridContext, items: Tensor) -> Tensor:
        """(N, I) float32 logits of `items` (I,)."""
        vectors = self._item_vectors(items)
        return functional.linear(self.item_states(context), vectors, self.bias(items).squeeze(-1)).float()

    def supervised_loss(self, context: HybridContext, targets: Tensor) -> Tensor:
        """(N,) loss of the logged items `targets` (N,): each expert learns by itself, the pool adds nothing to learn.

        The decoder's NLL in nats a code, plus `loss_weight` times the head's cross-entropy.
        """
        decoder = self.compact.supervised_loss(context.compact, targets)
        if self.negatives == 0:
            every = torch.arange(self.items.num_embeddings, device=targets.device)
            head = functional.cross_entropy(self.item_logits(context, every), targets, reduction="none")
        else:
            drawn = torch.randint(self.items.num_embeddings, (self.negatives,), device=targets.device)
            states = self.item_states(context)
            positive = (states * self._item_vectors(targets)).sum(-1) + self.bias(targets).squeeze(-1)
            vectors, bias = self._item_vectors(drawn), self.bias(drawn).squeeze(-1)
            head = sampled_softmax_loss(states, positive, vectors, bias, targets, drawn)
        return decoder + self.loss_weight * head

    def start(self, context: HybridContext) -> HybridState:
        """(B, 1) hypotheses."""
        masses = None if torch.is_grad_enabled() else context.masses
        if masses is None:
            masses = self._masses(context)
            if not torch.is_grad_enabled():
                context.masses = masses
        nodes = torch.zeros(len(context), 1, dtype=torch.int64, device=context.compact.states.device)
        return HybridState(self.compact.start(context.compact), nodes, masses)

    def logits(self, state: HybridState) -> Tensor:
        """(B, W, K_l) float32 log-probabilities of the pool, up to a constant a hypothesis."""
        decoder = self.compact.logits(state.compact)
        (samples, hypotheses), size = state.nodes.shape, decoder.shape[-1]
        above, below = state.masses[state.level : state.level + 2]  # (n_l, B) and (n_{l+1}, B)
        branches = self.trie.branches(state.level, state.nodes)
        rows = torch.arange(samples, device=decoder.device).repeat_interleave(hypotheses)  # (B * W,)
        total = above.flatten().index_select(0, state.nodes.flatten().clamp(min=0) * samples + rows)
        places = branches.nodes * samples + rows.index_select(0, branches.parents)
        pooled_mass = below.flatten().index_select(0, places)  # (T,)
        share = pooled_mass / total.clamp(min=_TINY).index_select(0, branches.parents)
        floor = self.smoothing / size
        # what the head adds above a code of no item, whose share is the floor
        head = self.item_weight * (((1 - self.smoothing) * share + floor) / max(floor, _TINY)).clamp(min=_TINY).log()
        known = (state.nodes >= 0).unsqueeze(-1)
        weights = torch.where(known, 1 - self.item_weight, 1.0)
        # nobody else has the decoder's logits; where no gradient is wanted they need not be written again elsewhere
        pooled = decoder * weights if torch.is_grad_enabled() else decoder.mul_(weights)
        pooled.view(-1).index_add_(0, branches.parents * size + branches.codes, torch.where(pooled_mass > 0, head, 0.0))
        return pooled

    def advance(self, state: HybridState, parents: Tensor, codes: Tensor) -> HybridState:
        """Append codes (B, W') to hypotheses `parents` (B, W')."""
        nodes = self.trie.child(state.level, state.nodes.gather(1, parents), codes)
        return HybridState(self.compact.advance(state.compact, parents, codes), nodes, state.masses)

    def score(self, context: HybridContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """(B, G, L) log-probabilities of given codes under the free softmax of each level."""
        hypotheses = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
        state, scores = self.start(context), []
        for level in range(codes.shape[2]):
            log_probs = (self.logits(state) / temperature).log_softmax(-1).expand(-1, codes.shape[1], -1)
            scores.append(log_probs.gather(-1, codes[..., level : level + 1]))
            state = self.advance(state, torch.zeros_like(hypotheses) if level == 0 else hypotheses, codes[..., level])
        return torch.cat(scores, dim=-1)

    def _item_vectors(self, items: Tensor) -> Tensor:
        """(..., D) `e_i`."""
        vectors: Tensor = self.items(items) + self.compact.code_vectors(items)
        return vectors

    def _leaf_vectors(self) -> Tensor:
        """(V, D) `e_i` by leaf, in the precision that a product with them is computed in.

        Autocast would convert all of them for every product, which takes longer than the product.
        """
        if self._vectors is None:
            return self._item_vectors(self.trie.items)
        device = self._vectors.device.type
        wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if wanted == self._vectors.dtype:
            return self._vectors
        if self._low is None or self._low.dtype != wanted:
            self._low = self._vectors.to(wanted)
        return self._low

    def _leaf_masses(self, states: Tensor, bias: Tensor) -> Tensor:
        """(V, N) exponentials of the logits below the highest of each sample.

        A softmax over the first dimension takes several times as long. What is done to a logit is done to a block of
        them while the processor's cache holds it.
        """
        vectors, count = self._leaf_vectors(), len(states)
        masses = torch.empty(len(vectors), count, dtype=torch.float32, device=states.device)
        size = max(1, _BLOCK // count)
        blocks = [slice(first, first + size) for first in range(0, len(vectors), size)]
        highest = []
        for block in blocks:
            masses[block].copy_(functional.linear(vectors[block], states)).add_(bias[block])
            highest.append(masses[block].amax(0))
        top = torch.stack(highest).amax(0)
        for block in blocks:
            masses[block].sub_(top).exp_()
        return masses

    def _masses(self, context: HybridContext) -> tuple[Tensor, ...]:
        """L + 1 of (n_l, N): probability of the items below each node of levels 0 .. L, up to a factor a sample."""
        states = self.item_states(context)
        bias = self.bias(self.trie.items) if self._biases is None else self._biases
        if torch.is_grad_enabled():
            levels = [(functional.linear(self._leaf_vectors(), states).float() + bias).softmax(0)]
        else:
            levels = [self._leaf_masses(states, bias)]
        for first in reversed(self.trie.first):
            # the children of a node follow each other
            children = torch.arange(len(levels[-1]), device=states.device)
            levels.append(functional.embedding_bag(children, levels[-1], first[:-1], mode="sum"))
        return tuple(reversed(levels))
