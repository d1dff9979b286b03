"""The protocol of a policy: histories are encoded once, and everything else hangs off that context.

`encode` runs once per history and is shared by the NLL term, all rollouts, the target's score and beam search.
A context holds one *sample* (a history cut after some position) per row. Decoding keeps a cached state per hypothesis
(a beam or a rollout), so that no prefix is ever read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Self, TypeVar

from torch import Tensor, nn

from adagrpo.types import Histories


class Context(Protocol):
    """`N` encoded samples."""

    def __len__(self) -> int:
        """`N`."""
        ...

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The samples of some rows: (K,) int64, or (N,) bool, True at those that are kept."""
        ...


ContextT = TypeVar("ContextT", bound=Context)


class DecoderState(Protocol):
    """Cached decoder state of `W` hypotheses for each of `B` samples, all at the same level."""

    @property
    def level(self) -> int:
        """The number of codes that have been written: 0 at the start, `L` at the end."""
        ...


StateT = TypeVar("StateT", bound=DecoderState)


class Policy(Protocol[ContextT, StateT]):
    """`π(codes | history)` over Semantic IDs of `L` levels.

    Whoever trains, evaluates or serves a policy uses what is here and no more; the last four methods are those of every
    `torch.nn.Module`.
    """

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """`(K_1 .. K_L)`: how many codes each level has."""
        ...

    @property
    def same_in_training(self) -> bool:
        """True where nothing is drawn in training mode, so that one context may serve both the NLL and `score`."""
        ...

    @property
    def trains_on_nll(self) -> bool:
        """True where `supervised_loss` is -(1/L) Σ log π of the policy that `score` and decoding speak of."""
        ...

    @property
    def small(self) -> bool:
        """True where a batch is too little work for several threads and leaves nothing in the policy.

        Batches may then be worked on beside each other, and linear weights may be held in bfloat16 for good.
        """
        ...

    @property
    def checkpoint_files(self) -> Mapping[str, str]:
        """Text files that belong beside saved weights, name to content."""
        ...

    def encode(self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None) -> ContextT:
        """Encode histories into `N` samples.

        Args:
            histories: `B` histories.
            rows: (N,) int64, the history each sample comes from; with `positions` None: one sample per history.
            positions: (N,) int64, the sample sees items `0 .. position` of its row.
        """
        ...

    def frozen(self) -> Self:
        """The same policy for reading many batches: what depends on the weights alone may be computed beforehand.

        It must not be used once the weights have changed.
        """
        ...

    def supervised_loss(self, context: ContextT, targets: Tensor) -> Tensor:
        """(N,) differentiable loss of the logged items `targets` (N,) int64 of `N` samples: the NLL, in nats a code."""
        ...

    def score(self, context: ContextT, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Free (unconstrained) log-probabilities of given codes.

        Args:
            context: `B` samples.
            codes: (B, G, L) int64.
            temperature: divides the logits, so that what was sampled at this temperature is what is scored.

        Returns:
            (B, G, L) float32 log-probability of each code given the codes before it.
        """
        ...

    def start(self, context: ContextT) -> StateT:
        """One hypothesis per sample, nothing written yet."""
        ...

    def logits(self, state: StateT) -> Tensor:
        """(B, W, K_l) float32 logits of the next code, `l = state.level`."""
        ...

    def advance(self, state: StateT, parents: Tensor, codes: Tensor) -> StateT:
        """Append one code to each hypothesis.

        Args:
            state: `W` hypotheses a sample.
            parents: (B, W') int64, the hypothesis of `state` that each new hypothesis continues.
            codes: (B, W') int64, the code it appends.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `torch.nn.Module`."""
        ...

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module`."""
        ...

    def eval(self) -> Self:
        """See `torch.nn.Module`."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See `torch.nn.Module`."""
        ...
