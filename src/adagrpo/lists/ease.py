"""EASE: closed-form item weights that predict each item by ridge regression on all the others (Steck, WWW 2019).

    B = I - P diag(1 / P_ii),   P = (XᵀX + λ I)⁻¹,   score(x, i) = Σ_t γ^(T - t) B[x_t, i]

`X` is the binary (users, items) training matrix. Departures: older items weigh less, as in item-kNN
(`adagrpo.lists.sources`), and only the `KEPT` largest weights per row are stored.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from adagrpo.data.pairs import users_of_items
from adagrpo.types import Ragged

__all__ = ["item_weights"]

PENALTY = 100.0  # λ
KEPT = 500
MOST_ITEMS = 20_000  # a dense matrix of so many items and its inverse take 3.2 GB


def item_weights(training: Ragged, num_items: int, *, penalty: float = PENALTY, kept: int = KEPT) -> sparse.csr_array:
    """Return `B`, (V, V) float32, the `kept` largest absolute weights per row; empty over `MOST_ITEMS` items."""
    if num_items > MOST_ITEMS:
        return sparse.csr_array(sparse.eye_array(num_items, dtype=np.float32) * 0)
    user_items = users_of_items(training, num_items)
    gram = torch.from_numpy((user_items.T @ user_items).astype(np.float32).toarray())
    gram.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0.0)
    width = min(kept, num_items - 1)
    size, columns = weights.abs().topk(width, dim=1)
    there = (size > 0).numpy()
    rows = np.repeat(np.arange(num_items), width).reshape(num_items, width)[there]
    values = weights.gather(1, columns).numpy()[there]
    return sparse.coo_array((values, (rows, columns.numpy()[there])), shape=(num_items, num_items)).tocsr()
