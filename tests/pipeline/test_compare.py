"""A small comparison from end to end, its continuation after a kill, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.config import Config
from adagrpo.console import Silent
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import Exposure
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.compare_arms import arms_called
from adagrpo.storage.hashes import hash_file
from adagrpo.storage.locks import FolderBusy, lock_folder
from adagrpo.storage.marks import claim

ARMS = ["nll", "adagrpo", "mixture-matched", "rerank", "mixture-matched+rerank"]
NORM = "mixture-norm-matched"
PLAN = {"margins": {"hallucination@10": 0.05}, "resamples": 200}
WRITTEN = ("comparison.json", "comparison.md", "comparison.html", "plan.json")


class Events(Silent):
    """Notes what happens to each stage, and stops the program at one."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stop_at, self.seen = stop_at, list[tuple[str, str]]()

    def stage(self, name: str, event: str, seconds: float) -> None:
        self.seen.append((name, event))
        if name == self.stop_at:
            raise KeyboardInterrupt


def comparison(world: Any, data: Path, out: Path, *, console: Any = None, plan: Any = PLAN, **asked: Any) -> Comparison:
    config = Config.model_validate(world.recipe(compare=plan))
    return Comparison(out, config, data, **({"objectives": ARMS, "seeds": [0, 1]} | asked), console=console)


@pytest.fixture(scope="module")
def compared(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    comparison(world, data, out).carry_out()
    return out


@pytest.fixture(scope="module")
def content(compared: Path) -> dict[str, Any]:
    return dict(json.loads((compared / "comparison.json").read_text(encoding="utf-8")))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_what_would_be_made_has_re_ranking_and_matched_arms(compared: Path, world: Any, data: Path) -> None:
    (matched,) = (path.name for path in (compared / "seed-0" / "train").glob("mixture-*"))
    re_ranked = {"evaluate/rerank", *(f"evaluate/{matched}+rerank/{kind}" for kind in ("best", "final"))}
    rows = {row["stage"]: row["state"] for row in comparison(world, data, compared).plan_of(0)["stages"]}
    assert set(rows.values()) == {"unchanged"} and re_ranked | {f"train/{matched}"} < set(rows)
    later = comparison(world, data, compared.parent / "later").plan_of(0)["stages"]
    rows = {row["stage"]: row["state"] for row in later}
    assert rows["evaluate/rerank"] == rows["evaluate/mixture-matched+rerank/final"] == "make"


@pytest.mark.slow
def test_every_number_is_that_of_the_runs(compared: Path, content: dict[str, Any]) -> None:
    points = [(row["arm"], row["checkpoint"]) for row in content["rows"]]
    trained = [(arm, kind) for arm in ARMS[:3] for kind in ("best", "final")]
    re_ranked = [("rerank", "best"), ("mixture-matched+rerank", "best"), ("mixture-matched+rerank", "final")]
    assert points == [("sft", "best"), *trained, *re_ranked]
    for row in content["rows"]:
        arm, kind = row["arm"], row["checkpoint"]
        for place, seed in enumerate(content["seeds"]):
            run = compared / f"seed-{seed}"
            if arm.startswith("mixture-matched"):
                matched = next(name for name in read(run / "metrics.json")["stages"] if name.startswith("mixture-"))
                arm = arm.replace("mixture-matched", matched)
            folder = run / "evaluate" / arm if arm in ("sft", "rerank") else run / "evaluate" / arm / kind
            expected = read(folder / "metrics.json")["test"]
            base = read(run / "evaluate" / "nll" / kind / "metrics.json")["test"]
            assert {name: value["by_seed"][place] for name, value in row["test"].items()} == expected
            # from the lists of each user on one side, from the means that evaluation wrote on the other
            for name, against in row["against"].items():
                assert against["by_seed"][place] == pytest.approx(expected[name] - base[name], abs=1e-9)
            arm = row["arm"]
    assert content["users"] == read(compared / "seed-0" / "metrics.json")["dataset"]["test_cases"]
    assert content["plan"]["family"] == ["adagrpo", "mixture-matched", "rerank", "mixture-matched+rerank"]


@pytest.mark.slow
def test_the_matched_mixture_presses_as_hard_as_the_gate_lets_through(compared: Path, content: dict[str, Any]) -> None:
    facts = content["arms"]
    expected = [float(f"{admission:.4g}") for admission in facts["adagrpo"]["admission"]]  # lambda is 1
    assert facts["mixture-matched"]["lambda"] == expected and all(0 < value < 1 for value in expected)
    assert facts["mixture-matched"]["admission"] != facts["adagrpo"]["admission"]
    for seed, value in enumerate(expected):
        assert (compared / f"seed-{seed}" / "train" / f"mixture-lambda{value:g}" / "best").is_dir()


@pytest.mark.slow
def test_reranking_reorders_the_starting_policys_beam_by_validation_alone(compared: Path) -> None:
    for seed in (0, 1):
        folder, start = (compared / f"seed-{seed}" / "evaluate" / name for name in ("rerank", "sft"))
        values, before = read(folder / "metrics.json"), read(start / "metrics.json")
        assert values["tried"][str(values["weight"])] == max(values["tried"].values())
        assert values["tried"]["0.0"] == before["validation"]["ndcg@10"]
        assert values["validation"]["ndcg@10"] == before["rerank_validation"]["mix"]["ndcg@10"]
        assert values["test"]["ndcg@10"] == before["rerank_test"]["mix"]["ndcg@10"]
        assert values["test"]["hallucination@10"] == before["test"]["hallucination@10"]
        lists, beam = (pl.read_parquet(path / "predictions.parquet") for path in (folder, start))
        both = [table.select("user_id", "item_id").sort("user_id", "item_id") for table in (lists, beam)]
        assert both[0].equals(both[1])
        assert all(lists.group_by("user_id").agg((pl.col("score").diff().drop_nulls() <= 0).all())["score"])
        # a trained arm's beam is re-ordered by a weight of its own
        arm = next(path.name for path in (compared / f"seed-{seed}" / "train").iterdir() if "mixture-" in path.name)
        for kind in ("best", "final"):
            own = read(compared / f"seed-{seed}" / "evaluate" / f"{arm}+rerank" / kind / "metrics.json")
            plain = read(compared / f"seed-{seed}" / "evaluate" / arm / kind / "metrics.json")
            assert own["tried"]["0.0"] == plain["validation"]["ndcg@10"]
            assert own["spread"] == values["spread"]
            assert own["validation"]["ndcg@10"] == max(own["tried"].values())


@pytest.mark.slow
def test_results_are_rows_of_every_seed_arm_checkpoint_and_split(compared: Path, content: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (compared / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    actual = {(row["seed"], row["arm"], row["checkpoint"], row["split"]): row for row in rows}
    points = [(row["arm"], row["checkpoint"]) for row in content["rows"]]
    points += [(baseline, "best") for baseline in ("popularity", "item_knn", "user_knn", "ranker")]
    assert set(actual) == {(s, *point, split) for s in (0, 1) for point in points for split in ("validation", "test")}
    assert len(rows) == len(actual)
    rerank = next(row for row in content["rows"] if row["arm"] == "rerank")
    assert actual[1, "rerank", "best", "test"]["metrics"]["hr@10"] == rerank["test"]["hr@10"]["by_seed"][1]
    promised = {"dataset", "objective", "gate", "metrics", "admission", "recipe", "config_hash", "data_hash", "commit"}
    assert all(promised <= set(row) for row in rows)


@pytest.mark.slow
def test_a_killed_comparison_continues_to_the_same_bytes(
    world: Any, data: Path, compared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere" / "out"
    with pytest.raises(KeyboardInterrupt):
        comparison(world, data, out, console=Events("seed-1/ranker")).carry_out()
    assert not (out / "comparison.json").exists()
    events = Events()
    comparison(world, data, out, console=events).carry_out()
    assert {event for name, event in events.seen if name.startswith("seed-0/")} == {"skip"}
    assert ("seed-1/sft", "skip") in events.seen and ("seed-1/ranker", "end") in events.seen
    for name in WRITTEN:
        assert (out / name).read_bytes() == (compared / name).read_bytes(), name
    assert str(tmp_path) not in (out / "comparison.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_seeds_that_were_made_apart_and_moved_together_give_the_same_bytes(
    world: Any, data: Path, compared: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for out, seed in ((here, 0), (there, 1)):
        whole = comparison(world, data, out)
        claim(out, "comparison")
        shutil.copytree(compared / f"seed-{seed}", out / f"seed-{seed}")
        shutil.rmtree(out / f"seed-{seed}" / "evaluate" / "rerank")
        with lock_folder(out, "comparison"):  # the comparison's own lock is not theirs
            assert whole.make_runs([seed]) == [out / f"seed-{seed}"]
        assert (out / f"seed-{seed}" / "evaluate" / "rerank" / "metrics.json").is_file()
        assert read(out / "plan.json") == read(compared / "plan.json") and not (out / "comparison.json").exists()
    (there / "seed-1").rename(here / "seed-1")
    events = Events()
    comparison(world, data, here, console=events).carry_out()
    assert {event for _, event in events.seen} == {"skip"}
    for name in WRITTEN:
        assert (here / name).read_bytes() == (compared / name).read_bytes(), name


def test_of_a_run_that_is_being_made_no_second_process_takes_part(world: Any, data: Path, tmp_path: Path) -> None:
    whole = comparison(world, data, tmp_path / "out")
    with pytest.raises(UserError, match="--only: 2 is not among the seeds 0, 1"):
        whole.make_runs([0, 2])
    with pytest.raises(UserError, match="--only: 1 is there twice"):
        whole.make_runs([1, 1])
    assert not (tmp_path / "out").exists()
    claim(tmp_path / "out", "comparison")
    with lock_folder(tmp_path / "out" / "seed-1", "run"), pytest.raises(FolderBusy, match="seed-1: process"):
        whole.make_runs([1])


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"objectives": ["nll", "nll"]}, "--objectives: nll is there twice"),
        ({"objectives": ["nll", "mixture-lambda5", "mixture-lambda5.0"]}, "mixture-lambda5 is there twice"),
        ({"objectives": []}, "--objectives: empty"),
        ({"seeds": [1, 1]}, "--seeds: 1 is there twice"),
        ({"objectives": ["nll", "adagrpo-randm"]}, "did you mean 'adagrpo-random'"),
        ({"objectives": ["nll", "mixture-matched"]}, "add adagrpo"),
        ({"objectives": ["nll", "adagrpo", NORM]}, "takes its lambda from adagrpo and mixture; add mixture"),
        ({"objectives": ["nll", "grpo+rerank"]}, "grpo[+]rerank is a list of a trained arm, grpo, which is not here"),
        ({"objectives": ["nll", "sft+rerank"]}, "sft[+]rerank is called rerank"),
        ({"objectives": ["adagrpo"]}, "compare.baseline: 'nll' is not among the arms sft, adagrpo"),
        ({"plan": PLAN | {"family": ["grpo"]}}, "compare.family: 'grpo' is not among the arms"),
        ({"plan": PLAN | {"family": ["nll"]}}, "compare.family: 'nll'"),
        ({"plan": PLAN | {"pairs": [["adagrpo", "grpo"]]}}, "compare.pairs: 'grpo' is not among the arms"),
        ({"plan": {"metric": "hr@50"}}, "needs evaluation.beam_width of at least 50, found 10"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    world: Any, data: Path, tmp_path: Path, asked: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        comparison(world, data, tmp_path / "out", **asked)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_plan_is_not_changed_after_its_runs(world: Any, data: Path, tmp_path: Path) -> None:
    claim(tmp_path, "comparison")
    first = comparison(world, data, tmp_path)
    first._fix_plan()
    assert first.plan.family == ("adagrpo", "mixture-matched", "rerank", "mixture-matched+rerank")
    with pytest.raises(UserError, match=r"plan\.json: fixed with compare\.margins .* take another --out"):
        comparison(world, data, tmp_path, plan=PLAN | {"margins": {"hallucination@10": 0.5}})
    with pytest.raises(UserError, match=r"fixed with compare\.baseline nll, asked for sft"):
        comparison(world, data, tmp_path, plan=PLAN | {"baseline": "sft"})
    # an arm more, and a seed more, are looked at; the family stays that of the first start
    later = comparison(world, data, tmp_path, objectives=[*ARMS, "grpo"], seeds=[0, 1, 2])
    assert later.plan == first.plan
    with pytest.raises(UserError, match=r"compare.family: 'rerank' is not among the arms"):
        comparison(world, data, tmp_path, objectives=ARMS[:3])
    whole = (tmp_path / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(whole.replace('"rerank"', '"reRank"'), encoding="utf-8")  # one flipped bit
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        comparison(world, data, tmp_path)
    (tmp_path / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        comparison(world, data, tmp_path)


def test_a_comparison_is_of_the_logs_that_its_plan_was_fixed_on(world: Any, tmp_path: Path) -> None:
    log, out = world.write(tmp_path / "logs"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        comparison(world, tmp_path / "logs", out, console=Events("seed-0/prepare")).carry_out()
    assert read(out / "plan.json")["data"] == {"log.csv": hash_file(log)}
    comparison(world, tmp_path / "logs", out)
    before = log.read_bytes()
    log.write_bytes(before + b"u00,3,9999\n")
    says = (
        f"{log}: changed after {out / 'plan.json'} was fixed; take a new folder for the changed files, another --out$"
    )
    with pytest.raises(UserError, match=says):
        comparison(world, tmp_path / "logs", out)
    log.rename(log.with_name("away.csv"))  # what is gone is not held against what was made of it
    comparison(world, tmp_path / "logs", out)
    log.write_bytes(before)
    config = Config.model_validate(world.recipe(compare=PLAN, data={"logs": ["log.csv", "away.csv"]}))
    with pytest.raises(UserError, match=r"away\.csv: was not among the files when .*plan\.json was fixed"):
        Comparison(out, config, tmp_path / "logs", objectives=ARMS, seeds=[0, 1])
    config = Config.model_validate(world.recipe(compare=PLAN, data={"logs": ["away.csv"]}))
    log.with_name("away.csv").unlink()
    with pytest.raises(UserError, match=r"^log\.csv: was among the files when .*plan\.json was fixed"):
        Comparison(out, config, tmp_path / "logs", objectives=ARMS, seeds=[0, 1])


def test_a_comparison_is_of_the_reward_that_its_plan_was_fixed_with(world: Any, tmp_path: Path) -> None:
    world.write(tmp_path / "logs")
    module = tmp_path / "logs" / "shop.py"
    module.write_text("def margin(histories, items): return items\n", encoding="utf-8")
    own, changed = {"kind": "callable", "function": "shop:margin"}, "a new folder, another --out$"

    def asked(out: str, reward: dict[str, Any], **sections: Any) -> Comparison:
        config = Config.model_validate(world.recipe(compare=PLAN, reward=reward, **sections))
        given = {"objectives": ["nll", "adagrpo"], "seeds": [0], "console": Events("seed-0/prepare")}
        return Comparison(tmp_path / out, config, tmp_path / "logs", code=tmp_path / "logs", **given)

    for out, reward in (("ranker", {}), ("own", own)):
        with pytest.raises(KeyboardInterrupt):
            asked(out, reward).carry_out()
        asked(out, reward)
    before = (tmp_path / "ranker" / "plan.json").read_bytes()
    with pytest.raises(UserError, match=rf"plan.json: fixed with reward.kind sequential, asked for noise; .*{changed}"):
        asked("ranker", {"kind": "noise"})
    with pytest.raises(UserError, match=rf"fixed with ranker.dropout 0.\d+, asked for 0.7; .*{changed}"):
        asked("ranker", {}, ranker=world.recipe()["ranker"] | {"dropout": 0.7})
    with pytest.raises(UserError, match=rf"fixed with reward.kind callable, asked for sequential; .*{changed}"):
        asked("own", {})
    assert (tmp_path / "ranker" / "plan.json").read_bytes() == before
    module.write_text("def margin(histories, items): return -items\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"shop.py: changed after .*plan.json was fixed; take a new folder for the"):
        asked("own", own)


def test_all_seeds_read_an_exposure_log_up_to_the_part_that_was_the_newest_at_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(name: str) -> None:
        answer = {"arm": "nll", "model_version": "m", "catalog_version": "c", "user_hash": "u", "key_version": "k"}
        store.write([Exposure(request_id=name, time=1.0, slate=(1, 2), **answer)])
        store.rotate()

    def asked(**exposures: Any) -> Comparison:
        data = {"exposures": {"path": "log"} | exposures}
        config = Config.model_validate({"name": "x", "data": data, "compare": PLAN})
        return Comparison(tmp_path / "out", config, tmp_path, objectives=["nll", "adagrpo"], seeds=[0, 1])

    def through(of: Comparison) -> list[int | None]:
        read = (of.run_of(seed).config.data.exposures for seed in of.seeds)
        return [None if options is None else options.through for options in read]

    store = LocalExposureLog(tmp_path / "log")
    log("first")
    claim(tmp_path / "out", "comparison")
    begun, beside, late = asked(), asked(), asked()

    files = beside._data_files

    def meanwhile() -> Any:  # another process writes the plan while this one makes its own
        begun._fix_plan()
        log("second")
        return files()

    monkeypatch.setattr(beside, "_data_files", meanwhile)
    beside._fix_plan()
    monkeypatch.undo()
    late._fix_plan()  # which looked before there was a plan
    assert read(tmp_path / "out/plan.json")["through"] == 1
    assert through(begun) == through(beside) == through(late) == through(asked()) == through(asked(through=1)) == [1, 1]
    with pytest.raises(UserError, match=r"asks for part 2, .*plan\.json was fixed at part 1; take a new folder"):
        asked(through=2)
    store.close()


def test_a_simulated_market_has_no_files_to_hold_to(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(compare=PLAN)
    recipe["data"] = {"marketplace": {"users": 60, "items": 60, "steps": 12}}
    for _ in range(2):
        console = Events("seed-0/prepare")
        config = Config.model_validate(recipe)
        with pytest.raises(KeyboardInterrupt):
            Comparison(tmp_path / "out", config, tmp_path, objectives=["nll", "adagrpo"], console=console).carry_out()
    assert read(tmp_path / "out/plan.json")["data"] == {}


def test_the_recipes_own_arms_and_seed(world: Any, data: Path, tmp_path: Path) -> None:
    actual = comparison(world, data, tmp_path / "out", objectives=None, seeds=None).describe()
    assert (actual["arms"], actual["seeds"]) == (["nll", "adagrpo"], [0])
    assert actual["plan"]["family"] == ["adagrpo"] and not (tmp_path / "out").exists()


def test_an_arm_of_the_recipes_own_is_asked_for_by_its_name(world: Any, data: Path, tmp_path: Path) -> None:
    config = Config.model_validate(world.recipe(compare=PLAN))
    arms = [{"objective": "nll"}, {"objective": "adagrpo", "name": "hard-only", "options": {"adagrpo": {"tau": 0.9}}}]
    config = Config.model_validate(config.model_dump(mode="json", by_alias=True) | {"train": {"arms": arms}})
    out = tmp_path / "out"
    actual = Comparison(out, config, data, objectives=["hard-only", "nll", "mixture"], seeds=[0]).describe()
    assert actual["arms"] == ["hard-only", "nll", "mixture"]
    assert actual["config"]["train"]["arms"][0]["options"] == {"adagrpo": {"tau": 0.9}}


@pytest.mark.slow
def test_a_mixture_matched_by_norm_presses_with_the_gradient_that_the_gate_leaves(
    compared: Path, world: Any, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    claim(out, "comparison")
    shutil.copytree(compared / "seed-0", out / "seed-0")  # what is trained there is skipped
    asked = ["nll", "mixture", "adagrpo", "mixture-matched", NORM]
    choosy = {"tau": 0.25, "tau_reward": 0.75, "rho": 0.25}  # the world's own gate admits whatever has a gradient
    recipe = world.recipe(compare=PLAN, train={"gradient_norms_every": 2}, objective=choosy)
    config = Config.model_validate(recipe)
    content = Comparison(out, config, data, objectives=asked, seeds=[0]).carry_out()
    norms = {}
    for arm in ("mixture", "adagrpo"):
        lines = (out / "seed-0" / "train" / arm / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        measured = [row for row in map(json.loads, lines) if "grad_norm_nll" in row]
        assert len(measured) > 1
        norms[arm] = sum(row.get("grad_norm_grpo", 0.0) for row in measured) / len(measured)
    (weight,) = content["arms"][NORM]["lambda"]
    assert weight == float(f"{norms['adagrpo'] / norms['mixture']:.4g}") and 0 < weight < 1
    assert weight != content["arms"]["mixture-matched"]["lambda"][0]
    assert (out / "seed-0" / "train" / f"mixture-lambda{weight:g}" / "best").is_dir()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["arm"] for row in rows} >= {*asked}


def test_arms_that_are_one_mixture_are_trained_once_and_reported_each() -> None:
    names = {"mixture-matched": "mixture-lambda0.5", NORM: "mixture-lambda0.5"}
    assert arms_called("mixture-lambda0.5", names, ["nll"]) == ["mixture-matched", NORM]
    assert arms_called("mixture-lambda0.5", names, ["mixture-lambda0.5"]) == ["mixture-lambda0.5", *names]
    assert arms_called("popularity", names, ["nll"]) == ["popularity"]


@pytest.mark.slow
def test_in_a_simulated_marketplace_true_utility_is_compared_user_by_user(world: Any, tmp_path: Path) -> None:
    recipe = world.recipe(compare=PLAN)
    recipe["data"] = {"marketplace": {"users": 60, "items": 60, "steps": 12}}
    options = {"objectives": ["nll", "grpo"], "seeds": [0]}
    comparing = Comparison(tmp_path / "out", Config.model_validate(recipe), tmp_path, **options)  # type: ignore[arg-type]
    content = comparing.carry_out()
    means = {(row["arm"], row["checkpoint"]): row["test"]["true_utility@10"]["mean"] for row in content["rows"]}
    for row in content["rows"]:
        if row["arm"] == "grpo":
            actual = row["against"]["true_utility@10"]
            expected = means["grpo", row["checkpoint"]] - means["nll", row["checkpoint"]]
            assert actual["difference"] == pytest.approx(expected, abs=1e-9)  # all lists are of ten items
            assert actual["users"][0] <= actual["difference"] <= actual["users"][1]
    assert means["grpo", "final"] != means["nll", "final"]
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "## Against the baseline in true utility@10" in page
