"""The network of a fused list: what it reads, what it learns, and when it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adagrpo.lists import fit_fusion
from adagrpo.lists.correction import ChoiceTensors, Correction, corrected, fit_correction, inputs_of
from adagrpo.lists.fit_fusion import Choices, Fit, fit_weights
from adagrpo.lists.fusion import POLICY, Candidates, Weights
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD
from adagrpo.metrics import ndcg
from adagrpo.pipeline.list_makers import read_weights, save_corrections

NAMES = (POLICY, "a")


@given(st.integers(0, 2**16), st.lists(st.booleans(), min_size=1, max_size=8).filter(any))
def test_the_inputs_are_values_distances_and_places_of_the_items_that_are_there(seed: int, mask: list[bool]) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, len(mask), 2, generator=generator)
    there = torch.tensor([mask])
    found = inputs_of(features, there)[0]
    for item in there[0].nonzero()[:, 0]:
        for feature in range(2):
            values, own = features[0, there[0], feature], features[0, item, feature]
            expected = [own, own - values.mean(), -np.log(5 + int((values > own).sum()))]
            assert found[item, feature::2].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)
    assert not found[~there[0]].any()


def choices(count: int, utility: str, seed: int = 0, candidates: int = 20) -> Choices:
    """Cases whose users choose by the sum of two features, or by their product."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, candidates, 2))
    worth = {"sum": features.sum(axis=-1), "product": 2 * features.prod(axis=-1)}[utility]
    chosen = (worth + draw.gumbel(size=worth.shape)).argmax(axis=1)
    items = np.tile(np.arange(candidates), (count, 1))
    return Choices(items, features.astype(np.float32), chosen, np.arange(count), np.ones(count))


def fit(made: Choices) -> Fit:
    return fit_weights(made, NAMES, NAMES, seed=0)


@pytest.mark.slow
def test_choices_by_a_product_need_the_network_and_new_cases_are_ranked_by_it() -> None:
    found, new = fit(choices(3000, "product")), choices(500, "product", seed=1)
    assert found.epochs > 0
    candidates = Candidates(torch.from_numpy(new.items), torch.from_numpy(new.features), rewarded=True)
    values = []
    for weights in (found.weights, found.weights._replace(correction=None)):
        scores = weights.scores(candidates, NAMES).numpy()
        of_chosen = scores[np.arange(500), new.targets][:, None]
        values.append(ndcg((scores > of_chosen).sum(axis=1) + 1, 10).mean())
    assert values[0] > 0.7  # by the product itself 0.74
    assert values[1] < 0.25
    assert ndcg(found.ranks, 10).mean() > 0.68


@pytest.mark.slow
def test_threads_change_no_bit() -> None:
    made, threads = choices(600, "product"), torch.get_num_threads()
    found = []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            found.append(fit(made))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    one, other = found
    assert one.epochs == other.epochs > 0 and np.array_equal(one.ranks, other.ranks)
    states = [fitted.weights.correction.state_dict() for fitted in found if fitted.weights.correction is not None]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("count", [0, 3, 60])
def test_few_choices_leave_the_weights_alone(count: int) -> None:
    found = fit(choices(count, "sum"))
    assert (found.epochs, found.weights.correction) == (0, None)


@pytest.mark.slow
def test_no_case_is_ranked_by_a_network_that_its_user_had_a_part_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made = choices(600, "product")
    users = np.repeat(np.arange(200), 3)
    made.features[..., 1] = users[:, None]  # so that a case can be told by what the network reads
    fitted: dict[Correction, set[float]] = {}
    ranked: list[tuple[set[float], Correction]] = []

    def fit_spied(cases: ChoiceTensors, scores: torch.Tensor, epochs: int, seed: int) -> Iterator[Correction]:
        for network in fit_correction(cases, scores, epochs, seed):
            fitted[network] = {*cases.inputs[:, 0, 1].tolist()}
            yield network

    def corrected_spied(network: Correction, inputs: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
        ranked.append(({*inputs[:, 0, 1].tolist()}, network))
        return corrected(network, inputs, scores)

    monkeypatch.setattr(fit_fusion, "fit_correction", fit_spied)
    monkeypatch.setattr(fit_fusion, "corrected", corrected_spied)
    fit(made._replace(users=users))
    assert set.union(*(held for held, _ in ranked)) == {float(user) for user in users}
    assert len({network for _, network in ranked}) == fit_fusion.FOLDS
    for held, network in ranked:
        assert len(fitted[network]) > 100 and held and not held & fitted[network]


def test_networks_that_only_lose_are_given_up_and_draw_nothing_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = choices(600, "sum")
    tried: list[torch.Tensor] = []

    def spied(network: Correction, inputs: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
        tried.append(next(network.parameters()).detach().clone())
        return corrected(network, inputs, scores) - 1e3 * torch.randn(len(inputs), 1).abs().numpy() * np.arange(
            scores.shape[1]
        )

    monkeypatch.setattr(fit_fusion, "corrected", spied)
    assert fit(made).epochs == 0
    assert len(tried) == fit_fusion.PATIENCE * fit_fusion.FOLDS
    alone = ChoiceTensors(
        torch.randn(200, 5, 6), torch.ones(200, 5, dtype=torch.bool), torch.arange(200) % 5, torch.ones(200)
    )
    first, second = (fit_correction(alone, torch.zeros(200, 5), 3, seed=0) for _ in range(2))
    for one, other in zip(first, second, strict=True):  # in turn, as the folds
        assert torch.equal(*(next(network.parameters()) for network in (one, other)))


def test_the_network_is_asked_where_the_candidates_are() -> None:
    weights = Weights({POLICY: 0.7, "a": 0.2}, {POLICY: 2.0, "a": 0.5}, Correction(2).to("meta"))
    drawn = choices(5, "sum")
    items, features = torch.from_numpy(drawn.items).to("meta"), torch.from_numpy(drawn.features).to("meta")
    assert weights.scores(Candidates(items, features, rewarded=True), NAMES).device.type == "meta"


def test_a_network_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Correction(2)
    torch.nn.init.normal_(made.get_parameter("layers.6.weight"))
    weights = Weights({POLICY: 0.7, "a": 0.2}, {POLICY: 2.0, "a": 0.5}, made.eval())
    save_corrections({FUSE: weights, FUSE_WITHOUT_REWARD: weights._replace(correction=None)}, tmp_path / "c")
    content = '{"weights": {"policy": 0.7, "a": 0.2}, "spreads": {"policy": 2.0, "a": 0.5}}'
    (tmp_path / "w").write_text(f'{{"{FUSE}": {content}, "{FUSE_WITHOUT_REWARD}": {content}}}')
    drawn = choices(5, "sum")
    candidates = Candidates(torch.from_numpy(drawn.items), torch.from_numpy(drawn.features), rewarded=True)
    read, without = read_weights(tmp_path / "w", tmp_path / "c", torch.device("cpu")).values()
    added = made(inputs_of(candidates.features, torch.ones(5, 20, dtype=torch.bool)))
    expected = candidates.features @ torch.tensor([0.35, 0.4]) + added
    assert torch.allclose(read.scores(candidates, NAMES), expected, atol=1e-5)
    assert added.abs().max() > 0.1
    assert without.correction is None
    asked = read_weights(tmp_path / "w", tmp_path / "c", torch.device("meta"))[FUSE].correction
    assert asked is not None and {value.device.type for value in asked.state_dict().values()} == {"meta"}
