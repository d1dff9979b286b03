"""Recommenders of a run's lists by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from scipy import sparse

from adagrpo.config import Config
from adagrpo.config.reward import RewardOptions, SequentialOptions, WeightedOptions, reward_name
from adagrpo.data.columns import TEXT, TIMESTAMP
from adagrpo.lists import ListOrder, Query, Recommender
from adagrpo.lists.correction import Correction
from adagrpo.lists.fusion import FittedWeights, Fusion, Weights
from adagrpo.lists.names import (
    CONTROL,
    FUSE,
    FUSE_WITHOUT_REWARD,
    RERANK,
    REWARD,
    START,
    ListName,
    parse_list,
    reward_number,
)
from adagrpo.lists.sources import CandidateSource
from adagrpo.lists.table import LISTED, SOURCES, Arrays, Shown, fused, listed
from adagrpo.networks import Precision
from adagrpo.pipeline.choose_checkpoint import Checkpoint, of_these_weights
from adagrpo.pipeline.directory import path_of, weights_of
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, read_reward_weights
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.stage import Read, sources_of
from adagrpo.pipeline.stages.control import LISTS, stored_lists
from adagrpo.rewards import Reward, WeightedReward
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.storage.writing import naming
from adagrpo.types import Cases, Ragged

WEIGHTS, CORRECTIONS = "weights.json", "corrections.safetensors"


@dataclass(frozen=True)
class ListMaker:
    """Makes recommenders; overrides as in `ListOptions`."""

    models: Models  # for the served catalogue version
    exclude_history: bool | None = None
    precision: Precision | None = None
    reward_weight: float | None = None  # None: chosen on validation
    checkpoint: Checkpoint = "best"
    loaded: list[Reward] = field(default_factory=list)  # the reward, once loaded
    sources: dict[str, CandidateSource] = field(default_factory=dict)  # likewise; shared by lists, since large

    def stages(self, name: ListName) -> list[str]:
        """Return a list's stages, without reward and policy weights."""
        return sources_of(kind_of(name).files(self, name))

    def files(self, name: ListName) -> list[Read]:
        """Return a list's files, without catalogue, training data and policy weights."""
        own = kind_of(name).files(self, name)
        if name.order in (alone := rewards_alone(self.models.config.reward)):
            return [*own, *self.models.files_of(alone[name.order]), *self.models.probe_files]
        return [*own, *(self.models.reward_files if name.order in (RERANK, FUSE) else [])]

    def asks_reward(self, name: ListName) -> bool:
        """Return whether serving a list calls the reward."""
        return kind_of(name).asks_reward(self.models.config.reward)

    def needs(self, name: ListName) -> list[str]:
        """Return what serving a list requires, in words."""
        reward = [reward_title(self.models.config.reward, name.order)] if self.asks_reward(name) else []
        return [*kind_of(name).needs(self, name), *reward]

    @property
    def reward(self) -> Reward:
        """The run's reward, loaded once."""
        if not self.loaded:
            self.loaded.append(self.models.reward())
        return self.loaded[0]

    def reward_of(self, name: ListName) -> Reward:
        """Return a list's reward: the run's, or one member of a sum."""
        number = reward_number(name.order) or 0
        return self.reward.members[number - 1] if isinstance(self.reward, WeightedReward) and number else self.reward

    def recommender(self, name: ListName, weights: Path, order: ListOrder | None = None) -> Recommender:
        """Make a list's recommender, of another order if one is given."""
        data, config = self.models.data, self.models.config
        mask = config.evaluation.exclude_history if self.exclude_history is None else self.exclude_history
        return Recommender(
            self.models.policy(weights),
            data.catalog,
            data.item_ids.to_list(),
            width=config.evaluation.beam_width,
            max_history=config.max_history,
            exclude_history=mask,
            precision=self.precision or config.evaluation.precision,
            order=order or self.order(name),
            catalog_version=data.version.name,
            popularity=data.training.counts(data.num_items),
            groups=data.groups,
            texts=lambda: data.items[TEXT].to_list(),
            past=config.data.split.baskets or (False if config.evaluation.own_items else None),
        )

    def recommenders(self, names: Sequence[str]) -> Iterator[tuple[str, Recommender]]:
        """Yield names and recommenders, loading each policy once."""
        called = {name: parse_list(name) for name in names}
        for arm in dict.fromkeys(one.policy or START for one in called.values()):
            loaded = self.recommender(ListName(arm, "policy"), self.models.run.path(*weights_of(arm)))
            for name, one in called.items():
                if (one.policy or START) == arm:
                    yield name, loaded.ordered(self.order(one))

    def order(self, name: ListName, reward: Reward | None = None) -> ListOrder:
        """Return a list's order; `reward` replaces the run's own."""
        asked = (reward or self.reward_of(name)) if self.asks_reward(name) else None
        return kind_of(name).order(self, name, asked)

    def fusion(self, name: ListName, fitted: FittedWeights | None = None) -> Fusion:
        """Return a fused list's `Fusion`, of its `fused_sources`."""
        sources = {kind: self.source(kind) for kind in self.fused_sources(fitted)}
        options, rewards = self.models.config.reward, list[str]()
        if self.asks_reward(name):
            parts = enumerate(options.parts, 1) if isinstance(options, WeightedOptions) else ()
            rewards = [_member_title(number, part) for number, part in parts] or [REWARD]
        return Fusion(sources, rewards, self.models.config.evaluation.beam_width, fitted)

    def fused_sources(self, fitted: FittedWeights | None) -> list[str]:
        """Return the sources of a fused list; with fitted weights, only optional ones that have some."""
        there = fused(self.models.config)
        if fitted is None:
            return there
        return [kind for kind in there if not SOURCES[kind].optional or any(kind in one.weights for one in fitted)]

    def fitted(self, name: ListName) -> FittedWeights:
        """Return a fused list's weights."""
        weights, added = (self.models.run.checked(FUSE, name.policy or START, file) for file in (WEIGHTS, CORRECTIONS))
        found = read_weights(weights, added, self.models.data.device)
        return FittedWeights(found[name.order], found[FUSE_WITHOUT_REWARD])

    def source(self, name: str) -> CandidateSource:
        """Return one of `SOURCES`, loaded once."""
        if name not in self.sources:
            self.sources[name] = SOURCES[name].load(self)
        return self.sources[name]

    def fitted_file(self, source: str) -> Path:
        """Return the path of a source's fitted file, unchanged."""
        row = SOURCES[source]
        return self.models.run.checked(str(row.stage), *row.file)

    def counts(self) -> NDArray[np.int64]:
        """Return (V,) training interactions per item; added items get the smallest count."""
        data = self.models.data
        counts = data.training.counts(data.num_items)
        counts[data.version.trained :] = counts[: data.version.trained].min()
        return counts

    def ages(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return each training interaction's item, and its age at the end of training."""
        times = pl.read_parquet(self.fitted_file("recent_popularity"), columns=[TIMESTAMP])[TIMESTAMP].to_numpy()
        return self.models.data.training.values.astype(np.int64), times.max() - times.astype(np.float64)

    def shown(self) -> Shown:
        """Return the training impressions."""
        return self.models.data.shown

    def user_rows(self) -> Mapping[str, int]:
        """Return the row of each user by id as text."""
        return self.models.data.user_rows

    def ranker(self) -> SequentialRanker:
        """Return the run's sequential ranker."""
        return self.models.ranker(self.models.run.path("ranker", "best"))

    def matrix(self, source: str) -> sparse.csr_array:
        """Return a source's (V, V) matrix; later items have their neighbours' rows."""
        near = load_matrix(self.fitted_file(source))
        borrowed = self.models.data.version.borrowed
        if borrowed is None:
            return near
        likened = sparse.vstack([sparse.eye_array(near.shape[0], dtype=np.float32), borrowed.astype(np.float32)])
        return sparse.csr_array(likened @ near @ likened.T)

    def arrays(self, source: str) -> Arrays:
        """Return a source's arrays; later `items` are their neighbours'."""
        found = load_file(self.fitted_file(source))
        borrowed = self.models.data.version.borrowed
        if borrowed is not None:
            found["items"] = np.concatenate([found["items"], (borrowed @ found["items"]).astype(np.float32)])
        return found

    def training(self) -> Ragged:
        """Return the training sequences."""
        return self.models.data.training

    def _own_weight(self, name: ListName) -> list[Read]:
        """Return the file of an arm's own re-ranking weight; none if the policy has changed."""
        run, arm = self.models.run, name.policy or START
        stage = f"evaluate/{name}/{self.checkpoint}"
        found = None if arm == START else run.find(stage, "metrics.json")
        return [f"{stage}:metrics.json"] if found and of_these_weights(run, stage, arm, self.checkpoint) else []


def files_of_source(source: str) -> list[Read]:
    """Return a source's fitted file, if any."""
    row = SOURCES[source]
    return [] if row.stage is None else [f"{row.stage}:{'/'.join(row.file)}"]


@dataclass(frozen=True)
class ListKind:
    """A row of the table of lists.

    Attributes:
        needs: what serving requires besides a reward, in words.
        order: without a reward if it uses none.
        files: see `ListMaker.files`; without the reward's.
        asks_reward: whether serving calls this reward.
    """

    needs: Callable[[ListMaker, ListName], Sequence[str]]
    order: Callable[[ListMaker, ListName, Reward | None], ListOrder]
    files: Callable[[ListMaker, ListName], list[Read]] = lambda maker, name: []
    asks_reward: Callable[[RewardOptions], bool] = lambda options: False


def _source_alone(source: str) -> ListKind:
    return ListKind(
        lambda maker, name: [SOURCES[source].needs],
        lambda maker, name, reward: ListOrder(alone=maker.source(source)),
        lambda maker, name: files_of_source(source),
    )


def _re_ranked(maker: ListMaker, name: ListName, reward: Reward | None) -> ListOrder:
    known = read_reward_weights(maker.models.run.checked("reranking", "weight.json"))
    own = [read_json(path_of(maker.models.run, file)) for file in maker._own_weight(name)]
    chosen = float(own[0]["weight"]) if own else known.rerank
    weight = chosen if maker.reward_weight is None else maker.reward_weight
    return ListOrder(reward=reward, reward_weight=weight, within_list_std=known.within_list_std)


def _fused(asks_reward: Callable[[RewardOptions], bool]) -> ListKind:
    def needs(maker: ListMaker, name: ListName) -> list[str]:
        rows = [SOURCES[source] for source in reversed(maker.fused_sources(maker.fitted(name)))]
        return ["the policy", *dict.fromkeys(row.needs for row in rows if row.stage or row.past)]

    def files(maker: ListMaker, name: ListName) -> list[Read]:
        fitted = [f"{FUSE}/{name.policy or START}:{file}" for file in (WEIGHTS, CORRECTIONS)]
        return [*(file for source in fused(maker.models.config) for file in files_of_source(source)), *fitted]

    return ListKind(
        needs,
        lambda maker, name, reward: ListOrder(reward=reward, fusion=maker.fusion(name, maker.fitted(name))),
        files,
        asks_reward,
    )


# table of lists, ordered by what serving needs
KINDS: Mapping[str, ListKind] = {
    CONTROL: ListKind(
        lambda maker, name: ["stored lists"],
        lambda maker, name, reward: ListOrder(alone=stored_lists(maker.models.data)),
        lambda maker, name: [f"{CONTROL}:{LISTS}"],
    ),
    **{source: _source_alone(source) for source in LISTED},
    REWARD: ListKind(
        lambda maker, name: (),
        lambda maker, name, reward: ListOrder(reward=reward, reward_alone=True),
        asks_reward=lambda options: True,
    ),
    "policy": ListKind(lambda maker, name: ["the policy"], lambda maker, name, reward: ListOrder()),
    FUSE_WITHOUT_REWARD: _fused(lambda options: False),
    RERANK: ListKind(
        lambda maker, name: ["the policy"],
        _re_ranked,
        lambda maker, name: [REWARD_WEIGHTS, *maker._own_weight(name)],
        lambda options: True,
    ),
    FUSE: _fused(lambda options: options != SequentialOptions()),  # the ranker is a source
}


def kind_of(name: ListName) -> ListKind:
    """Return the row of a list."""
    return KINDS[name.order if reward_number(name.order) is None else REWARD]


def rewards_alone(options: RewardOptions) -> dict[str, RewardOptions]:
    """Return the rewards that order the catalogue alone, by list name; not the run's own ranker.

    Example:
        >>> list(rewards_alone(WeightedOptions(members=({"kind": "noise"}, {}), weights=(1.0, 1.0))))
        ['reward-1']
    """
    named = {REWARD: options}
    if isinstance(options, WeightedOptions):
        named = {f"{REWARD}-{number}": part for number, part in enumerate(options.parts, 1)}
    return {name: part for name, part in named.items() if part != SequentialOptions()}


def contenders(config: Config, arms: Sequence[str]) -> list[str]:
    """Return the lists, simplest to serve first."""
    stored = [] if config.decide.control is None else [CONTROL]
    start = [RERANK, FUSE] if config.reward == SequentialOptions() else [FUSE_WITHOUT_REWARD, RERANK, FUSE]
    fused_arms = (str(ListName(arm, FUSE)) for arm in arms)
    return [*stored, *listed(config), *rewards_alone(config.reward), START, *arms, *start, *fused_arms]


def reward_title(options: RewardOptions, name: str) -> str:
    """Return the display name of one of `rewards_alone`.

    Example:
        >>> reward_title(WeightedOptions(members=({"kind": "noise"},), weights=(1.0,)), "reward-1")
        'reward 1 (noise)'
    """
    number = reward_number(name)
    return _member_title(number, options.parts[number - 1]) if number else "the reward"


def _member_title(number: int, part: RewardOptions) -> str:
    return f"{REWARD} {number} ({reward_name(part)})"


class Lists(NamedTuple):
    """Served lists of `N` cases."""

    items: NDArray[np.int64]  # (N, W), -1 behind the last item
    scores: NDArray[np.float32]  # (N, W)


def batches_of(
    served: Recommender, data: RunData, cases: Cases, of: RunData | None = None
) -> Iterator[tuple[NDArray[np.int64], list[Query]]]:
    """Yield row indices and queries, in batches of similar length; `of` is the list's run, if not the cases'."""
    eligible, size = (of or data).eligible, data.config.evaluation.batch_size
    order = np.argsort(-np.minimum(cases.histories.lengths, served.max_history), kind="stable")
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        yield rows, data.queries_of(cases, rows, eligible)


def lists_of(
    served: Recommender,
    data: RunData,
    cases: Cases,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    now: float | None = None,
    of: RunData | None = None,
) -> Lists:
    """Return the served list of each case; `now`, in days since 1970, is the time of all, if given."""
    items = np.full((len(cases), served.width), -1, dtype=np.int64)
    scores = np.full((len(cases), served.width), -np.inf, dtype=np.float32)
    done = 0
    for rows, queries in batches_of(served, data, cases, of):
        if now is not None:
            queries = [query._replace(now=now) for query in queries]
        for row, answer in zip(rows, served.recommend(queries), strict=True):
            items[row, : len(answer.items)] = served.known(answer.items)[0]
            scores[row, : len(answer.items)] = answer.scores
        done += len(rows)
        report(done, len(cases))
    return Lists(items, scores)


def save_fitted(fitted: sparse.csr_array | Arrays, path: Path) -> None:
    """Write a source's sparse (V, V) matrix or its arrays."""
    parts: dict[str, Any] = dict(fitted) if isinstance(fitted, Mapping) else {"similarities": fitted.data}
    if not isinstance(fitted, Mapping):
        parts |= {"items": fitted.indices.astype(np.int32), "offsets": fitted.indptr.astype(np.int64)}
    with naming(path.parent):
        save_file(parts, path)


def load_matrix(path: Path) -> sparse.csr_array:
    """Read a source's (V, V) float32 matrix over the training items."""
    parts = load_file(path)
    items = len(parts["offsets"]) - 1
    return sparse.csr_array((parts["similarities"], parts["items"], parts["offsets"]), shape=(items, items))


def save_corrections(fitted: Mapping[str, Weights], path: Path) -> None:
    """Write the networks of fused lists that have one, by order."""
    parts = {
        f"{order}/{name}": value.clone()
        for order, weights in fitted.items()
        if weights.correction is not None
        for name, value in weights.correction.state_dict().items()
    }
    with naming(path.parent):
        save_torch_file(parts, path)


def read_weights(weights: Path, corrections: Path, device: torch.device) -> dict[str, Weights]:
    """Return weights and network (on `device`) of fused lists, by order."""
    parts, found = load_torch_file(corrections), {}
    for order, content in read_json(weights).items():
        own = {name.removeprefix(f"{order}/"): value for name, value in parts.items() if name.startswith(f"{order}/")}
        correction = None
        if own:
            correction = Correction(len(content["weights"])).eval().requires_grad_(False)
            correction.load_state_dict(own)
            correction.to(device)
        found[order] = Weights(content["weights"], content["spreads"], correction)
    return found
