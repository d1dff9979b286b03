"""A simulated world of the study: what its rewards share is made once, and arms are measured by its truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config import Config, load_config
from adagrpo.data.sequences import pad
from adagrpo.data.simulation.truth import Truth
from adagrpo.decoding import beam_search
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.types import Cases, Histories

__all__ = ["BASELINE", "Outcome", "World"]

BASELINE = "nll"

Outcome = tuple[NDArray[np.float64], NDArray[np.float64]]  # (N,) true utility@10 and (N,) HR@10 of test cases


@dataclass(frozen=True)
class World:
    """One world.

    Attributes:
        entry: its `seed`, and the settings of `set` beside the recipe's.
        out: the folder of all runs.
    """

    name: str
    entry: Mapping[str, Any]
    out: Path
    recipe: Path

    def config(self, more: Sequence[str]) -> Config:
        """The recipe in this world, with another reward."""
        return load_config(self.recipe, [*self.entry["set"], f"seed={self.entry['seed']}", *more])

    @cached_property
    def run(self) -> Run:
        """The stages without a reward, and the ranker on impressions."""
        return Run(self.out / self.name, self.config([]), Path())

    def prepare(self) -> None:
        """Logs to starting policy, the ranker, and the baseline."""
        for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
            stage(self.run)
        self.run.stage(f"train/{BASELINE}")

    @cached_property
    def data(self) -> RunData:
        """Of the shared run."""
        return RunData(self.run)

    @cached_property
    def truth(self) -> Truth:
        """In the rows of the prepared data."""
        return self.data.truth()

    @cached_property
    def cases(self) -> Cases:
        """Of test."""
        return self.data.cases("test")

    @cached_property
    def baseline(self) -> Outcome:
        """Of continued NLL."""
        return self.outcome(self.run, BASELINE)

    @torch.no_grad()
    def outcome(self, run: Run, arm: str) -> Outcome:
        """Of an arm at its last step."""
        policy = Models(self.data).policy(run.path("train", arm, "final")).eval()
        size, parts = run.config.evaluation.batch_size, []
        for first in range(0, len(self.cases), size):
            padded = pad(
                self.cases.histories, np.arange(first, min(first + size, len(self.cases))), run.config.max_history
            )
            histories = policy.encode(Histories(padded.items, padded.lengths))
            codes = beam_search(policy, histories, 10, trie=self.data.catalog.trie).codes
            parts.append(self.data.catalog.lookup(codes).numpy())
        items = np.concatenate(parts)
        utility = self.truth.utility(self.cases.users.astype(np.int64), np.maximum(items, 0))
        hit = (items == self.cases.targets[:, None]).any(axis=1)
        return np.where(items >= 0, utility, 0.0).mean(axis=1), hit.astype(np.float64)
