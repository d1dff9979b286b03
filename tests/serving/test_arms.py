"""All arms of an experiment behind one address: who gets which, what is on record, and what `ab` reads of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.experiments.live import LiveExperiment
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate
from adagrpo.exposures.user_hash import UserHash
from adagrpo.lists import Query
from adagrpo.lists.fallback import CircuitBreaker
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.experiment import experiment
from adagrpo.pipeline.serve import Operation, _Wanted, serve
from adagrpo.report.experiment_page import write_experiment
from adagrpo.serving.arms import ArmManager
from adagrpo.serving.model_manager import Asked, Serving
from adagrpo.serving.options import Bearers, Limits, Options
from adagrpo.types import Histories

from .conftest import VERSIONS, Recommender

TOKEN = {"authorization": "Bearer 0123456789abcdef"}
PLAN: dict[str, Any] = {
    "name": "gated",
    "arms": {"now": {"serves": "sft"}, "new": {"serves": "nll", "checkpoint": "final"}},
    "control": "now",
    "salt": "2026-11",
    "holdout": 0.2,
    "start": (datetime.now(UTC) - timedelta(days=1)).date().isoformat(),
    "days": 3,
    "metrics": {"answers": {"sum": "answers"}},
    "looks": "daily",
    "answers": 100,
}


def plan_at(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes), encoding="utf-8")
    return path


@pytest.fixture
def two_arms(stub: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A service of two arms that recommend the same way, its trial and its log."""

    def make(**changes: Any) -> Any:
        trial = LiveExperiment(plan_at(tmp_path, **changes))
        arms = [
            Serving(Recommender(), {"name": name}, VERSIONS | {"arm": trial.plan.arms[name].version})  # type: ignore[arg-type]
            for name in trial.arms()
        ]
        options = Options(
            Limits(grace_seconds=0.0), Bearers(["0123456789abcdef"]), user_hash=UserHash(b"k" * 32),
            exposures=LocalExposureLog(tmp_path / "log"),
        )  # fmt: skip
        service = stub(options, None, ArmManager(trial, lambda: arms))
        service.trial = trial
        return service

    return make


def ask(service: Any, user: int | None) -> dict[str, Any]:
    body = {"history": [1], "k": 2, "request_id": f"r-{user}"} | ({} if user is None else {"user_id": user})
    status, answer, _ = service.ask("/v1/recommend", body, **TOKEN)
    assert status == 200
    return dict(answer)


def test_each_user_gets_the_arm_that_the_analysis_finds(two_arms: Callable[..., Any], tmp_path: Path) -> None:
    service = two_arms()
    answers = {user: ask(service, user) for user in (None, *range(60))}
    for user, answer in answers.items():
        if user is None:
            assert "experiment" not in answer and answer["versions"]["arm"] == "sft/best"
            continue
        arm, reason = service.trial.assign(service.app.options.user_hash(user))
        assert answer["experiment"] == {"name": "gated", "plan": service.trial.hash, "arm": arm, "deal": reason}
        assert answer["versions"]["arm"] == {"now": "sft/best", "new": "nll/final"}[arm]
    text = service.ask("/metrics", **TOKEN)[1]
    counts = {arm: sum(a.get("experiment", {}).get("arm") == arm for a in answers.values()) for arm in ("now", "new")}
    held = sum(a.get("experiment", {}).get("deal") == "held out" for a in answers.values())
    assert f'adagrpo_arm_lists_total{{arm="new",deal="arm",source="policy"}} {counts["new"]}.0' in text
    assert f'adagrpo_arm_lists_total{{arm="now",deal="held out",source="policy"}} {held}.0' in text and held > 3
    assert f'adagrpo_arm_seconds_count{{arm="now"}} {counts["now"]}.0' in text
    assert 'adagrpo_arm_on{arm="new"} 1.0' in text and "adagrpo_experiment_share 1.0" in text
    again = ask(service, 7)
    assert again["repeated"] and again["experiment"] == answers[7]["experiment"]
    assert again["versions"] == answers[7]["versions"]
    body = {"history": [1], "k": 2, "request_id": "r-None", "user_id": 7}  # the list on record is of no user
    assert service.ask("/v1/recommend", body, **TOKEN)[0] == 409
    service.end()
    rotate(tmp_path / "log")
    for row in read_parts(parts_of(tmp_path / "log"))[0].to_dicts():
        said = answers[None if row["request_id"] == "r-None" else int(row["request_id"][2:])].get("experiment")
        given = {"name": row["experiment"], "plan": row["salt_version"], "arm": row["arm"], "deal": row["deal"]}
        assert given == (said or {"name": None, "plan": None, "arm": "sft/best", "deal": None})
    result = experiment(tmp_path / "plan.yaml", tmp_path / "log")
    assert result["plan"].startswith(service.trial.hash)
    assert result["users"] == {"now": counts["now"] - held, "new": counts["new"]}
    assert result["counts"]["answers_held_out"] == held and result["counts"]["answers_misassigned"] == 0


def test_an_arm_that_is_off_gives_its_users_the_control_and_ab_says_so(
    two_arms: Callable[..., Any], tmp_path: Path
) -> None:
    service = two_arms(holdout=0.0)
    dealt = {user: service.trial.assign(service.app.options.user_hash(user)).arm for user in range(60)}
    mine, others = ([user for user, arm in dealt.items() if arm == name] for name in ("new", "now"))
    assert [ask(service, user)["experiment"]["deal"] for user in (mine[0], others[0])] == ["arm", "arm"]
    route = "/v1/admin/experiment"
    assert service.ask(route, {"stop": "new"})[0] == 401
    assert service.ask(route, {"stop": "now"}, **TOKEN)[0] == 409
    assert service.ask(route, {"stop": "new", "arm": 1}, **TOKEN)[0] == 422
    status, said, _ = service.ask(route, {"stop": "new"}, **TOKEN)
    assert (
        status == 200
        and [*said["stopped"]] == ["new"]
        and service.ask(route, **TOKEN)[1] == {key: value for key, value in said.items() if key != "made"}
    )
    answer = ask(service, mine[1])
    assert answer["experiment"] | {"plan": ""} == {"name": "gated", "plan": "", "arm": "now", "deal": "stopped"}
    assert answer["versions"]["arm"] == "sft/best"
    assert 'adagrpo_arm_on{arm="new"} 0.0' in service.ask("/metrics", **TOKEN)[1]
    assert service.ask("/health", **TOKEN)[1]["experiment"]["stopped"] == said["stopped"]
    service.end()
    for switches in (True, False):  # the log says it too
        if not switches:
            (tmp_path / "plan.yaml.switches.jsonl").unlink()
        result = experiment(tmp_path / "plan.yaml", tmp_path / "log")
        assert result["counts"]["answers_stopped"] == 1 and result["users"] == {"now": 1, "new": 1}
        assert result["reasons"]["new"].startswith("it was stopped on ") and result["verdicts"]["new"] != "ship"


def test_a_request_that_got_no_list_is_an_error_of_its_arm(two_arms: Callable[..., Any], tmp_path: Path) -> None:
    """The service fails for a history with item 19; the same request with another one is answered afterwards."""
    service = two_arms(guardrails={"errors": {"sum": "errors", "per": "requests", "margin": 0.5}})
    users = range(40)
    for user in users:
        if user % 4 == 0:
            body = {"history": [19], "k": 2, "request_id": f"r-{user}", "user_id": user}
            assert service.ask("/v1/recommend", body, **TOKEN)[0] == 500
        ask(service, user)
    status, _, _ = service.ask("/v1/recommend", {"history": [19], "k": 2, "request_id": "nobody"}, **TOKEN)
    assert status == 500  # of no user, so of no experiment
    rotate(tmp_path / "log")
    rows = read_parts(parts_of(tmp_path / "log"))[0]
    failed = rows.filter(pl.col("source") == "failed")
    assert set(failed["request_id"]) == {f"r-{user}!failed" for user in users if user % 4 == 0}
    assert failed["slate"].list.len().sum() == 0 and set(failed["deal"]) <= {"arm", "held out"}
    result = experiment(tmp_path / "plan.yaml", tmp_path / "log")
    in_arms = failed.filter(pl.col("deal") == "arm")
    assert result["counts"]["requests_failed"] == len(in_arms) and len(in_arms) > 3
    assert {row["guardrail"] for row in result["guardrails"]} == {"errors"}


def test_the_share_grows_by_the_route(two_arms: Callable[..., Any]) -> None:
    service = two_arms(ramp=[{"day": 0, "share": 0.2}])
    first = {user: ask(service, user)["experiment"] for user in range(30)}
    assert 15 < sum(one["deal"] == "outside" for one in first.values()) < 30
    status, said, _ = service.ask("/v1/admin/experiment", {"share": 1.0}, **TOKEN)
    assert (status, said["share"]) == (200, 1.0)
    hashed = service.app.options.user_hash
    for user, before in first.items():
        now = service.trial.assign(hashed(user))
        assert now.reason != "outside" and (before["deal"] == "outside" or before["arm"] == now.arm)
    assert service.ask("/v1/admin/experiment", {"share": 0.5}, **TOKEN)[0] == 409


def test_an_experiment_reloads_all_arms_and_no_other(two_arms: Callable[..., Any]) -> None:
    service = two_arms()
    assert service.ask("/v1/admin/reload", {"arm": "nll"}, **TOKEN)[0] == 409
    assert service.ask("/v1/admin/reload", {}, **TOKEN)[0] == 200


def test_a_body_is_answered_by_what_was_served_when_it_was_read(
    two_arms: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms that are exchanged between two of its users are not mixed."""
    service = two_arms()
    manager, assign, exchanged = service.app.manager, service.trial.assign, []

    def assign_and_exchange(user: str) -> Any:
        exchanged.append(user)
        versions = {"catalog": f"c1-{len(exchanged)}"}
        manager._served = tuple(
            replace(manager.now, versions=manager.now.versions | versions) for _ in service.trial.arms()
        )
        return assign(user)

    monkeypatch.setattr(service.trial, "assign", assign_and_exchange)
    bodies = [{"history": [1], "k": 2} | ({"user_id": str(user)} if user else {}) for user in range(4)]
    status, answer, _ = service.ask("/v1/recommend", {"requests": bodies}, **TOKEN)
    assert status == 200 and len(exchanged) == 3
    assert {one["versions"]["catalog"] for one in answer["responses"]} == {"c1"}


class _Down:
    def score(self, histories: Any, items: Any) -> Any:
        raise RuntimeError("down")


def test_an_arm_that_raises_leaves_the_others_their_lists_and_one_without_its_reward_is_in_health(
    two_arms: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = two_arms()
    manager = service.app.manager
    control, treatment = manager._served[:2]
    monkeypatch.setattr(treatment.recommender, "recommend", lambda queries: 1 / 0)
    asked = [Asked(treatment, Query([1])), Asked(control, Query([1])), Asked(treatment, Query([2]))]
    first, second, third = manager.answer(asked)
    assert isinstance(first, ZeroDivisionError) and isinstance(third, ZeroDivisionError)
    assert second == control.answer([Asked(control, Query([1]))])[0]
    assert manager.degraded is None
    failing = CircuitBreaker(_Down())
    failing.score(Histories(torch.zeros(1, 1).long(), torch.ones(1).long()), torch.tensor([[1]]))
    monkeypatch.setattr(treatment.recommender, "reward", failing)
    status, said, _ = service.ask("/health", **TOKEN)
    assert status == 200 and said["status"] == "degraded" and said["degraded"].endswith("reward: raised RuntimeError")


def test_arms_of_a_run_share_what_is_large(copied: Path, tmp_path: Path) -> None:
    arms = {
        "now": {"serves": "sft"}, "new": {"serves": "adagrpo", "checkpoint": "final"}, "same": {"serves": "sft"},
        "else": {"serves": "nll", "run": str(copied)},
    }  # fmt: skip
    trial = LiveExperiment(plan_at(tmp_path, arms=arms))
    wanted = _Wanted(Run.open(copied), ListOptions())
    made = dict(zip(trial.arms(), wanted.load_arms(Operation(), trial), strict=True))
    now, new, same, other = (made[name] for name in arms)
    assert [one.versions["arm"] for one in (now, new, same, other)] == [
        "sft/best", "adagrpo/final", "sft/best", "nll/best",
    ]  # fmt: skip
    for one in (new, same, other):
        for name in ("catalog", "item_ids", "_items", "_codes", "eligibility", "_popular"):
            assert getattr(one.recommender, name) is getattr(now.recommender, name)
    assert same.recommender.policy is now.recommender.policy and new.versions["model"] != now.versions["model"]
    for one, arm, checkpoint in ((new, "adagrpo", "final"), (other, "nll", "best")):
        alone = _Wanted(Run.open(copied), ListOptions(arm, checkpoint)).load(Operation())  # type: ignore[arg-type]
        asked = [Query([1, 2]), Query([3])]
        assert one.recommender.recommend(asked) == alone.recommender.recommend(asked)
        assert one.versions == alone.versions


def test_what_would_make_an_experiment_worthless_is_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADAGRPO_USER_KEY", raising=False)
    path, log = plan_at(tmp_path, arms={"now": {"serves": "sft"}, "new": {"serves": "grpo"}}), tmp_path / "log"
    key = tmp_path / "key"
    for arm, operation, said in (
        ("sft", Operation(experiment=path, exposures=log), "--arm: the plan of --experiment says"),
        (None, Operation(experiment=path), "--experiment: needs --exposures"),
        (None, Operation(experiment=path, exposures=log), "--experiment: needs --user-key-file or ADAGRPO_USER_KEY"),
        (None, Operation(experiment=path, exposures=log, user_key_file=key), "plan.yaml: arms.new: .*no list of"),
    ):
        with pytest.raises(UserError, match=said):
            serve(
                Run.open(copied),
                ListOptions(arm),
                host="127.0.0.1",
                port=0,
                operation=operation,
                ready=lambda about: None,
            )
    whole = Operation(experiment=path, exposures=log, user_key_file=key)
    with pytest.raises(UserError, match="--checkpoint final: the plan of --experiment says"):
        serve(
            Run.open(copied),
            ListOptions(None, "final"),
            host="127.0.0.1",
            port=0,
            operation=whole,
            ready=lambda about: None,
        )


def test_a_key_that_is_made_is_said(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, log = tmp_path / "key", tmp_path / "file"
    log.write_text("no log")
    operation = Operation(exposures=log, user_key_file=key)
    for said in (f"note: {key} is not there and is made; under a new key", ""):
        with pytest.raises(UserError, match="is a file"):  # before anything is loaded
            run = Run.open(copied, console=StderrConsole())
            serve(run, ListOptions("sft"), host="127.0.0.1", port=0, operation=operation, ready=lambda about: None)
        assert capsys.readouterr().err.startswith(said) and key.exists()


def test_two_arms_in_one_list(two_arms: Callable[..., Any], tmp_path: Path) -> None:
    service = two_arms(kind="interleaving", metrics={})
    theirs = service.app.manager.arms["new"].recommender
    theirs.known = lambda history: ([], [])  # never asked: items are the control's
    plain = theirs.recommend
    theirs.recommend = lambda queries: plain([query._replace(history=[5]) for query in queries])
    answers = {user: ask(service, user) for user in range(40)}
    inside = {user: a for user, a in answers.items() if a["experiment"]["deal"] == "interleaved"}
    held = {user: a for user, a in answers.items() if a["experiment"]["deal"] == "held out"}
    assert len(inside) + len(held) == 40 and len(held) > 2
    assert {tuple(a["items"]) for a in inside.values()} == {(2, 6), (6, 2)}
    assert {tuple(a["items"]) for a in held.values()} == {(2, 3)}
    for user, answer in inside.items():
        assert answer["versions"]["arm"] == "sft/best+nll/final" and answer["experiment"]["arm"] == "now+new"
        event = {"request_id": f"r-{user}", "item_id": 6, "kind": "click"}
        assert service.ask("/v1/feedback", event, **TOKEN)[1]["accepted"] == 1
    assert ask(service, next(iter(inside)))["repeated"]
    service.end()
    rotate(tmp_path / "log")
    for row in read_parts(parts_of(tmp_path / "log"))[0].filter(pl.col("deal") == "interleaved").to_dicts():
        assert row["teams"] == ["now" if item == "2" else "new" for item in row["slate"]]
    result = experiment(tmp_path / "plan.yaml", tmp_path / "log")
    assert result["users"] == {"shown": len(inside), "clicked": len(inside)}
    assert result["verdicts"] == {"new": "preferred"} and result["preference"]["share"] == 1.0
    page = write_experiment(tmp_path / "page.html", result).read_text(encoding="utf-8")
    assert "<strong>new: preferred.</strong>" in page and "Preference until each day" in page
