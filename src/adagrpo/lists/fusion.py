"""The fused list: candidates from several sources, by a weighted sum of features.

    score(x, i) = Σ_f w_f φ_f(x, i) / σ_f + g(φ(x, i))

Candidates are the policy's beam and the best items of item-kNN and the sequential ranker; features are the policy's
log-probability, the reward or its members, and the sources' scores. `σ_f` is a feature's within-list standard
deviation, `g` a small network (`adagrpo.lists.correction`) or 0. Weights are fitted on validation choices
(`adagrpo.lists.fit_fusion`), also without the reward.

Linear combination of retrieval scores: Fox and Shaw (1993), Vogt and Cottrell (1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.lists.correction import Correction, inputs_of
from adagrpo.lists.fallback import answer_of
from adagrpo.lists.names import REWARD
from adagrpo.lists.sources import CandidateSource, best_of
from adagrpo.lists.table import SOURCES
from adagrpo.rewards.protocol import Reward, ask_members, ask_reward
from adagrpo.types import Histories

POLICY = "policy"


class Weights(NamedTuple):
    """Weights of features, with an optional correction."""

    weights: Mapping[str, float]  # by feature, in units of σ
    stds: Mapping[str, float]  # σ by feature
    correction: Correction | None = None  # of the same features in the same order

    @torch.no_grad()
    def scores(self, candidates: Candidates, names: Sequence[str]) -> Tensor:
        """Return (B, N) scores, -inf for no item; `names` are of all features."""
        there, device = candidates.items >= 0, candidates.items.device
        features = candidates.features[..., [names.index(name) for name in self.weights]]
        factors = torch.tensor([weight / self.stds[name] for name, weight in self.weights.items()], device=device)
        scores = features @ factors
        if self.correction is not None:
            scores = scores + self.correction(inputs_of(features, there))
        return scores.masked_fill(~there, -torch.inf)


class FittedWeights(NamedTuple):
    """Fitted weights of a fused list."""

    whole: Weights
    without_reward: Weights  # also the order of a list whose reward gave no answer


class Proposals(NamedTuple):
    """Items that the sources propose for `B` histories."""

    scores: Mapping[str, Tensor]  # (B, V) of each source that proposes
    items: Tensor  # (B, P) int64, distinct in a row, -1 where there is none


class Candidates(NamedTuple):
    """Candidates for the lists of `B` histories."""

    items: Tensor  # (B, N) int64, distinct in a row, -1 where there is none
    features: Tensor  # (B, N, F) float32; not read where there is no item
    rewarded: bool  # the reward answered, or there is none to ask


class Fusion:
    """The sources of a fused list and, once fitted, its weights."""

    def __init__(
        self,
        sources: Mapping[str, CandidateSource],
        rewards: Sequence[str],
        width: int,
        fitted: FittedWeights | None = None,
    ) -> None:
        """Combine sources.

        Args:
            sources: by name, in the order of their features.
            rewards: names of the reward's features, one per member or `REWARD` alone; empty: no reward.
            width: items from each proposing source.
        """
        self.sources, self.rewards, self.width, self.fitted = dict(sources), tuple(rewards), width, fitted
        self.proposing = [name for name in self.sources if SOURCES[name].proposes and not SOURCES[name].optional]
        self.features = (POLICY, *self.sources, *self.rewards)
        if fitted is not None and not {*fitted.whole.weights, *fitted.without_reward.weights} <= {*self.features}:
            raise ValueError(
                f"weights of {', '.join(fitted.whole.weights)} for the features {', '.join(self.features)}"
            )

    @torch.no_grad()
    def propose(self, histories: Histories, closed: Tensor) -> Proposals:
        """Collect the proposing sources' scores and best items, without `closed` (B, V)."""
        # many small operations, faster in inference mode
        with torch.inference_mode():
            found = {name: self.sources[name].scores(histories) for name in self.proposing}
            others = [best_of(found[name], closed, self.width)[0] for name in self.proposing]
            items = unite(others) if others else torch.empty(len(closed), 0, dtype=torch.int64, device=closed.device)
        return Proposals(found, items)

    @torch.no_grad()
    def candidates(
        self,
        histories: Histories,
        beam: tuple[Tensor, Tensor],
        proposals: Proposals,
        log_probs: Tensor,
        reward: Reward | None,
    ) -> Candidates:
        """Merge beam and proposals, and compute their features.

        Args:
            beam: (B, W) items, -1 for none, and their log-probabilities.
            log_probs: (B, P) of the proposed items.
        """
        beyond = unite([beam[0], proposals.items])[:, beam[0].shape[1] :]
        kept = int((beyond >= 0).sum(dim=1).max()) if beyond.numel() else 0
        # items that the beam lacks, moved to the front, so that empty positions are not scored
        order = (beyond < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :kept]
        items = torch.cat([beam[0], beyond.gather(1, order)], dim=1)
        log_probs = torch.cat([beam[1], log_probs.gather(1, order)], dim=1)
        return self.features_of(histories, items, log_probs, proposals.scores, reward)

    @torch.no_grad()
    def features_of(
        self,
        histories: Histories,
        items: Tensor,
        log_probs: Tensor,
        found: Mapping[str, Tensor],
        reward: Reward | None,
    ) -> Candidates:
        """Compute features of items (B, N), -1 for none.

        Args:
            found: (B, V) scores of sources, by name; the others are asked for these items.
        """
        there = items.clamp(min=0)
        columns = [log_probs]
        with torch.inference_mode():
            for name, source in self.sources.items():
                said = found[name].gather(1, there) if name in found else source.scores_at(histories, items)
                columns.append(source.feature(said))
        answer: Tensor | None = None
        if self.rewards:
            assert reward is not None, "the fusion asks one"
            whole = self.rewards == (REWARD,)  # one feature even of a sum
            answer = answer_of(ask_reward if whole else ask_members, reward, histories, items)
            answer = answer.unsqueeze(-1) if whole and answer is not None else answer
            zeros = torch.zeros((*items.shape, len(self.rewards)), device=items.device)
            columns += (zeros if answer is None else answer.nan_to_num(0.0)).unbind(-1)
        features = torch.stack([column.masked_fill(items < 0, 0.0) for column in columns], dim=-1)
        return Candidates(items, features, rewarded=not self.rewards or answer is not None)

    def scores(self, candidates: Candidates) -> Tensor:
        """Return (B, N) scores, -inf for no item; without a failed reward."""
        assert self.fitted is not None, "the weights are fitted first"
        weights = self.fitted.whole if candidates.rewarded else self.fitted.without_reward
        return weights.scores(candidates, self.features)

    def order(self, candidates: Candidates, width: int) -> tuple[Tensor, Tensor]:
        """Return the best (B, W) items and scores, padded with -1 and -inf; ties keep their order."""
        scores, order = self.scores(candidates).sort(dim=1, descending=True, stable=True)
        return candidates.items.gather(1, order)[:, :width], scores[:, :width]


def unite(parts: list[Tensor]) -> Tensor:
    """Concatenate items (B, N) to (B, ΣN), with -1 for repeats."""
    items = torch.cat(parts, dim=1)
    ordered, order = items.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return items.masked_fill(torch.zeros_like(repeated).scatter(1, order, repeated), -1)
