"""Lists of a policy by constrained beam search, in ids of the logs.

Lists equal those of evaluation, ordered by the policy, by `log-probability + w · reward`, as a fused list
(`adagrpo.lists.fusion`), or by a source or the reward alone. Without a history they hold the most popular training
items, with scores log((n_i + 1) / (n + V)); with a temperature they are sampled (`adagrpo.lists.exploration`), never
re-ranked, as propensities hold for the sampling order only. A shop's rules (`adagrpo.lists.rules`) apply to all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adagrpo.data.groups import ItemGroups, no_groups
from adagrpo.data.sequences import older_items, pad
from adagrpo.decoding import (
    beam_search_and_score,
    draw_slates,
    inclusion_log_prob,
    rank_log_probs,
    slate_log_probs,
)
from adagrpo.decoding.history import without_history
from adagrpo.lists.eligibility import Eligibility, Filter, Narrowing
from adagrpo.lists.fallback import answer_of
from adagrpo.lists.fusion import Candidates
from adagrpo.lists.query import (
    POLICY_ORDER,
    ListOrder,
    ListPropensities,
    Query,
    Recommendations,
    Source,
    by_item_within,
    past_of_queries,
)
from adagrpo.lists.rules import Moved, Rules
from adagrpo.lists.sources import DECAY, StoredLists, best_of
from adagrpo.networks import Precision, linear_weights_in, mixed_precision, precision_used
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import ask_catalogue, ask_reward
from adagrpo.rewards.reranking import mixed_scores
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Asking, Histories, ItemId, Ragged

MOST_AT_A_TIME = 4  # batches; more of them would wait for the interpreter


class _Beam(NamedTuple):
    items: Tensor  # (B, W) int64, best first, -1 behind the last one
    scores: Tensor  # (B, W) log-probabilities
    others: Tensor | None  # (B, P) log-probabilities


class Recommender:
    """A frozen policy with its catalogue and the item ids of the logs."""

    def __init__(
        self,
        policy: Policy[Any, Any],
        catalog: Catalog,
        item_ids: Sequence[ItemId],  # V of them
        *,
        width: int,
        max_history: int,
        exclude_history: bool,
        precision: Precision = "auto",
        order: ListOrder = POLICY_ORDER,
        catalog_version: str | None = None,
        popularity: NDArray[np.int64] | None = None,  # (V,)
        groups: Callable[[], ItemGroups] | None = None,
        texts: Callable[[], Sequence[str]] = lambda: (),
        past: bool | None = None,
    ) -> None:
        """Freeze the policy.

        Args:
            width: of the beam, the maximum length of a list.
            exclude_history: leave out the whole history, unless a query overrides it.
            precision: as requested; the attribute is the one in use.
            order: what orders the lists.
            popularity: (V,) training interactions; None: a query without a history gets an empty list.
            groups: called when a filter first needs them; None: none.
            past: whether sources that read a user's whole past know baskets; None: none reads it.
        """
        self._precision: Precision = precision
        self._set_policy(policy)
        self.catalog, self.item_ids = catalog, list(item_ids)
        self.width, self.max_history, self.exclude_history = width, max_history, exclude_history
        self._set_order(order)
        self.catalog_version, self._past = catalog_version, past
        self._codes = catalog.codes.cpu().numpy()
        self._items = {str(name): item for item, name in enumerate(self.item_ids)}
        # not given a method of this object, to avoid a reference cycle: a replaced model is large
        self.eligibility = Eligibility(catalog, groups or no_groups, partial(_known, self._items))
        self._counts, self.texts = popularity, texts
        self.rules: Rules | None = None
        listed = catalog.listed.cpu().numpy()
        by_count = None if popularity is None else np.argsort(-popularity, kind="stable")
        self._popular = None if by_count is None else by_count[listed[by_count]]

    def with_policy(self, policy: Policy[Any, Any], max_history: int, order: ListOrder | None = None) -> Recommender:
        """Return a copy for another policy of this catalogue; without an order, that is kept."""
        made = copy.copy(self)
        made.max_history = max_history
        if order is not None:
            made._set_order(order)
        if policy is not self.policy:
            made._set_policy(policy)
        return made

    def ordered(self, order: ListOrder) -> Recommender:
        """Return a copy with another order of lists."""
        return self.with_policy(self.policy, self.max_history, order)

    def _set_order(self, order: ListOrder) -> None:
        self.reward, self.reward_weight, self.within_list_std = order.reward, order.reward_weight, order.within_list_std
        self.fusion, self.alone, self.reward_alone = order.fusion, order.alone, order.reward_alone

    def _set_policy(self, policy: Policy[Any, Any]) -> None:
        self.policy = policy.eval().frozen()
        self.precision: Precision = precision_used(self.policy, self._precision)
        if self.precision == "bfloat16" and self.policy.small and isinstance(self.policy, nn.Module):
            self.policy = linear_weights_in(self.policy, torch.bfloat16)

    def known(self, history: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
        """Split ids into known items and unknown ids; `7` and `"7"` are one."""
        return _known(self._items, history)

    def of_known(self, history: Sequence[ItemId], values: Sequence[Any] | None) -> list[Any] | None:
        """Return the values of a history's known items, such as their days."""
        if values is None:
            return None
        return [value for name, value in zip(history, values, strict=True) if str(name) in self._items]

    def narrow(self, include: Filter | None = None, exclude: Filter | None = None) -> Narrowing:
        """Resolve the filters of a query, see `Eligibility.resolve`.

        `Query(history, None, *recommender.narrow({"category": "toys"})[:2])`
        """
        return self.eligibility.resolve(include, exclude)

    @property
    def parallel_batches(self) -> int:
        """Number of batches to process in parallel."""
        small = self.policy.small and self.catalog.codes.device.type == "cpu"
        return min(torch.get_num_threads(), MOST_AT_A_TIME) if small else 1

    @property
    def active_rules(self) -> Rules | None:
        """The rules that lists follow; None for what users get today, which stays as it is."""
        return None if isinstance(self.alone, StoredLists) else self.rules

    def recommend(self, queries: Sequence[Query]) -> list[Recommendations]:
        """Return the lists of `B` queries, of at most `width` items, under any rules."""
        rules = self.active_rules
        if rules is None:
            return self._without_rules(queries)
        queries = [rules.narrow(query) for query in queries]
        lists = self._without_rules(queries)
        for row, (query, found) in enumerate(zip(queries, lists, strict=True)):
            if found.source != "sampled":
                items = self.known(found.items)[0]
                scores = dict(zip(items, found.scores, strict=True))
                order = rules.order(items, found.scores, self.width, self._may_hold(query))
                named = self._named(order, [scores.get(item, math.nan) for item in order])  # NaN: a pin not found
                lists[row] = named._replace(source=found.source)
        return lists

    def _may_hold(self, query: Query) -> Callable[[int], bool]:
        out = {*query.without, *(query.history if self._masks(query) else ())}

        def may_hold(item: int) -> bool:
            eligible = query.eligible is None or bool(query.eligible.items[item])
            return eligible and item not in out and bool(self.catalog.listed[item])

        return may_hold

    def moves(self, query: Query) -> dict[int, Moved]:
        """Return what rules did to each item of a list; empty without rules."""
        rules = self.active_rules
        if rules is None:
            return {}
        narrowed = rules.narrow(query)
        found, before = (self._without_rules([one])[0] for one in (narrowed, query))
        items, open_list = (self.known(one.items)[0] for one in (found, before))
        moves = {}
        for item, names in rules.moved(items, found.scores, self.width, self._may_hold(narrowed)).items():
            rank, was = (one.index(item) + 1 if item in one else None for one in (items, open_list))
            moves[item] = Moved([*(rules.filters if rank != was else ()), *names], was)
        return moves

    @torch.no_grad()
    def proposed(self, query: Query) -> dict[str, set[int]]:
        """Return the items that each source of a fused list, the policy first, proposed after a history."""
        assert self.fusion is not None, "the list is not fused"
        masked = self._masks(query)
        batch = self._batch([query], masked)
        closed = self._ruled_out([query], batch, masked)
        found = {"policy": self._beam([query], batch, masked).items}
        for name in self.fusion.proposing:
            found[name] = best_of(self.fusion.sources[name].scores(batch), closed, self.fusion.width)[0]
        return {name: {*items[0].tolist()} - {-1} for name, items in found.items()}

    def weighed_history(self, query: Query) -> list[tuple[int, float]]:
        """Return the items that sources of near items read, latest first, with weights."""
        batch = self._batch([query], False)
        if batch.past is not None and batch.past.grouped:
            items, ago = batch.past.items[0].tolist(), batch.past.baskets[0].tolist()
        else:
            items = batch.items[0, : int(batch.lengths[0])].tolist()
            ago = [*range(len(items))][::-1]
        return [(item, DECAY**when) for item, when in zip(items[::-1], ago[::-1], strict=True) if item >= 0]

    def _without_rules(self, queries: Sequence[Query]) -> list[Recommendations]:
        alike: dict[tuple[bool, float], list[int]] = {}  # rows that are searched, or drawn, in the same way
        answers: dict[int, Recommendations] = {}
        for row, query in enumerate(queries):
            if len(query.history):
                alike.setdefault((self._masks(query), query.temperature), []).append(row)
            else:
                answers[row] = self._most_popular(query)
        for (masked, temperature), rows in alike.items():
            rows.sort(key=lambda row: id(queries[row].eligible))  # those of one mask are looked up together
            work = self._draw if temperature > 0 else self._search
            answers |= zip(rows, work([queries[row] for row in rows], masked), strict=True)
        return [answers[row] for row in range(len(queries))]

    @torch.no_grad()
    def order_scores(self, queries: Sequence[Query], items: Tensor) -> Tensor:
        """Return (B, N) scores of items in the lists' order, for non-empty histories; -inf at -1.

        Scores of a fused list depend on all items.
        """
        batch = self._batch(queries, False)
        items = items.to(self.catalog.codes.device)
        there = items.clamp(min=0)
        if self.alone is not None:
            return self.alone.scores(batch).gather(1, there).masked_fill(items < 0, -torch.inf)
        rewards = None
        if self.reward is not None and self.fusion is None:
            rewards = ask_reward(self.reward, batch, items).nan_to_num(0.0)
        if self.reward_alone:
            assert rewards is not None, "lists of the reward alone have one"
            return rewards.masked_fill(items < 0, -torch.inf)
        with mixed_precision(self.policy, self.precision):
            log_probs = self.policy.score(self.policy.encode(batch), self.catalog.codes[there]).float().sum(dim=-1)
        if self.fusion is not None:
            return self.fusion.scores(self.fusion.features_of(batch, items, log_probs, {}, self.reward))
        if rewards is not None:
            log_probs = mixed_scores(log_probs, rewards, self.reward_weight, self.within_list_std)
        return log_probs.masked_fill(items < 0, -torch.inf)

    @torch.no_grad()
    def score_items(self, history: Sequence[int], items: Sequence[int]) -> tuple[list[list[float]], list[float] | None]:
        """Score items after a non-empty history by policy and reward.

        Returns:
            Log-probabilities of each item's codes, nats; rewards, None without one or if it failed.
        """
        batch = self._batch([Query(history)], False)
        wanted = torch.tensor([list(items)], device=self.catalog.codes.device)
        with mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
            log_probs = self.policy.score(context, self.catalog.codes[wanted])[0].float()
        if self.reward is None:
            return log_probs.tolist(), None
        rewards = ask_reward(self.reward, batch, wanted)[0].tolist()
        return log_probs.tolist(), None if getattr(self.reward, "failed", False) else rewards

    def _masks(self, query: Query) -> bool:
        return self.exclude_history if query.exclude_history is None else query.exclude_history

    @torch.no_grad()
    def list_propensities(
        self, queries: Sequence[Query], slates: Sequence[Sequence[int]], reach: int
    ) -> ListPropensities:
        """Compute propensities of lists, and sample items for expectations over a first item.

        Args:
            queries: with seeds, one temperature above 0 and one setting of `exclude_history`.
            reach: number of sampled items.
        """
        batch = self._batch(queries, self._masks(queries[0]))
        device, options = self.catalog.codes.device, self._drawing(queries, batch)
        padded = self._padded(slates)
        seeds = torch.tensor([query.seed for query in queries], dtype=torch.int64, device=device)
        with mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
            log_probs = slate_log_probs(self.policy, context, padded, **options)
            drawn = draw_slates(self.policy, self.policy.encode(batch), reach, seeds, **options)
        items, shares, keys = (values.cpu().numpy() for values in (drawn.items, drawn.log_probs, drawn.keys))
        weights = np.zeros(items[:, :-1].shape)
        for row, rank in zip(*np.nonzero(items[:, :-1] >= 0), strict=True):
            share = float(shares[row, rank])
            weights[row, rank] = math.exp(share - inclusion_log_prob(share, float(keys[row, -1])))
        return ListPropensities(log_probs.cpu().numpy(), items[:, :-1], weights)

    def _drawing(self, queries: Sequence[Query], batch: Histories) -> dict[str, Any]:
        closed, eligible = self._padded([query.without for query in queries]), [query.eligible for query in queries]
        if batch.older is not None:
            closed = torch.cat([closed, batch.whole], dim=1)
        excluded = self.catalog.trie.excluding(closed, eligible)
        return {"trie": self.catalog.trie, "temperature": queries[0].temperature, "excluded": excluded}

    @torch.no_grad()
    def _draw(self, queries: Sequence[Query], masked: bool) -> list[Recommendations]:
        """Sample lists of queries with one temperature; those that share a mask are adjacent."""
        if any(query.seed is None for query in queries):
            raise ValueError("a list that is drawn needs the seed of its query")
        batch = self._batch(queries, masked)
        seeds = torch.tensor([query.seed for query in queries], dtype=torch.int64, device=self.catalog.codes.device)
        with mixed_precision(self.policy, self.precision):
            context, options = self.policy.encode(batch), self._drawing(queries, batch)
            drawn = draw_slates(self.policy, context, self.width, seeds, **options)
        rows = (drawn.items, drawn.log_probs, rank_log_probs(drawn.log_probs, drawn.rest), drawn.keys)
        lists = []
        for items, scores, propensities, keys in zip(*(values.tolist() for values in rows), strict=True):
            named = self._named(items[:-1], scores)._replace(source="sampled", draw_keys=keys)
            lists.append(named._replace(log_propensities=propensities).first(self.width))
        return lists

    @torch.no_grad()
    def candidates(self, queries: Sequence[Query]) -> Candidates:
        """Return fused lists' candidates for queries of one `exclude_history`."""
        assert self.fusion is not None, "the list is not fused"
        masked = self._masks(queries[0])
        batch = self._batch(queries, masked)
        proposals = self.fusion.propose(batch, self._ruled_out(queries, batch, masked))
        beam = self._beam(queries, batch, masked, proposals.items)
        assert beam.others is not None, "they were asked for"
        return self.fusion.candidates(batch, beam[:2], proposals, beam.others, self.reward)

    @torch.no_grad()
    def _search(self, queries: Sequence[Query], masked: bool) -> list[Recommendations]:
        if self.fusion is not None:
            items, scores = self.fusion.order(self.candidates(queries), self.width)
            return self._lists(items, scores, "fused")
        batch = self._batch(queries, masked)
        whole = None  # scores of the catalogue; None for a policy's list or a failed reward
        if self.alone is not None:
            whole = self.alone.scores(batch)
        elif self.reward_alone:
            assert self.reward is not None, "lists of the reward alone have one"
            every = torch.arange(len(self.item_ids), device=self.catalog.codes.device).expand(len(queries), -1)
            whole = answer_of(ask_catalogue, self.reward, batch, every)
        if whole is not None:
            return self._lists(*best_of(whole, self._ruled_out(queries, batch, masked), self.width), "alone")
        items, scores, _ = self._beam(queries, batch, masked)
        if self.reward is not None and not self.reward_alone:
            rewards = ask_reward(self.reward, batch, items).nan_to_num(0.0)
            mixed = mixed_scores(scores, rewards, self.reward_weight, self.within_list_std)
            scores, order = mixed.sort(dim=1, descending=True, stable=True)
            items = items.gather(1, order)
        return self._lists(items, scores, "policy")

    def _lists(self, items: Tensor, scores: Tensor, source: Source) -> list[Recommendations]:  # (B, W) each
        rows = zip(items.tolist(), scores.tolist(), strict=True)
        return [self._named(*row)._replace(source=source) for row in rows]

    def _beam(
        self,
        queries: Sequence[Query],
        batch: Histories,
        masked: bool,
        others: Tensor | None = None,  # (B, P) int64
    ) -> _Beam:
        width = self.width + (self.max_history if masked else 0)
        closed, eligible = self._padded([query.without for query in queries]), [query.eligible for query in queries]
        narrowed = closed.shape[1] > 0 or any(mask is not None for mask in eligible)
        excluded = self.catalog.trie.excluding(closed, eligible) if narrowed else None
        # several hundred small operations, faster in inference mode; a reward's inputs are created outside of it, as
        # ordinary tensors
        trie = self.catalog.trie
        with torch.inference_mode(), mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
            codes = None if others is None else self.catalog.codes[others.clamp(min=0)]
            found = beam_search_and_score(self.policy, context, width, codes, trie=trie, excluded=excluded)
        beams, log_probs = found[0], None if others is None else found[1]
        if not masked:
            return _Beam(trie.leaf_items(beams.leaves), beams.scores, log_probs)
        options: dict[str, Any] = {"precision": self.precision, "closed": closed, "eligible": eligible}
        return _Beam(
            *without_history(self.policy, context, self.catalog.trie, beams, batch, self.width, **options), log_probs
        )

    def _padded(self, lists: Sequence[Sequence[int]]) -> Tensor:  # (B, X) int64, padded with -1
        longest = max(map(len, lists))
        rows = [[*items, *[-1] * (longest - len(items))] for items in lists]
        return torch.tensor(rows, dtype=torch.int64, device=self.catalog.codes.device).view(len(lists), longest)

    def _ruled_out(self, queries: Sequence[Query], batch: Histories, masked: bool) -> Tensor:  # (B, V) bool
        out = (~self.catalog.listed).repeat(len(queries), 1)
        for row, query in enumerate(queries):
            if query.eligible is not None:
                out[row] |= ~query.eligible.items
        items = torch.cat(
            [self._padded([query.without for query in queries]), *([batch.whole] if masked else [])], dim=1
        )
        return torch.nn.functional.pad(out, (0, 1)).scatter_(1, items.where(items >= 0, out.shape[1]), True)[:, :-1]

    def _most_popular(self, query: Query) -> Recommendations:
        if self._popular is None or self._counts is None:
            return Recommendations([], [], [], source="popular")
        order = self._popular
        if query.eligible is not None:
            order = order[query.eligible.items.cpu().numpy()[order]]
        left_out = {*query.without}
        found = [int(item) for item in order[: self.width + len(left_out)] if int(item) not in left_out][: self.width]
        shares = np.log((self._counts[found] + 1) / (self._counts.sum() + len(self._counts)))
        return self._named(found, shares.tolist())._replace(source="popular")

    def _batch(self, queries: Sequence[Query], masked: bool) -> Histories:
        queries = [by_item_within(query) for query in queries] if self._past else queries
        histories = [query.history for query in queries]
        offsets = np.cumsum([0, *map(len, histories)])
        ragged = Ragged(np.concatenate([np.asarray(history, np.int32) for history in histories]), offsets)
        rows = np.arange(len(histories))
        padded = pad(ragged, rows, self.max_history)
        device: torch.device = self.catalog.codes.device
        older = older_items(ragged, rows, self.max_history).to(device) if masked else None
        past = None if self._past is None else past_of_queries(queries, self._past).to(device)
        asking = Asking([query.user for query in queries], [query.time for query in queries])
        return Histories(padded.items.to(device), padded.lengths.to(device), older=older, past=past, asking=asking)

    def _named(self, items: list[int], scores: list[float]) -> Recommendations:
        count = items.index(-1) if -1 in items else len(items)  # empty positions are last
        found = items[:count]
        return Recommendations([self.item_ids[item] for item in found], scores[:count], self._codes[found].tolist())


def _known(items: Mapping[str, int], names: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
    rows = [(name, items.get(str(name), -1)) for name in names]
    return [item for _, item in rows if item >= 0], [name for name, item in rows if item < 0]
