"""A small network that adds feature interactions to a fused list's weighted sum.

    g(x, i) = v · gelu(B gelu(A z(x, i) + a) + b)

`z` holds a candidate's features, their distances from the list mean, and −log(5 + rank) by each, all standardised. `v`
starts at 0; `A, B, v` maximise the likelihood of the choices on top of the weights (`adagrpo.lists.fit_fusion`). The
epochs, at most `most_epochs`, are the fewest within one standard error of the best held-out likelihood (Breiman et al.
1984); fewer than `BATCH` choices: no network.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LEAST_EPOCHS, MOST_EPOCHS, STEPS = 8, 24, 200  # as many epochs as give these steps
WIDTH, DROPOUT = 32, 0.2
BATCH, LEARNING_RATE, WARM_UP = 128, 3e-3, 50  # cases, and steps
DRAWING = threading.Lock()  # first weights are drawn by the generator of the process
HEAD = 5.0  # added to a rank before its logarithm


class CaseDropout(nn.Module):
    """Dropout of the same units for all candidates (B, N, W) of a case."""

    generator: torch.Generator | None = None  # of a fit's own draws

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, in training after dropout."""
        if not self.training:
            return values
        shape = (len(values), 1, values.shape[-1])
        kept = torch.empty(shape, device=values.device).bernoulli_(1 - DROPOUT, generator=self.generator)
        return values * kept.div_(1 - DROPOUT)


class Correction(nn.Module):
    """The network `g`; its output is 0 before training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        inputs = 3 * features
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        last = nn.Linear(WIDTH, 1, bias=False)
        nn.init.zeros_(last.weight)
        hidden = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        activated = [layer for linear in hidden for layer in (linear, nn.GELU(), CaseDropout())]
        self.layers = nn.Sequential(*activated, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the (B, N) corrections for inputs (B, N, 3F) from `inputs_of`."""
        added: Tensor = self.layers((inputs - self.mean) / self.deviation)
        return added.squeeze(-1)


class ChoiceTensors(NamedTuple):
    """User choices as tensors."""

    inputs: Tensor  # (N, C, 3F) of `inputs_of`
    there: Tensor  # (N, C) bool
    chosen: Tensor  # (N,) int64 indices of the logged items; of baskets (N, C) shares
    weights: Tensor  # (N,) of the cases

    def of(self, rows: Tensor) -> ChoiceTensors:
        """Select rows."""
        return ChoiceTensors(*(values[rows] for values in self))


def inputs_of(features: Tensor, there: Tensor) -> Tensor:
    """Return (B, N, 3F) inputs `z`, not standardised, of features (B, N, F); 0 without an item."""
    present = there.unsqueeze(-1)
    values = features.masked_fill(~present, 0.0)
    means = values.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
    order = features.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    numbers = torch.arange(features.shape[1], device=features.device)
    ranks = torch.empty_like(order).scatter_(1, order, numbers[None, :, None].expand_as(order))
    logs = -(HEAD + ranks).log()
    return torch.cat([values, values - means, logs], dim=-1).masked_fill(~present, 0.0)


def most_epochs(cases: int) -> int:
    """Return how many epochs are tried; 0 for too few cases."""
    return 0 if cases < BATCH else min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS * BATCH / cases)))


def fit_correction(cases: ChoiceTensors, scores: Tensor, epochs: int, seed: int) -> Iterator[Correction]:
    """Fit the network on top of weighted sums (N, C); yield it in evaluation mode after each epoch."""
    with DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = Correction(cases.inputs.shape[-1] // 3)
    inputs = cases.inputs[cases.there]
    if len(inputs):
        made.mean.copy_(inputs.mean(dim=0))
        made.deviation.copy_(inputs.std(dim=0, correction=0).clamp(min=1e-6))
    generator = torch.Generator().manual_seed(seed)
    for part in made.layers:
        if isinstance(part, CaseDropout):
            part.generator = generator
    optimizer = torch.optim.AdamW(made.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(cases.chosen) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / max(1, steps))
    )
    for _ in range(epochs):
        made.train()
        for rows in torch.split(torch.randperm(len(cases.chosen), generator=generator), BATCH):
            batch = cases.of(rows)
            logits = (scores[rows] + made(batch.inputs)).masked_fill(~batch.there, -torch.inf)
            losses = functional.cross_entropy(logits, batch.chosen, reduction="none")
            optimizer.zero_grad()
            torch.autograd.backward((losses * batch.weights).mean())
            optimizer.step()
            schedule.step()
        yield made.eval()


@torch.no_grad()
def corrected(made: Correction, inputs: Tensor, scores: Tensor) -> NDArray[np.float64]:
    """Return (N, C) scores plus the network's corrections."""
    added = torch.cat([made(part) for part in torch.split(inputs, 1024)])
    return (scores + added).double().numpy()


def fewest_epochs(likelihoods: NDArray[np.float64]) -> int:
    """Return the fewest epochs whose likelihood is within one standard error of the best.

    Args:
        likelihoods: (epochs + 1, N) weighted held-out log-likelihoods.

    >>> fewest_epochs(np.tile([[-1.0, -1.0], [-0.9, -0.8], [-0.95, -0.748]], 100))
    1
    """
    behind = likelihoods[likelihoods.mean(axis=1).argmax()] - likelihoods
    errors = behind.std(axis=1) / behind.shape[1] ** 0.5
    return int((behind.mean(axis=1) <= errors).argmax())
