r"""Group advantages of rollouts, and the detection of groups without a learning signal.

For sample `b` with rewards `r_bg` of its `G` rollouts,

    A_bg = (r_bg - mean_valid r_b) / (std_valid r_b + delta)    where the rollout names an item
         = -invalid_penalty                                     where it does not

Source: GRPO (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300), as used by AdaGRPO (Xu et al. 2026, arXiv 2606.08480).
We depart in leaving invalid rollouts out of mean and deviation, and in calling a group degenerate by its reward range
relative to a running standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(**arguments: tuple[Tensor, str]) -> None:
    """Raise a ValueError unless tensors agree on sizes, a letter each, `G` and `L` not 0, and masks (`?`) are bool."""
    sizes: dict[str, int] = {}
    for name, (tensor, letters) in arguments.items():
        mask, letters = letters.endswith("?"), letters.removesuffix("?")
        fits = tensor.dim() == len(letters)
        for letter, size in zip(letters, tensor.shape, strict=False):
            fits = fits and sizes.setdefault(letter, size) == size and (size > 0 or letter not in "GL")
        if not fits:
            expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit ({expected}); G and L are at least 1")
        if mask and tensor.dtype != torch.bool:
            raise ValueError(f"{name}: a mask must be torch.bool, found {tensor.dtype}")


def group_advantages(
    rewards: Tensor,  # (B, G), anything where invalid
    valid: Tensor,  # (B, G)
    *,
    invalid_penalty: float = 1.0,
    delta: float = 1e-4,  # added to the deviation, in reward units
    scale_rewards: bool = True,  # False only centres (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783)
) -> Tensor:
    """Standardise the rewards of each group's valid rollouts; invalid ones get `-invalid_penalty`.

    A single valid rollout gets 0.

    >>> rewards = torch.tensor([[1.0, 3.0, float("nan")]])
    >>> group_advantages(rewards, torch.tensor([[True, True, False]]), delta=0.0)
    tensor([[-1.,  1., -1.]])
    """
    check_shapes(rewards=(rewards, "BG"), valid=(valid, "BG?"))
    counted = valid.to(rewards.dtype)
    total = counted.sum(dim=1, keepdim=True).clamp(min=1)
    # Masked before and after the subtraction: NaN must reach neither the value nor the gradient.
    kept = rewards.masked_fill(~valid, 0.0)
    mean = (counted * kept).sum(dim=1, keepdim=True) / total
    centred = (kept - mean).masked_fill(~valid, 0.0)
    advantages = centred
    if scale_rewards:
        variance = (counted * centred.square()).sum(dim=1, keepdim=True) / total
        # The root has an infinite slope at 0, which would turn the gradient of a flat group into NaN.
        flat = variance <= 0
        deviation = variance.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
        # With delta 0 a flat group is 0 / 0; its numerator is 0, so any positive divisor gives the limit.
        divisor = deviation + delta
        advantages = centred / divisor.masked_fill(divisor <= 0, 1.0)
    return advantages.masked_fill(~valid, -invalid_penalty)


def reward_std(rewards: Tensor, valid: Tensor) -> Tensor:  # rewards (B, G), valid (B, G)
    """Return the population standard deviation of each group's valid rewards, (B,); 0 without any.

    >>> reward_std(torch.tensor([[1.0, 3.0, float("nan")]]), torch.tensor([[True, True, False]]))
    tensor([1.])
    """
    centred = group_advantages(rewards, valid, invalid_penalty=0.0, scale_rewards=False)
    return (centred.square().sum(dim=1) / valid.sum(dim=1).clamp(min=1)).sqrt()


def degenerate_groups(
    rewards: Tensor,  # (B, G), anything where invalid
    items: Tensor,  # (B, G), -1 where invalid
    *,
    running_std: Tensor,  # (), running standard deviation of rewards
    relative_floor: float = 1e-3,
) -> Tensor:
    """Return a (B,) mask of the groups whose rewards define no order.

    A group is degenerate if it has fewer than two distinct valid items, or if the range of their rewards is not finite
    or at most `relative_floor * running_std`.

    >>> rewards = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    >>> degenerate_groups(rewards, torch.tensor([[4, 7], [4, 7]]), running_std=torch.tensor(1.0))
    tensor([False,  True])
    """
    check_shapes(rewards=(rewards, "BG"), items=(items, "BG"), running_std=(running_std, ""))
    valid = items >= 0
    # Two distinct valid items exist exactly when the largest and the smallest valid one differ.
    largest = items.amax(dim=1)
    smallest = items.masked_fill(~valid, torch.iinfo(items.dtype).max).amin(dim=1)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(dim=1)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(dim=1)
    width = highest - lowest
    # Negated, so that NaN counts as degenerate.
    return ~((largest > smallest) & (width > relative_floor * running_std) & width.isfinite())
