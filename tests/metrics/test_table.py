"""One table says what is known of a metric: what reads it, and that a metric more is one entry."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from adagrpo import metrics
from adagrpo.config import CompareConfig
from adagrpo.evaluation.comparison import Measured, compare, per_user
from adagrpo.evaluation.predictions import Predictions, summarise
from adagrpo.metrics import METRICS, Metric, RankedLists, ReportPart, measure, measure_users
from adagrpo.report.comparison_page import comparison_markdown, comparison_table, finding
from adagrpo.report.figures import Log, learning_curves
from adagrpo.report.tables import format_metric, results_table
from adagrpo.types import Cases, Ragged


@pytest.fixture
def misses(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """A metric that nobody needs: 1 where the logged item is not among the first k, printed in per cent."""
    entry = Metric(
        "misses",
        "missed targets",
        {3: ReportPart.RESULTS | ReportPart.COMPARISON | ReportPart.CURVES},
        form="rate",
        better="lower",
        per_user=lambda lists, k: 1.0 - metrics.hit_rate(lists.ranks, k),
    )
    monkeypatch.setitem(METRICS, entry.name, entry)
    return entry


def evaluated(ranks: list[int]) -> dict[str, float]:
    """What evaluation says of users whose logged item, 7, stands at these ranks of ten."""
    items = np.array([[7 if place == rank else 10 + place for place in range(1, 11)] for rank in ranks])
    count = len(ranks)
    result = Predictions(
        items,
        -np.ones((count, 10), np.float32),
        None,
        np.zeros((count, 10, 1), np.int64),
        np.ones((count, 10), dtype=np.bool_),
        0.0,
    )
    histories = Ragged(np.zeros(count, np.int32), np.arange(count + 1))
    cases = Cases(np.arange(count, dtype=np.int32), histories, np.full(count, 7, np.int32))
    return summarise(result, cases, tail=np.zeros(30, dtype=np.bool_))


def test_a_metric_more_is_one_entry(misses: Metric) -> None:
    """Evaluation measures it, a run's table and chart show it, a comparison planned on it says which is better."""
    ranks = {"nll": [1, 4, 5, 9], "adagrpo": [1, 2, 3, 9]}
    values = {arm: evaluated(actual) for arm, actual in ranks.items()}
    assert (values["nll"]["misses@3"], values["adagrpo"]["misses@3"]) == (0.75, 0.25)

    stages = {"sft": {"test": values["nll"]}, "adagrpo": {"final": {"step": 9, "test": values["adagrpo"]}}}
    table = results_table({"stages": stages})
    place = table.header.index("missed targets@3")
    assert [row[place] for row in table.rows] == ["75.00 %", "25.00 %"]
    assert (1, place) in table.best and (0, place) not in table.best  # lower is better
    charts = learning_curves([Log("nll", validation=[{"step": 0, **values["nll"]}, {"step": 9, **values["nll"]}])])
    assert any("Validation missed targets@3" in chart.svg for chart in charts)

    options = CompareConfig(metric="misses@3", margins={"misses@3": 0.1}, resamples=500)
    users = pl.Series(range(400))
    measured = {
        (arm, "best"): [
            Measured(per_user(users, RankedLists(np.repeat(actual, 100), 10)), values[arm], values[arm])
            for _ in range(2)
        ]
        for arm, actual in ranks.items()
    }
    rows = compare(measured, [0, 1], options)
    assert rows[1]["verdict"] == "significantly better" and rows[1]["against"]["misses@3"]["difference"] == -0.5
    assert rows[1]["margins"]["misses@3"]["kept"]
    plan = options.model_dump(mode="json") | {"family": ["adagrpo"]}
    content = {"name": "tiny", "seeds": [0, 1], "users": 400, "plan": plan, "rows": rows, "arms": {}}
    compared = comparison_table(content)
    assert compared.header[3] == "missed targets@3"
    assert compared.rows[1][3] == "25.00 %" and compared.rows[1][5] == "−50.00"
    message = finding(content)
    assert message[0].startswith("Significantly better than nll on missed targets@3")
    assert "Validation would choose adagrpo (25.00 % there); on test it has 25.00 %." in message
    assert "| arm | checkpoint | verdict | missed targets@3 |" in comparison_markdown(content | {"finding": message})


def test_the_example_of_the_documents_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "contributing.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(Metric.*?)```", page, re.DOTALL)
    assert code is not None
    entry = eval(code.group(1), {"np": np, **vars(metrics)})  # the project's own page
    monkeypatch.setitem(METRICS, entry.name, entry)
    assert evaluated([1, 4, 10])["mrr@10"] == pytest.approx((1 + 1 / 4 + 1 / 10) / 3)
    assert CompareConfig(metric="mrr@10").metric == "mrr@10"


def test_without_its_entry_the_metric_is_unknown() -> None:
    assert "misses@3" not in evaluated([1, 4])
    with pytest.raises(ValidationError, match="no metric 'misses@3' of each user; known: hr@1, hr@5, "):
        CompareConfig(metric="misses@3")
    assert format_metric("misses@3", 0.25) == "0.2500"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ndgc@10", "did you mean 'ndcg@10'?"),
        ("hr@100", "did you mean 'hr@10'?"),
        ("coverage@10", "known: "),  # of all lists together
        ("tail_share@10", "known: "),  # neither way is better
        ("true_utility@10", "known: "),  # of simulated users alone
    ],
)
def test_a_comparison_is_planned_on_metrics_of_each_user(name: str, hint: str) -> None:
    for section in ({"metric": name}, {"margins": {"hr@10": 0.01, name: 0.01}}):
        with pytest.raises(ValidationError, match="no metric") as caught:
            CompareConfig.model_validate(section)
        assert hint in str(caught.value)


def test_what_is_unknown_or_beyond_the_lists_is_not_measured() -> None:
    ranks, items = np.array([2, 0]), np.array([[4, 5, 6, 7, 8], [1, 2, -1, -1, -1]])
    assert [*measure(RankedLists(ranks, 5, items))] == ["hr@1", "hr@5", "ndcg@5"]
    items = np.tile(items, 2)
    tail = np.arange(10) == 4
    lists = RankedLists(ranks, 10, items, tail=tail, utility=lambda shown: shown.astype(np.float64))
    actual, users = measure(lists), measure_users(lists)
    assert actual["coverage@10"] == pytest.approx(7 / 10) and "coverage@10" not in users
    assert actual["tail_share@10"] == pytest.approx((2 / 10 + 0) / 2)
    # over the 14 items of both lists: 2 · (4 + 5 + 6 + 7 + 8) + 2 · (1 + 2); and the mean of each list
    assert actual["true_utility@10"] == pytest.approx(66 / 14)
    assert users["true_utility@10"].tolist() == [6.0, 1.5]
    assert users["ndcg@10"].tolist() == pytest.approx([1 / math.log2(3), 0.0])
    empty = RankedLists(
        ranks, 10, np.where(ranks[:, None] == 0, -1, items), utility=lambda shown: shown.astype(np.float64)
    )
    assert measure_users(empty)["true_utility@10"].tolist() == [6.0, 0.0]  # a list without an item gives nothing
    assert not {"hallucination@10", "mean_reward@10", "invalid_samples"} & actual.keys()
