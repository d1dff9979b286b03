"""`evaluation.eligible`: what is measured of part of the catalogue, and what does not change with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import predict, sample_cases
from adagrpo.lists.query import Query
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.export import model_card
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.staleness import parts_of
from adagrpo.report.summary import summary_sentences

IDS = [10 * item + 3 for item in range(0, 30, 2)]
KEPT = [item for item in IDS if item != 23]


def opened(folder: Path, mask: bool = False) -> Run:
    eligible = json.dumps({"include": {"item_id": IDS}, "exclude": {"item_id": 23}})
    return Run.open(folder, [f"evaluation.eligible={eligible}", f"evaluation.exclude_history={str(mask).lower()}"])


def test_metrics_are_of_the_eligible_items_and_fits_stay(copied: Path) -> None:
    run = opened(copied)
    states = {name: part.state for name, part in parts_of(run).items()}
    assert {name for name, state in states.items() if state == "stale"} >= {"evaluate/sft", "evaluate/popularity"}
    assert {states[name] for name in ("prepare", "tokenize", "sft", "ranker", "train/adagrpo")} == {"done"}
    run.evaluate()
    content = run.results
    data = RunData(run)
    every, measured = data.cases("test"), data.measured_cases("test")
    assert 0 < len(measured) < len(every)
    ids = pl.read_parquet(copied / "prepare/items.parquet")["item_id"].to_numpy()
    assert {*ids[measured.targets]} <= {*KEPT}
    assert content["eligible"]["items"] == len(KEPT)
    assert content["eligible"]["cases_left_out"]["test"] == len(every) - len(measured)
    lists = pl.read_parquet(copied / "evaluate/adagrpo/final/predictions.parquet")
    assert {*lists["item_id"]} <= {*KEPT} and lists.group_by("user_id").len()["len"].unique().to_list() == [10]
    assert lists["user_id"].n_unique() == len(measured)
    users = pl.read_parquet(copied / "prepare/users.parquet")["user_id"].gather(measured.users)
    targets = pl.DataFrame({"user_id": users, "item_id": ids[measured.targets]})
    hits = lists.join(targets, on=["user_id", "item_id"])
    assert content["stages"]["adagrpo"]["final"]["test"]["hr@10"] == pytest.approx(len(hits) / len(measured))
    begins = f"All of this is measured over the {len(KEPT)} items of `evaluation.eligible`, include"
    (said,) = [sentence for sentence in summary_sentences(content) if sentence.startswith(begins)]
    assert "7 more; exclude item_id=23" in said and said.endswith("test cases of other items left out).")
    counts = np.bincount(data.training.values, minlength=data.num_items)
    popular = sorted((i for i in range(data.num_items) if ids[i] in KEPT), key=lambda i: (-counts[i], i))
    ranks = [popular.index(target) for target in measured.targets]
    least = min(counts[popular[:10]])
    if sum(counts[popular] >= least) == 10:  # no tie at the tenth place
        hit = np.mean(np.array(ranks) < 10)
        assert content["baselines"]["popularity"]["test"]["hr@10"] == pytest.approx(hit)


def test_a_card_and_a_choice_say_that_metrics_were_narrowed(copied: Path) -> None:
    run = opened(copied)
    for name in ("sft", "adagrpo/best", "adagrpo/final"):
        run.stage(f"evaluate/{name}")
    chosen = choose_checkpoint(run, None, "best")
    assert chosen.arm == "nll"  # the one that is still evaluated on the whole catalogue
    apart = "; evaluated on part of the catalogue (evaluation.eligible): sft, adagrpo"
    assert chosen.why.endswith(f"the best of nll{apart}")
    shutil.rmtree(copied / "evaluate" / "nll")
    chosen = choose_checkpoint(run, None, "best")
    assert chosen.arm != "nll" and chosen.why.endswith(f"the best of sft, adagrpo{apart}; not evaluated: nll")
    card = model_card(Run.open(copied), chosen, "best", parameters=1, usage="")
    data = RunData(run)
    left_out = len(data.cases("test")) - len(data.measured_cases("test"))
    assert (
        "the full catalogue" not in card and f"the {len(KEPT)} items of `evaluation.eligible`, include item_id=" in card
    )
    assert f"; exclude item_id=23 ({left_out} test cases of other items left out), by beam search" in card


def test_with_history_left_out_lists_are_those_that_are_served(copied: Path) -> None:
    run = opened(copied, mask=True)
    served, _ = recommender(Run.open(copied), ListOptions("sft", exclude_history=True, precision="float32"))
    narrowing = served.narrow({"item_id": IDS}, [23])
    models = Models(RunData(opened(copied, mask=True)))
    data, options = models.data, run.config.evaluation
    cases = data.measured_cases("test")
    found = predict(
        models.policy(copied / "sft/best"),
        data.catalog,
        cases,
        width=options.beam_width,
        batch_size=7,
        max_history=run.config.max_history,
        exclude_history=True,
        eligible=data.eligible,
        precision="float32",
    )
    ids = pl.read_parquet(copied / "prepare/items.parquet")["item_id"].to_list()
    queries = [Query(cases.histories.row(row).tolist(), None, *narrowing[:2]) for row in range(len(cases))]
    assert found.unmasked is not None
    kept = {item for item, name in enumerate(ids) if name in KEPT}
    for row, answer in enumerate(served.recommend(queries)):
        assert [ids[item] for item in found.items[row] if item >= 0] == answer.items
        assert len(answer.items) == min(10, len(kept - {*queries[row].history}))
        assert len({*found.unmasked[row]}) == 10 and {*found.unmasked[row]} <= kept


def test_what_names_nothing_is_refused(copied: Path) -> None:
    with pytest.raises(UserError, match=r"^evaluation.eligible.include.market: the items have no group 'market'"):
        Run.open(copied, ['evaluation.eligible={"include": {"market": "de"}}']).evaluate()
    with pytest.raises(UserError, match=r"^evaluation.eligible: no item is eligible"):
        Run.open(copied, ['evaluation.eligible={"include": {"item_id": [999]}}']).evaluate()


def test_validation_can_be_measured_on_a_sample_and_test_is_whole(copied: Path) -> None:
    before = json.loads((copied / "evaluate/adagrpo/final/metrics.json").read_text())
    nll, manifest = ((copied / "evaluate/nll/best" / name).read_text() for name in ("metrics.json", "manifest.json"))
    run = Run.open(copied, ["evaluation.validation_users=12"])
    states = {name: part.state for name, part in parts_of(run).items()}
    assert states["evaluate/sft"] == states["evaluate/popularity"] == "stale"
    assert {states[name] for name in ("prepare", "tokenize", "sft", "ranker", "train/adagrpo")} == {"done"}
    run.evaluate()
    data = RunData(run)
    measured, every = data.measured_cases("validation"), data.cases("validation")
    assert len(measured) == 12 < len(every) and len(data.measured_cases("test")) == len(data.cases("test"))
    after = json.loads((copied / "evaluate/adagrpo/final/metrics.json").read_text())
    assert after["test"] == before["test"]
    assert after["validation"]["hr@10"] * 12 == pytest.approx(round(after["validation"]["hr@10"] * 12))
    assert 12 * after["validation"]["hr@10"] != pytest.approx(12 * before["validation"]["hr@10"])
    assert any("a fixed sample of 12 cases" in sentence for sentence in summary_sentences(run.results))
    why = choose_checkpoint(run, None, "best").why
    assert " on 12 cases of validation, the best of sft, nll, adagrpo" in why
    (copied / "evaluate/nll/best/metrics.json").write_text(nll)  # of all cases, as before
    (copied / "evaluate/nll/best/manifest.json").write_text(manifest)
    arm = choose_checkpoint(Run.open(copied), None, "best")
    assert arm.arm == "nll" and "fewer cases (evaluation.validation_users): sft, adagrpo" in arm.why
    again = Run.open(copied, ["evaluation.validation_users=12", "seed=5"])
    assert again.config.seed == 5 and set(RunData(again).measured_cases("validation").users) != set(measured.users)


def test_cases_that_no_sample_drew_are_not_left_out_by_the_filter(copied: Path) -> None:
    eligible = f"evaluation.eligible={json.dumps({'include': {'item_id': IDS}})}"
    whole = RunData(Run.open(copied, ["evaluation.validation_users=1000000"]))
    assert whole.measured() == {}  # no sample: all validation cases are measured
    data = RunData(Run.open(copied, [eligible, "evaluation.validation_users=12"]))
    drawn = sample_cases(data.cases("validation"), 12, data.config.seed)
    ids = data.items["item_id"].to_numpy()
    kept = sum(name in IDS for name in ids[drawn.targets])
    said = data.measured()
    assert 0 < kept < 12 and said["validation_sample"] == kept
    assert said["eligible"]["cases_left_out"]["validation"] == 12 - kept
