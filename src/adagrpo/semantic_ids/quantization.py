"""Residual k-means: item vectors to short code sequences, with shared prefixes for similar items.

    r_0 = x;   c_l = argmin_k |r_{l-1} - e_lk|²;   r_l = r_{l-1} - e_{l, c_l}          x ≈ Σ_l e_{l, c_l}

Source: Chen, Guan & Wang, Sensors 2010 (RQ-KMeans of OneRec-style tokenizers); k-means++ (Arthur & Vassilvitskii, SODA
2007); fitted on a sample as in faiss (Johnson, Douze & Jégou 2019).

Departures: an empty cluster restarts at the item farthest from its centroid; a level has at most as many codes as
distinct residuals; balanced clusters fill closest pairs first (`assign_within`), not one by one as in
OneRec (Deng et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FITTED, A_CODE = 2**18, 256  # codebooks are fitted on at most this many items, or this many per code if more
DISTANCES = 2**26  # of points and centroids that are in memory at a time
_NUMBERS = 2**26  # of vectors whose squares are summed at a time
_ROWS = 2**12  # compared with a new seed at a time, to stay in the cache

# Squared distances below this share of the mean squared norm of the input are float32 rounding, not structure.
_FLOOR = 1e-12

# (V, D) points and (K, D) centroids to the (V,) int64 centroid of each and the (V,) squared distance to it.
_Assignment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Quantization:
    """Codes of `V` vectors and codebooks; `points` are the vectors, or an encoding that `decode` maps back."""

    codes: NDArray[np.int64]  # (V, L)
    codebooks: tuple[NDArray[np.float32], ...]  # L of (K_l, D)
    points: NDArray[np.float32]  # (V, D)
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda points: points

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def residual(self, level: int) -> NDArray[np.float32]:
        """Return the (V, D) residual after the first `level` codes."""
        left = self.points
        for codes, codebook in list(zip(self.codes.T, self.codebooks, strict=True))[:level]:
            left = left - codebook[codes]
        return left

    def reconstruct(self) -> NDArray[np.float32]:
        """Return the (V, D) reconstructed vectors."""
        total = self.codebooks[0][self.codes[:, 0]]
        for level, codebook in enumerate(self.codebooks[1:], start=1):
            total += codebook[self.codes[:, level]]
        return self.decode(total)


def residual_kmeans(
    vectors: NDArray[np.float32],  # (V, D)
    *,
    levels: int,
    codes: int,
    seed: int,  # codes repeat on the same machine and number of threads
    iterations: int = 20,
    cluster_bound: float | None = None,  # most items per code as a multiple of V / K, at least 1; None: no bound
) -> Quantization:
    """Quantise item vectors: codes (V, L) and `L` codebooks of at most (K, D)."""
    if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise ValueError(f"vectors has shape {vectors.shape}; expected a finite (V, D) matrix, V and D at least 1")
    if levels < 1 or codes < 1 or iterations < 0:
        raise ValueError(f"levels {levels}, codes {codes}, iterations {iterations}: expected at least 1, 1 and 0")
    if cluster_bound is not None and not 1 <= cluster_bound < math.inf:
        raise ValueError(f"cluster_bound {cluster_bound}: expected a finite number, at least 1")

    def assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        if cluster_bound is None:
            return nearest_centroid(points, centroids)
        most = math.ceil(round(cluster_bound * len(points) / len(centroids), 9))  # rounded: 1.1 * 100 / 10 is above 11
        squares = points.square().sum(dim=1, keepdim=True) + centroids.square().sum(dim=1)
        distances = torch.addmm(squares, points, centroids.T, alpha=-2).clamp(min=0)
        chosen = torch.from_numpy(assign_within(distances.numpy(), np.full(len(centroids), most)))
        return chosen, distances.gather(1, chosen.unsqueeze(1)).squeeze(1)

    generator = torch.Generator().manual_seed(seed)
    residual = torch.tensor(vectors, dtype=torch.float32)
    floor = _FLOOR * float(residual.square().sum(dim=1).mean())
    fitted: Tensor | None = None  # (N,) the rows that codebooks are fitted on, where these are not all
    if len(vectors) > (most := max(FITTED, A_CODE * codes)):
        fitted = torch.randperm(len(vectors), generator=generator)[:most].sort().values
    chosen, codebooks = [], []
    for _ in range(levels):
        sample = residual if fitted is None else residual[fitted]
        centroids = _seed_centroids(sample, codes, floor, generator)
        centroids, nearest = _lloyd(sample, centroids, iterations, assign)
        if fitted is not None:
            nearest, _ = assign(residual, centroids)
        for rows, codes_of_rows in zip(torch.split(residual, _ROWS), torch.split(nearest, _ROWS), strict=True):
            rows -= centroids[codes_of_rows]
        chosen.append(nearest)
        codebooks.append(centroids.numpy())
    return Quantization(torch.stack(chosen, dim=1).numpy(), tuple(codebooks), vectors.astype(np.float32, copy=False))


def level_means(codes: NDArray[np.int64], vectors: NDArray[np.float32]) -> Quantization:  # codes (V, L), vectors (V, D)
    """Fit codebooks (largest code + 1, D): mean residuals by code, level by level; unused ones get the overall mean."""
    if codes.ndim != 2 or vectors.ndim != 2 or len(codes) != len(vectors) or 0 in codes.shape:
        raise ValueError(f"codes {codes.shape}, vectors {vectors.shape}: expected (V, L) and (V, D), not empty")
    residual = vectors.astype(np.float64)
    codebooks = []
    for chosen in codes.T:
        counts = np.bincount(chosen)
        sums = np.zeros((len(counts), vectors.shape[1]))
        np.add.at(sums, chosen, residual)
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], residual.mean(axis=0))
        residual -= means[chosen]
        codebooks.append(means.astype(np.float32))
    return Quantization(codes.astype(np.int64), tuple(codebooks), vectors)


# vectors and reconstruction (V, D)
def reconstruction_error(vectors: NDArray[np.float32], reconstruction: NDArray[np.float32]) -> float:
    """Return `Σ |x - x̂|² / Σ |x - x̄|²`, the unexplained share of the variance; 0 without variance."""
    if vectors.shape != reconstruction.shape:
        raise ValueError(f"vectors {vectors.shape}, reconstruction {reconstruction.shape}: expected the same")
    step = max(1, _NUMBERS // max(1, vectors.shape[1]))
    blocks = [slice(first, first + step) for first in range(0, len(vectors), step)]
    mean = sum(vectors[rows].astype(np.float64).sum(axis=0) for rows in blocks) / max(1, len(vectors))
    total = left = 0.0
    for rows in blocks:
        exact = vectors[rows].astype(np.float64)
        total += float(np.square(exact - mean).sum())
        left += float(np.square(exact - reconstruction[rows]).sum())
    return left / total if total > 0 else 0.0


def nearest_centroid(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:  # points (V, D), centroids (K, D)
    """Return the (V,) int64 nearest centroid and the (V,) squared distance to it."""
    squares = centroids.square().sum(dim=1)
    parts = []
    for block in torch.split(points, max(1, DISTANCES // len(centroids))):
        gap, nearest = torch.addmm(squares, block, centroids.T, alpha=-2).min(dim=1)
        parts.append((nearest, (gap + block.square().sum(dim=1)).clamp(min=0)))
    nearest, distance = (torch.cat(column) for column in zip(*parts, strict=True))
    return nearest, distance


# points (V, D) float32 -> at most (codes, D) k-means++ seeds
def _seed_centroids(points: Tensor, codes: int, floor: float, generator: torch.Generator) -> Tensor:
    uniforms = torch.rand(codes, generator=generator, dtype=torch.float64)
    seeds = [points[int(uniforms[0] * len(points))]]
    # Exact differences, not |x|² - 2x·c + |c|²: a duplicate of a seed must come out at zero.
    distance = _squared_distances(points, seeds[0])
    for uniform in uniforms[1:]:
        mass = torch.where(distance > floor, distance, 0).to(torch.float64).cumsum(dim=0)
        if mass[-1] <= 0:
            break
        # `right` skips the points of no mass that precede the one drawn.
        drawn = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
        seed = points[min(drawn, len(points) - 1)]
        seeds.append(seed)
        distance = torch.minimum(distance, _squared_distances(points, seed))
    return torch.stack(seeds)


def _squared_distances(points: Tensor, seed: Tensor) -> Tensor:  # points (V, D), seed (D,) -> (V,)
    return torch.cat([(block - seed).square_().sum(dim=1) for block in torch.split(points, _ROWS)])


def _lloyd(
    points: Tensor,  # (V, D) float32
    centroids: Tensor,  # (K, D) float32
    iterations: int,
    assign: _Assignment = nearest_centroid,
) -> tuple[Tensor, Tensor]:  # (K, D) centroids, and the (V,) int64 centroid of every point
    nearest, distance = assign(points, centroids)
    for _ in range(iterations):
        counts = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        centroids = sums / counts.clamp(min=1).unsqueeze(1)
        empty = torch.nonzero(counts == 0).squeeze(1)
        if len(empty):
            farthest = distance.topk(len(empty)).indices
            centroids[empty] = points[farthest]
        previous = nearest
        nearest, distance = assign(points, centroids)
        if torch.equal(nearest, previous):
            break
    return centroids, nearest


# distances (N, K), capacities (K,)
def assign_within(distances: NDArray[np.floating], capacities: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the (N,) int64 bin of each point, with no bin above its capacity, closest pairs first.

    Deferred acceptance (Gale & Shapley 1962). Ties go to the lower point, then the lower bin. ValueError if shapes
    disagree, a distance is not finite, or capacities are too small.
    """
    if distances.ndim != 2 or capacities.shape != distances.shape[1:] or not np.isfinite(distances).all():
        shapes = f"distances {distances.shape}, capacities {capacities.shape}"
        raise ValueError(f"{shapes}: expected finite (N, K) and (K,)")
    points, bins = distances.shape
    if (capacities < 0).any() or capacities.sum() < points:
        raise ValueError(f"capacities sum to {capacities.sum()}: expected none below 0 and at least {points} together")
    chosen = np.full(points, -1, dtype=np.int64)
    # threshold of each full bin: its worst point, by (distance, index)
    worst = np.where(capacities > 0, np.inf, -np.inf)
    worst_point = np.full(bins, points)
    looking = np.arange(points)
    while len(looking):
        offers = distances[looking]
        welcome = (offers < worst) | ((offers == worst) & (looking[:, None] < worst_point))
        chosen[looking] = np.where(welcome, offers, np.inf).argmin(axis=1)
        kept = np.flatnonzero(chosen >= 0)
        order = kept[np.lexsort((kept, distances[kept, chosen[kept]], chosen[kept]))]
        counts = np.bincount(chosen[order], minlength=bins)
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        room = capacities[chosen[order]]
        last = order[rank == room - 1]
        worst[chosen[last]], worst_point[chosen[last]] = distances[last, chosen[last]], last
        looking = np.sort(order[rank >= room])
        chosen[looking] = -1
    return chosen


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
    """Fit an autoencoder with a residual quantiser to item vectors and quantise them, in float32 on the CPU.

        z = f(x);   r_1 = z;   c_l = argmin_k |r_l - e_lk|²;   r_{l+1} = r_l - e_{l, c_l};   ẑ = Σ_l e_{l, c_l}
        loss = |x - g(z + sg(ẑ - z))|² + Σ_l ( |sg(r_l) - e_{l, c_l}|² + β |r_l - sg(e_{l, c_l})|² )

    Source: Zeghidour et al., SoundStream (2021); Lee et al., CVPR 2022; TIGER (Rajput et al., NeurIPS 2023). Codebooks
    start from residual k-means; codes unused for an epoch restart at random residuals. Departures: the first tenth of
    the epochs trains the autoencoder alone; the learning rate follows a cosine.

    Returns codes (V, L), `L` codebooks of at most (K, width), encoded items as points, and the decoder; `hidden` and
    `width` are of the hidden layers and of the encoding.
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
