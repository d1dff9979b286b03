from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import adagrpo.evaluation.predictions as evaluation
from adagrpo.evaluation.predictions import (
    Predictions,
    eligible_cases,
    predict,
    rank_by_ranker,
    reordered,
    retrieval,
    sample_cases,
    summarise,
)
from adagrpo.policies import CompactPolicy
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Cases, Histories, Ragged

MAX_HISTORY = 6


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.networks.autocast_dtype", lambda device: None)  # bf16 would blur the comparisons
    torch.set_num_threads(1)  # batches this small only wait for a second thread


def make_catalog(items: int, size: int, levels: int = 3, seed: int = 0) -> Catalog:
    """Some of the size ** levels code sequences."""
    every = np.array(list(itertools.product(range(size), repeat=levels)))
    rows = np.random.default_rng(seed).choice(len(every), items, replace=False)
    return Catalog.from_codes(torch.from_numpy(every[rows]), [size] * levels)


def make_policy(catalog: Catalog, seed: int = 0) -> CompactPolicy:
    policy = CompactPolicy(
        catalog.codes, catalog.level_sizes, width=16, layers=1, heads=2, decoder_hidden=16, max_history=MAX_HISTORY
    )
    with torch.no_grad():  # far from uniform, so that nothing is nearly tied
        generator = torch.Generator().manual_seed(seed)
        for parameter in policy.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def make_cases(items: int, count: int = 7, longest: int = 8, seed: int = 0) -> Cases:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, count)
    lengths[0] = 1
    values = generator.integers(0, items, lengths.sum()).astype(np.int32)
    histories = Ragged(values, np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    return Cases(np.arange(count, dtype=np.int32), histories, generator.integers(0, items, count).astype(np.int32))


def seen_history(cases: Cases, row: int) -> Histories:
    items = cases.histories.row(row)[-MAX_HISTORY:].astype(np.int64)
    return Histories(torch.from_numpy(items)[None], torch.tensor([len(items)]))


@torch.no_grad()
def log_probability(policy: CompactPolicy, history: Histories, codes: torch.Tensor) -> np.ndarray:
    """(N,) of codes (N, L), by plain scoring."""
    return policy.score(policy.encode(history), codes[None]).sum(-1)[0].numpy()


def make_ranker(items: int) -> SequentialRanker:
    ranker = SequentialRanker(items, width=8, layers=1, heads=1, max_history=MAX_HISTORY)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return ranker


def test_predict_is_brute_force_where_the_beam_covers_the_codes() -> None:
    catalog = make_catalog(20, 4)
    policy, cases, ranker = make_policy(catalog), make_cases(20), make_ranker(20)
    actual = predict(policy, catalog, cases, width=20, batch_size=3, max_history=MAX_HISTORY, reward=ranker)
    assert actual.rewards is not None
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    names = {tuple(codes): item for item, codes in enumerate(catalog.codes.tolist())}
    for row in range(len(cases)):
        history = seen_history(cases, row)
        of_items = log_probability(policy, history, catalog.codes)
        order = np.argsort(-of_items, kind="stable")
        assert actual.items[row].tolist() == order.tolist()
        np.testing.assert_allclose(actual.scores[row], of_items[order], rtol=1e-5)
        scored = ranker.score(history, torch.from_numpy(order)[None])[0].numpy()
        np.testing.assert_allclose(actual.rewards[row], scored, rtol=1e-4, atol=1e-5)  # sums of 8 products cancel
        best = np.argsort(-log_probability(policy, history, every), kind="stable")[:20]
        assert actual.free_codes[row].tolist() == every[best].tolist()
        assert actual.free_valid[row].tolist() == [tuple(codes) in names for codes in every[best].tolist()]
    invalid = [row[:10].count(False) / 10 for row in actual.free_valid.tolist()]
    values = summarise(actual, cases, tail=np.zeros(20, dtype=bool))
    assert 0 < values["hallucination@10"] == pytest.approx(sum(invalid) / len(invalid), rel=1e-12)


def test_invalid_samples_are_the_mass_outside_the_catalogue() -> None:
    catalog = make_catalog(20, 4)
    policy, cases = make_policy(catalog), make_cases(20, count=100)
    actual = predict(policy, catalog, cases, width=10, batch_size=64, max_history=MAX_HISTORY)
    mass = [np.exp(log_probability(policy, seen_history(cases, row), catalog.codes)).sum() for row in range(100)]
    # 1,600 draws: a standard deviation is at most 0.0125
    assert actual.invalid_samples == pytest.approx(1 - np.mean(mass), abs=0.05)


@pytest.mark.parametrize("exclude_history", [False, True])
def test_batch_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, exclude_history: bool) -> None:
    monkeypatch.setattr(evaluation, "SAMPLED_CASES", 10)
    catalog = make_catalog(200, 40, levels=2)
    policy, cases = make_policy(catalog), make_cases(200, count=150)
    results = [
        predict(
            policy,
            catalog,
            cases,
            width=10,
            batch_size=size,
            max_history=MAX_HISTORY,
            reward=make_ranker(200),
            exclude_history=exclude_history,
        )
        for size in (1, 7, 150)
    ]
    for other in results[1:]:
        assert np.array_equal(results[0].items, other.items)
        assert np.array_equal(results[0].free_codes, other.free_codes)
        assert np.array_equal(results[0].free_valid, other.free_valid)
        np.testing.assert_allclose(results[0].scores, other.scores, rtol=1e-5)
        np.testing.assert_allclose(results[0].rewards, other.rewards, rtol=1e-4, atol=1e-5)
        assert results[0].invalid_samples == other.invalid_samples


def test_lists_in_float32_are_so_while_a_model_is_fitted_in_bfloat16() -> None:
    """A fit validates where autocast is on."""
    catalog = make_catalog(200, 40, levels=2)
    policy, cases = make_policy(catalog), make_cases(200, count=30)

    def lists(precision: str) -> np.ndarray:
        return predict(
            policy, catalog, cases, width=10, batch_size=30, max_history=MAX_HISTORY, precision=precision
        ).scores

    alone = lists("float32")
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(alone, lists("float32"))
        assert not np.array_equal(alone, lists("bfloat16"))
        assert torch.is_autocast_enabled("cpu")


def test_plain_samples_come_from_cases_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SAMPLED_CASES", 30)
    places, uniforms = evaluation._sample_plan(1000, 3)
    assert sorted(places[places >= 0]) == list(range(30)) and uniforms.shape == (30, 16, 3)
    assert 300 < np.flatnonzero(places >= 0).mean() < 700
    assert len(evaluation._sample_plan(5, 3)[1]) == 5 and len(evaluation._sample_plan(0, 3)[1]) == 0


def test_exclude_history_removes_exactly_the_history() -> None:
    catalog = make_catalog(20, 4)
    policy, cases = make_policy(catalog), make_cases(20)
    options = {"batch_size": 3, "max_history": MAX_HISTORY}
    plain = predict(policy, catalog, cases, width=20, **options)
    masked = predict(policy, catalog, cases, width=20, exclude_history=True, **options)
    for row in range(len(cases)):
        seen = set(cases.histories.row(row).tolist())  # also what the policy does not see
        kept = [(i, s) for i, s in zip(plain.items[row].tolist(), plain.scores[row], strict=True) if i not in seen]
        assert masked.items[row].tolist() == [item for item, _ in kept] + [-1] * (20 - len(kept))
        np.testing.assert_allclose(masked.scores[row, : len(kept)], [score for _, score in kept], rtol=1e-5)
        assert np.all(np.isneginf(masked.scores[row, len(kept) :]))
    assert plain.unmasked is None and np.array_equal(masked.unmasked, plain.items)
    tail = np.zeros(20, dtype=bool)
    both, without = summarise(masked, cases, tail=tail), summarise(plain, cases, tail=tail)
    assert both["hr@10_unmasked"] == without["hr@10"] and both["ndcg@10_unmasked"] == without["ndcg@10"]
    assert "hr@10_unmasked" not in without


def long_cases(policy: CompactPolicy, catalog: Catalog, popular: int, count: int = 12) -> Cases:
    """60 items each, of which the policy sees 6; as many of the others as said are what it would recommend."""
    draw = np.random.default_rng(1)
    rows = []
    for _ in range(count):
        seen = draw.integers(0, catalog.num_items, MAX_HISTORY)
        history = Histories(torch.from_numpy(seen)[None], torch.tensor([MAX_HISTORY]))
        best = np.argsort(-log_probability(policy, history, catalog.codes))[:popular]
        rest = draw.integers(0, catalog.num_items, 60 - MAX_HISTORY - popular)
        rows.append(np.concatenate([draw.permutation(np.concatenate([best, rest])), seen]))
    histories = Ragged(np.concatenate(rows).astype(np.int32), 60 * np.arange(count + 1))
    targets = draw.integers(0, catalog.num_items, count).astype(np.int32)
    return Cases(np.arange(count, dtype=np.int32), histories, targets)


@pytest.mark.parametrize("popular", [0, 20, 54])
def test_no_item_of_a_long_history_is_in_a_masked_list(popular: int) -> None:
    catalog = make_catalog(200, 8)
    torch.manual_seed(2)  # of the policy's weights, whatever test came before
    policy = make_policy(catalog)
    cases = long_cases(policy, catalog, popular)
    options = {"batch_size": 5, "max_history": MAX_HISTORY}
    # a beam as wide as the catalogue is exact
    every = predict(policy, catalog, cases, width=200, **options)
    exact = predict(policy, catalog, cases, width=200, exclude_history=True, **options)
    masked = predict(policy, catalog, cases, width=10, exclude_history=True, **options)
    held = predict(policy, catalog, cases, width=10 + MAX_HISTORY, **options)
    again = 0
    for row in range(len(cases)):
        history = set(cases.histories.row(row).tolist())
        left = [item for item in every.items[row].tolist() if item not in history]
        assert exact.items[row].tolist() == left + [-1] * (200 - len(left))
        actual = masked.items[row].tolist()
        assert len(set(actual)) == 10 and not set(actual) & history and -1 not in actual
        np.testing.assert_allclose(
            masked.scores[row], every.scores[row][[every.items[row].tolist().index(item) for item in actual]], rtol=1e-5
        )
        unseen = [item for item in held.items[row].tolist() if item not in history]
        if (
            len(unseen) >= 10
        ):  # what a beam finds whose spare hypotheses are enough is what it is without another search
            assert actual == unseen[:10]
        again += len(unseen) < 10
    assert again == len(cases) or popular == 0
    # what is measured without masking is what the same beam finds, whatever the history
    assert masked.unmasked is not None and np.array_equal(masked.unmasked, held.items[:, :10])
    narrow = predict(policy, catalog, cases, width=10, **options)
    assert np.array_equal(masked.free_codes, narrow.free_codes)


def test_a_masked_list_is_short_where_nothing_else_is_left() -> None:
    catalog = make_catalog(20, 4)
    policy = make_policy(catalog)
    kept = np.array([3, 8])
    rest = np.setdiff1d(np.arange(20), kept).astype(np.int32)
    histories = Ragged(np.concatenate([rest, np.arange(20, dtype=np.int32)]), np.array([0, 18, 38]))
    cases = Cases(np.arange(2, dtype=np.int32), histories, np.array([3, 8], np.int32))
    actual = predict(policy, catalog, cases, width=5, batch_size=2, max_history=MAX_HISTORY, exclude_history=True)
    assert sorted(actual.items[0, :2].tolist()) == [3, 8]
    assert (actual.items[0, 2:] == -1).all() and (actual.items[1] == -1).all() and np.isneginf(actual.scores[1]).all()


def test_a_beam_wider_than_the_catalogue_is_filled_up() -> None:
    catalog = make_catalog(4, 2, levels=2)
    policy, cases = make_policy(catalog), make_cases(4)
    actual = predict(policy, catalog, cases, width=10, batch_size=2, max_history=MAX_HISTORY, reward=make_ranker(4))
    assert actual.rewards is not None
    assert all(sorted(row) == [0, 1, 2, 3] for row in actual.items[:, :4].tolist())
    assert (actual.items[:, 4:] == -1).all() and np.isneginf(actual.scores[:, 4:]).all()
    assert np.isnan(actual.rewards[:, 4:]).all() and np.isfinite(actual.rewards[:, :4]).all()
    assert actual.free_valid[:, :4].all() and not actual.free_valid[:, 4:].any()
    values = summarise(actual, cases, tail=np.zeros(4, dtype=bool))
    assert values["hr@10"] == 1.0 and values["coverage@10"] == 1.0 and math.isfinite(values["mean_reward@10"])


def test_summarise_by_hand() -> None:
    items = np.array([[5, 1, 2, 3, 4, 6, 7, 8, 9, 0], [0, 1, -1, -1, -1, -1, -1, -1, -1, -1]])
    valid = np.array([[True] * 9 + [False], [True, False] * 5])
    rewards = np.where(items >= 0, items.astype(np.float32), np.nan)
    actual = Predictions(items, -np.ones((2, 10), np.float32), rewards, np.zeros((2, 10, 1), np.int64), valid, 0.25)
    histories = Ragged(np.array([1, 2], np.int32), np.array([0, 1, 2]))
    cases = Cases(np.array([4, 6], np.int32), histories, np.array([2, 7], np.int32))
    tail = np.zeros(20, dtype=bool)
    tail[[0, 5]] = True
    values = summarise(actual, cases, tail=tail, utility=lambda shown: cases.users[:, None] * 100.0 + shown)
    assert values == pytest.approx(
        {
            "hr@1": 0.0,
            "hr@5": 0.5,
            "hr@10": 0.5,
            "ndcg@5": 0.25,
            "ndcg@10": 0.25,
            "hallucination@10": (0.1 + 0.5) / 2,
            "invalid_samples": 0.25,
            "coverage@10": 0.5,
            "tail_share@10": (0.2 + 0.5) / 2,
            "mean_reward@10": (45 + 1) / 12,
            "true_utility@10": (10 * 400 + 45 + 2 * 600 + 1) / 12,
        },
        rel=1e-12,
    )


def test_a_re_ordered_beam_equals_its_slow_twin() -> None:
    generator = np.random.default_rng(3)
    items = np.stack([generator.permutation(30)[:12] for _ in range(50)])
    items[::5, 8:] = -1
    scores = np.where(items >= 0, -np.sort(generator.random((50, 12)), axis=1), -np.inf).astype(np.float32)
    rewards = np.where(items >= 0, generator.normal(size=(50, 12)).round(1), np.nan).astype(np.float32)  # with ties
    targets = items[np.arange(50), generator.integers(0, 8, 50)].astype(np.int32)
    cases = Cases(np.arange(50, dtype=np.int32), Ragged(np.zeros(50, np.int32), np.arange(51)), targets)
    actual = Predictions(items, scores, rewards, items[..., None], items >= 0, 0.0)
    for weight, spread in ((0.0, 0.5), (0.25, 0.5), (math.inf, 0.5)):
        values = retrieval(reordered(actual, weight, spread).items, cases)
        hits, gains = [], []
        for row in range(50):
            real = [w for w in range(12) if items[row, w] >= 0]
            by_reward = weight == math.inf
            key = {w: rewards[row, w] if by_reward else scores[row, w] + weight * rewards[row, w] / 0.5 for w in real}
            order = sorted(real, key=lambda w: (-key[w], w))
            rank = [items[row, w] for w in order].index(targets[row]) + 1
            hits.append(rank <= 5)
            gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
        assert values["hr@5"] == pytest.approx(np.mean(hits), rel=1e-12)
        assert values["ndcg@10"] == pytest.approx(np.mean(gains), rel=1e-12)


def test_sample_cases_keeps_order_and_pairs() -> None:
    cases = make_cases(20, count=50)
    assert sample_cases(cases, 50, seed=0) is cases
    part = sample_cases(cases, 12, seed=0)
    assert len(part) == 12 and np.all(np.diff(part.users) > 0)
    for row, user in enumerate(part.users):
        assert part.histories.row(row).tolist() == cases.histories.row(user).tolist()
        assert part.targets[row] == cases.targets[user]
    assert np.array_equal(part.users, sample_cases(cases, 12, seed=0).users)
    assert not np.array_equal(part.users, sample_cases(cases, 12, seed=1).users)


def test_progress_counts_cases() -> None:
    catalog = make_catalog(20, 4)
    calls: list[tuple[int, int]] = []
    predict(
        make_policy(catalog),
        catalog,
        make_cases(20),
        width=10,
        batch_size=3,
        max_history=MAX_HISTORY,
        report=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_the_ranker_leaves_out_a_long_history(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, catalog = make_ranker(200), make_catalog(200, 8)
    cases = long_cases(make_policy(catalog), catalog, 0)
    lists: list[np.ndarray] = []
    monkeypatch.setattr(evaluation, "retrieval", lambda items, cases: lists.append(items) or {})
    rows = []
    for row in range(len(cases)):  # all but six are what the ranker would recommend
        scores = ranker.score(seen_history(cases, row), torch.arange(200)[None])[0].numpy()
        rows.append(np.concatenate([np.argsort(-scores)[:54], cases.histories.row(row)[-MAX_HISTORY:]]))
    long = Cases(cases.users, Ragged(np.concatenate(rows).astype(np.int32), cases.histories.offsets), cases.targets)
    for arguments in (cases, long):
        rank_by_ranker(ranker, arguments, batch_size=5, max_history=MAX_HISTORY, width=10, exclude_history=True)
        for row, actual in enumerate(lists.pop()):
            scores = ranker.score(seen_history(arguments, row), torch.arange(200)[None])[0].numpy()
            scores[arguments.histories.row(row)] = -np.inf
            assert actual.tolist() == np.argsort(-scores)[:10].tolist()


def test_the_ranker_can_be_masked_too() -> None:
    ranker, cases = make_ranker(80), make_cases(80, count=30)
    values = rank_by_ranker(ranker, cases, batch_size=7, max_history=MAX_HISTORY, exclude_history=True)
    hits = []
    for row in range(len(cases)):
        scores = ranker.score(seen_history(cases, row), torch.arange(80)[None])[0].numpy()
        scores[cases.histories.row(row)] = -np.inf
        hits.append(cases.targets[row] in np.argsort(-scores)[:10] and np.isfinite(scores[cases.targets[row]]))
    assert values["hr@10"] == pytest.approx(np.mean(hits), rel=1e-12)


def test_rank_by_ranker_equals_a_full_sort() -> None:
    ranker, cases = make_ranker(80), make_cases(80, count=30)
    values = rank_by_ranker(ranker, cases, batch_size=7, max_history=MAX_HISTORY)
    ranks = []
    for row in range(len(cases)):
        scores = ranker.score(seen_history(cases, row), torch.arange(80)[None])[0].numpy()
        ranks.append(int((scores > scores[cases.targets[row]]).sum()) + 1)
    for k in (1, 5, 10, 50):
        assert values[f"hr@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]), rel=1e-12)
    gains = [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    assert values["ndcg@10"] == pytest.approx(np.mean(gains), rel=1e-12)


def test_rank_by_ranker_of_a_catalogue_smaller_than_the_cutoffs() -> None:
    values = rank_by_ranker(make_ranker(4), make_cases(4), batch_size=3, max_history=MAX_HISTORY)
    assert values["hr@5"] == values["hr@10"] == values["hr@50"] == 1.0 and 0 < values["ndcg@10"] <= 1


def test_of_a_basket_the_eligible_items_are_asked_for() -> None:
    histories = Ragged(np.array([0, 0, 0], np.int32), np.arange(4))
    relevant = Ragged(np.array([1, 2, 3, 1, 4, 2], np.int32), np.array([0, 3, 5, 6]))
    cases = Cases(np.arange(3, dtype=np.int32), histories, np.array([1, 4, 2], np.int32), relevant)
    found = eligible_cases(cases, np.array([True, False, True, True, False]))
    assert found.users.tolist() == [0, 2] and found.targets[0] in (2, 3) and found.targets[1] == 2
    assert found.relevant is not None
    assert [found.relevant.row(row).tolist() for row in range(2)] == [[2, 3], [2]]
    single = eligible_cases(replace(cases, relevant=None), np.array([True, False, True, True, False]))
    assert single.users.tolist() == [2]
