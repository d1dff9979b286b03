"""What training on a reward does to users, and all that a diagnosis could read before, world by world.

    python -m research.verdict.measure --out runs/verdict

Worlds, rewards and halves are those of `worlds.yaml`. A row of `outcomes.jsonl` holds what each arm did to true utility
on all test cases, against continued NLL, and what re-ranking did, against the starting policy. Beside it a file of
arrays, `OUT/observed/<world>.<reward>.npz`, keeps what `diagnose` reads of the validation cases: the beam, its scores,
and for each of `DRAWS` seeds what the sampled groups say. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.config import Config, ObjectiveConfig, load_config
from adagrpo.data.columns import ITEM
from adagrpo.data.prepared import load_impressions, load_item_ids
from adagrpo.data.sequences import pad
from adagrpo.data.simulation.truth import Truth
from adagrpo.decoding import beam_search
from adagrpo.diagnosis import Lists
from adagrpo.diagnosis.admission import evidence_of, pull
from adagrpo.diagnosis.cases import joined_groups
from adagrpo.diagnosis.orders import cross_fitted_mix, mixed_keys
from adagrpo.groups.draw import DrawnGroups, draw_groups
from adagrpo.groups.score import (
    ScoredGroups,
    constant_share,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    shuffled,
)
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.choose_weight import FILE, STAGE, read_reward_weights, reranking
from adagrpo.report import read_rows
from adagrpo.rewards import Reward, ask_reward
from adagrpo.types import Cases, Histories
from research.command import run
from research.rows import add_row
from research.verdict import taste

HERE = Path(__file__).parent
DRAWS = 20
BASELINE = "nll"

Floats = NDArray[np.float64]


class Batch(NamedTuple):
    """Groups before any reward, with their in-batch negatives."""

    drawn: DrawnGroups
    negatives: Tensor  # (B, M)


Drawn = list[tuple[NDArray[np.int64], Batch]]  # the rows of each batch of cases, and its groups


def main() -> None:
    """Measure every pair of a world and a reward that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "outcomes.jsonl")
    parser.add_argument("--worlds", type=Path, default=HERE / "worlds.yaml")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.yaml")
    options = parser.parse_args()
    plan = yaml.safe_load(options.worlds.read_text(encoding="utf-8"))
    done = {(row["world"], row["reward"]) for row in read_rows(options.results)}
    for name, entry in plan["worlds"].items():
        rewards = plan["rewards"][entry["rewards"]]
        missing = [reward for reward in rewards if (name, reward) not in done]
        if not missing:
            continue
        world = World(name, entry, options.out, options.recipe)
        world.prepare()
        for reward in missing:
            started = time.monotonic()
            row = {"world": name, "reward": reward, "half": entry["half"], "seed": entry["seed"], "set": entry["set"]}
            measured = world.measure(reward, rewards[reward])
            add_row(options.results, row | measured | {"seconds": round(time.monotonic() - started, 1)})
            print(name, reward, row | measured, flush=True)


@dataclass(frozen=True)
class World:
    """One world: what its rewards share is made once."""

    name: str
    entry: Mapping[str, Any]
    out: Path
    recipe: Path

    def config(self, more: list[str]) -> Config:
        """The recipe in this world, with another reward."""
        overrides = [*self.entry["set"], f"seed={self.entry['seed']}", *more]
        return load_config(self.recipe, [text.replace("WORLD", self.name) for text in overrides])

    @cached_property
    def run(self) -> Run:
        """The stages without a reward, and the ranker on impressions."""
        return Run(self.out / self.name, self.config([]), Path())

    def prepare(self) -> None:
        """Logs to starting policy, the ranker, and the baseline; the rewards that know the truth."""
        for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
            stage(self.run)
        self.run.stage(f"train/{BASELINE}")
        table = load_impressions(self.data.prepared)
        assert table is not None, "a marketplace has impressions"
        ids, counts = load_item_ids(self.data.prepared), np.bincount(table[ITEM].to_numpy())
        shown = {str(ids[row]): int(count) for row, count in enumerate(counts)}
        taste.register(self.name, Truth.load(self.run.path("simulate", "truth")), shown)

    @cached_property
    def data(self) -> RunData:
        """Of the shared run."""
        return RunData(self.run)

    @cached_property
    def truth(self) -> Truth:
        """In the rows of the prepared data."""
        return self.data.truth()

    @cached_property
    def cases(self) -> dict[str, Cases]:
        """Validation and test."""
        return {split: self.data.cases(split) for split in ("validation", "test")}

    @cached_property
    def beams(self) -> dict[str, tuple[NDArray[np.int64], Floats]]:
        """The starting policy's beams, (N, W) items and log-probabilities."""
        policy = Models(self.data).policy(self.run.path("sft", "best")).eval()
        return {split: self.beam(policy, split, self.run.config.evaluation.beam_width) for split in self.cases}

    @torch.no_grad()
    def beam(self, policy: Any, split: str, width: int) -> tuple[NDArray[np.int64], Floats]:
        """(N, W) items and log-probabilities of a policy's beam, held to the catalogue."""
        parts = []
        for histories, _ in self.batches(split):
            found = beam_search(policy, policy.encode(histories), width, trie=self.data.catalog.trie)
            parts.append((self.data.catalog.lookup(found.codes).numpy(), found.scores.double().numpy()))
        items, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return items, scores

    def batches(self, split: str) -> Iterator[tuple[Histories, NDArray[np.int64]]]:
        """The cases in their order: histories as the policy sees them, and their rows."""
        cases, size = self.cases[split], self.run.config.evaluation.batch_size
        for first in range(0, len(cases), size):
            rows = np.arange(first, min(first + size, len(cases)))
            padded = pad(cases.histories, rows, self.run.config.max_history)
            yield Histories(padded.items, padded.lengths), rows

    @cached_property
    def baseline(self) -> tuple[Floats, Floats]:
        """True utility@10 and HR@10 of the baseline, test cases."""
        return self.outcome(self.run, BASELINE)

    def outcome(self, run: Run, arm: str) -> tuple[Floats, Floats]:
        """(N,) true utility@10 and HR@10 of an arm at its last step, test cases."""
        policy = Models(self.data).policy(run.path("train", arm, "final")).eval()
        return self.worth(self.beam(policy, "test", 10)[0])

    def worth(self, items: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(N,) true utility@10 and HR@10 of lists of the test cases."""
        cases, first = self.cases["test"], items[:, :10]
        utility = self.truth.utility(cases.users.astype(np.int64), np.maximum(first, 0))
        hit = (first == cases.targets[:, None]).any(axis=1)
        return np.where(first >= 0, utility, 0.0).mean(axis=1), hit.astype(np.float64)

    @cached_property
    def draws(self) -> list[Drawn]:
        """The groups of each seed, as the policy draws them; every reward scores the same ones."""
        options = self.run.config.objective
        return [self.drawn(options, seed) for seed in range(DRAWS)]

    @cached_property
    def beam_groups(self) -> Drawn:
        """The policy's own beams as groups."""
        return self.drawn(self.run.config.objective.model_copy(update={"rollout": "beam"}), 0)

    @torch.no_grad()
    def drawn(self, options: ObjectiveConfig, seed: int) -> Drawn:
        """Groups of the validation cases in random batches."""
        cases, config, catalog = self.cases["validation"], self.run.config, self.data.catalog
        policy = Models(self.data).policy(self.run.path("sft", "best")).eval()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(cases), generator=generator).numpy()
        parts = []
        for first in range(0, len(order), config.evaluation.batch_size):
            rows = order[first : first + config.evaluation.batch_size]
            padded = pad(cases.histories, rows, config.max_history)
            targets = torch.from_numpy(cases.targets[rows].astype(np.int64))
            histories = Histories(padded.items, padded.lengths)
            drawn = draw_groups(policy, catalog, histories, targets, options, generator, score_targets=True)
            uniforms = torch.rand((len(rows), len(rows)), generator=generator)
            negatives = in_batch_negatives(targets, histories, uniforms, options.negatives)
            parts.append((rows, Batch(drawn, negatives)))
        return parts

    def measure(self, reward: str, settings: list[str]) -> dict[str, Any]:
        """Fit what the reward needs, train the arms, and keep what there is to be read before."""
        folder = self.out / f"{self.name}.{reward.replace(' ', '-').replace(',', '')}"
        if folder.exists():  # of an attempt that was cut off: begun anew, since a half made ranker hides the shared one
            shutil.rmtree(folder)
        run = Run(folder, self.config(settings), Path(), source=self.run.directory)
        run.ranker()
        teacher = read_reward_weights(run.make(STAGE, reranking(run)) / FILE).distill
        arms = {}
        for arm in run.config.train.arms:
            if arm.name == BASELINE or (arm.name == "distill-tuned" and teacher == 0):
                arms[arm.name] = self.against(self.baseline)  # without weight it is continued NLL, by construction
                continue
            run.stage(f"train/{arm.name}")
            arms[arm.name] = self.against(self.outcome(run, arm.name))
        reward = Models(RunData(run)).reward()
        with torch.no_grad():
            scored = {split: self.lists(reward, split) for split in self.cases}
            self.keep(reward, scored["validation"], folder.name)
        weight = cross_fitted_mix(scored["validation"], np.arange(len(scored["validation"].targets)) % 2 == 0)
        lists = scored["test"]
        keys = mixed_keys(lists, float(np.mean(weight.weights)), weight.spread)
        order = np.argsort(-keys, axis=1, kind="stable")
        start = self.worth(lists.items)
        reranked = self.worth(np.take_along_axis(lists.items, order, axis=1))
        return {
            "users": len(lists.targets),
            "items": self.data.num_items,
            "start": {"true_utility@10": float(start[0].mean()), "hr@10": float(start[1].mean())},
            "baseline": {
                "true_utility@10": float(self.baseline[0].mean()),
                "hr@10": float(self.baseline[1].mean()),
            },
            "arms": {name: against for name, against in arms.items() if name != BASELINE},
            "rerank": {"weights": weight.weights} | difference(reranked, start),
            "teacher_weight": teacher,
        }

    def against(self, outcome: tuple[Floats, Floats]) -> dict[str, list[float]]:
        """Less the baseline."""
        return difference(outcome, self.baseline)

    def scores(self, reward: Reward, split: str, items: NDArray[np.int64]) -> Tensor:
        """(N, C) float32 what the reward says of items of each case, -1 where there is none."""
        parts = [
            ask_reward(reward, histories, torch.from_numpy(items[rows])) for histories, rows in self.batches(split)
        ]
        return torch.cat(parts)

    def lists(self, reward: Reward, split: str) -> Lists:
        """The starting policy's beam with what the reward says of its items."""
        items, log_probs = self.beams[split]
        scores = self.scores(reward, split, items).double().numpy()
        return Lists(items, log_probs, scores, self.cases[split].targets.astype(np.int64))

    @cached_property
    def asked(self) -> NDArray[np.int64]:
        """(N, C) every item that a group of any seed holds in a case, ascending, then -1."""
        wanted = np.zeros((len(self.cases["validation"]), self.data.num_items + 1), dtype=np.bool_)
        for batches in [*self.draws, self.beam_groups]:
            for rows, part in batches:
                for items in (part.drawn.targets[:, None], part.drawn.rollouts.items, part.negatives):
                    wanted[rows[:, None], items.numpy()] = True
        wanted = wanted[:, :-1]  # an invalid rollout marks the place after the last item
        order = np.argsort(~wanted, axis=1, kind="stable")[:, : wanted.sum(axis=1).max()]
        return np.where(np.take_along_axis(wanted, order, axis=1), order, -1)

    def groups(self, known: Tensor, batches: Drawn, seed: int) -> ScoredGroups:
        """Groups with their rewards, which are looked up: (N, V) `known`, NaN where nothing was asked."""
        generator, parts = torch.Generator().manual_seed(1000 + seed), []
        for rows, (drawn, negatives) in batches:
            candidates = distinct_candidates(drawn.targets, drawn.rollouts.items, negatives)
            scores = known[torch.from_numpy(rows)].gather(1, candidates.items.clamp(min=0))
            scores = scores.masked_fill(candidates.items < 0, torch.nan)
            permuted = shuffled(candidates, scores, torch.rand(scores.shape, generator=generator))
            rewards = (read_rewards(candidates, scores), read_rewards(candidates, permuted))
            parts.append(ScoredGroups(*drawn, negatives, *rewards, constant_share(candidates, scores)))
        order = np.concatenate([rows for rows, _ in batches])
        return joined_groups(parts, torch.from_numpy(np.argsort(order)))

    def keep(self, reward: Reward, lists: Lists, name: str) -> None:
        """Write what a diagnosis reads of the validation cases."""
        arrays: dict[str, NDArray[np.generic]] = {
            "items": lists.items.astype(np.int32),
            "log_probs": lists.log_probs.astype(np.float32),
            "rewards": lists.rewards.astype(np.float32),
            "targets": lists.targets,
            "history_lengths": self.cases["validation"].histories.lengths,
            "training_counts": np.bincount(self.data.training.values, minlength=self.data.num_items),
        }
        table = load_impressions(self.data.prepared)
        assert table is not None, "a marketplace has impressions"
        arrays["exposures"] = np.bincount(table[ITEM].to_numpy(), minlength=self.data.num_items)
        known = torch.full((len(lists.targets), self.data.num_items + 1), torch.nan)
        known.scatter_(1, torch.from_numpy(self.asked) % known.shape[1], self.scores(reward, "validation", self.asked))
        drawn = [(f"sample-{seed}", batches, seed) for seed, batches in enumerate(self.draws)]
        for kind, batches, seed in [*drawn, ("beam", self.beam_groups, 0)]:
            scored = self.groups(known, batches, seed)
            true, fake = (evidence_of(scored, self.run.config.objective, shuffled=one) for one in (False, True))
            arrays |= {
                f"{kind}.pull": pull(scored).astype(np.float32),
                f"{kind}.whole_pull": pull(scored, beyond_policy=False).astype(np.float32),
                f"{kind}.difficulty": true.difficulty.float().numpy(),
                f"{kind}.q": true.q.float().numpy(),
                f"{kind}.degenerate": true.degenerate.numpy(),
                f"{kind}.shuffled_q": fake.q.float().numpy(),
                f"{kind}.shuffled_degenerate": fake.degenerate.numpy(),
            }
        folder = self.out / "observed"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


def difference(outcome: tuple[Floats, Floats], reference: tuple[Floats, Floats]) -> dict[str, list[float]]:
    """Mean of the paired differences over test cases, and its 95 % interval by their standard error."""
    result = {}
    for name, values, other in zip(("true_utility@10", "hr@10"), outcome, reference, strict=True):
        paired = values - other
        half = 1.96 * float(paired.std(ddof=1)) / np.sqrt(len(paired))
        mean = float(paired.mean())
        result[name] = [mean, mean - half, mean + half]
    return result


if __name__ == "__main__":
    run(main)
