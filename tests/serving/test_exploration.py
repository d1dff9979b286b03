"""Drawn lists behind the recommender: eligible, of their seed, with probabilities that enumeration confirms."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from scipy.stats import chisquare

from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate
from adagrpo.lists.exploration import Exploration
from adagrpo.lists.query import Query
from adagrpo.lists.recommender import Recommender
from adagrpo.policies.compact import CompactPolicy
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.serving.app import Application
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Options

SIZES, ITEMS, SEEN, TEMPERATURE = (4, 4), 9, 4, 0.8


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    generator = torch.Generator().manual_seed(0)
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    catalog = Catalog.from_codes(space[torch.randperm(len(space), generator=generator)[:ITEMS]], SIZES)
    policy = CompactPolicy(
        catalog.codes, SIZES, width=16, layers=1, heads=2, decoder_hidden=16, max_history=SEEN, dropout=0.0, seed=0
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    options = {"max_history": SEEN, "exclude_history": False, "precision": "float32", "popularity": np.arange(ITEMS)}
    return Recommender(policy, catalog, [f"i{item}" for item in range(ITEMS)], width=3, **options)


def chances(recommender: Recommender, query: Query) -> dict[str, float]:
    """The first item of a list: scores of a list of everything, which sum to 1."""
    wide = Recommender(
        recommender.policy,
        recommender.catalog,
        recommender.item_ids,
        width=ITEMS,
        max_history=SEEN,
        exclude_history=False,
        precision="float32",
    )
    answer = wide.recommend([query._replace(temperature=TEMPERATURE, seed=0)])[0]
    assert math.isclose(sum(map(math.exp, answer.scores)), 1.0, rel_tol=1e-9)
    return dict(zip(map(str, answer.items), map(math.exp, answer.scores), strict=True))


def test_lists_under_all_masks_follow_their_law(recommender: Recommender) -> None:
    eligible = recommender.catalog.trie.eligible(torch.arange(ITEMS) != 2)
    query = Query([4, 1, 4], exclude_history=True, without=(7,), eligible=eligible)
    share = chances(recommender, query)
    assert share.keys() == {f"i{item}" for item in (0, 3, 5, 6, 8)}
    explore, draws = Exploration(TEMPERATURE, seed=5), 3_000
    answers = recommender.recommend([explore.of(query, f"r{row}") for row in range(draws)])
    expected = {}
    for items in itertools.permutations(share, 2):
        expected[items] = share[items[0]] * share[items[1]] / (1 - share[items[0]])
    counted = Counter(tuple(answer.first(2).items) for answer in answers)
    assert chisquare([counted[items] for items in expected], [draws * p for p in expected.values()]).pvalue > 0.01
    for answer in answers[:50]:
        shown = answer.first(2)
        assert shown.source == "sampled" and len(shown.codes) == 2
        total = math.exp(sum(shown.log_propensities))
        assert total == pytest.approx(expected[tuple(shown.items)], rel=1e-5)  # logits are float32
    weights = {name: np.zeros(draws) for name in share}
    for row, answer in enumerate(answers):
        shown = answer.first(2)
        for name, inclusion in zip(shown.items, shown.log_inclusions, strict=True):
            weights[name][row] = math.exp(-inclusion)
    for values in weights.values():
        assert abs(values.mean() - 1) < 4 * values.std() / math.sqrt(draws)


def test_a_request_gets_the_same_list_in_any_company(recommender: Recommender) -> None:
    explore = Exploration(TEMPERATURE, share=0.5, seed=1)
    queries = [explore.of(Query([row % ITEMS], exclude_history=row % 3 == 0), f"r{row}") for row in range(40)]
    together = recommender.recommend(queries)
    assert {answer.source for answer in together} == {"policy", "sampled"}
    for query, answer in zip(queries, together, strict=True):
        alone = recommender.recommend([query])[0]
        assert alone.items == answer.items and (alone.log_propensities is None) == (answer.source == "policy")
    others = [explore._replace(seed=2).of(Query([3]), f"r{row}") for row in range(40)]
    assert [query.seed for query in others] != [query.seed for query in queries]


def test_who_explores_is_of_the_request_and_of_nothing_else() -> None:
    explore = Exploration(0.7, share=0.3, seed=9)
    drawn = [bool(explore.of(Query([1, 2]), f"r{row}").temperature) for row in range(4000)]
    assert drawn == [bool(explore.of(Query([]), f"r{row}").temperature) for row in range(4000)]
    assert abs(np.mean(drawn) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert not any(explore._replace(share=0.0).of(Query([1]), f"r{row}").temperature for row in range(100))
    assert all(explore._replace(share=1.0).of(Query([1]), f"r{row}").temperature for row in range(100))


def test_a_cold_user_gets_what_is_popular_also_where_lists_are_drawn(recommender: Recommender) -> None:
    answer = recommender.recommend([Exploration(TEMPERATURE).of(Query([]), "r")])[0]
    assert answer.source == "popular" and answer.log_propensities is None
    assert answer.first(1).items == answer.items[:1]


def test_a_draw_without_a_seed_is_refused(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match="needs the seed"):
        recommender.recommend([Query([1], temperature=0.5)])


def test_a_service_logs_what_it_draws(recommender: Recommender, tmp_path: Path) -> None:
    explore = Exploration(TEMPERATURE, share=0.5, seed=3)
    log = LocalExposureLog(tmp_path / "log")
    serving = Serving(recommender, {}, {"model": "m", "catalog": "c", "arm": "nll/best"})
    options = Options(exposures=log, explore=explore)
    names = [f"r{row}" for row in range(20)]
    requests = [{"history": [f"i{row % ITEMS}"], "k": 2, "request_id": name} for row, name in enumerate(names)]
    with TestClient(Application(ModelManager(serving), options)) as client:
        replies = client.post("/v1/recommend", json={"requests": requests}).json()["responses"]
    rotate(tmp_path / "log")
    rows = read_parts(parts_of(tmp_path / "log"))[0].to_dicts()
    assert not any(row["narrowed"] for row in rows)
    assert [row["request_id"] for row in rows] == names and {row["source"] for row in rows} == {"policy", "sampled"}
    for row, reply, place in zip(rows, replies, itertools.count(), strict=False):
        query = explore.of(Query([place % ITEMS]), row["request_id"])
        expected = recommender.recommend([query])[0].first(2)  # drawn again from the log
        assert row["slate"] == reply["items"] == expected.items and row["source"] == reply["source"]
        if row["source"] == "policy":
            assert row["log_propensities"] is row["log_inclusions"] is row["seed"] is row["temperature"] is None
        else:
            assert (row["seed"], row["temperature"]) == (query.seed, TEMPERATURE)
            np.testing.assert_allclose(row["log_propensities"], expected.log_propensities, rtol=1e-5)
            np.testing.assert_allclose(row["log_inclusions"], expected.log_inclusions, rtol=1e-4)


def test_the_log_marks_requests_that_say_what_may_be_in_their_list(recommender: Recommender, tmp_path: Path) -> None:
    serving = Serving(recommender, {}, {"model": "m", "catalog": "c", "arm": "nll/best"})
    options = Options(exposures=LocalExposureLog(tmp_path / "log"), explore=Exploration(TEMPERATURE))
    rules = [{}, {"exclude_history": False}, {"exclude_history": True}, {"exclude": ["i3"]}, {"include": ["i1", "i5"]}]
    requests = [{"history": ["i4"], "k": 1, "request_id": f"r{n}", **rule} for n, rule in enumerate(rules)]
    with TestClient(Application(ModelManager(serving), options)) as client:
        assert client.post("/v1/recommend", json={"requests": requests}).status_code == 200
    rotate(tmp_path / "log")
    rows = read_parts(parts_of(tmp_path / "log"))[0]
    assert rows["narrowed"].to_list() == [False, False, True, True, True]
