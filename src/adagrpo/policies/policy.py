"""Protocol of a policy: histories are encoded once; all terms and searches share the context.

A *sample* is a history cut after some position; a hypothesis is a beam or a rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from torch import Tensor, nn

from adagrpo.types import Histories


class Context(Protocol):
    """`N` encoded samples."""

    def __len__(self) -> int:
        """Return `N`."""

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Return the samples of some rows: (K,) int64 or (N,) bool."""


ContextT = TypeVar("ContextT", bound=Context)


class DecoderState(Protocol):
    """Cached state of `W` hypotheses for each of `B` samples, all at one level."""

    @property
    def level(self) -> int:
        """Number of codes written, 0 to `L`."""


StateT = TypeVar("StateT", bound=DecoderState)


class Policy(Protocol[ContextT, StateT]):
    """`π(codes | history)` over Semantic IDs of `L` levels."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`, number of codes."""

    @property
    def same_in_training(self) -> bool:
        """True if training mode is deterministic, so that NLL and `score` may share a context."""

    @property
    def trains_on_nll(self) -> bool:
        """True if `supervised_loss` is -(1/L) Σ log π of the policy that is scored and decoded."""

    @property
    def small(self) -> bool:
        """True if a batch is too little work for several threads and leaves no state.

        Batches may then run in parallel, with linear weights in bfloat16.
        """

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        """Text files to save with the weights, name to content."""

    def encode(self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None) -> ContextT:
        """Encode `B` histories into `N` samples: items `0 .. position` of rows, both (N,) int64; None: whole histories.

        ValueError if the histories are longer than the policy was built for (`PolicySpec.max_history`).
        """

    def frozen(self) -> Self:
        """Return the policy for inference with precomputed quantities, valid until the weights change."""

    def supervised_loss(self, context: ContextT, targets: Tensor) -> Tensor:
        """Return the (N,) differentiable loss of items `targets` (N,) int64: the NLL, in nats per code."""

    def score(self, context: ContextT, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return (B, G, L) float32 unconstrained log-probabilities of codes; `temperature` divides the logits."""

    def start(self, context: ContextT) -> StateT:
        """Return one empty hypothesis per sample."""

    def logits(self, state: StateT) -> Tensor:
        """Return the (B, W, K_l) float32 logits of the next code, `l = state.level`."""

    def advance(self, state: StateT, parents: Tensor, codes: Tensor) -> StateT:
        """Append `codes` (B, W') int64 to the hypotheses `parents` (B, W') int64 of `state`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `torch.nn.Module`, as of the following."""

    def train(self, mode: bool = True) -> Self:
        """See above."""

    def eval(self) -> Self:
        """See above."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See above."""


if TYPE_CHECKING:

    class PolicyModule(nn.Module, Policy[Any, Any]):
        """A policy that is a `torch.nn.Module`."""
else:
    PolicyModule = nn.Module
