r"""What a fused list adds to its weighted sum where features act together: a small network over them.

    g(x, i) = v · gelu(B gelu(A z(x, i) + a) + b)

`z` are the features of a candidate, their distance from the mean of the list, and −log(5 + place) of the candidate in
the order of each, equals in the order of the list, all standardised over the candidates of the choices. `v` starts at
0, so that the list begins in the order of the weights, and `A, B, v` are fitted by the likelihood of those
(`adagrpo.lists.fit_fusion`) on top of them. How long is decided by users held out: the fewest of `EPOCHS` passes whose
likelihood is within one standard error of the best one's (Breiman et al. 1984). Where that is none, and on fewer than
`BATCH` choices, the weights stay alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 8
WIDTH, DROPOUT = 32, 0.1
BATCH, LEARNING_RATE, WARM_UP = 128, 5e-3, 50  # cases, and steps
HEAD = 5.0  # added to a place before its logarithm


class Correction(nn.Module):
    """`g`; at first 0."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        """Draw the weights.

        Args:
            features: `F`.
        """
        super().__init__()
        inputs = 3 * features
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        last = nn.Linear(WIDTH, 1, bias=False)
        nn.init.zeros_(last.weight)
        hidden = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        activated = [layer for linear in hidden for layer in (linear, nn.GELU(), nn.Dropout(DROPOUT))]
        self.layers = nn.Sequential(*activated, last)

    def standardise(self, held: Tensor) -> None:
        """Take means and deviations of inputs, (M, 3F) of candidates."""
        if len(held):
            self.mean.copy_(held.mean(dim=0))
            self.deviation.copy_(held.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, N) what is added to the scores of candidates; `inputs` are (B, N, 3F) of `inputs_of`."""
        added: Tensor = self.layers((inputs - self.mean) / self.deviation)
        return added.squeeze(-1)


class ChoiceTensors(NamedTuple):
    """Choices of users, as the network reads them."""

    inputs: Tensor  # (N, C, 3F) of `inputs_of`
    there: Tensor  # (N, C) bool
    chosen: Tensor  # (N,) int64 places of the logged items
    weights: Tensor  # (N,) of the cases

    def of(self, rows: Tensor) -> ChoiceTensors:
        """Some of them."""
        return ChoiceTensors(*(values[rows] for values in self))


def inputs_of(features: Tensor, there: Tensor) -> Tensor:
    """(B, N, 3F) `z` before it is standardised; 0 where there is no item.

    Args:
        features: (B, N, F) float32.
        there: (B, N) bool, where there is an item.
    """
    held = there.unsqueeze(-1)
    values = features.masked_fill(~held, 0.0)
    means = values.sum(dim=1, keepdim=True) / held.sum(dim=1, keepdim=True).clamp(min=1)
    order = features.masked_fill(~held, -torch.inf).argsort(dim=1, descending=True, stable=True)
    numbers = torch.arange(features.shape[1], device=features.device)
    places = torch.empty_like(order).scatter_(1, order, numbers[None, :, None].expand_as(order))
    logs = -(HEAD + places).log()
    return torch.cat([values, values - means, logs], dim=-1).masked_fill(~held, 0.0)


def fit_correction(cases: ChoiceTensors, scores: Tensor, seed: int) -> Iterator[Correction]:
    """Fit the network to choices, on top of the weighted sum.

    Args:
        cases: `N` whose logged item is a candidate.
        scores: (N, C) of the weights.
        seed: of the order of cases, the first weights and dropout.

    Yields:
        The network, in evaluation mode, after each of `EPOCHS` passes; the same object each time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = Correction(cases.inputs.shape[-1] // 3)
        made.standardise(cases.inputs[cases.there])
        optimizer = torch.optim.AdamW(made.parameters(), lr=LEARNING_RATE)
        steps = EPOCHS * -(-len(cases.chosen) // BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / max(1, steps))
        )
        for _ in range(EPOCHS):
            made.train()
            for rows in torch.split(torch.randperm(len(cases.chosen)), BATCH):
                part = cases.of(rows)
                logits = (scores[rows] + made(part.inputs)).masked_fill(~part.there, -torch.inf)
                losses = functional.cross_entropy(logits, part.chosen, reduction="none")
                optimizer.zero_grad()
                torch.autograd.backward((losses * part.weights).mean())
                optimizer.step()
                schedule.step()
            yield made.eval()


@torch.no_grad()
def corrected(made: Correction, inputs: Tensor, scores: Tensor) -> NDArray[np.float64]:
    """(N, C) scores with what the network adds."""
    added = torch.cat([made(part) for part in torch.split(inputs, 1024)])
    return (scores + added).double().numpy()


def fewest_epochs(likelihoods: NDArray[np.float64]) -> int:
    """The fewest passes that are no worse than the best number by more than one standard error.

    Args:
        likelihoods: (EPOCHS + 1, N) of held-out cases after 0, 1, ... passes, each times the weight of its case.

    Example:
        >>> fewest_epochs(np.tile([[-1.0, -1.0], [-0.9, -0.8], [-0.91, -0.79]], 100))
        1
    """
    behind = likelihoods[likelihoods.mean(axis=1).argmax()] - likelihoods
    errors = behind.std(axis=1) / behind.shape[1] ** 0.5
    return int((behind.mean(axis=1) <= errors).argmax())
