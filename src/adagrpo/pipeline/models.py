"""What the stages share: the prepared data, and models built from the configuration or loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adagrpo import metrics
from adagrpo.config import FitConfig
from adagrpo.config.reward import SequentialOptions
from adagrpo.data.prepared import (
    load_cases,
    load_impressions,
    load_item_ids,
    load_items,
    load_training,
    load_user_ids,
)
from adagrpo.data.sequences import emptied
from adagrpo.data.simulation.truth import Truth
from adagrpo.data.splits import keyed_uniforms, user_folds
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import Predictions, predict, sample_cases, summarise
from adagrpo.groups.decide import TrueUtility
from adagrpo.pipeline.rewards import build_reward, reward_inputs
from adagrpo.pipeline.run import Run
from adagrpo.policies import CompactPolicy, HybridPolicy
from adagrpo.rewards.cross_fitted import CrossFitted
from adagrpo.rewards.features import Features
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids import Catalog
from adagrpo.trainer import BatchSchedule
from adagrpo.trainer.checkpoints import load_weights
from adagrpo.trainer.processes import SharedReward, processes
from adagrpo.types import Cases, Ragged

if TYPE_CHECKING:  # it needs transformers, which only a run with such a policy needs
    from adagrpo.policies.causal_lm import CausalLMPolicy

__all__ = ["Workbench"]

CATALOG_FILES = (("tokenize", "codes.parquet"), ("tokenize", "codes.json"))


class Workbench:
    """Reads what earlier stages of a run have made. Nothing here reads test data but `cases("test")`."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def prepared(self) -> Path:
        """The prepared data, as they were written; test cases are looked at where they are read, in `cases`."""
        return self.run.checked_stage("prepare", but=["test.parquet"])

    @property
    def training_files(self) -> list[Path]:
        """What a model may be fitted on, and selected by: training and validation interactions."""
        return [self.prepared / "items.parquet", self.prepared / "train.parquet", self.prepared / "validation.parquet"]

    @property
    def catalog_files(self) -> list[Path]:
        """The Semantic IDs."""
        return [self.run.path(*path) for path in CATALOG_FILES]

    @cached_property
    def training(self) -> Ragged:
        """Training sequences, one row a user."""
        return load_training(self.prepared)

    @cached_property
    def num_items(self) -> int:
        """`V`."""
        return len(load_items(self.prepared))

    @cached_property
    def catalog(self) -> Catalog:
        """Item to codes and back, in the sizes of the policy: a language model can leave the codes of a level."""
        codes, _ = (self.run.checked(*path) for path in CATALOG_FILES)
        catalog = Catalog.read(codes)
        if self.config.policy.kind == "causal_lm":
            catalog = catalog.with_outside()
        return catalog.to(self.device)

    @cached_property
    def tail(self) -> NDArray[np.bool_]:
        """(V,) the items of the tail, by training interactions."""
        return metrics.tail_items(np.bincount(self.training.values, minlength=self.num_items))

    @cached_property
    def slots(self) -> int:
        """How many slots a slate has; 1 where the logs have none."""
        table = load_impressions(self.prepared)
        if table is None or "slot" not in table.columns or len(table) == 0:
            return 1
        return int(table["slot"].max()) + 1  # type: ignore[arg-type]

    def cases(self, split: str) -> Cases:
        """Evaluation cases of `validation` or `test`."""
        if split == "test":
            self.run.checked("prepare", "test.parquet")
        cases = load_cases(self.prepared, split)
        if len(cases) == 0:
            raise UserError(f"{self.prepared / f'{split}.parquet'}: no {split} case; users need three interactions")
        return cases

    @property
    def fold_names(self) -> list[str]:
        """The stages of the rankers for cross-fitting; none where it is off."""
        folds = self.config.ranker.folds
        return [f"ranker/fold-{fold}" for fold in range(folds if folds > 1 else 0)]

    @cached_property
    def fold_of_user(self) -> NDArray[np.int64]:
        """(U,) the fold of each user."""
        return user_folds(len(self.training), len(self.fold_names), self.config.seed)

    @cached_property
    def withheld(self) -> NDArray[np.bool_]:
        """(U,) the users that no ranker of the run is to see, see `ranker.user_share`."""
        users = np.arange(len(self.training))
        return keyed_uniforms(self.config.seed, users, np.zeros_like(users)) >= self.config.ranker.user_share

    @cached_property
    def features(self) -> Features:
        """The engineered features of rewards of trees, counted in training."""
        return self._features(self.training)

    @cached_property
    def ranker_features(self) -> Features:
        """The same, counted among the users that the rankers of the run see."""
        return self._features(emptied(self.training, self.withheld)) if self.withheld.any() else self.features

    def _features(self, training: Ragged) -> Features:
        items = load_items(self.prepared)
        return Features(training, items["attributes"].to_list(), items["text"].to_list())

    @property
    def reward_files(self) -> list[Path]:
        """The files that decide `reward`."""
        return reward_inputs(self, self.config.reward)

    @property
    def reward_config(self) -> list[object]:
        """What a stage that reads the reward adds to its configuration; nothing for the ranker of the run itself."""
        options = self.config.reward
        return [] if options == SequentialOptions() else [{"reward": options.identity()}]

    def reward(self) -> Reward:
        """The reward of the configuration; a ranker that was fitted on all users."""
        return build_reward(self, self.config.reward)

    @property
    def judge_files(self) -> list[Path]:
        """The files that decide `judge`."""
        folds = [self.run.path(name, "best", "model.safetensors") for name in self.fold_names]
        return folds or self.reward_files

    def judge(self) -> Reward:
        """What post-training is judged by: the reward or, cross-fitted, each user's fold of the ranker."""
        reward: Reward
        if self.fold_names:
            reward = CrossFitted([self.ranker(path.parent) for path in self.judge_files], self.fold_of_user)
        else:
            reward = self.reward()
        return self._shared(reward)

    def _shared(self, reward: Reward) -> Reward:
        several = self.run.followed and self.run.processes.count > 1
        return SharedReward(reward, self.run.processes) if several else reward

    @property
    def truth_files(self) -> list[Path]:
        """The truth of a simulated marketplace; none where the logs are real."""
        return sorted(self.run.path("simulate", "truth").glob("*")) if self.config.data.marketplace else []

    def truth(self) -> Truth:
        """The truth, in the rows of the prepared users and items. For evaluation and the oracle gate alone."""
        if self.config.data.marketplace is None:
            raise UserError("train.arms: the gate 'oracle' needs a truth, which only a simulated marketplace has")
        for path in self.truth_files:
            self.run.hash_input(path)
        truth = Truth.load(self.run.path("simulate", "truth"))
        return truth.aligned(load_user_ids(self.prepared).to_list(), load_item_ids(self.prepared).to_list())

    def true_utility(self) -> TrueUtility:
        """The utility just before each logged item was chosen."""
        truth = self.truth()

        def utility(users: torch.Tensor, targets: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            rows, bought, found = (part.cpu().numpy() for part in (users, targets, items.clamp(min=0)))
            return torch.from_numpy(truth.utility_before(rows, bought, found)).float().to(items.device)

        return utility

    def schedule(self, fit: FitConfig) -> BatchSchedule:
        """The order of training batches."""
        return BatchSchedule(
            self.training,
            self.config.max_history,
            fit.batch_size,
            fit.accumulation,
            self.config.seed,
            processes=processes().count,
        )

    def policy(self, weights: Path | None = None) -> CompactPolicy | HybridPolicy | CausalLMPolicy:
        """A new policy, or one loaded from a checkpoint folder."""
        policy: CompactPolicy | HybridPolicy | CausalLMPolicy
        if self.config.policy.kind == "causal_lm":
            policy = self._language_model(trained=weights is not None)
        else:
            policy = self._small_policy()
        policy = policy.to(self.device)
        if weights is not None:
            self._load(weights, policy)
        return policy

    @property
    def language_model_files(self) -> list[Path]:
        """What a policy from a local folder is made of."""
        options = self.config.policy.lm
        if options is None or options.checkpoint is None:
            return []
        folder = self.run.data / options.checkpoint
        files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
        if not files:
            raise UserError(f"{folder}: no Hugging Face folder; policy.lm.checkpoint is a local one below --data")
        return files

    def _language_model(self, *, trained: bool) -> CausalLMPolicy:
        """A causal LM; with `trained` the weights are to be loaded, so none are read from the folder it came from."""
        from adagrpo.policies import language_model
        from adagrpo.policies.causal_lm import CausalLMPolicy

        options, seed = self.config.policy.lm, self.config.seed
        assert options is not None  # the configuration checks it
        sizes = tuple(size - 1 for size in self.catalog.level_sizes)
        template: dict[str, tuple[int, ...]] = {}
        if options.checkpoint is not None:
            folder = self.run.data / options.checkpoint
            model, vocabulary = language_model.from_folder(folder, sizes, seed=seed, weights=not trained)
            for key, text in (("preamble", options.preamble), ("suffix", options.suffix)):
                if text is not None:
                    template[key] = language_model.template_tokens(folder, key, text)
        else:
            model, vocabulary = language_model.from_configuration(options.config or {}, sizes, seed=seed)
        language_model.adapt(
            model,
            frozen_body=options.frozen_body,
            lora_rank=options.lora_rank,
            lora_alpha=options.lora_alpha,
            bfloat16=options.dtype == "bfloat16",
        )
        return CausalLMPolicy(
            model,
            vocabulary,
            self.catalog.codes.cpu(),
            max_history=self.config.max_history,
            **template,
            dropout=self.config.policy.dropout,
            gradient_checkpointing=options.gradient_checkpointing,
        )

    def _small_policy(self) -> CompactPolicy | HybridPolicy:
        options = self.config.policy
        compact = CompactPolicy(
            self.catalog.codes,
            self.catalog.level_sizes,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            decoder_hidden=options.decoder_hidden,
            max_history=self.config.max_history,
            dropout=options.dropout,
            seed=self.config.seed,
        )
        if options.kind == "compact":
            return compact
        return HybridPolicy(
            compact,
            self.catalog.trie,
            item_dropout=options.item_dropout,
            item_weight=options.item_weight,
            loss_weight=options.item_loss_weight,
            negatives=options.item_negatives,
            seed=self.config.seed,
        )

    def ranker(self, weights: Path | None = None) -> SequentialRanker:
        """A new ranker, or one loaded from a checkpoint folder."""
        options = self.config.ranker
        ranker = SequentialRanker(
            self.num_items,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            max_history=self.config.max_history,
            dropout=options.dropout,
            slots=self.slots,
            seed=self.config.seed,
        ).to(self.device)
        if weights is not None:
            self._load(weights, ranker)
        return ranker

    def _load(self, weights: Path, model: nn.Module) -> None:
        for name in ("model.safetensors", "checkpoint.json"):
            self.run.hash_input(weights / name)
        try:
            load_weights(weights, model)
        except RuntimeError as error:  # names or shapes that the configuration does not give
            raise UserError(f"{weights}: made with other data or model settings; carry out the stages again") from error

    def validator(self, policy: Any, fit: FitConfig, reward: Reward | None = None) -> Callable[[], dict[str, float]]:
        """Validation while training, on a fixed sample of users."""
        cases = sample_cases(self.cases("validation"), fit.validation_users, self.config.seed)
        return lambda: summarise(self.predict(policy, cases, reward), cases, tail=self.tail)

    def predict(
        self,
        policy: Any,
        cases: Cases,
        reward: Reward | None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Predictions:
        """Beam search as the configuration's evaluation section says."""
        options = self.config.evaluation
        return predict(
            policy,
            self.catalog,
            cases,
            width=options.beam_width,
            batch_size=options.batch_size,
            max_history=self.config.max_history,
            reward=reward,
            mask_history=options.mask_history,
            report=report,
        )
