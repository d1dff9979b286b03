r"""The terms of the training loss, elementwise, and their reductions.

    loss   = NLL + (λ / B_rl) Σ_b gate_b · GRPO_b
    NLL    = mean over NLL positions of -(1/L) Σ_l log π(c_l(y) | x, c_<l(y))
    GRPO_b = -(1/G) Σ_g (1/L) Σ_l min(w A, clip(w, 1 - ε, 1 + ε_high) A) + β KL(π ‖ π_ref),    w = π / π_old per code

Sources: AdaGRPO (Xu et al. 2026, arXiv 2606.08480) for the gated sum, PPO (Schulman et al. 2017, arXiv 1707.06347) for
the clip, DAPO (Yu et al. 2025, arXiv 2503.14476) for `epsilon_high`, Schulman 2020 ("Approximating KL divergence") for
k3. We depart by dividing the gated sum by `B_rl`, all RL samples of the optimiser step, admitted or not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_shapes


class Surrogate(NamedTuple):
    """The clipped policy-gradient loss of each code."""

    loss: Tensor  # (B, G, L)
    clipped: Tensor  # (B, G, L) bool, True where the clip has cut the gradient


def nll(log_probs: Tensor) -> Tensor:  # (N, L)
    """Return the negative log-likelihood of whole Semantic IDs, (N,) nats per code.

    >>> nll(torch.tensor([[-1.0, -3.0]]))
    tensor([2.])
    """
    check_shapes(log_probs=(log_probs, "NL"))
    return -log_probs.mean(dim=1)


def clipped_surrogate(
    log_probs: Tensor,  # (B, G, L)
    old_log_probs: Tensor,  # (B, G, L) under the sampling distribution; no gradient
    advantages: Tensor,  # (B, G), no gradient
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
) -> Surrogate:
    """Return the clipped policy-gradient loss of each code, `-min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A)`.

    >>> old = torch.zeros(1, 1, 2)
    >>> result = clipped_surrogate(torch.tensor([[[1.1, 1.5]]]).log(), old, torch.ones(1, 1))
    >>> result.loss, result.clipped
    (tensor([[[-1.1000, -1.2000]]]), tensor([[[False,  True]]]))
    """
    check_shapes(log_probs=(log_probs, "BGL"), old_log_probs=(old_log_probs, "BGL"), advantages=(advantages, "BG"))
    ratio = (log_probs - old_log_probs.detach()).exp()
    advantage = advantages.detach()[:, :, None]
    low, high = 1.0 - epsilon, 1.0 + epsilon_high
    loss = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = ((ratio > high) & (advantage > 0)) | ((ratio < low) & (advantage < 0))
    return Surrogate(loss, clipped)


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:  # log_probs and reference_log_probs (B, G, L)
    """Estimate `KL(π ‖ π_ref)` at each code by `exp(x) - x - 1`, `x = log π_ref - log π`, (B, G, L) nats, at least 0.

    Unbiased if the codes were sampled from `π`; the reference has no gradient.

    >>> kl_k3(torch.tensor([[[0.5]]]).log(), torch.tensor([[[0.25]]]).log())  # 1/2 + ln 2 - 1
    tensor([[[0.1931]]])
    """
    check_shapes(log_probs=(log_probs, "BGL"), reference_log_probs=(reference_log_probs, "BGL"))
    difference = reference_log_probs.detach() - log_probs
    # expm1 is accurate near 0, where training starts; the clamp removes negative rounding errors.
    return (difference.expm1() - difference).clamp(min=0.0)


def group_loss(loss: Tensor) -> Tensor:  # (B, G, L)
    """Average (B, G, L) losses over codes, then over rollouts; (B,).

    >>> group_loss(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]))
    tensor([3.])
    """
    check_shapes(loss=(loss, "BGL"))
    return loss.mean(dim=2).mean(dim=1)


def zero_rejected(values: Tensor, admitted: Tensor) -> Tensor:  # values (B, ...), admitted (B,)
    """Set the values of rejected samples, and their gradients, to 0.

    Apply it before `clipped_surrogate` to inputs that may be NaN or infinite: zero times an infinite slope is NaN.

    >>> zero_rejected(torch.tensor([[1.0], [float("nan")]]), torch.tensor([True, False]))
    tensor([[1.],
            [0.]])
    """
    check_shapes(admitted=(admitted, "B?"))
    if values.shape[:1] != admitted.shape:
        raise ValueError(f"values: shape {tuple(values.shape)} does not start with B={admitted.shape[0]}")
    return values.masked_fill(~admitted.reshape(-1, *[1] * (values.dim() - 1)), 0.0)


def gated_sum(
    group_losses: Tensor,  # (B,), anything where rejected
    admitted: Tensor,  # (B,)
    *,
    total: int | Tensor,  # `B_rl`, all RL samples of the optimiser step across micro-batches and processes
) -> Tensor:
    """Return the gated term, `(1 / total) Σ_b admitted_b · loss_b`; exactly 0 when nothing is admitted.

    >>> gated_sum(torch.tensor([2.0, float("inf"), 4.0]), torch.tensor([True, False, True]), total=3)
    tensor(2.)
    """
    check_shapes(group_losses=(group_losses, "B"), admitted=(admitted, "B?"))
    if isinstance(total, Tensor):
        check_shapes(total=(total, ""))
    elif total < 1:
        raise ValueError(f"total: found {total}; it counts every RL sample of the step and is at least 1")
    return zero_rejected(group_losses, admitted).sum() / total
