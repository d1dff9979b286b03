"""The data of a run: the prepared data, the catalogue, the truth, and the lists of files that stages read.

Every read goes through `RunDirectory.checked`, `.checked_stage` or `.hash_input`, so that what was changed after it was
made is never used. Nothing here reads test data but `cases("test")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.data.columns import ITEM, ITEM_ID, USER_ID
from adagrpo.data.groups import ItemGroups
from adagrpo.data.prepared import load_cases, load_impressions, load_item_ids, load_items, load_training, load_user_ids
from adagrpo.data.simulation.truth import Truth
from adagrpo.data.splits import keyed_uniforms, user_folds
from adagrpo.errors import UserError
from adagrpo.evaluation.exposure_weights import case_weights
from adagrpo.evaluation.predictions import Utility, sample_cases, select_cases
from adagrpo.groups.apply_gates import TrueUtility
from adagrpo.lists.eligibility import Eligibility, Narrowing
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.versions import CatalogVersion
from adagrpo.semantic_ids import Catalog
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Cases, Ragged


class RunData:
    """Reads what earlier stages of a run have made."""

    def __init__(self, run: RunDirectory, version: CatalogVersion | None = None) -> None:
        """Read a run.

        Args:
            version: of the catalogue; None is the one that its policies are trained with.
        """
        self.run, self.config = run, run.config
        self.version = version or CatalogVersion(run, 0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def prepared(self) -> Path:
        """The prepared data, as they were written; test cases are looked at where they are read, in `cases`."""
        return self.run.checked_stage("prepare", but=["test.parquet", "later.parquet"])

    def prepared_file(self, name: str) -> Path:
        """Return the path of a file of the prepared data."""
        return self.run.path("prepare", name)

    @property
    def training_files(self) -> list[Path]:
        """The files that a model may be fitted on, and selected by: training and validation interactions."""
        return [self.prepared_file(f"{name}.parquet") for name in ("items", "train", "validation")]

    @property
    def shown_files(self) -> list[Path]:
        """The files of impressions; none where the logs have none."""
        return [path for path in [self.prepared_file("impressions.parquet")] if path.is_file()]

    @property
    def catalog_files(self) -> list[Path]:
        """The Semantic IDs."""
        return self.version.files

    @property
    def truth_files(self) -> list[Path]:
        """The truth of a simulated marketplace; none where the logs are real."""
        return sorted(self.run.path("simulate", "truth").glob("*")) if self.config.data.marketplace else []

    @property
    def truth_knows_all(self) -> bool:
        """True where a truth knows all items of the catalogue; it knows none of those that came after training."""
        return bool(self.truth_files) and self.num_items == self.version.trained

    @property
    def truth_read(self) -> dict[str, str]:
        """The reading of the truth, for fingerprints; nothing where the logs are real."""
        return {"truth": "just before the target"} if self.truth_files else {}

    @property
    def language_model_files(self) -> list[Path]:
        """The files of a policy from a local folder."""
        options = self.config.policy.lm
        if options is None or options.checkpoint is None:
            return []
        folder = self.run.data / options.checkpoint
        kinds = ["*.json", "*.safetensors"]
        if not (folder / "tokenizer.json").is_file():  # which holds all that these do
            kinds += ["*.txt", "*.model"]
        files = sorted(path for kind in kinds for path in folder.glob(kind))
        if not files:
            raise UserError(f"{folder}: no Hugging Face folder; policy.lm.checkpoint is a local one below --data")
        return files

    @cached_property
    def training(self) -> Ragged:
        """Training sequences, one row a user."""
        return load_training(self.prepared)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The catalogue: item, item_id, text, attributes."""
        return self.version.items if self.version.number else load_items(self.prepared)

    @property
    def item_ids(self) -> pl.Series:
        """(V,) ids of the logs, in the order of items."""
        return self.items[ITEM_ID]

    @property
    def num_items(self) -> int:
        """`V`."""
        return len(self.items)

    @cached_property
    def catalog(self) -> Catalog:
        """Item to codes and back, in the sizes of the policy: a language model can leave the codes of a level."""
        catalog = self.version.codes
        if self.config.policy.can_leave_codes:
            catalog = catalog.with_outside()
        return catalog.to(self.device)

    @cached_property
    def tail(self) -> NDArray[np.bool_]:
        """(V,) the items of the tail, by training interactions."""
        return metrics.tail_items(self.training.counts(self.num_items))

    @cached_property
    def eligible(self) -> Eligible | None:
        """The items that measured lists may hold, see `evaluation.eligible`; None: the catalogue."""
        if self.config.evaluation.eligible is None:
            return None
        narrowing = self.narrowed(self.catalog)
        every = np.ones(self.num_items, np.bool_)
        every[list(narrowing.without)] = False
        return narrowing.eligible or self.catalog.trie.eligible(torch.from_numpy(every).to(self.device))

    def narrowed(self, catalog: Catalog) -> Narrowing:
        """The items that `evaluation.eligible` leaves.

        Raises:
            UserError: the items have no such group, or nothing is left.
        """
        options = self.config.evaluation.eligible
        assert options is not None
        numbers = {str(name): item for item, name in enumerate(self.item_ids.to_list())}

        def known(ids: Sequence[str | int]) -> tuple[list[int], list[str | int]]:
            return [numbers[str(name)] for name in ids if str(name) in numbers], []

        try:
            narrowing = Eligibility(catalog, self.groups, known).resolve(options.include or None, options.exclude)
        except UserError as error:
            raise UserError(f"evaluation.eligible.{error}") from error
        if narrowing.left == 0:
            raise UserError("evaluation.eligible: no item is eligible; see which values the item table has")
        return narrowing

    def groups(self) -> ItemGroups:
        """The named groups of the items."""
        return ItemGroups(self.items)

    @property
    def admitted(self) -> torch.Tensor | None:
        """(V,) bool, what may be in the lists that are measured: listed and eligible. None: everything."""
        eligible = None if self.eligible is None else self.eligible.items
        if not self.version.number:
            return eligible
        return self.catalog.listed if eligible is None else self.catalog.listed & eligible

    def ids_of(self, users: NDArray[np.int32]) -> pl.DataFrame:
        """A column `user_id`: the users of cases in the ids of the logs."""
        return pl.DataFrame({USER_ID: load_user_ids(self.prepared).gather(users)})

    def measured_cases(self, split: str) -> Cases:
        """The cases of a split that metrics are of: those whose logged item may be in a list.

        Of validation, where `evaluation.validation_users` says so, a sample.

        Raises:
            UserError: there is none.
        """
        cases = self._drawn_cases(split)
        if self.eligible is None:
            return cases
        kept = np.flatnonzero(self.eligible.items.cpu().numpy()[cases.targets])
        if len(kept) == 0:
            raise UserError(f"evaluation.eligible: none of the {len(cases)} logged items of {split} is eligible")
        return select_cases(cases, kept)

    def _drawn_cases(self, split: str) -> Cases:
        """The cases of a split, of validation the sample that `evaluation.validation_users` asks for."""
        cases, most = self.cases(split), self.config.evaluation.validation_users
        return cases if split != "validation" or most is None else sample_cases(cases, most, self.config.seed)

    @property
    def validation_draw(self) -> dict[str, int]:
        """The settings that draw the sample of `measured_cases`, for fingerprints; nothing where all are measured."""
        return {} if self.config.evaluation.validation_users is None else {"seed": self.config.seed}

    def measured(self) -> dict[str, Any]:
        """The note on the measured cases in a file of metrics; nothing where they are all."""
        drawn = {split: len(self._drawn_cases(split)) for split in ("validation", "test")}
        sampled = drawn["validation"] < len(self.cases("validation"))
        sample = {"validation_sample": len(self.measured_cases("validation"))} if sampled else {}
        if self.eligible is None or self.config.evaluation.eligible is None:
            return sample
        left_out = {split: count - len(self.measured_cases(split)) for split, count in drawn.items()}
        filters = self.config.evaluation.eligible.model_dump(mode="json", exclude_defaults=True)
        return sample | {"eligible": filters | {"items": self.eligible.count, "cases_left_out": left_out}}

    def case_weights(self, cases: Cases) -> NDArray[np.float64]:
        """(N,) what each case weighs in a choice between lists: all alike where the logs do not say what was shown."""
        shown = self.times_shown
        if shown is None:
            return np.ones(len(cases))
        return case_weights(shown[cases.targets], self.config.decide.exposure_power)

    @cached_property
    def times_shown(self) -> NDArray[np.int64] | None:
        """(V,) how often the impressions of training show each item; None where the logs have none."""
        table = load_impressions(self.prepared)
        return None if table is None else np.bincount(table[ITEM].to_numpy(), minlength=self.num_items)

    @cached_property
    def slots(self) -> int:
        """The number of slots of a slate; 1 where the logs have none."""
        table = load_impressions(self.prepared)
        if table is None or "slot" not in table.columns or table["slot"].count() == 0:
            return 1
        return int(table["slot"].max()) + 1  # type: ignore[arg-type]

    def cases(self, split: str) -> Cases:
        """Evaluation cases of `validation` or `test`."""
        if split == "test":
            self.run.checked("prepare", "test.parquet")
        cases = load_cases(self.prepared, split)
        if len(cases) == 0:
            temporal = self.config.data.split.kind == "temporal"
            need = "see the times of data.split" if temporal else "users need three interactions"
            raise UserError(f"{self.prepared / f'{split}.parquet'}: no {split} case; {need}")
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

    @property
    def ranker_loss(self) -> Literal["impressions", "cross_entropy", "sampled"]:
        """The loss of the sequential ranker; `auto` takes impressions where there are some."""
        if self.config.ranker.loss != "auto":
            return self.config.ranker.loss
        return "impressions" if self.shown_files else "cross_entropy"

    @cached_property
    def withheld(self) -> NDArray[np.bool_]:
        """(U,) the users that no ranker of the run is to see, see `ranker.user_share`."""
        users = np.arange(len(self.training))
        return keyed_uniforms(self.config.seed, users, np.zeros_like(users)) >= self.config.ranker.user_share

    def truth(self) -> Truth:
        """The truth, in the rows of the prepared users and items. For evaluation and the oracle gate alone."""
        if self.config.data.marketplace is None:
            raise UserError("train.arms: the gate 'oracle' needs a truth, which only a simulated marketplace has")
        for path in self.truth_files:
            self.run.hash_input(path)
        truth = Truth.load(self.run.path("simulate", "truth"))
        return truth.aligned(load_user_ids(self.prepared).to_list(), load_item_ids(self.prepared).to_list())

    def utility_at(self, cases: Cases) -> Utility | None:
        """The utility just before each case's target was bought; None where no truth knows all items of the catalogue.

        A case need not be the last purchase of its user: data may be cut by time, and items may be filtered out.
        """
        if not self.truth_knows_all:
            return None
        users, targets = cases.users.astype(np.int64), cases.targets.astype(np.int64)
        return lambda items: self._truth.utility_before(users, targets, np.maximum(items, 0))

    @cached_property
    def _truth(self) -> Truth:
        return self.truth()

    def true_utility(self) -> TrueUtility:
        """The utility just before each logged item was chosen."""
        truth = self.truth()

        def utility(users: torch.Tensor, targets: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            rows, bought, candidates = (part.cpu().numpy() for part in (users, targets, items.clamp(min=0)))
            return torch.from_numpy(truth.utility_before(rows, bought, candidates)).float().to(items.device)

        return utility
