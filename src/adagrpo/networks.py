"""Network blocks of the compact policy and the sequential ranker: a causal transformer over item vectors.

Pre-norm blocks (Xiong et al. 2020) with GELU by the error function. Departures, for speed: right padding replaces a
padding mask, and dropout compares random bytes with a threshold (rates are multiples of 1/256). The sampled softmax has
uniform negatives that a batch shares (Klenitskiy and Vasilev 2023):

    loss_n = log(exp(s_n) + Σ_m exp(z_nm)) - s_n,    z_nm = h_n · v_m + b_m,    without the m that are the target of n

With p_nm the softmax of the negatives and σ_n their share of the whole mass, the gradients are -σ_n for s_n and
σ_n p_nm for z_nm, so only p is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]

_SHORT = 64  # positions, up to which two plain products beat the fused kernel on a CPU


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype for mixed precision, None if emulated."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return torch.bfloat16 if native else None


class HasParameters(Protocol):
    """A module, or an object used like one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `torch.nn.Module`."""


def precision_used(model: HasParameters, precision: Precision = "auto") -> Literal["float32", "bfloat16"]:
    """Return the precision of a model; `auto` is bfloat16 where it is native."""
    if precision != "auto":
        return precision
    return "float32" if autocast_dtype(next(model.parameters()).device) is None else "bfloat16"


def mixed_precision(model: HasParameters, precision: Precision = "auto") -> AbstractContextManager[Any]:
    """Return a context with autocast to bfloat16, or off; see `precision_used`."""
    device = next(model.parameters()).device.type
    if precision_used(model, precision) == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def linear_weights_in(module: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Return a module that shares all but linear weights, in `dtype`."""
    made = copy.copy(module)
    made._modules = {name: child and linear_weights_in(child, dtype) for name, child in module._modules.items()}
    if isinstance(module, nn.Linear):
        weights = {name: value.detach().to(dtype) for name, value in module.named_parameters()}
        made._parameters = {name: nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    return made


class Dropout(nn.Module):
    """Inverted dropout by random bytes of the global generator."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.threshold = round(rate * 256)
        if not 0 <= self.threshold < 256:
            raise ValueError(f"dropout rate must lie in [0, 1), got {rate}")
        self.scale = 256.0 / (256 - self.threshold)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply dropout; the identity outside training."""
        if not self.training or self.threshold == 0:
            return inputs
        random_bits = torch.empty((inputs.numel() + 7) // 8, dtype=torch.int64, device=inputs.device)
        noise = random_bits.random_(-(2**63), None).view(torch.uint8)[: inputs.numel()].view(inputs.shape)
        return inputs * (noise >= self.threshold).to(inputs.dtype).mul_(self.scale)


class FeedForward(nn.Module):
    """`W_2 gelu(W_1 norm(x))`, without the residual."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        hidden = functional.gelu(self.enter(self.norm(inputs)))
        output: Tensor = self.dropout(self.leave(hidden))
        return output


# query (B, heads, T, D / heads), bias (heads, T, T) -> (B, heads, T, D / heads)
def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    length, fused = query.shape[2], query.device.type != "cpu" or query.shape[2] > _SHORT
    later = torch.full((length, length), -torch.inf, device=query.device).triu(1) + bias
    if fused:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=later.to(query.dtype))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    attended: Tensor = (scores + later).softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return attended


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, distances: int) -> None:
        super().__init__()
        self.heads = heads
        self.distances = nn.Embedding(distances, heads)
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(width, 4 * width, dropout)

    def forward(self, inputs: Tensor, ends: Tensor | None = None) -> Tensor:
        batch, length, width = inputs.shape
        packed = self.query_key_value(self.norm(inputs)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        positions = torch.arange(length, device=inputs.device)
        bias = self.distances((positions.unsqueeze(1) - positions).clamp(min=0)).permute(2, 0, 1)
        if ends is None:
            attended = _attend(query, key, value, bias)
        else:
            rows = torch.arange(batch, device=inputs.device)
            scaled = query[rows, :, ends].unsqueeze(2) * query.shape[-1] ** -0.5  # (B, heads, 1, D / heads)
            scores = scaled @ key.transpose(-1, -2) + bias[:, ends].transpose(0, 1).unsqueeze(2)
            masked = scores.masked_fill((positions > ends.unsqueeze(1))[:, None, None], -torch.inf)
            attended = masked.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
            inputs = inputs[rows, ends].unsqueeze(1)
        inputs = inputs + self.dropout(self.leave(attended.transpose(1, 2).reshape(inputs.shape)))
        output: Tensor = inputs + self.feed_forward(inputs)
        return output


class CausalEncoder(nn.Module):
    """Causal transformer over item vectors; the state at `t` has seen items `0 .. t`.

    Inputs are normalised (`research/sequential_ranker`); order is a learned bias per distance and head (Raffel et al.
    2020).
    """

    def __init__(self, *, width: int, layers: int, heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.max_length = max_length
        self.enter = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout, max_length) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Tensor, ends: Tensor | None = None) -> Tensor:  # inputs (B, T, D), ends (B,)
        """Return (B, T, D) states of right-padded item vectors, or (B, 1, D) at the positions `ends`."""
        length = inputs.shape[1]
        if length > self.max_length:
            raise ValueError(f"inputs have {length} positions, the encoder takes {self.max_length}")
        states = self.dropout(self.enter(inputs))
        *before, last = self.blocks
        for block in before:
            states = block(states)
        output: Tensor = self.norm(last(states, ends))
        return output


def take(rows: Tensor, index: Tensor) -> Tensor:  # rows (B, N, D), index (B, M) -> (B, M, D)
    """Gather rows `index[b]` of each sample `b`.

    >>> take(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[1, 1]])).tolist()
    [[[3, 4], [3, 4]]]
    """
    samples, count, width = rows.shape
    first = torch.arange(0, samples * count, count, device=index.device) if count else index[:, 0]
    flat = (index + first.unsqueeze(1)).flatten()
    return rows.reshape(samples * count, width).index_select(0, flat).view(samples, index.shape[1], width)


def take_flat(states: Tensor, rows: Tensor, positions: Tensor) -> Tensor:  # states (B, T, D), (N,), (N,) -> (N, D)
    """Gather `states[rows, positions]`, with a gradient that adds whole rows, which is faster on CPUs.

    >>> take_flat(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([0, 0]), torch.tensor([1, 1])).tolist()
    [[3, 4], [3, 4]]
    """
    return states.flatten(0, 1).index_select(0, rows * states.shape[1] + positions)


def initialise(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Draw weights and embeddings from N(0, std²); set linear biases to 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            with torch.no_grad():
                part.weight.normal_(0.0, std, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


_ROWS = 128  # rows of logits that are made float32 at a time: a megabyte with 2,048 negatives


def sampled_softmax_loss(
    states: Tensor,  # (N, D), h
    positive: Tensor,  # (N,), s of the targets
    vectors: Tensor,  # (M, D), v of the negatives
    bias: Tensor,  # (M,), b of the negatives
    targets: Tensor,  # (N,) int64
    negatives: Tensor,  # (M,) int64; repeated ones count repeatedly
) -> Tensor:  # (N,)
    """Return cross-entropies in float32 nats; 0 if every negative is the target."""
    ordered, order = negatives.sort()
    first = torch.searchsorted(ordered, targets)
    counts = torch.searchsorted(ordered, targets, right=True) - first
    rows = torch.repeat_interleave(counts)  # with `columns`: all (n, m) for which negative m is target n
    index = torch.arange(len(rows), device=targets.device) - (counts.cumsum(0) - counts)[rows] + first[rows]
    columns = order[index]
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
