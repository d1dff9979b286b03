"""Cross-entropy of targets with uniform negatives that a batch shares (Klenitskiy and Vasilev 2023).

    loss_n = log(exp(s_n) + Σ_m exp(z_nm)) - s_n,    z_nm = h_n · v_m + b_m,    without the m that are the target of n

With p_nm the softmax of the negatives and σ_n their share of the whole mass, the gradients are -σ_n for s_n and
σ_n p_nm for z_nm, so only p is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 128  # rows of logits that are made float32 at a time: a megabyte with 2,048 negatives


def sampled_softmax_loss(
    states: Tensor,  # (N, D), h
    positive: Tensor,  # (N,), s of the targets
    vectors: Tensor,  # (M, D), v of the negatives
    bias: Tensor,  # (M,), b of the negatives
    targets: Tensor,  # (N,) int64
    negatives: Tensor,  # (M,) int64; repeated ones count repeatedly
) -> Tensor:  # (N,)
    """Return cross-entropies in float32 nats, without accidental hits; 0 if every negative is the target."""
    rows, columns = _hits(targets, negatives)
    log_sum_exp: Any = _LogSumExp.apply  # typed in some versions of torch and not in others
    others: Tensor = log_sum_exp(states, vectors, bias, rows, columns)
    return functional.softplus(others - positive.float())


class _LogSumExp(torch.autograd.Function):
    """(N,) log Σ_m exp(z_nm) without the masked (n, m)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        states, vectors = states.to(dtype), vectors.to(dtype)
        logits = functional.linear(states, vectors, bias.to(dtype))
        logits[rows, columns] = -torch.inf
        totals = torch.empty(len(states), dtype=torch.promote_types(dtype, torch.float32), device=states.device)
        for part, total in zip(torch.split(logits, _ROWS), torch.split(totals, _ROWS), strict=True):
            exact = part.to(totals.dtype)
            highest = exact.amax(-1)
            shares = exact.softmax(-1)
            nothing = highest == -torch.inf
            if bool(nothing.any()):
                shares = shares.masked_fill(nothing.unsqueeze(-1), 0.0)
            total.copy_(torch.where(nothing, -torch.inf, highest - shares.amax(-1).log()))
            part.copy_(shares)
        ctx.save_for_backward(states, vectors, logits)
        return totals

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, vectors, shares = ctx.saved_tensors
        weights = gradient.unsqueeze(-1)  # (N, 1)
        of_states = (shares @ vectors).to(gradient.dtype) * weights
        # the bias is the weight of one more component, which is 1 in every state
        weighted = torch.cat([states * weights, weights], dim=1).to(shares.dtype)
        of_others = (shares.T @ weighted).to(gradient.dtype)  # (M, D + 1)
        return of_states, of_others[:, :-1], of_others[:, -1], None, None


def _hits(targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:  # all (n, m) for which negative m is target n
    ordered, order = negatives.sort()
    first = torch.searchsorted(ordered, targets)
    counts = torch.searchsorted(ordered, targets, right=True) - first
    rows = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    index = torch.arange(len(rows), device=targets.device) - before[rows] + first[rows]
    return rows, order[index]
