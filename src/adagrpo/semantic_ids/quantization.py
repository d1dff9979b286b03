"""Residual k-means: item vectors to short code sequences that items alike begin alike.

    r_0 = x;   c_l = argmin_k |r_{l-1} - e_lk|²;   r_l = r_{l-1} - e_{l, c_l}          x ≈ Σ_l e_{l, c_l}

Source: residual vector quantisation (Chen, Guan & Wang, Sensors 2010), the RQ-KMeans of OneRec-style tokenizers, with
k-means++ seeding (Arthur & Vassilvitskii, SODA 2007) and Lloyd's iterations. Each level is fitted once, in order, on
what the levels before it left over.

Departures: a cluster that loses all its items is seeded again at the item farthest from its own centroid; a level
whose residuals hold fewer distinct vectors than codes gets fewer codes. Items that still share all their codes are told
apart by an extra level, as in TIGER (Rajput et al., NeurIPS 2023), see `resolve_collisions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Quantization", "residual_kmeans", "resolve_collisions"]

# Squared distances below this share of the mean squared norm of the input are float32 rounding, not structure.
_FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class Quantization:
    """Codes of `V` vectors and the codebooks they point into."""

    codes: NDArray[np.int64]  # (V, L)
    codebooks: tuple[NDArray[np.float32], ...]  # L of (K_l, D)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def reconstruct(self) -> NDArray[np.float32]:
        """(V, D) sum of the centroids that each row of codes names."""
        total = self.codebooks[0][self.codes[:, 0]]
        for level, codebook in enumerate(self.codebooks[1:], start=1):
            total = total + codebook[self.codes[:, level]]
        return total


def residual_kmeans(
    vectors: NDArray[np.float32],  # (V, D)
    *,
    levels: int,
    codes: int,
    seed: int,
    iterations: int = 20,
) -> Quantization:
    """Quantise item vectors level by level.

    Args:
        vectors: (V, D) finite item vectors, V at least 1.
        levels: `L`.
        codes: `K`, the most codes a level may have.
        seed: equal seeds give equal codes on the same machine and number of threads.
        iterations: the most Lloyd iterations a level; it stops earlier once no item moves.

    Returns:
        Codes (V, L) and `L` codebooks of at most (K, D).

    Raises:
        ValueError: `vectors` is empty, not a matrix or not finite, or another argument is out of range.

    Example:
        >>> corners = np.array([[0, 0], [0, 1], [9, 0], [9, 1]], dtype=np.float32)
        >>> coarse, fine = residual_kmeans(corners, levels=2, codes=2, seed=0).codes.T
        >>> bool(coarse[0] == coarse[1] != coarse[2] == coarse[3]), bool(fine[0] == fine[2] != fine[1] == fine[3])
        (True, True)
    """
    if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise ValueError(f"vectors has shape {vectors.shape}; expected a finite (V, D) matrix, V and D at least 1")
    if levels < 1 or codes < 1 or iterations < 0:
        raise ValueError(f"levels {levels}, codes {codes}, iterations {iterations}: expected at least 1, 1 and 0")
    generator = torch.Generator().manual_seed(seed)
    residual = torch.tensor(vectors, dtype=torch.float32)
    floor = _FLOOR * float(residual.square().sum(dim=1).mean())
    chosen, codebooks = [], []
    for _ in range(levels):
        centroids = _seed_centroids(residual, codes, floor, generator)
        centroids, nearest = _lloyd(residual, centroids, iterations)
        residual = residual - centroids[nearest]
        chosen.append(nearest)
        codebooks.append(centroids.numpy())
    return Quantization(torch.stack(chosen, dim=1).numpy(), tuple(codebooks))


def resolve_collisions(
    codes: NDArray[np.integer[Any]],  # (V, L)
) -> NDArray[np.int64]:
    """Append a level that numbers the items of each code sequence `0 .. c-1` in item order.

    Args:
        codes: (V, L) integers.

    Returns:
        (V, L + 1) int64, distinct rows. The last level is 0 for every item whose codes were already its own.

    Raises:
        ValueError: `codes` is not a matrix.

    Example:
        >>> resolve_collisions(np.array([[5, 1], [0, 2], [5, 1]])).tolist()
        [[5, 1, 0], [0, 2, 0], [5, 1, 1]]
    """
    if codes.ndim != 2:
        raise ValueError(f"codes has shape {codes.shape}, expected (V, L)")
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts[group[order]]
    return np.column_stack([codes.astype(np.int64), rank])


def _seed_centroids(
    points: Tensor,  # (V, D) float32
    codes: int,
    floor: float,
    generator: torch.Generator,
) -> Tensor:
    """(K, D) k-means++ seeds, each drawn in proportion to its squared distance from the seeds before it.

    K is less than `codes` where no point is left that is farther than the floor from every seed.
    """
    uniforms = torch.rand(codes, generator=generator, dtype=torch.float64)
    seeds = [points[int(uniforms[0] * len(points))]]
    # Exact differences, not |x|² - 2x·c + |c|²: a duplicate of a seed must come out at zero.
    distance = (points - seeds[0]).square().sum(dim=1)
    for uniform in uniforms[1:]:
        mass = torch.where(distance > floor, distance, 0).to(torch.float64).cumsum(dim=0)
        if mass[-1] <= 0:
            break
        # `right` skips the points of no mass that precede the one drawn.
        drawn = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
        seed = points[min(drawn, len(points) - 1)]
        seeds.append(seed)
        distance = torch.minimum(distance, (points - seed).square().sum(dim=1))
    return torch.stack(seeds)


def _lloyd(
    points: Tensor,  # (V, D) float32
    centroids: Tensor,  # (K, D) float32
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """(K, D) centroids after at most `iterations` updates, and the (V,) int64 nearest of them for every point."""
    nearest, distance = _assign(points, centroids)
    for _ in range(iterations):
        counts = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        centroids = sums / counts.clamp(min=1).unsqueeze(1)
        empty = torch.nonzero(counts == 0).squeeze(1)
        if len(empty):
            farthest = distance.topk(len(empty)).indices
            centroids[empty] = points[farthest]
        previous = nearest
        nearest, distance = _assign(points, centroids)
        if torch.equal(nearest, previous):
            break
    return centroids, nearest


def _assign(
    points: Tensor,  # (V, D)
    centroids: Tensor,  # (K, D)
) -> tuple[Tensor, Tensor]:
    """(V,) int64 nearest centroid and (V,) squared distance to it."""
    gap, nearest = torch.addmm(centroids.square().sum(dim=1), points, centroids.T, alpha=-2).min(dim=1)
    return nearest, (gap + points.square().sum(dim=1)).clamp(min=0)
