"""The compact policy: a causal history encoder and a small Semantic-ID decoder, trained from scratch on a CPU.

Encoder: each item of the history is the sum of its code embeddings, `x_t = norm(Σ_l E_l[c_l(i_t)])`; a causal
transformer that knows order by distance turns them into one state a position, so one forward pass serves the NLL of
every position.

Decoder: from the state `h_0 = h(x)` of a position,

    π(c_l | x, c_<l) = softmax(W_l norm(h_{l-1}))        h_l = u + FF_l(u),  u = h_{l-1} + E'_l[c_l]

TIGER (Rajput et al. 2023) decodes with a transformer over the codes written so far. With at most a handful of levels a
recurrent state does the same work, and the cache of a beam is one vector: that is what makes wide beams cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adagrpo.networks.layers import CausalEncoder, Dropout, FeedForward, initialise, take
from adagrpo.policies.kinds import PolicyKind, PolicySpec
from adagrpo.types import Histories


@dataclass(frozen=True)
class CompactContext:
    """Encoded samples."""

    states: Tensor  # (N, D)

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> CompactContext:
        return CompactContext(self.states[rows])


@dataclass(frozen=True)
class CompactState:
    """Decoder state: one vector a hypothesis."""

    hidden: Tensor  # (B, W, D)
    level: int


class CompactPolicy(nn.Module):
    """See the module's text; implements `adagrpo.policies.policy.Policy`."""

    item_codes: Tensor
    code_rows: Tensor

    def __init__(
        self,
        item_codes: Tensor,  # (V, L) int64
        level_sizes: tuple[int, ...],
        *,
        width: int = 160,
        layers: int = 2,
        heads: int = 4,
        decoder_hidden: int = 320,
        max_history: int = 20,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if item_codes.ndim != 2 or item_codes.shape[1] != len(level_sizes):
            raise ValueError(f"item_codes must be (V, {len(level_sizes)}), got {tuple(item_codes.shape)}")
        self._level_sizes = tuple(level_sizes)
        self.max_history = max_history
        offsets = torch.tensor([0, *level_sizes[:-1]]).cumsum(0)
        self.register_buffer("item_codes", item_codes, persistent=False)
        self.register_buffer("code_rows", item_codes + offsets, persistent=False)  # rows of the one code table
        self.codes = nn.Embedding(sum(level_sizes), width)
        self.encoder = CausalEncoder(width=width, layers=layers, heads=heads, max_length=max_history, dropout=dropout)
        self.enter = nn.ModuleList(nn.Embedding(size, width) for size in level_sizes[:-1])
        self.feed_forward = nn.ModuleList(FeedForward(width, decoder_hidden, dropout) for _ in level_sizes[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in level_sizes)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in level_sizes)
        initialise(self, std=0.02, generator=torch.Generator().manual_seed(seed))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`."""
        return self._level_sizes

    @property
    def small(self) -> bool:
        """True, see `Policy.small`."""
        return True

    @property
    def same_in_training(self) -> bool:
        """See `Policy.same_in_training`."""
        return not any(isinstance(part, Dropout) and part.threshold for part in self.modules())

    @property
    def trains_on_nll(self) -> bool:
        """See `Policy.trains_on_nll`."""
        return True

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        """None: the run's configuration says what the weights are of."""
        return {}

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> CompactContext:
        """Encode histories into samples, see `Policy.encode`. Histories longer than `max_history` are refused."""
        return self.encode_vectors(self.code_vectors(histories.items), histories.lengths, rows, positions)

    def code_vectors(self, items: Tensor) -> Tensor:
        """(...) int64 items to (..., D), the sum of each item's code embeddings."""
        # embedding_bag sums the L code vectors of an item without writing them out
        bags = self.code_rows[items.reshape(-1)]
        vectors = nn.functional.embedding_bag(bags, self.codes.weight, mode="sum")
        return vectors.view(*items.shape, self.codes.embedding_dim)

    def encode_vectors(
        self, vectors: Tensor, lengths: Tensor, rows: Tensor | None, positions: Tensor | None
    ) -> CompactContext:
        """`encode` from the (B, T, D) vectors of the items of histories of the given (B,) lengths."""
        if rows is not None and positions is not None:
            return CompactContext(self.encoder(vectors)[rows, positions])
        if self.training or torch.is_grad_enabled():  # dropout is drawn for every position, whatever is read
            rows = torch.arange(len(lengths), device=lengths.device)
            return CompactContext(self.encoder(vectors)[rows, lengths - 1])
        return CompactContext(self.encoder(vectors, lengths - 1).squeeze(1))

    def frozen(self) -> CompactPolicy:
        """The policy itself: nothing is worth computing beforehand."""
        return self

    def supervised_loss(self, context: CompactContext, targets: Tensor) -> Tensor:
        """(N,) NLL of the logged items `targets` (N,), nats a code."""
        codes = self.item_codes[targets]
        state, losses = self.start(context), []
        for level in range(codes.shape[1]):
            logits = self.logits(state).squeeze(1)
            losses.append(nn.functional.cross_entropy(logits, codes[:, level], reduction="none"))
            if level + 1 < codes.shape[1]:
                state = self._append(state.hidden, level, codes[:, level : level + 1])
        return torch.stack(losses, dim=1).mean(1)

    def start(self, context: CompactContext) -> CompactState:
        """(B, 1) hypotheses."""
        return CompactState(context.states.unsqueeze(1), 0)

    def logits(self, state: CompactState) -> Tensor:
        """(B, W, K_l) float32."""
        output: Tensor = self.heads[state.level](self.norms[state.level](state.hidden))
        return output.float()

    def advance(self, state: CompactState, parents: Tensor, codes: Tensor) -> CompactState:
        """Append codes (B, W') to hypotheses `parents` (B, W')."""
        if state.level + 1 == len(self._level_sizes):  # complete: nothing will be read from these hypotheses
            return CompactState(state.hidden[:, :0], state.level + 1)
        # the single start is the parent of all: broadcast it
        hidden = state.hidden if state.hidden.shape[1] == 1 else take(state.hidden, parents)
        return self._append(hidden, state.level, codes)

    def _append(self, hidden: Tensor, level: int, codes: Tensor) -> CompactState:
        """The state after codes (B, W) of a level, from the hidden vectors (B, 1 or W, D) of the same hypotheses."""
        update = hidden + self.enter[level](codes)
        return CompactState(update + self.feed_forward[level](update), level + 1)

    def score(self, context: CompactContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """(B, G, L) log-probabilities of given codes under the free softmax of each level."""
        state = self.start(context)
        scores = []
        for level in range(codes.shape[2]):
            logits = self.logits(state) if temperature == 1.0 else self.logits(state) / temperature
            log_probs = logits.log_softmax(-1).expand(-1, codes.shape[1], -1)
            scores.append(log_probs.gather(-1, codes[..., level : level + 1]))
            if level + 1 < codes.shape[2]:
                state = self._append(state.hidden, level, codes[..., level])
        return torch.cat(scores, dim=-1)


def build(spec: PolicySpec) -> CompactPolicy:
    """Make one over the catalogue of a run."""
    options = spec.options
    return CompactPolicy(
        spec.catalog.codes,
        spec.catalog.level_sizes,
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        decoder_hidden=options.decoder_hidden,
        max_history=spec.max_history,
        dropout=options.dropout,
        seed=spec.seed,
    )


KIND = PolicyKind(build)
