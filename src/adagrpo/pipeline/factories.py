"""Factories of what a configuration names: policies, rankers, rewards, batches, validation and beam search."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from adagrpo.config import FitConfig
from adagrpo.config.models import LanguageModelConfig
from adagrpo.config.reward import (
    CallableOptions,
    FactoryOptions,
    FeatureOptions,
    HttpOptions,
    LambdaRankOptions,
    LightGBMOptions,
    NoiseOptions,
    RewardOptions,
    SequentialOptions,
    WeightedOptions,
)
from adagrpo.data.prepared import load_item_ids
from adagrpo.data.sequences import emptied
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import Predictions, predict, sample_cases, summarise
from adagrpo.pipeline.files import RunData
from adagrpo.policies import CompactPolicy, HybridPolicy, Policy
from adagrpo.rewards import (
    BoostedReward,
    CallableReward,
    FeatureReward,
    HttpReward,
    NoiseReward,
    Reward,
    WeightedReward,
    find_module,
    load_function,
    load_model,
)
from adagrpo.rewards.cross_fitted import CrossFitted
from adagrpo.rewards.features import Features
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids import Catalog
from adagrpo.semantic_ids.collisions import numbers_items
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.trainer import BatchSchedule
from adagrpo.trainer.checkpoints import load_weights
from adagrpo.trainer.processes import processes
from adagrpo.types import Cases, Ragged

if TYPE_CHECKING:  # it needs transformers, which only a run with such a policy needs
    from transformers import PreTrainedModel

    from adagrpo.policies.causal_lm import CausalLMPolicy
    from adagrpo.policies.language_model import Vocabulary
    from adagrpo.policies.shared_codes import SharedCodesPolicy

__all__ = ["Models"]


class Models:
    """Makes the models of a run's configuration, over the data of that run."""

    def __init__(self, data: RunData) -> None:
        self.data, self.run, self.config = data, data.run, data.config

    def policy(self, weights: Path | None = None) -> CompactPolicy | HybridPolicy | CausalLMPolicy | SharedCodesPolicy:
        """A new policy, or one loaded from a checkpoint folder."""
        policy: CompactPolicy | HybridPolicy | CausalLMPolicy | SharedCodesPolicy
        match self.config.policy.kind:
            case "compact":
                policy = self._compact(self.data.catalog)
            case "hybrid":
                policy = self._hybrid(self.data.catalog)
            case "causal_lm":
                policy = self._causal_lm(trained=weights is not None)
            case _:
                assert_never(self.config.policy.kind)
        policy = policy.to(self.data.device)
        if weights is not None:
            self._load(weights, policy)
        return policy

    def _compact(self, catalog: Catalog) -> CompactPolicy:
        options = self.config.policy
        return CompactPolicy(
            catalog.codes,
            catalog.level_sizes,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            decoder_hidden=options.decoder_hidden,
            max_history=self.config.max_history,
            dropout=options.dropout,
            seed=self.config.seed,
        )

    def _hybrid(self, catalog: Catalog) -> HybridPolicy:
        options, levels = self.config.policy, len(catalog.level_sizes)
        if options.item_prefix >= levels:
            raise UserError(
                f"policy.item_prefix: must be below the {levels} levels of the codes, got {options.item_prefix}"
            )
        return HybridPolicy(
            self._compact(catalog),
            catalog.trie,
            item_dropout=options.item_dropout,
            item_weight=options.item_weight,
            loss_weight=options.item_loss_weight,
            negatives=options.item_negatives,
            prefix=options.item_prefix,
            seed=self.config.seed,
        )

    def _causal_lm(self, *, trained: bool) -> CausalLMPolicy | SharedCodesPolicy:
        """A causal LM; with `trained` the weights are to be loaded, so none are read from the folder it came from."""
        from adagrpo.policies.causal_lm import CausalLMPolicy
        from adagrpo.policies.shared_codes import SharedCodesPolicy

        options, catalog = self.config.policy.lm, self.data.catalog
        model, vocabulary, template = self.language_model(trained=trained)
        assert options is not None  # the configuration checks it
        levels = len(vocabulary.code_sizes)
        policy = CausalLMPolicy(
            model,
            vocabulary,
            catalog.codes[:, :levels].cpu(),
            max_history=self.config.max_history,
            **template,
            dropout=self.config.policy.dropout,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        return policy if catalog.num_levels == levels else SharedCodesPolicy(policy, catalog.trie)

    def language_model(self, *, trained: bool) -> tuple[PreTrainedModel, Vocabulary, dict[str, tuple[int, ...]]]:
        """The language model of a policy, where the codes are among its tokens, and the text around a history.

        Args:
            trained: its weights are to be loaded afterwards, so none are read from the folder it came from.
        """
        from adagrpo.policies import language_model

        options, seed, catalog = self.config.policy.lm, self.config.seed, self.data.catalog
        assert options is not None  # the configuration checks it
        sizes = tuple(size - 1 for size in catalog.level_sizes)
        template: dict[str, tuple[int, ...]] = {}
        if options.tokens:
            named, codes = len(options.tokens), catalog.codes.cpu()
            if len(sizes) != named and not (len(sizes) == named + 1 and numbers_items(codes.numpy())):
                raise UserError(
                    f"policy.lm.tokens: names the tokens of {named} levels, the Semantic IDs have {len(sizes)}; "
                    "name as many"
                )
            model, vocabulary, template = self._named(options, sizes[:named], codes[:, :named], trained=trained)
        elif options.checkpoint is not None:
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
        return model, vocabulary, template

    def _named(
        self, options: LanguageModelConfig, sizes: tuple[int, ...], codes: Tensor, *, trained: bool
    ) -> tuple[PreTrainedModel, Vocabulary, dict[str, tuple[int, ...]]]:
        """A checkpoint that has tokens for the codes: model, tokens of codes (V, L), and those around them."""
        from adagrpo.policies import language_model
        from adagrpo.policies.named_tokens import NamedTokens

        folder = self.run.data / str(options.checkpoint)
        model = language_model.load_folder(folder, seed=self.config.seed, weights=not trained)
        named = NamedTokens(folder, options.tokens, sizes, codes)
        vocabulary = named.vocabulary(language_model.end_token(model), language_model.embedded_tokens(model))
        around = named.pieces(options.preamble or "", options.item, options.separator, options.suffix or "")
        return model, vocabulary, around._asdict()

    def ranker(self, weights: Path | None = None) -> SequentialRanker:
        """A new ranker, or one loaded from a checkpoint folder."""
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
            self.run.hash_input(weights / name)
        borrowed = self.data.version.borrowed
        try:
            load_weights(weights, model, more_items=0 if borrowed is None else borrowed.shape[0])
        except RuntimeError as error:  # names or shapes that the configuration does not give
            raise UserError(f"{weights}: made with other data or model settings; carry out the stages again") from error
        if borrowed is not None and isinstance(model, HybridPolicy | SequentialRanker):
            model.borrow(_sparse(borrowed).to(self.data.device))

    @property
    def reward_files(self) -> list[Path]:
        """The files that decide `reward`."""
        return self.files_of(self.config.reward)

    @property
    def reward_reads(self) -> tuple[str, ...]:
        """The keys of the configuration that decide `reward` beside its files."""
        return ("reward", *sorted(self.config.reward.read_beside))

    def reward(self) -> Reward:
        """The reward of the configuration; a ranker that was fitted on all users."""
        return self.reward_of(self.config.reward)

    @property
    def group_reward_files(self) -> list[Path]:
        """The files that decide `group_reward`."""
        folds = [self.run.path(name, "best", "model.safetensors") for name in self.data.fold_names]
        return folds or self.reward_files

    def group_reward(self) -> Reward:
        """Make the scorer of groups in post-training: the reward or, cross-fitted, the ranker of each user's fold."""
        if not self.data.fold_names:
            return self.reward()
        rankers = [self.ranker(path.parent) for path in self.group_reward_files]
        return CrossFitted(rankers, self.data.fold_of_user)

    def files_of(self, options: RewardOptions) -> list[Path]:
        """The files that decide a reward, each once.

        Raises:
            UserError: a module is not there, or a checkpoint is of a run with other items.
        """
        run, paths = self.run, []
        match options:
            case SequentialOptions():
                folder = self._checkpoint(options)
                if options.checkpoint is not None:
                    _refuse_other_items(self.data, folder)
                paths = [folder / "model.safetensors"]
            case CallableOptions():
                paths = [find_module(options.function, run.code), *(run.data / name for name in options.files)]
            case HttpOptions() | NoiseOptions():
                pass
            case LightGBMOptions() | LambdaRankOptions():
                paths = [self._trees(options), *self.data.training_files[:2]]  # the features count in these
            case FeatureOptions():
                paths = self.data.training_files[:2]
            case FactoryOptions():
                paths = [find_module(options.function, run.code), *(run.data / name for name in options.files)]
                paths += [path for part in options.parts for path in self.files_of(part)]
                paths += self.data.training_files[:2]
            case WeightedOptions():
                paths = [path for part in options.parts for path in self.files_of(part)]
            case _:
                assert_never(options)
        return list(dict.fromkeys(paths))

    def reward_of(self, options: RewardOptions) -> Reward:
        """Make a reward ready to score."""
        match options:
            case SequentialOptions():
                return self.ranker(self._checkpoint(options))
            case CallableOptions():
                ids = self.data.item_ids.to_list()
                return CallableReward(options.function, load_function(options.function, self.run.code), ids)
            case HttpOptions():
                given = options.model_dump(exclude={"kind", "version"})
                return HttpReward(**given, ids=self.data.item_ids.to_list())
            case LightGBMOptions():
                return BoostedReward(load_model(self._trees(options)), self.features)
            case LambdaRankOptions():
                return BoostedReward(load_model(self._trees(options)), self.ranker_features)
            case NoiseOptions():
                return NoiseReward(options.seed)
            case FeatureOptions():
                return FeatureReward(self.ranker_features, options.name)
            case FactoryOptions():
                members = [self.reward_of(part) for part in options.parts]
                made: Reward = load_function(options.function, self.run.code)(self, members, **options.options)
                return made
            case WeightedOptions():
                return WeightedReward([self.reward_of(part) for part in options.parts], options.weights)
            case _:
                assert_never(options)

    def _checkpoint(self, options: SequentialOptions) -> Path:
        own = options.checkpoint is None
        return self.run.path("ranker", "best") if own else self.run.data / str(options.checkpoint)

    def _trees(self, options: LightGBMOptions | LambdaRankOptions) -> Path:
        if isinstance(options, LightGBMOptions):
            return self.run.data / options.model
        return self.run.path("ranker", "lambdarank", "model.txt")

    @cached_property
    def features(self) -> Features:
        """The engineered features of rewards of trees, counted in training."""
        return self._features(self.data.training)

    @cached_property
    def ranker_features(self) -> Features:
        """The same, counted among the users that the rankers of the run see."""
        withheld = self.data.withheld
        return self._features(emptied(self.data.training, withheld)) if withheld.any() else self.features

    def _features(self, training: Ragged) -> Features:
        items = self.data.items
        attributes, texts = items["attributes"].to_list(), items["text"].to_list()
        return Features(training, attributes, texts, first=self.data.version.trained)

    def schedule(self, fit: FitConfig) -> BatchSchedule:
        """The order of training batches."""
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
        """Validation while training, on a fixed sample of users."""
        cases = sample_cases(self.data.cases("validation"), fit.validation_users, self.config.seed)
        return lambda: summarise(self.predict(policy, cases, reward), cases, tail=self.data.tail)

    def predict(
        self,
        policy: Policy[Any, Any],
        cases: Cases,
        reward: Reward | None,
        report: Callable[[int, int], None] = lambda done, total: None,
        *,
        eligible: Eligible | None = None,
    ) -> Predictions:
        """Beam search as the configuration's evaluation section says, held to what is eligible where that is given."""
        options = self.config.evaluation
        return predict(
            policy,
            self.data.catalog,
            cases,
            width=options.beam_width,
            batch_size=options.batch_size,
            max_history=self.config.max_history,
            reward=reward,
            mask_history=options.mask_history,
            eligible=eligible,
            precision=options.precision,
            report=report,
        )


def _refuse_other_items(data: RunData, checkpoint: Path) -> None:
    """Refuse a ranker of another run whose items are not these: it knows them by number alone.

    Args:
        data: of this run.
        checkpoint: `<run>/ranker/best` or `final`; of a folder elsewhere nothing is known.

    Raises:
        UserError: the run of the checkpoint has other items.
    """
    other = checkpoint.parent.parent / "prepare"
    if (other / "items.parquet").is_file() and not load_item_ids(other).equals(load_item_ids(data.prepared)):
        raise UserError(f"reward.checkpoint: {checkpoint} is of a run with other items; name one on the same data")


def _sparse(weights: sparse.csr_array) -> Tensor:
    """The same weights as a sparse tensor."""
    entries = weights.tocoo()
    places = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    return torch.sparse_coo_tensor(places, values, weights.shape, check_invariants=True).coalesce()
