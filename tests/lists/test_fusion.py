"""Fused lists: candidates, order and weights, held against twins written from the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, sparse, special

from adagrpo.lists import fit_fusion
from adagrpo.lists.fit_fusion import FOLDS, SHRINKAGE, Choices, fit_weights
from adagrpo.lists.fusion import POLICY, Candidates, FittedWeights, Fusion, Weights, unite
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, ListName, parse_list
from adagrpo.lists.sources import NearestItems, Shares, best_of, popular_shares
from adagrpo.lists.table import LISTED
from adagrpo.types import Histories

REWARD = "reward"

ITEMS = st.lists(st.lists(st.integers(-1, 6), min_size=4, max_size=4), min_size=1, max_size=3)


@given(ITEMS, ITEMS)
def test_what_stands_further_left_is_not_repeated(first: list[list[int]], second: list[list[int]]) -> None:
    count = min(len(first), len(second))
    united = unite([torch.tensor(first[:count]), torch.tensor(second[:count])]).tolist()
    for row, (left, right) in enumerate(zip(first, second, strict=False)):
        seen: set[int] = set()
        for place, item in enumerate([*left, *right]):
            assert united[row][place] == (-1 if item in seen else item)
            seen.add(item)


def test_item_knn_sums_the_decayed_similarities_of_the_history() -> None:
    near = sparse.csr_array(np.array([[0, 0.5, 0.2], [0.5, 0, 0], [0.2, 0, 0]], np.float32))
    histories = Histories(torch.tensor([[1, 0], [2, 0]]), torch.tensor([2, 1]))
    scores = NearestItems(near).scores(histories)
    assert scores[0].tolist() == pytest.approx([0.7 * 0.5, 0.5, 0.2])
    assert scores[1].tolist() == pytest.approx([0.2, -np.inf, -np.inf])


def test_a_source_lists_nothing_that_is_ruled_out_and_nothing_that_it_does_not_know() -> None:
    popular = Shares(popular_shares(np.array([5, 9, 0, 2])))
    scores = popular.scores(Histories(torch.zeros(1, 1).long(), torch.ones(1).long()))
    closed = torch.tensor([[False, True, False, False]])
    assert best_of(scores, closed, 4)[0].tolist() == [[0, 3, 2, -1]]


def test_a_list_comes_in_the_order_of_the_weighted_sum_and_without_the_reward_where_that_failed() -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.tensor([[4, 2, -1, 7], [1, 3, 5, -1]])
    features = torch.randn(2, 4, 2, generator=generator)
    whole = Weights({POLICY: 1.0, REWARD: 2.0}, {POLICY: 0.5, REWARD: 4.0})
    fitted = FittedWeights(whole, Weights({POLICY: 1.0}, {POLICY: 0.5}))
    fusion = Fusion({}, [REWARD], 4, fitted)
    for rewarded in (True, False):
        ranked, scores = fusion.order(Candidates(items, features, rewarded), 3)
        for row in range(2):
            expected = sorted(
                (
                    (
                        float(features[row, place, 0]) / 0.5
                        + (2.0 * float(features[row, place, 1]) / 4.0 if rewarded else 0.0),
                        int(item),
                    )
                    for place, item in enumerate(items[row])
                    if item >= 0
                ),
                reverse=True,
            )
            assert ranked[row].tolist() == [item for _, item in expected]
            assert scores[row].tolist() == pytest.approx([score for score, _ in expected], abs=1e-5)


def choices(count: int, weights: list[float], seed: int = 0) -> Choices:
    """Cases whose user chose by a logit of these weights, in spreads."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, 20, len(weights))) * np.arange(1, len(weights) + 1)
    spread = features.var(axis=1).mean(axis=0) ** 0.5
    utility = (features / spread) @ np.array(weights) + draw.gumbel(size=(count, 20))
    items = np.tile(np.arange(20), (count, 1))
    return Choices(items, features.astype(np.float32), utility.argmax(axis=1), np.arange(count), np.ones(count))


def test_the_weights_of_a_logit_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_fusion, "most_epochs", lambda cases: 0)  # no network
    fit = fit_weights(choices(4000, [1.0, 0.5, 0.0]), (POLICY, "a", "b"), (POLICY, "a", "b"), seed=0)
    assert [fit.weights.weights[name] for name in (POLICY, "a", "b")] == pytest.approx([1.0, 0.5, 0.0], abs=0.06)


def test_a_case_counts_as_much_as_it_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_fusion, "most_epochs", lambda cases: 0)  # no network
    one, other = choices(3000, [1.0, 0.5]), choices(3000, [0.2, 1.5], seed=1)
    both = Choices(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))._replace(users=np.arange(6000))
    weighted = both._replace(case_weights=np.repeat([2.0, 0.0], 3000))
    fit = fit_weights(weighted, (POLICY, "a"), (POLICY, "a"), seed=0)
    assert [fit.weights.weights[name] for name in (POLICY, "a")] == pytest.approx([1.0, 0.5], abs=0.06)


def test_where_the_policy_is_right_and_cases_are_few_its_order_is_kept() -> None:
    few = choices(12, [1.0, 0.0, 0.0], seed=3)
    fit = fit_weights(few, (POLICY, "a", "b"), (POLICY, "a", "b"), seed=0)
    assert fit.shrinkage == max(SHRINKAGE)
    assert fit.weights.weights["a"] == pytest.approx(0.0, abs=0.05)
    assert fit.weights.weights[POLICY] == pytest.approx(fit.weights.stds[POLICY], abs=0.05)  # its own order


def test_no_case_is_ranked_by_weights_that_its_user_had_a_part_in() -> None:
    made = choices(60, [1.0, 0.5])
    users = np.repeat(np.arange(30), 2)  # two cases each
    fit = fit_weights(made._replace(users=users), (POLICY, "a"), (POLICY, "a"), seed=1)
    folds = np.random.default_rng(1).permutation(np.arange(30) % FOLDS)[users]
    spreads = [fit.weights.stds[name] for name in (POLICY, "a")]
    scaled = made.features.astype(np.float64) / spreads
    prior = np.array([spreads[0], 0.0])
    for fold in range(FOLDS):
        others = folds != fold

        def loss(weights: np.ndarray, others: np.ndarray = others) -> float:
            shares = special.log_softmax(scaled[others] @ weights, axis=1)
            likelihood = shares[np.arange(others.sum()), made.targets[others]].mean()
            return float(fit.shrinkage * ((weights - prior) ** 2).sum() - likelihood)

        scores = scaled[~others] @ optimize.minimize(loss, prior).x
        of_chosen = scores[np.arange(len(scores)), made.targets[~others]]
        assert fit.ranks[~others].tolist() == ((scores > of_chosen[:, None]).sum(axis=1) + 1).tolist()


def test_a_logged_item_that_is_no_candidate_has_no_rank() -> None:
    made = choices(40, [1.0, 0.5])
    targets = made.targets.copy()
    targets[:5] = 99
    fit = fit_weights(made._replace(targets=targets), (POLICY, "a"), (POLICY, "a"), seed=0)
    assert (fit.ranks[:5] == 0).all() and (fit.ranks[5:] > 0).all()


@given(st.sampled_from(["sft", "nll", "a+b"]), st.sampled_from(["policy", RERANK, FUSE, FUSE_WITHOUT_REWARD]))
def test_a_name_is_taken_apart_as_it_was_put_together(policy: str, order: str) -> None:
    assert parse_list(str(ListName(policy, order))) == ListName(policy, order)


def test_sources_are_called_by_their_names() -> None:
    assert [str(parse_list(name)) for name in LISTED] == list(LISTED)


def test_an_optional_feature_stays_where_held_out_choices_are_likelier_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_fusion, "most_epochs", lambda cases: 0)  # no network
    made, names = choices(4000, [1.0, 0.5, 0.0]), (POLICY, "a", "b")  # chosen by the policy and `a`
    found = fit_weights(made, names, names, seed=0, optional=("a", "b"))
    assert [*found.weights.weights] == [POLICY, "a"] and found.weights.weights["a"] > 0.1
    plain = fit_weights(made, names, names[:2], seed=0)
    assert [*found.weights.weights.values()] == pytest.approx([*plain.weights.weights.values()], abs=0.02)
    assert (found.ranks == plain.ranks).mean() > 0.9
    alone = fit_weights(made, names, names, seed=0, optional=("b",))
    assert [*alone.weights.weights] == [POLICY, "a"]
