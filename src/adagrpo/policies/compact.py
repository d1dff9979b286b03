"""The compact policy: a causal history encoder and a small Semantic-ID decoder, trained from scratch on a CPU.

    x_t = norm(Σ_l E_l[c_l(i_t)]),  h_0 = encoder(x)_t      one state per position
    π(c_l | x, c_<l) = softmax(W_l norm(h_{l-1}))           h_l = u + FF_l(u),  u = h_{l-1} + E'_l[c_l]

Departure: TIGER (Rajput et al. 2023) decodes with a transformer; a recurrent state makes wide beams cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from adagrpo.networks import CausalEncoder, Dropout, FeedForward, initialise, take, take_flat
from adagrpo.policies.spec import PolicySpec
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
    """Decoder state: one vector per hypothesis."""

    hidden: Tensor  # (B, W, D)
    level: int


class CompactPolicy(nn.Module):
    """Compact policy; implements `adagrpo.policies.policy.Policy`.

    `encoder`, replaceable, maps item vectors (B, T, D) to states (B, T, D), or (B, 1, D) at the positions `ends` (B,).
    """

    small = trains_on_nll = True
    checkpoint_files: Mapping[str, str] = MappingProxyType({})  # the run's configuration describes the weights
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
        self.level_sizes = tuple(level_sizes)
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
    def same_in_training(self) -> bool:
        return not any(isinstance(part, Dropout) and part.threshold for part in self.modules())

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> CompactContext:
        return self.encode_vectors(self.code_vectors(histories.items), histories.lengths, rows, positions)

    def code_vectors(self, items: Tensor) -> Tensor:
        """Return (..., D) sums of the codes' embeddings of items (...)."""
        # embedding_bag sums the L code vectors of an item without writing them out
        bags = self.code_rows[items.reshape(-1)]
        vectors = nn.functional.embedding_bag(bags, self.codes.weight, mode="sum")
        return vectors.view(*items.shape, self.codes.embedding_dim)

    def encode_vectors(
        self, vectors: Tensor, lengths: Tensor, rows: Tensor | None, positions: Tensor | None
    ) -> CompactContext:
        """Encode (B, T, D) item vectors of (B,) lengths."""
        if vectors.shape[1] > self.max_history:
            raise ValueError(f"histories have {vectors.shape[1]} positions, the policy takes {self.max_history}")
        if rows is not None and positions is not None:
            return CompactContext(take_flat(self.encoder(vectors), rows, positions))
        if self.training or torch.is_grad_enabled():  # dropout is drawn for every position, whatever is read
            rows = torch.arange(len(lengths), device=lengths.device)
            return CompactContext(self.encoder(vectors)[rows, lengths - 1])
        return CompactContext(self.encoder(vectors, lengths - 1).squeeze(1))

    def frozen(self) -> CompactPolicy:
        return self

    def supervised_loss(self, context: CompactContext, targets: Tensor) -> Tensor:
        codes = self.item_codes[targets]
        state, losses = self.start(context), []
        for level in range(codes.shape[1]):
            logits = self.logits(state).squeeze(1)
            losses.append(nn.functional.cross_entropy(logits, codes[:, level], reduction="none"))
            if level + 1 < codes.shape[1]:
                state = self._append(state.hidden, level, codes[:, level : level + 1])
        return torch.stack(losses, dim=1).mean(1)

    def start(self, context: CompactContext) -> CompactState:
        return CompactState(context.states.unsqueeze(1), 0)

    def logits(self, state: CompactState) -> Tensor:
        output: Tensor = self.heads[state.level](self.norms[state.level](state.hidden))
        return output.float()

    def advance(self, state: CompactState, parents: Tensor, codes: Tensor) -> CompactState:
        if state.level + 1 == len(self.level_sizes):  # complete: nothing will be read from these hypotheses
            return CompactState(state.hidden[:, :0], state.level + 1)
        # the single start is the parent of all: broadcast it
        hidden = state.hidden if state.hidden.shape[1] == 1 else take(state.hidden, parents)
        return self._append(hidden, state.level, codes)

    def _append(self, hidden: Tensor, level: int, codes: Tensor) -> CompactState:
        update = hidden + self.enter[level](codes)
        return CompactState(update + self.feed_forward[level](update), level + 1)

    def score(self, context: CompactContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
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
    """Build the policy of a run."""
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
