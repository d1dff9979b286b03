"""The marketplace: the logs follow the stated laws, and the truth is the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.simulation import marketplace, world
from adagrpo.data.simulation.marketplace import Marketplace, Simulation, Truth, simulate, write_simulation
from adagrpo.errors import UserError

SMALL = Marketplace(users=300, items=400, seed=3)


@pytest.fixture(scope="module")
def small() -> Simulation:
    return simulate(SMALL)


def index(column: pl.Series) -> np.ndarray:
    return column.str.slice(1).cast(pl.Int64).to_numpy()


def purchases(simulation: Simulation) -> pl.DataFrame:
    return simulation.impressions.filter(pl.col("clicked") == 1)


def last_visits(simulation: Simulation) -> pl.DataFrame:
    last = purchases(simulation).group_by("user_id").agg(pl.col("timestamp").max())
    return simulation.impressions.join(last, on=["user_id", "timestamp"])


def top_decile(world: Marketplace) -> float:
    shown = np.bincount(index(simulate(world).impressions["item_id"]), minlength=world.items)
    return float(np.sort(shown)[-world.items // 10 :].sum() / shown.sum())


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    world = Marketplace(users=40, items=80, steps=6, slate_size=5)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_simulation(simulate(replace(world, seed=seed)), tmp_path / name)
    first = files(tmp_path / "a")
    assert set(first) == {
        "logs.parquet",
        "items.parquet",
        "truth/truth.safetensors",
        "truth/users.parquet",
        "truth/items.parquet",
    }
    assert first == files(tmp_path / "b")
    assert first["logs.parquet"] != files(tmp_path / "c")["logs.parquet"]


def test_tables_have_the_promised_columns_ids_and_order(small: Simulation) -> None:
    log = small.impressions
    assert log.columns == ["user_id", "item_id", "timestamp", "slot", "clicked", "propensity"]
    assert log["user_id"].unique().sort().to_list() == [f"u{i:05d}" for i in range(300)]
    assert small.items["item_id"].to_list() == [f"i{i:05d}" for i in range(400)] == list(small.truth.item_ids)
    assert log.equals(log.sort("user_id", "timestamp", "slot"))
    visits = log.group_by("user_id", "timestamp").agg(
        pl.col("slot"), pl.col("clicked").sum(), pl.col("item_id").n_unique()
    )
    assert visits["slot"].list.len().unique().to_list() == [10]
    assert visits["slot"].list.max().max() == 9
    assert visits["clicked"].max() == 1
    assert visits["item_id"].unique().to_list() == [10]
    assert log["propensity"].min() > 0 and log["propensity"].max() <= 1
    assert log["timestamp"].max() == SMALL.longest - 1


def test_nothing_is_shown_again_once_bought(small: Simulation) -> None:
    bought = purchases(small).select("user_id", "item_id", bought_at="timestamp")
    assert not bought.select("user_id", "item_id").is_duplicated().any()
    shown = small.impressions.join(bought, on=["user_id", "item_id"])
    assert (shown["timestamp"] <= shown["bought_at"]).all()


def test_default_histories_have_the_promised_length() -> None:
    lengths = purchases(simulate(Marketplace())).group_by("user_id").len()["len"].to_numpy()
    assert 8 <= np.median(lengths) <= 15
    assert (lengths >= 3).sum() > 0.95 * 2000


def test_propensities_are_exposure_frequencies_where_every_user_is_alike() -> None:
    # Without targeting, all first visits show slates by the same weights: an item's frequency estimates its propensity.
    world = Marketplace(
        users=30_000, items=60, steps=1, slate_size=5, exposure_bias=1, targeting=0, targeting_error=0, cold_share=0
    )
    log = simulate(world).impressions
    first = log.filter(pl.col("timestamp") == pl.col("timestamp").min().over("user_id"))
    visits = first["user_id"].n_unique()
    propensity = pl.col("propensity")
    items = first.group_by("item_id").agg(
        propensity.mean(), frequency=pl.len() / visits, spread=propensity.max() - propensity.min()
    )
    assert items["spread"].max() == pytest.approx(0, abs=1e-6)
    assert items["propensity"].sum() == pytest.approx(5, rel=1e-3)
    # 3 % for the approximation, and four standard errors for the frequency.
    error = 4 * np.sqrt(items["propensity"] / visits)
    assert ((items["frequency"] - items["propensity"]).abs() <= 0.03 * items["propensity"] + error).all()
    assert items["propensity"].max() > 3 * items["propensity"].min()


@pytest.mark.parametrize("exposure_bias", [0.0, 1.0])
def test_inverse_propensities_count_the_available_items(exposure_bias: float) -> None:
    # E sum_{shown} 1 / p = number of items that could be shown, at every visit, whatever the user, noise and history.
    world = Marketplace(users=1500, items=200, steps=10, exposure_bias=exposure_bias, targeting=3, cold_share=0)
    simulation = simulate(world)
    log = simulation.impressions
    visits = log.group_by("user_id", "timestamp").agg(
        pl.col("clicked").sum(), available=(1 / pl.col("propensity").cast(pl.Float64)).sum()
    )
    visits = visits.sort("user_id", "timestamp").with_columns(
        owned=pl.col("clicked").cast(pl.Int64).cum_sum().over("user_id") - pl.col("clicked")
    )
    assert visits["owned"].max() >= 5
    # 3 %: the approximation, and the heavy tail of 1 / p.
    assert visits["available"].mean() == pytest.approx(200 - visits["owned"].mean(), rel=0.03)


@pytest.mark.parametrize("exposure_bias", [1.0, 6.0])  # at 6 most slates are finished by Gumbel top-k
def test_slates_follow_the_law_of_gumbel_top_k(exposure_bias: float) -> None:
    world = Marketplace(
        users=1, items=40, steps=2, slate_size=4, categories=3, styles=2, exposure_bias=exposure_bias, cold_share=0.1
    )
    rng = np.random.default_rng(0)
    catalogue = marketplace.make_catalogue(world, rng)
    stock = marketplace.stock_shelves(world, catalogue, 1)
    count = 20_000
    log_mass = np.tile([[0.0, -1.0, 0.5, 0.0, -2.0, 0.3]], (count, 1))
    favourite = int(stock.weights.argmax())
    owned = np.tile([[favourite, -1]], (count, 1))
    slates = marketplace.draw_slates(rng, catalogue, stock, log_mass, owned, 4)

    with np.errstate(divide="ignore"):
        scores = np.log(stock.weights) + log_mass[0, catalogue.shelf] + rng.gumbel(size=(count, 40))
    scores[:, favourite] = -np.inf
    twin = np.argsort(-scores, axis=1)[:, :4]
    for slot in range(4):
        ours, theirs = (np.bincount(s[:, slot], minlength=40) / count for s in (slates, twin))
        assert np.abs(ours - theirs).max() < 4.5 * np.sqrt(0.5 / count)  # a difference of shares, at p = 1/2 the widest
    hidden = np.flatnonzero((stock.weights == 0) | (np.arange(40) == favourite))
    assert len(hidden) == 4  # one wave of four is out, one item is owned
    assert not np.isin(slates, hidden).any()


def test_propensities_solve_their_equation() -> None:
    world = Marketplace(users=1, items=90, steps=2, slate_size=6, categories=4, styles=3, exposure_bias=1)
    rng = np.random.default_rng(1)
    catalogue = marketplace.make_catalogue(world, rng)
    stock = marketplace.stock_shelves(world, catalogue, 2)
    log_mass, owned = rng.normal(size=(15, 12)), np.tile([[7, 31, -1]], (15, 1))
    log_mass[:] = log_mass[0]
    actual = marketplace.propensities(catalogue, stock, log_mass, owned, np.arange(90).reshape(15, 6)).ravel()
    available = ~np.isin(np.arange(90), [7, 31])
    weights = stock.weights * np.exp(log_mass[0, catalogue.shelf])
    low, high = 0.0, 1e9
    for _ in range(200):  # bisection on the item weights themselves
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-weights[available] * middle).sum() < 6 else (low, middle)
    # Ours reads the sum from a table with lines between its points, which costs about 1e-3.
    np.testing.assert_allclose(actual[available], -np.expm1(-weights[available] * low), rtol=2e-3)


def test_exposure_grows_more_concentrated_with_exposure_bias() -> None:
    shares = [top_decile(replace(SMALL, exposure_bias=bias)) for bias in (0.0, 0.5, 1.0)]
    assert shares[0] + 0.05 < shares[1] < shares[2] - 0.1


def test_users_and_items_do_not_depend_on_the_platform(small: Simulation) -> None:
    other = simulate(replace(SMALL, exposure_bias=1.0, targeting=2.0))
    assert other.items.equals(small.items)
    np.testing.assert_array_equal(other.truth.items, small.truth.items)


def test_clicks_fall_with_the_slot() -> None:
    # Without targeting the slot says nothing about the item, so the fall is all examination and the end of visits.
    log = simulate(replace(SMALL, users=2000, targeting=0, threshold=5, exposure_bias=0)).impressions
    rate = log.group_by("slot").agg(pl.col("clicked").mean()).sort("slot")["clicked"].to_numpy()
    assert rate[0] > 1.3 * rate[1] > 1.3 * rate[3] > 1.3 * rate[9] > 0


@pytest.mark.slow
def test_clicks_follow_examination_times_utility_until_the_first(small: Simulation) -> None:
    simulation = simulate(replace(SMALL, users=3000, items=600))
    # Given that a visit ends in a purchase, P(slot s) = e_s u_s prod_{r<s} (1 - e_r u_r) / P(any).
    shown = last_visits(simulation)
    items = index(shown["item_id"]).reshape(-1, 10)
    utility = simulation.truth.utility(index(shown["user_id"])[::10], items)
    chance = utility / np.sqrt(1 + np.arange(10))
    reached = np.cumprod(np.concatenate([np.ones((len(chance), 1)), 1 - chance[:, :-1]], axis=1), axis=1)
    expected = chance * reached
    expected /= expected.sum(axis=1, keepdims=True)
    clicked = shown["clicked"].to_numpy().reshape(-1, 10)
    error = np.sqrt((expected * (1 - expected)).sum(axis=0))
    # That no later visit ended in a purchase may depend on which item was bought, hardly on its slot.
    assert (np.abs(clicked.sum(axis=0) - expected.sum(axis=0)) < 4 * error).all()
    assert np.log(expected[clicked == 1]).mean() > np.log(0.3)


def test_truth_ranks_clicked_above_shown_above_random(small: Simulation) -> None:
    shown = last_visits(small)
    users, items = index(shown["user_id"]), index(shown["item_id"])
    utility = small.truth.utility(users, items[:, None])[:, 0]
    clicked = shown["clicked"].to_numpy() == 1
    at_random = small.truth.utility(users, np.random.default_rng(0).integers(400, size=(len(users), 20)))
    assert utility[clicked].mean() > 2 * utility[~clicked].mean()
    assert utility[~clicked].mean() > 2 * at_random.mean()
    assert (utility[clicked] > 0).all()  # what is bought last is not owned yet


def test_the_truth_finds_the_last_purchase_and_popularity_does_not(small: Simulation) -> None:
    bought = purchases(small)
    last = bought.group_by("user_id", maintain_order=True).last()
    users, targets = index(last["user_id"]), index(last["item_id"])
    everything = np.tile(np.arange(400), (len(users), 1))
    utility = small.truth.utility(users, everything)
    by_truth = (utility > utility[np.arange(len(users)), targets][:, None]).sum(axis=1) < 10
    popularity = np.bincount(index(bought["item_id"]), minlength=400)
    by_popularity = (popularity > popularity[targets][:, None]).sum(axis=1) < 10
    assert by_truth.mean() > 0.5 > 3 * by_popularity.mean()


def test_cold_items_are_late_and_rarely_shown() -> None:
    world = replace(SMALL, cold_share=0.25)
    log = simulate(world).impressions
    shown = log.group_by("item_id").agg(pl.len(), pl.col("timestamp").min())
    rarest = np.sort(np.bincount(index(log["item_id"]), minlength=400))[:100]
    assert rarest.sum() < 0.01 * len(log)
    late = shown.filter(pl.col("timestamp") >= round(0.7 * world.longest))
    assert late.height >= 50
    assert simulate(replace(SMALL, cold_share=0)).impressions["item_id"].n_unique() == 400


def test_noise_divides_the_logits_and_flattens_choices(small: Simulation) -> None:
    noisy = simulate(replace(SMALL, noise=4.0))
    np.testing.assert_allclose(4 * noisy.truth.bias, small.truth.bias, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(noisy.truth.users, axis=1), 14.0 / 4, rtol=1e-5)

    def lift(simulation: Simulation) -> float:  # how much likelier a click is than at an item shown and not clicked
        shown = last_visits(simulation)
        utility = simulation.truth.utility(index(shown["user_id"]), index(shown["item_id"])[:, None])[:, 0]
        clicked = shown["clicked"].to_numpy() == 1
        return float(utility[clicked].mean() / utility[~clicked].mean())

    assert lift(noisy) < 0.7 * lift(small)
    certain = simulate(replace(SMALL, noise=0))
    shown = last_visits(certain).filter(pl.col("clicked") == 1)
    utility = certain.truth.utility(index(shown["user_id"]), index(shown["item_id"])[:, None])
    assert np.median(utility) == pytest.approx(1, abs=1e-6)


def truth() -> Truth:
    return Truth(
        user_ids=("a", "b"),
        item_ids=("x", "y", "z"),
        users=np.array([[1, 0], [0, 2]], dtype=np.float32),
        items=np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32),
        bias=np.array([0, -1, 1], dtype=np.float32),
        owned=np.array([0 * 3 + 1, 1 * 3 + 2]),  # a has y, b has z
    )


def test_utility_by_hand() -> None:
    # Logits: a.x = 1, a.z = 1 + 1; b.x = 0, b.y = 2 - 1.
    values = truth().utility(np.array([0, 1, 1]), np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0]]))
    one, two = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(values, [[one, 0, two], [0.5, one, 0], [0, one, 0.5]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        truth().utility(np.array([0]), np.array([0]))


def test_aligned_truth_follows_the_ids_and_drops_the_rest() -> None:
    aligned = truth().aligned(["b", "a"], ["z", "y"])
    everything = np.array([[0, 1], [0, 1]])
    np.testing.assert_array_equal(
        aligned.utility(np.array([0, 1]), everything), truth().utility(np.array([1, 0]), np.array([[2, 1], [2, 1]]))
    )
    alone = truth().aligned(["b"], ["x"])
    assert alone.utility(np.array([0]), np.array([[0]])) == 0.5 and len(alone.owned) == 0
    with pytest.raises(UserError, match="unknown item 'w'"):
        truth().aligned(["a"], ["x", "w"])


def test_truth_survives_the_disk(small: Simulation, tmp_path: Path) -> None:
    small.truth.save(tmp_path / "truth")
    loaded = Truth.load(tmp_path / "truth")
    assert loaded.user_ids == small.truth.user_ids and loaded.item_ids == small.truth.item_ids
    for name in ("users", "items", "bias", "owned"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(small.truth, name))
    (tmp_path / "truth" / "truth.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a truth folder"):
        Truth.load(tmp_path / "truth")
    with pytest.raises(UserError, match="not a truth folder"):
        Truth.load(tmp_path)


def test_attributes_name_the_category_and_carry_the_vector(small: Simulation) -> None:
    attributes = small.items["attributes"]
    kinds = attributes.list.eval(pl.element().str.split("=").list.first())
    assert kinds[0].to_list() == ["category", "brand", "style", "feature", "feature"]
    category = attributes.list.first().to_numpy()
    assert len(set(category)) == 20
    cosine = small.truth.items @ small.truth.items.T
    same = category[:, None] == category
    np.fill_diagonal(same, False)
    assert cosine[same].mean() > 0.3 > 0.1 > cosine[~same].mean()
    assert small.items["title"].str.split(" ").list.len().unique().to_list() == [5]


def test_words_differ_where_numbers_do() -> None:
    assert world._words(np.arange(5625), 2, 11).n_unique() == 5625
    assert world._words(np.array([4, 4]), 3, 0).n_unique() == 1


def test_one_user_and_one_visit() -> None:
    simulation = simulate(Marketplace(users=1, items=12, steps=0.1, slate_size=10, cold_share=0))
    assert simulation.impressions.height == 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", 0),
        ("exposure_bias", -0.1),
        ("noise", float("nan")),
        ("cold_share", 1.0),
        ("factors", 1),
        ("items", 50),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"marketplace.{field}: "):
        Marketplace(**{field: value})


def test_the_utility_before_a_purchase_by_hand() -> None:
    # a bought y, then x, with tastes (1, 0) and (0, 3); b bought z with (2, 2)
    known = replace(
        truth(),
        purchases=np.array([0 * 3 + 1, 0 * 3 + 0, 1 * 3 + 2]),
        tastes=np.array([[1, 0], [0, 3], [2, 2]], dtype=np.float32),
    )
    everything = np.array([[0, 1, 2]] * 3)

    def chance(logit: float) -> float:
        return float(1 / (1 + np.exp(-logit)))

    values = known.utility_before(np.array([0, 0, 1]), np.array([1, 0, 2]), everything)
    expected = [
        [chance(1), chance(-1), chance(2)],  # before y nothing is owned
        [chance(0), 0, chance(4)],  # before x, y is
        [chance(2), chance(1), chance(5)],
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    with pytest.raises(UserError, match="no purchase of 'x' by 'b'"):
        known.utility_before(np.array([1]), np.array([0]), everything[:1])
    moved = known.aligned(["b", "a"], ["z", "x"])  # without y: a is left with the purchase of x
    np.testing.assert_allclose(
        moved.utility_before(np.array([1, 0]), np.array([1, 0]), np.array([[0, 1], [0, 1]])),
        [[chance(4), chance(0)], [chance(5), chance(2)]],
        rtol=1e-6,
    )


def test_the_last_purchase_is_the_moment_of_the_utility(small: Simulation) -> None:
    last = purchases(small).group_by("user_id", maintain_order=True).last()
    users, items = index(last["user_id"]), index(last["item_id"])
    everything = np.tile(np.arange(SMALL.items), (len(users), 1))
    before = small.truth.utility_before(users, items, everything)
    np.testing.assert_allclose(before, small.truth.utility(users, everything), rtol=1e-5)
    assert len(small.truth.purchases) == len(purchases(small))


def test_every_purchase_was_wanted_at_its_moment_more_than_at_the_end(small: Simulation) -> None:
    log = purchases(small)
    users, items = index(log["user_id"]), index(log["item_id"])[:, None]
    then = small.truth.utility_before(users, items[:, 0], items)[:, 0]
    unowned = replace(small.truth, owned=np.empty(0, np.int64))
    assert then.mean() > 1.2 * unowned.utility(users, items)[:, 0].mean()
