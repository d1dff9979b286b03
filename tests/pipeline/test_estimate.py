"""Estimates from a log of drawn lists: right for the policy that drew them, refused where the histories are others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo import cli
from adagrpo.config import dump_config, resolve_config
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.lists import Query, Recommender
from adagrpo.off_policy import Drawn, item_rates, summarise
from adagrpo.pipeline import ListOptions, Run, update_catalog
from adagrpo.pipeline.estimate import estimate_policy
from adagrpo.pipeline.serve import recommender


def logged(
    served: Recommender, versions: dict[str, str], folder: Path, lists: int, filtered: int = 0
) -> list[dict[str, Any]]:
    """A log of drawn lists of three items, and the requests; the first item by id is clicked wherever it is shown.

    One request of `filtered` asks for every third item alone.
    """
    draw, log = np.random.default_rng(0), LocalExposureLog(folder / "exposures")
    rows: list[Exposure] = []
    said: list[Feedback] = []
    requests = []
    queries = [Query(draw.integers(30, size=4).tolist(), None, (), None, 0.8, seed) for seed in range(lists)]
    third = served.narrow(include=served.item_ids[::3]).eligible
    for number in range(0, lists, filtered) if filtered else ():
        queries[number] = queries[number]._replace(eligible=third)
    for number, found in enumerate(served.recommend(queries)):
        shown, name = found.first(3), f"r{number}"
        assert shown.log_propensities is not None and shown.log_inclusions is not None
        row = Exposure(
            request_id=name, time=float(number), slate=tuple(shown.items), arm=versions["arm"],
            model_version=versions["model"], catalog_version=versions["catalog"], user_hash=f"u{number % 40}",
            key_version="k",
            source="sampled", temperature=0.8, seed=number, log_propensities=tuple(shown.log_propensities),
            log_inclusions=tuple(shown.log_inclusions), narrowed=queries[number].eligible is not None,
        )  # fmt: skip
        rows.append(row)
        clicked = [item for item in shown.items if str(item) < "15"]
        said += [Feedback(request_id=name, item=item, kind="click", time=number + 1.0) for item in clicked]
        history = [served.item_ids[item] for item in queries[number].history]
        requests.append({"request_id": name, "history": history})
    log.write(rows)
    log.feedback(said)
    log.close()
    return requests


def write(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in requests), encoding="utf-8")
    return path


def test_the_policy_that_was_served_and_another_one(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("sft"))
    requests = logged(served, about["versions"], tmp_path, 300)
    file = write(tmp_path / "requests.jsonl", requests[:-1])
    same = estimate_policy(run, tmp_path / "exposures", file, "sft")
    assert same["counts"] == {
        "answers": 300, "drawn": 300, "narrowed": 0, "without_history": 1, "with_other_items": 0, "lists": 299,
        "with_other_probabilities": 0, "users": 40, "probabilities_checked": 299,
    }  # fmt: skip
    by_name = {(row["of"], row["estimator"]): row for row in same["estimates"]}
    for of in ("first item", "list"):  # its own lists weigh 1, up to the rounding of a batch
        for name in ("IPS", "SNIPS", "cascade"):
            if (of, name) in by_name:
                assert by_name[of, name]["value"] == pytest.approx(by_name[of, "as served"]["value"], rel=0.03)
                assert by_name[of, name]["overlap"]["effective_size"] > 280
    arguments = ["adagrpo", "estimate", "--run", copied, "--exposures", tmp_path / "exposures", "--requests", file]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--policy", "adagrpo"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert not stop.value.code and out.startswith("adagrpo/best on 299 drawn lists of 40 users (1 without a history")
    assert all(f"  {name} " in out for name in ("IPS", "SNIPS", "DR", "cascade", "as served"))
    mixed = [dict(row, history=other["history"]) for row, other in zip(requests, reversed(requests), strict=True)]
    with pytest.raises(UserError, match=r"--requests: with these histories sft/best would have drawn"):
        estimate_policy(run, tmp_path / "exposures", write(file, mixed), "adagrpo")
    with pytest.raises(UserError, match=r"--reward: the log has no feedback of kind 'clicks'; its kinds are click$"):
        estimate_policy(run, tmp_path / "exposures", file, "sft", reward="clicks")
    with pytest.raises(UserError, match=r"knows the history of 1 of 300 drawn lists"):
        estimate_policy(run, tmp_path / "exposures", write(file, requests[:1]), "adagrpo")


def test_the_weights_that_drew_are_asked_also_where_their_arm_is_stale(
    copied: Path, data: Path, tmp_path: Path
) -> None:
    """Training that arm again would lose them."""
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("adagrpo"))
    file = write(tmp_path / "requests.jsonl", logged(served, about["versions"], tmp_path, 300))
    found = estimate_policy(run, tmp_path / "exposures", file, "sft")
    config = resolve_config(dump_config(run.config), ["objective.tau=0.4"], "recipe")
    stale = Run(copied, config, data)
    with pytest.raises(UserError, match="train/adagrpo is stale"):
        recommender(stale, ListOptions("adagrpo"))
    assert estimate_policy(stale, tmp_path / "exposures", file, "sft") == found
    assert found["counts"]["probabilities_checked"] == 300


def test_lists_of_another_catalogue_are_not_held_against_that_of_now(copied: Path, tmp_path: Path) -> None:
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("sft"))
    requests = logged(served, about["versions"], tmp_path, 300)
    file = write(tmp_path / "requests.jsonl", requests)
    update_catalog(run, delist=[str(10 * item + 3) for item in range(10, 20)])
    found = estimate_policy(Run.open(copied), tmp_path / "exposures", file, "sft")
    assert found["counts"]["probabilities_checked"] == 0
    before = estimate_policy(Run.open(copied), tmp_path / "exposures", file, "sft", catalog="0")
    assert before["counts"]["probabilities_checked"] == 300


def test_lists_of_requests_with_filters_are_left_out(copied: Path, tmp_path: Path) -> None:
    """A third of them escapes the look at the median."""
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("sft"))
    file = write(tmp_path / "requests.jsonl", logged(served, about["versions"], tmp_path / "all", 300))
    logged(served, about["versions"], tmp_path / "third", 300, filtered=3)
    every = estimate_policy(run, tmp_path / "all" / "exposures", file, "sft")
    found = estimate_policy(run, tmp_path / "third" / "exposures", file, "sft")
    assert (every["counts"]["narrowed"], every["counts"]["lists"]) == (0, 300)
    assert (found["counts"]["drawn"], found["counts"]["narrowed"], found["counts"]["lists"]) == (300, 100, 200)
    for row in found["estimates"]:
        assert row["refused"] is None and row["effective_size"] > 180
    logged(served, about["versions"], tmp_path / "only", 20, filtered=1)
    with pytest.raises(UserError, match=r"--exposures: all 20 drawn lists are of requests with a filter"):
        estimate_policy(run, tmp_path / "only" / "exposures", file, "sft")


def test_lists_of_one_user_have_no_interval(copied: Path, tmp_path: Path) -> None:
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("sft"))
    requests = logged(served, about["versions"], tmp_path, 60)
    file = write(tmp_path / "requests.jsonl", requests[::40])  # r0 and r40 are of u0
    with pytest.raises(UserError, match=r"--exposures: 2 drawn lists with a history are all of one user"):
        estimate_policy(run, tmp_path / "exposures", file, "adagrpo")


def test_expectations_of_a_draw(copied: Path) -> None:
    """Over all items they are the probabilities; over a few, their mean is right."""
    served, _ = recommender(Run.open(copied), ListOptions("sft"))
    query = Query([1, 2, 3], None, (), None, 0.8, 5)
    everything = served.list_propensities([query], [[0]], 30)
    order = np.argsort(everything.items[0])
    share = everything.weights[0][order]
    assert everything.items[0][order].tolist() == [*range(30)] and share.sum() == pytest.approx(1.0)
    assert np.exp(everything.log_probs[0, 0]) == pytest.approx(share[0], rel=1e-4)
    f = np.arange(30.0)
    some = served.list_propensities([query._replace(seed=seed) for seed in range(400)], [[0]] * 400, 4)
    means = (some.weights * f[some.items]).sum(1)
    assert abs(means.mean() - share @ f) < 4 * means.std() / 20


def test_item_rates_are_drawn_together() -> None:
    rates = item_rates(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 0.0, 0.0]), 3)
    np.testing.assert_allclose(rates, [(2 + 10) / 22, 10 / 22, 0.5])


def test_a_log_that_says_too_little_gives_no_value() -> None:
    draw = np.random.default_rng(0)
    log = Drawn(
        clicks=np.ones((200, 2)), target=-10 * draw.random((200, 2)), logged=np.full((200, 2), -5.0),
        users=np.arange(200), first=np.zeros(200, int), drawn=np.zeros((200, 1), int), drawn_weights=np.ones((200, 1)),
    )  # fmt: skip
    for row in summarise(log):
        assert (row.estimate is None) == (row.estimator != "as served") == (row.refused is not None)


def test_all_lists_are_held_to_the_probabilities_of_the_log(copied: Path, tmp_path: Path) -> None:
    """Of a version only the first 64 were: whatever came later was believed."""
    run = Run.open(copied)
    served, about = recommender(run, ListOptions("sft"))
    requests = logged(served, about["versions"], tmp_path, 300)

    def with_others(first: int) -> dict[str, Any]:
        others = [dict(row, history=requests[0]["history"]) for row in requests[first:]]
        file = write(tmp_path / "requests.jsonl", [*requests[:first], *others])
        return estimate_policy(run, tmp_path / "exposures", file, "sft")["counts"]

    few = with_others(298)
    assert few["with_other_probabilities"] == 2 and few["lists"] == 298 and few["probabilities_checked"] == 300
    with pytest.raises(UserError, match=r"\d\d of 300 lists with other probabilities .* such as that of r200; give"):
        with_others(200)
