"""RQ-VAE: an autoencoder of item vectors with a residual quantiser, trained jointly.

    z = f(x);   r_1 = z;   c_l = argmin_k |r_l - e_lk|²;   r_{l+1} = r_l - e_{l, c_l};   ẑ = Σ_l e_{l, c_l}
    loss = |x - g(z + sg(ẑ - z))|² + Σ_l ( |sg(r_l) - e_{l, c_l}|² + β |r_l - sg(e_{l, c_l})|² )

Source: Zeghidour et al., SoundStream (2021); Lee et al., CVPR 2022; TIGER (Rajput et al., NeurIPS 2023). Codebooks
start from residual k-means; codes unused for an epoch restart at random residuals, as in SoundStream and Jukebox.

Departures: the first tenth of the epochs trains the autoencoder alone; the learning rate follows a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adagrpo.semantic_ids.quantization import Quantization, nearest_centroid, residual_kmeans


def rq_vae(
    vectors: NDArray[np.float32],  # (V, D)
    *,
    levels: int,
    codes: int,  # `K`, the maximum number of codes per level
    seed: int,  # results repeat on the same machine and number of threads
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 3e-3,  # peak, of Adam
    hidden: int = 256,
    width: int = 64,
    commitment: float = 0.25,  # β
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Quantization:
    """Fit an RQ-VAE to item vectors and quantise them, in float32 on the CPU.

    Codes (V, L), `L` codebooks of at most (K, width), encoded items as points, and the decoder. `hidden` and `width`
    are of the hidden layers and of the encoding.
    """
    if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise ValueError(f"vectors has shape {vectors.shape}; expected a finite (V, D) matrix, V and D at least 1")
    counts = {"epochs": epochs, "batch_size": batch_size, "hidden": hidden, "width": width}
    wrong = [f"{name} {value}" for name, value in counts.items() if value < 1]
    if wrong or levels < 1 or codes < 1 or learning_rate <= 0 or commitment < 0:
        received = ", ".join(wrong) or f"{levels=}, {codes=}, {learning_rate=}, {commitment=}"
        raise ValueError(f"{received}: expected at least 1; learning_rate above 0, commitment at least 0")
    items = torch.tensor(vectors, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = (
            nn.Sequential(nn.Linear(enter, hidden), nn.ReLU(), nn.Linear(hidden, leave))
            for enter, leave in ((items.shape[1], width), (width, items.shape[1]))
        )
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=learning_rate)
    steps = epochs * math.ceil(len(items) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    codebooks: list[nn.Parameter] = []  # L of (K_l, width)
    for epoch in range(epochs):
        if epoch == epochs // 10:
            with torch.no_grad():
                start = residual_kmeans(encoder(items).numpy(), levels=levels, codes=codes, seed=seed)
            codebooks = [nn.Parameter(torch.tensor(codebook)) for codebook in start.codebooks]
            optimiser.param_groups[0]["params"].extend(codebooks)
        used = [torch.zeros(len(codebook), dtype=torch.bool) for codebook in codebooks]
        for rows in torch.split(torch.randperm(len(items), generator=generator), batch_size):
            loss, chosen = _losses(encoder, decoder, codebooks, items[rows], commitment)
            optimiser.zero_grad()
            torch.autograd.backward(loss.mean())
            optimiser.step()
            schedule.step()
            for seen, picked in zip(used, chosen, strict=True):
                seen[picked] = True
        if epoch + 1 < epochs and not all(bool(seen.all()) for seen in used):
            some = items[torch.randint(len(items), (codes,), generator=generator)]
            _, residuals = _quantise(encoder(some), codebooks)
            for codebook, seen, residual in zip(codebooks, used, residuals, strict=False):
                _restart(codebook, ~seen, residual, optimiser)
        report(epoch + 1, epochs)

    @torch.no_grad()
    def decode(points: NDArray[np.float32]) -> NDArray[np.float32]:
        decoded: NDArray[np.float32] = decoder(torch.from_numpy(points)).numpy()
        return decoded

    with torch.no_grad():
        encoded = encoder(items)
    chosen, _ = _quantise(encoded, codebooks)
    books = tuple(codebook.detach().numpy() for codebook in codebooks)
    return Quantization(torch.stack(chosen, dim=1).numpy(), books, encoded.numpy(), decode)


# encoded (B, width); codebooks L of (K_l, width)
def _quantise(encoded: Tensor, codebooks: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Return L of (B,) codes and L + 1 of (B, width) residuals, without gradients of the codebooks."""
    chosen, residuals = [], [encoded]
    for codebook in codebooks:
        picked, _ = nearest_centroid(residuals[-1].detach(), codebook.detach())
        chosen.append(picked)
        residuals.append(residuals[-1] - codebook.detach()[picked])
    return chosen, residuals


def _losses(
    encoder: nn.Module,
    decoder: nn.Module,
    codebooks: list[nn.Parameter],  # L of (K_l, width); none: an autoencoder
    items: Tensor,  # (B, D)
    commitment: float,
) -> tuple[Tensor, list[Tensor]]:
    """Return (B,) losses and L of (B,) codes."""
    encoded = encoder(items)
    chosen, residuals = _quantise(encoded, codebooks)
    # ẑ = z - last residual, with z's gradient
    passed = encoded - residuals[-1].detach() if codebooks else encoded
    loss = (items - decoder(passed)).square().sum(dim=1)
    for picked, residual, codebook in zip(chosen, residuals[:-1], codebooks, strict=True):
        vector = codebook[picked]
        loss = loss + (residual.detach() - vector).square().sum(dim=1)
        loss = loss + commitment * (residual - vector.detach()).square().sum(dim=1)
    return loss, chosen


# codebook (K, width), dead (K,) bool, residual (>= K, width)
@torch.no_grad()
def _restart(codebook: nn.Parameter, dead: Tensor, residual: Tensor, optimiser: torch.optim.Adam) -> None:
    codebook[dead] = residual[: len(codebook)][dead]
    for name in ("exp_avg", "exp_avg_sq"):
        optimiser.state[codebook][name][dead] = 0
