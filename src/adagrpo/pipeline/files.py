"""The data of a run, of files that are as they were made; only `cases("test")` reads test data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import sparse

from adagrpo import metrics
from adagrpo.data.columns import CLICKED, ITEM, ITEM_ID, SLOT, USER, USER_ID
from adagrpo.data.groups import ItemGroups
from adagrpo.data.prepared import (
    DAYS_OF,
    ITEM_COLUMNS,
    load_cases,
    load_impressions,
    load_item_ids,
    load_items,
    load_training,
    load_user_ids,
    stack_columns,
)
from adagrpo.data.simulation.truth import Truth
from adagrpo.data.splits import keyed_uniforms, user_folds
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import Utility, eligible_cases, sample_cases
from adagrpo.groups.gated import TrueUtility
from adagrpo.lists.eligibility import Eligibility, Narrowing
from adagrpo.lists.query import Query, query_of
from adagrpo.lists.table import Shown
from adagrpo.pipeline.directory import RunDirectory, checked_stage, hash_of, path_of
from adagrpo.pipeline.stage import Read
from adagrpo.rewards.reranking import EXPOSURE_POWER, case_weights
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Cases, Ragged

CATALOGS = "catalogs"
DIGITS = 12  # of the hash in the name of a version


@dataclass(frozen=True)
class CatalogVersion:
    """One catalogue version; files are verified when read."""

    run: RunDirectory
    number: int

    @property
    def stage(self) -> str:
        """Name of its stage."""
        return f"{CATALOGS}/{self.number:04d}" if self.number else "tokenize"

    @property
    def files(self) -> list[Read]:
        """Files of the codes and level sizes."""
        return [f"{self.stage}:{name}" for name in ("codes.parquet", "codes.json")]

    @cached_property
    def codes(self) -> Catalog:
        """Codes of all items, on the CPU."""
        for file in self.files:
            hash_of(self.run, file)
        return Catalog.read(path_of(self.run, self.files[0]))

    @cached_property
    def items(self) -> pl.DataFrame:
        """Item table: item, item_id, text, attributes."""
        folder = self.stage.split("/") if self.number else ["prepare"]
        return pl.read_parquet(self.run.checked(*folder, "items.parquet"))

    @cached_property
    def item_columns(self) -> pl.DataFrame:
        """(V,) columns of the item table as they are, if any."""
        path = self.run.find("prepare", ITEM_COLUMNS)
        if path is None:
            return pl.DataFrame()
        table = pl.read_parquet(path)
        added = self.run.find(*self.stage.split("/"), ITEM_COLUMNS) if self.number else None
        table = table if added is None else stack_columns(table, pl.read_parquet(added))
        return table.select(pl.all().extend_constant(None, len(self.items) - len(table)))

    @property
    def item_ids(self) -> pl.Series:
        """(V,) ids of the logs, in row order."""
        return self.items[ITEM_ID]

    @cached_property
    def trained(self) -> int:
        """Number of items in training, the first rows."""
        return len(pl.read_parquet(self.run.checked("prepare", "items.parquet"), columns=[ITEM_ID]))

    @cached_property
    def neighbours(self) -> pl.DataFrame:
        """Neighbours of added items: item, neighbour, weight."""
        if self.number or self.run.begun is not None:
            return pl.read_parquet(self.run.checked(*self.stage.split("/"), "neighbours.parquet"))
        return pl.DataFrame(schema={ITEM: pl.Int32, "neighbour": pl.Int32, "weight": pl.Float32})

    @property
    def borrowed(self) -> sparse.csr_array | None:
        """(V - trained, trained) neighbour weights; None without added items."""
        return None if len(self.items) == self.trained else self.neighbours_before(self.trained)

    def neighbours_before(self, items: int) -> sparse.csr_array:
        """Return (V - items, items) neighbour weights of later items."""
        table = self.neighbours.filter(pl.col(ITEM) >= items)
        rows = table[ITEM].to_numpy().astype(np.int64) - items
        entries = (table["weight"].to_numpy(), (rows, table["neighbour"].to_numpy()))
        return sparse.csr_array(entries, shape=(len(self.items) - items, items))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Content of version.json."""
        if self.number:
            return self.run.content(*self.stage.split("/"), "version.json")
        name = f"0000-{content_hash(self.item_ids, self.codes)[:DIGITS]}"
        items = len(self.items)
        return {"number": 0, "version": name, "parent": None, "items": items, "listed": items}

    @property
    def name(self) -> str:
        """Number and hash of the version."""
        return str(self.about["version"])


def content_hash(item_ids: pl.Series, catalog: Catalog) -> str:
    """Return the sha256 of ids, codes and listing."""
    digest = hashlib.sha256(json.dumps([item_ids.to_list(), catalog.level_sizes]).encode())
    digest.update(np.ascontiguousarray(catalog.codes.cpu().numpy(), dtype="<i8").tobytes())
    digest.update(np.packbits(catalog.listed.cpu().numpy()).tobytes())
    return digest.hexdigest()


class RunData:
    """Read what a run's stages made."""

    def __init__(self, run: RunDirectory, version: CatalogVersion | None = None) -> None:
        self.run, self.config = run, run.config
        self.version = version or CatalogVersion(run, 0)  # of the catalogue; by default the policies' own
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def prepared(self) -> Path:
        """The folder of prepared data; `cases` verifies test cases."""
        return checked_stage(self.run, "prepare", but=["test.parquet", DAYS_OF["test"], "later.parquet"])

    @property
    def training_files(self) -> list[Read]:
        """The files of training and validation interactions."""
        return [f"prepare:{name}.parquet" for name in ("items", "train", "validation")]

    @property
    def shown_files(self) -> list[Read]:
        """The impression files, if any."""
        return ["prepare:impressions.parquet"] if self.run.path("prepare", "impressions.parquet").is_file() else []

    @property
    def catalog_files(self) -> list[Read]:
        """The files of the Semantic IDs."""
        return self.version.files

    @property
    def truth_files(self) -> list[Read]:
        """The truth of a simulated marketplace; empty for real logs."""
        there = self.run.path("simulate", "truth") if self.config.data.marketplace else None
        return [] if there is None else [f"simulate:truth/{path.name}" for path in sorted(there.glob("*"))]

    @property
    def truth_knows_all(self) -> bool:
        """Whether the truth covers the whole catalogue; it lacks later items."""
        return bool(self.truth_files) and self.num_items == self.version.trained

    @property
    def truth_read(self) -> dict[str, str]:
        """How the truth is read, for fingerprints."""
        return {"truth": "just before the target"} if self.truth_files else {}

    @property
    def language_model_files(self) -> list[Read]:
        """The files of a policy from a folder."""
        options = self.config.policy.lm
        if options is None or options.checkpoint is None:
            return []
        folder = self.run.data / options.checkpoint
        supersedes = (folder / "tokenizer.json").is_file()
        kinds = ["*.json", "*.safetensors", *([] if supersedes else ["*.txt", "*.model"])]
        files: list[Read] = [*sorted(path for kind in kinds for path in folder.glob(kind))]
        if not files:
            raise UserError(f"{folder}: no Hugging Face folder; policy.lm.checkpoint is a local one below --data")
        return files

    @cached_property
    def training(self) -> Ragged:
        """Training sequences, one row per user."""
        return load_training(self.prepared)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The catalogue: item, item_id, text, attributes."""
        return self.version.items if self.version.number else load_items(self.prepared)

    @property
    def item_ids(self) -> pl.Series:
        """(V,) log ids, in item order."""
        return self.items[ITEM_ID]

    @property
    def item_column_files(self) -> list[Read]:
        """The file of the item table's columns, if any."""
        return [f"prepare:{ITEM_COLUMNS}"] if self.run.path("prepare", ITEM_COLUMNS).is_file() else []

    @cached_property
    def user_ids(self) -> list[int | str]:
        """(U,) ids of the logs by row."""
        ids: list[int | str] = load_user_ids(self.prepared).to_list()
        return ids

    @property
    def num_items(self) -> int:
        """`V`."""
        return len(self.items)

    @cached_property
    def catalog(self) -> Catalog:
        """Item to codes and back, in the policy's level sizes."""
        catalog = self.version.codes  # a language model may generate tokens that are no codes
        return (catalog if self.config.policy.lm is None else catalog.with_outside()).to(self.device)

    @cached_property
    def tail(self) -> NDArray[np.bool_]:
        """(V,) tail items by training interactions."""
        return metrics.tail_items(self.training.counts(self.num_items))

    @cached_property
    def eligible(self) -> Eligible | None:
        """The items allowed in measured lists (`evaluation.eligible`); None is all."""
        if self.config.evaluation.eligible is None:
            return None
        narrowing = self.narrowed(self.catalog)
        every = np.ones(self.num_items, np.bool_)
        every[list(narrowing.without)] = False
        return narrowing.eligible or self.catalog.trie.eligible(torch.from_numpy(every).to(self.device))

    def narrowed(self, catalog: Catalog) -> Narrowing:
        """Return the items left by `evaluation.eligible`; UserError if none, or for an unknown group."""
        options = self.config.evaluation.eligible
        assert options is not None
        try:
            narrowing = Eligibility(catalog, self.groups, self.known).resolve(options.include or None, options.exclude)
        except UserError as error:
            raise UserError(f"evaluation.eligible.{error}") from error
        if narrowing.left == 0:
            raise UserError("evaluation.eligible: no item is eligible; see which values the item table has")
        return narrowing

    def known(self, ids: Sequence[str | int]) -> tuple[list[int], list[str | int]]:
        """Split ids into items and unknown ids; `7` and `"7"` are one."""
        found = [self._numbers.get(str(name), -1) for name in ids]
        return [item for item in found if item >= 0], [name for name, item in zip(ids, found, strict=True) if item < 0]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {str(name): item for item, name in enumerate(self.item_ids.to_list())}

    def groups(self) -> ItemGroups:
        """The named groups of items."""
        return ItemGroups(self.items)

    @property
    def admitted(self) -> torch.Tensor | None:
        """(V,) bool, listed and eligible items; None is all."""
        eligible = None if self.eligible is None else self.eligible.items
        if not self.version.number and self.run.begun is None:
            return eligible
        return self.catalog.listed if eligible is None else self.catalog.listed & eligible

    def ids_of(self, users: NDArray[np.int32]) -> pl.DataFrame:
        """Return users' log ids, a column `user_id`."""
        return pl.DataFrame({USER_ID: load_user_ids(self.prepared).gather(users)})

    def measured_cases(self, split: str) -> Cases:
        """Return the cases with eligible logged items, for validation possibly sampled."""
        cases = self._drawn_cases(split)
        if self.eligible is None:
            return cases
        found = eligible_cases(cases, self.eligible.items.cpu().numpy())
        if len(found) == 0:
            raise UserError(f"evaluation.eligible: none of the {len(cases)} logged items of {split} is eligible")
        return found

    def _drawn_cases(self, split: str) -> Cases:
        cases, most = self.cases(split), self.config.evaluation.validation_users
        return cases if split != "validation" or most is None else sample_cases(cases, most, self.config.seed)

    @property
    def validation_draw(self) -> dict[str, int]:
        """The settings that sample validation, for fingerprints."""
        return {} if self.config.evaluation.validation_users is None else {"seed": self.config.seed}

    def measured(self) -> dict[str, Any]:
        """Return what metrics files say of measured cases; empty if all are."""
        drawn = {split: len(self._drawn_cases(split)) for split in ("validation", "test")}
        sampled = drawn["validation"] < len(self.cases("validation"))
        sample = {"validation_sample": len(self.measured_cases("validation"))} if sampled else {}
        if self.eligible is None or self.config.evaluation.eligible is None:
            return sample
        left_out = {split: count - len(self.measured_cases(split)) for split, count in drawn.items()}
        filters = self.config.evaluation.eligible.model_dump(mode="json", exclude_defaults=True)
        return sample | {"eligible": filters | {"items": self.eligible.count, "cases_left_out": left_out}}

    def queries_of(self, cases: Cases, rows: NDArray[np.integer], eligible: Eligible | None = None) -> list[Query]:
        """Return some cases' queries, with user and time."""
        users, times = cases.users[rows].tolist(), cases.asking(rows).times
        queries = [query_of(cases, row, eligible=eligible) for row in rows.tolist()]
        return [
            query._replace(user=self.user_ids[user], time=time)
            for query, user, time in zip(queries, users, times, strict=True)
        ]

    def case_weights(self, cases: Cases, power: float | None = None) -> NDArray[np.float64]:
        """Return (N,) weights for choosing lists, by a power of exposure; uniform without impressions."""
        shown = self.times_shown
        if shown is None:
            return np.ones(len(cases))
        return case_weights(shown[cases.targets], self.exposure_power if power is None else power)

    @property
    def exposure_power(self) -> float:
        """The recipe's power of exposure, or the default."""
        return EXPOSURE_POWER if (given := self.config.decide.exposure_power) is None else given

    @cached_property
    def times_shown(self) -> NDArray[np.int64] | None:
        """(V,) training impressions per item; None without impressions."""
        table = load_impressions(self.prepared)
        return None if table is None else np.bincount(table[ITEM].to_numpy(), minlength=self.num_items)

    @cached_property
    def shown(self) -> Shown:
        """The training impressions, oldest first."""
        table = load_impressions(self.prepared)
        assert table is not None, "the run has impressions"
        slots = table[SLOT].to_numpy().astype(np.int64) if SLOT in table and not table[SLOT].has_nulls() else None
        users, items = (table[name].to_numpy().astype(np.int64) for name in (USER, ITEM))
        return Shown(users, items, table[CLICKED].to_numpy(), slots)

    @cached_property
    def user_rows(self) -> dict[str, int]:
        """The row of each user by id as text."""
        return {str(name): row for row, name in enumerate(self.user_ids)}

    @cached_property
    def shown_to_users(self) -> dict[str, list[tuple[int | str, bool]]]:
        """What each user was shown in training and whether it was clicked, oldest first, by id as text."""
        table = load_impressions(self.prepared)
        if table is None:
            return {}
        ids, found = self.item_ids.to_list(), dict[str, list[tuple[int | str, bool]]]()
        for user, item, clicked in table.select(USER, ITEM, CLICKED).iter_rows():
            found.setdefault(str(self.user_ids[user]), []).append((ids[item], clicked))
        return found

    @cached_property
    def slots(self) -> int:
        """Slots per slate; 1 without impressions."""
        table = load_impressions(self.prepared)
        if table is None or "slot" not in table.columns or table["slot"].count() == 0:
            return 1
        return int(table["slot"].max()) + 1  # type: ignore[arg-type]

    def cases(self, split: str) -> Cases:
        """Return the cases of `validation` or `test`."""
        if split == "test":
            self.run.checked("prepare", "test.parquet")
            self.run.find("prepare", DAYS_OF["test"])
        cases = load_cases(self.prepared, split)
        if len(cases) == 0:
            temporal = self.config.data.split.kind == "temporal"
            need = "see the times of data.split" if temporal else "users need three interactions"
            raise UserError(f"{self.prepared / f'{split}.parquet'}: no {split} case; {need}")
        return cases

    @property
    def fold_names(self) -> list[str]:
        """The stages of cross-fitting rankers, if any."""
        folds = self.config.ranker.folds
        return [f"ranker/fold-{fold}" for fold in range(folds if folds > 1 else 0)]

    @cached_property
    def fold_of_user(self) -> NDArray[np.int64]:
        """(U,) the fold of each user."""
        return user_folds(len(self.training), len(self.fold_names), self.config.seed)

    @property
    def ranker_loss(self) -> Literal["impressions", "cross_entropy", "sampled"]:
        """The loss of the sequential ranker; `auto` prefers impressions."""
        if self.config.ranker.loss != "auto":
            return self.config.ranker.loss
        return "impressions" if self.shown_files else "cross_entropy"

    @cached_property
    def withheld(self) -> NDArray[np.bool_]:
        """(U,) users hidden from all rankers (`ranker.user_share`)."""
        users = np.arange(len(self.training))
        return keyed_uniforms(self.config.seed, users, np.zeros_like(users)) >= self.config.ranker.user_share

    def truth(self) -> Truth:
        """The truth by row, only for evaluation and gates that read it."""
        if self.config.data.marketplace is None:
            raise UserError("train.arms: a gate reads the true utility, which only a simulated marketplace has")
        for file in self.truth_files:
            hash_of(self.run, file)
        truth = Truth.load(self.run.path("simulate", "truth"))
        return truth.aligned(load_user_ids(self.prepared).to_list(), load_item_ids(self.prepared).to_list())

    def utility_at(self, cases: Cases) -> Utility | None:
        """Return the utility just before each target purchase; None without a complete truth."""
        if not self.truth_knows_all:
            return None
        truth, users, targets = self.truth(), cases.users.astype(np.int64), cases.targets.astype(np.int64)
        return lambda items: truth.utility_before(users, targets, np.maximum(items, 0))

    def true_utility(self) -> TrueUtility:
        """Return the utility just before each logged choice."""
        truth = self.truth()

        def utility(users: torch.Tensor, targets: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            rows, bought, candidates = (part.cpu().numpy() for part in (users, targets, items.clamp(min=0)))
            return torch.from_numpy(truth.utility_before(rows, bought, candidates)).float().to(items.device)

        return utility
