"""Factories for what a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, assert_never, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from adagrpo import rewards
from adagrpo.config import FitConfig
from adagrpo.config import reward as kinds
from adagrpo.config.reward import RewardOptions
from adagrpo.data.logs.items import read_columns
from adagrpo.data.prepared import TRAINING_LOGS, load_item_ids
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import Predictions, batches, predict, sample_cases, summarise
from adagrpo.pipeline.directory import hash_of, path_of, read_of
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.stage import Read
from adagrpo.policies import Policy
from adagrpo.policies.policy import PolicyModule
from adagrpo.policies.spec import PolicySpec
from adagrpo.rewards import Reward, Tables, ask_reward
from adagrpo.rewards.features import Features
from adagrpo.rewards.protocol import CrossFitted
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.trainer import BatchSchedule
from adagrpo.trainer.checkpoints import load_weights
from adagrpo.trainer.processes import processes
from adagrpo.types import Cases, Ragged

REWARD_WEIGHTS, FIRST_LOOK = "reranking:weight.json", "reward:reward.json"
RANKER, TREES = "ranker:best/model.safetensors", "ranker/lambdarank:model.txt"
# kinds whose files do not fully determine their scores
PROBED = ("callable", "factory", "http", "lightgbm", "xgboost", "catboost")


class RewardWeights(NamedTuple):
    """Chosen weights, in units of σ."""

    within_list_std: float
    rerank: float
    distill: float


def read_reward_weights(file: Path) -> RewardWeights:
    """Read a weight.json."""
    content = read_json(file)
    return RewardWeights(*(float(content[name]) for name in ("spread", "rerank", "distill")))


@runtime_checkable
class _Borrows(Protocol):
    """A model with per-item parameters, which new items lack."""

    def borrow(self, weights: Tensor) -> None: ...


class Models:
    """Make the models of a run's configuration."""

    def __init__(self, data: RunData) -> None:
        self.data, self.run, self.config = data, data.run, data.config

    def policy(self, weights: Path | None = None) -> PolicyModule:
        """Return a policy, new or from a checkpoint folder."""
        spec = PolicySpec(
            self.config.policy,
            self.data.catalog,
            max_history=self.config.max_history,
            seed=self.config.seed,
            folder=self.run.data,
            trained=weights is not None,
        )
        kind = importlib.import_module(f"adagrpo.policies.{self.config.policy.kind}")  # it may need an extra
        policy = cast(PolicyModule, kind.build(spec)).to(self.data.device)
        if weights is not None:
            self._load(weights, policy)
        return policy

    def ranker(self, weights: Path | None = None) -> SequentialRanker:
        """Return a ranker, new or from a checkpoint folder."""
        options = self.config.ranker
        ranker = SequentialRanker(
            self.data.num_items,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            max_history=self.config.max_history,
            dropout=options.dropout,
            slots=self.data.slots,
            seed=self.config.seed,
        ).to(self.data.device)
        if weights is not None:
            self._load(weights, ranker)
        return ranker

    def _load(self, weights: Path, model: nn.Module) -> None:
        for name in ("model.safetensors", "checkpoint.json"):
            hash_of(self.run, weights / name)
        borrowed = self.data.version.borrowed
        if self.run.begun is not None and self.run.measured and not weights.is_relative_to(self.run.directory):
            trained = CatalogVersion(self.run.measured, 0).trained  # the run's own weights, which no fit goes on from
            borrowed = self.data.version.neighbours_before(trained) if self.data.num_items > trained else None
        try:
            load_weights(weights, model, more_items=0 if borrowed is None else borrowed.shape[0])
        except RuntimeError as error:  # names or shapes differ from the configuration
            raise UserError(f"{weights}: made with other data or model settings; carry out the stages again") from error
        if borrowed is not None and isinstance(model, _Borrows):
            model.borrow(_sparse(borrowed).to(self.data.device))

    @property
    def reward_files(self) -> list[Read]:
        """The files that determine `reward`."""
        units = [REWARD_WEIGHTS] if self.config.reward.in_list_stds else []
        return [*self.files_of(self.config.reward), *self.probe_files, *units]

    @property
    def probe_files(self) -> list[Read]:
        """The recorded answers of `PROBED` rewards, see `adagrpo.pipeline.rewards`."""
        probed = not self.config.without_order and any(map(self.config.reward.holds, PROBED))
        return [FIRST_LOOK] if probed else []

    @property
    def reward_reads(self) -> tuple[str, ...]:
        """The configuration keys that determine `reward`."""
        return ("reward", *sorted(self.config.reward.read_beside))

    @property
    def training_logs(self) -> Path:
        """The logs up to the end of training, all that a custom reward may be fitted on.

        A Parquet file with user_id, item_id and, if logged, timestamp, sorted by user and time.
        """
        return self.run.checked("prepare", TRAINING_LOGS)

    def reward(self) -> Reward:
        """Return the configured reward, fitted on all users."""
        options = self.config.reward
        if not options.in_list_stds:
            return self.reward_of(options)
        content = self.run.content("reranking", "weight.json")
        return rewards.WeightedReward(self.members(), [1 / std for std in content["members"]])

    @property
    def parts(self) -> Sequence[RewardOptions]:
        """The options of the reward's members, one unless it is a sum."""
        options = self.config.reward
        return options.parts if isinstance(options, kinds.WeightedOptions) else (options,)

    def members(self) -> list[Reward]:
        """Return the reward's members, one for each of `parts`."""
        return [self.reward_of(part) for part in self.parts]

    @property
    def group_reward_files(self) -> list[Read]:
        """The files that determine `group_reward`."""
        folds: list[Read] = [f"{name}:best/model.safetensors" for name in self.data.fold_names]
        return folds or self.reward_files

    def group_reward(self) -> Reward:
        """Return the reward for post-training, cross-fitted if configured."""
        if not self.data.fold_names:
            return self.reward()
        rankers = [self.ranker(path_of(self.run, file).parent) for file in self.group_reward_files]
        return CrossFitted(rankers, self.data.fold_of_user)

    def files_of(self, options: RewardOptions) -> list[Read]:
        """Return the files that determine a reward."""
        run, own = self.run, list[Read]()
        match options:
            case kinds.SequentialOptions(checkpoint=None):
                own = [RANKER]
            case kinds.SequentialOptions():
                folder = self._checkpoint(options)
                other = folder.parent.parent / "prepare"  # of `ranker/best` or `final`, if it is of a run
                both = (other / "items.parquet").is_file() and run.path("prepare", "items.parquet").is_file()
                if both and not load_item_ids(other).equals(load_item_ids(self.data.prepared)):
                    raise UserError(
                        f"reward.checkpoint: {folder} is of a run with other items; name one on the same data"
                    )
                own = [read_of(run, folder / "model.safetensors")]
            case kinds.CallableOptions() | kinds.FactoryOptions():
                own = [*rewards.module_files(options.function, run.code), *(run.data / name for name in options.files)]
            case kinds.ModelFileOptions():
                own = [run.data / name for name in (options.model, options.users) if name is not None]
                own += self.data.item_column_files
            case kinds.LambdaRankOptions():
                own = [TREES]
        own += [path for part in options.parts for path in self.files_of(part)]
        counted = kinds.ModelFileOptions | kinds.LambdaRankOptions | kinds.FeatureOptions | kinds.FactoryOptions
        own += self.data.training_files[:2] if isinstance(options, counted) else []  # features are counted in these
        return list(dict.fromkeys(own))

    def reward_of(self, options: RewardOptions) -> Reward:
        """Return a reward ready to score."""
        match options:
            case kinds.SequentialOptions():
                return self.ranker(self._checkpoint(options))
            case kinds.CallableOptions():
                return rewards.CallableReward(
                    options.function,
                    rewards.load_function(options.function, self.run.code),
                    self.data.item_ids.to_list(),
                    user_ids=self.data.user_ids,
                    shown=lambda: self.data.shown_to_users,
                    training_logs=lambda: self.training_logs,
                )
            case kinds.HttpOptions():
                given = options.model_dump(exclude={"kind", "version"})
                return rewards.HttpReward(**given, ids=self.data.item_ids.to_list(), say=self.run.console.note)
            case kinds.ModelFileOptions():
                model = rewards.load_model(self.run.data / options.model)
                return rewards.BoostedReward(model, self.features, self._tables(options), self.data.user_ids)
            case kinds.LambdaRankOptions():
                return rewards.BoostedReward(rewards.load_model(path_of(self.run, TREES)), self.ranker_features)
            case kinds.NoiseOptions():
                return rewards.NoiseReward(options.seed)
            case kinds.FeatureOptions():
                return rewards.FeatureReward(self.ranker_features, options.name)
            case kinds.FactoryOptions():
                members = [self.reward_of(part) for part in options.parts]
                made: Reward = rewards.load_function(options.function, self.run.code)(self, members, **options.options)
                return made
            case kinds.WeightedOptions():
                if options.weights is None:
                    raise UserError("reward: a sum that is a member of another reward, or stands alone, needs weights")
                return rewards.WeightedReward([self.reward_of(part) for part in options.parts], options.weights)
            case _:
                assert_never(options)

    def _checkpoint(self, options: kinds.SequentialOptions) -> Path:
        own = options.checkpoint is None
        return self.run.path("ranker", "best") if own else self.run.data / str(options.checkpoint)

    def _tables(self, options: kinds.ModelFileOptions) -> Tables:
        described, items = self.config.data.items, self.data.version.item_columns
        item_file = "items.parquet" if described is None else Path(described.path).name
        if not items.columns:  # the run has no item table, or is of an earlier version
            item_file = "" if described is None else f"{item_file}, whose columns this run has not kept: take a new one"
        if options.users is None:
            return Tables(items, item_file=item_file)
        path, key = self.run.data / options.users, self.config.data.columns.user
        hash_of(self.run, path)
        table = read_columns(path, key, "user", "the user column of the logs (data.columns.user)")
        rows = {name: row for row, name in enumerate(table[key].to_list())}
        return Tables(items, table.drop(key), rows, item_file, path.name)

    @cached_property
    def features(self) -> Features:
        """The features of tree-based rewards, counted in training."""
        return self._features(self.data.training)

    @cached_property
    def ranker_features(self) -> Features:
        """The same, counted over users that rankers may see."""
        withheld = self.data.withheld
        return self._features(emptied(self.data.training, withheld)) if withheld.any() else self.features

    def _features(self, training: Ragged) -> Features:
        columns = (self.data.items[name].to_list() for name in ("attributes", "text"))
        return Features(training, *columns, first=self.data.version.trained)

    def schedule(self, fit: FitConfig) -> BatchSchedule:
        """Return the order of training batches."""
        return BatchSchedule(
            self.data.training,
            self.config.max_history,
            fit.batch_size,
            fit.accumulation,
            self.config.seed,
            processes=processes().count,
        )

    def validator(
        self, policy: Policy[Any, Any], fit: FitConfig, reward: Reward | None = None
    ) -> Callable[[], dict[str, float]]:
        """Return validation on a fixed sample of users; a refit has none."""
        if self.run.measured is not None:
            return dict
        cases = sample_cases(self.data.cases("validation"), fit.validation_users, self.config.seed)
        return lambda: summarise(self.predict(policy, cases, reward), cases, tail=self.data.tail)

    def score_lists(
        self,
        reward: Reward,
        cases: Cases,
        items: NDArray[np.int64],  # (N, W)
    ) -> NDArray[np.float32]:  # (N, W)
        """Score the lists of `N` cases; NaN where the item is -1."""
        scores = np.full(items.shape, np.nan, dtype=np.float32)
        size, most = self.config.evaluation.batch_size, self.config.max_history
        for rows, histories in batches(cases, size, most, self.data.device):
            ranked = torch.from_numpy(items[rows]).to(self.data.device)
            scores[rows] = ask_reward(reward, histories, ranked).cpu().numpy()
        return scores

    def predict(
        self,
        policy: Policy[Any, Any],
        cases: Cases,
        reward: Reward | None,
        report: Callable[[int, int], None] = lambda done, total: None,
        *,
        eligible: Eligible | None = None,
    ) -> Predictions:
        """Run the configured beam search, restricted to `eligible` if given."""
        options = self.config.evaluation
        return predict(
            policy,
            self.data.catalog,
            cases,
            width=options.beam_width,
            batch_size=options.batch_size,
            max_history=self.config.max_history,
            reward=reward,
            exclude_history=options.exclude_history,
            eligible=eligible,
            precision=options.precision,
            report=report,
        )


def load_begun(data: RunData, stage: str, model: nn.Module) -> None:
    """Load the weights that a refresh goes on from; items new since then get the mean of their neighbours."""
    begun = data.run.begun
    assert begun is not None, "a refresh goes on from something"
    before = Models(RunData(begun, CatalogVersion(begun, begun.catalog)))
    weights = begun.path(*stage.split("/"), "best")
    known = before.ranker(weights) if isinstance(model, SequentialRanker) else before.policy(weights)
    state, more = known.state_dict(), data.num_items - before.data.num_items
    for name in getattr(model, "item_tables", ()):
        state[name] = nn.functional.pad(state[name], (0, 0, 0, more))
    model.load_state_dict(state)
    if more and isinstance(model, _Borrows):
        near = data.version.neighbours_before(before.data.num_items)
        with torch.no_grad():
            model.borrow(_sparse(near).to(data.device))


def _sparse(weights: sparse.csr_array) -> Tensor:
    entries = weights.tocoo()
    indices = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, weights.shape, check_invariants=True).coalesce()
