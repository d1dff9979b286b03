"""A sequential ranker: the stand-in for a production ranker, and the reward of GRPO.

    score(x, i) = h(x) · e_i + b_i

`h` is SASRec (Kang and McAuley 2018) with three changes (`research/sequential_ranker`): input embeddings are
normalised, order is a learned number for each distance, and `h` has no dropout. Losses: binary cross-entropy of
`score + s_slot` on impressions, where `s_slot` absorbs position bias; cross-entropy of the next item over the catalogue
(Klenitskiy and Vasilev 2023), or over uniform negatives. Next-item rankers start from the tokenizer's item vectors,
without held-out users.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adagrpo.networks import CausalEncoder, initialise, sampled_softmax_loss, take_flat
from adagrpo.types import Histories


class SequentialRanker(nn.Module):
    """The ranker; implements `adagrpo.rewards.protocol.Reward`."""

    item_tables = ("items.weight", "bias.weight")  # of a row an item

    def __init__(
        self,
        num_items: int,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 2,
        max_history: int = 20,
        dropout: float = 0.5,
        slots: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.max_history = max_history
        self.items = nn.Embedding(num_items, width)
        self.bias = nn.Embedding(num_items, 1)
        self.slot_bias = nn.Embedding(slots, 1)
        self.encoder = CausalEncoder(width=width, layers=layers, heads=heads, max_length=max_history, dropout=dropout)
        initialise(self, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.slot_bias.weight)

    @torch.no_grad()
    def borrow(self, weights: Tensor) -> None:  # (N, V - N) sparse
        """Set vectors and biases of the last `N` items to `e_i = Σ_j w_j e_j`; rows of weights sum to 1."""
        for table in (self.items.weight, self.bias.weight):
            table[weights.shape[1] :] = weights @ table[: weights.shape[1]]

    def states(self, histories: Histories) -> Tensor:
        """Return (B, T, D) states; the one at `t` has seen items `0 .. t`."""
        output: Tensor = self.encoder(self.items(histories.items))
        return output

    def last_states(self, histories: Histories) -> Tensor:
        """Return (B, D) states of the whole histories."""
        output: Tensor = self.encoder(self.items(histories.items), histories.lengths - 1)
        return output.squeeze(1)

    def candidate_scores(self, states: Tensor, items: Tensor) -> Tensor:
        """Return (B, N) float32 scores of items from states (B, D); unspecified at -1."""
        items = items.clamp(min=0)
        products = torch.bmm(self.items(items), states.unsqueeze(-1).to(self.items.weight.dtype)).squeeze(-1)
        scores: Tensor = products.float() + self.bias(items).squeeze(-1)
        return scores

    def catalogue_scores(self, states: Tensor) -> Tensor:
        """Return (N, V) float32 scores of every item from states (N, D)."""
        return functional.linear(states, self.items.weight, self.bias.weight.squeeze(-1)).float()

    @torch.no_grad()
    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; deterministic."""
        was_training = self.training
        self.eval()
        scores = self.candidate_scores(self.last_states(histories), items)
        self.train(was_training)
        return scores

    def states_at(self, histories: Histories, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the (N, D) states of `positions` of `rows`, (N,) each."""
        return take_flat(self.states(histories), rows, positions)

    def next_item_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the (N,) cross-entropy over the catalogue of `targets` (N,) after `states` (N, D)."""
        everything = torch.arange(self.items.num_embeddings, device=targets.device)
        return self._cross_entropy(states, targets, self.items.weight, self.bias.weight, everything)

    def sampled_loss(self, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Return the (N,) cross-entropy of targets and shared `negatives` (S,); accidental hits are masked."""
        return self._cross_entropy(states, targets, self.items(negatives), self.bias(negatives), negatives)

    def _cross_entropy(self, states: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor, others: Tensor) -> Tensor:
        """(N,) with `others` (S,) of `vectors` (S, D) and `bias`."""
        positive = (states * self.items(targets)).sum(-1) + self.bias(targets).squeeze(-1)
        return sampled_softmax_loss(states, positive, vectors, bias.squeeze(-1), targets, others)

    def impression_loss(self, states: Tensor, items: Tensor, slots: Tensor, clicked: Tensor) -> Tensor:
        """Return the (N,) binary cross-entropy of `clicked` for `items` shown in `slots` after `states` (N, D)."""
        logits = (states * self.items(items)).sum(-1) + (self.bias(items) + self.slot_bias(slots)).squeeze(-1)
        return functional.binary_cross_entropy_with_logits(logits.float(), clicked.float(), reduction="none")
