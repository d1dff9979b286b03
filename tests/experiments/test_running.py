"""Which arm a user gets while an experiment runs: the ramp grows, arms are stopped, and nobody changes sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo.errors import UserError
from adagrpo.experiments.allocation import (
    Assigned,
    Switches,
    add_switch,
    assign,
    assign_at,
    read_switches,
    switches_path,
)
from adagrpo.experiments.live import LiveExperiment
from adagrpo.experiments.plan import DAY, Plan, frozen_path

CONTENT: dict[str, Any] = {
    "name": "ramped",
    "arms": {"now": {"serves": "sft"}, "new": {"serves": "nll"}, "third": {"serves": "nll", "weight": 2}},
    "control": "now",
    "salt": "2026-11",
    "holdout": 0.1,
    "exclude": ["user-3"],
    "start": "2026-11-08",
    "days": 7,
    "ramp": [{"day": 0, "share": 0.1}, {"day": 2, "share": 0.5}, {"day": 3.5, "share": 1}],
    "metrics": {"clicks": {"sum": "click"}},
}
PLAN = Plan.model_validate(CONTENT)
USERS = [f"user-{number}" for number in range(3000)]
NONE = Switches()


def assigned(day: float, switches: Switches = NONE) -> dict[str, Assigned]:
    return {user: assign_at(PLAN, user, PLAN.begins + day * DAY, switches) for user in USERS}


def test_the_ramp_takes_users_in_and_none_out_or_across() -> None:
    before: dict[str, Assigned] = {}
    for day, share in ((0.0, 0.1), (1.99, 0.1), (2.0, 0.5), (3.5, 1.0), (6.99, 1.0)):
        now = assigned(day)
        reached = [user for user, given in now.items() if given.reason != "outside"]
        assert abs(len(reached) / len(USERS) - share) < 0.03
        assert all(now[user] == given for user, given in before.items() if given.reason != "outside")
        before = now
    arms = [given.arm for given in before.values() if given.reason == "arm"]
    assert abs(arms.count("third") / len(arms) - 0.5) < 0.03 and abs(arms.count("new") / len(arms) - 0.25) < 0.03
    held = [user for user, given in before.items() if given == Assigned("now", "held out")]
    assert abs(len(held) / len(USERS) - 0.1) < 0.02 and before["user-3"] == Assigned("now", "outside")
    weights = {"now": 1.0, "new": 1.0, "third": 2.0}
    for user, given in before.items():  # the analysis finds the same arm from the hash alone
        assert given.reason != "arm" or given.arm == assign(user, salt="2026-11", weights=weights, holdout=0.1)


def test_before_and_after_its_days_there_is_no_experiment() -> None:
    late = Switches(shares=((PLAN.begins - 9 * DAY, 1.0),))
    for day in (-0.01, 7.0):
        assert {*assigned(day, late).values()} == {Assigned("now", "outside")}
    assert sum(given.reason == "arm" for given in assigned(0.0, late).values()) > 2500


def test_a_switch_holds_from_its_time_on() -> None:
    stop = Switches(stops={"new": PLAN.begins + 4 * DAY})
    before, after = assigned(3.9, stop), assigned(4.0, stop)
    assert before == assigned(4.0)
    for user, given in after.items():
        assert given == (Assigned("now", "stopped") if before[user] == Assigned("new", "arm") else before[user])
    grown = Switches(shares=((PLAN.begins + 0.5 * DAY, 0.3),))
    assert [grown.share(PLAN, PLAN.begins + day * DAY) for day in (0.4, 0.5, 2.0)] == [0.1, 0.3, 0.5]


def test_a_ramp_must_grow() -> None:
    for ramp in (
        [{"day": 1, "share": 0.5}, {"day": 2, "share": 0.5}],
        [{"day": 1, "share": 0.5}, {"day": 1, "share": 1}],
    ):
        with pytest.raises(ValueError, match="both day and share must grow"):
            Plan.model_validate(CONTENT | {"ramp": ramp})


def test_switches_are_lines_beside_the_plan(tmp_path: Path) -> None:
    path, moment = tmp_path / "plan.yaml", PLAN.begins + DAY
    assert read_switches(path, PLAN) == NONE
    add_switch(path, PLAN, now=moment, share=0.4)
    assert add_switch(path, PLAN, now=moment + 1, stop="new") == {"time": moment + 1, "stop": "new"}
    assert add_switch(path, PLAN, now=moment + 9, stop="new")["time"] == moment + 1  # off is off
    for wrong, said in (
        ({"share": 0.4}, r"share: 0.4, and it is 0.4 now; it only grows"),
        ({"share": 1.5}, r"share: 1.5; it is above 0 and at most 1"),
        ({"stop": "now"}, r"stop: 'now' is no arm that can be switched off; there are new, third"),
        ({}, "one at a time"),
        ({"share": 0.9, "stop": "new"}, "one at a time"),
    ):
        with pytest.raises(UserError, match=said):
            add_switch(path, PLAN, now=moment + 2, **wrong)  # type: ignore[arg-type]
    file = switches_path(path)
    with file.open("a", encoding="utf-8") as target:
        target.write('{"time": 1, "st')  # of a writer at work
    assert read_switches(path, PLAN) == Switches(((moment, 0.4),), {"new": moment + 1})
    file.write_text('{"time": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"switches.jsonl: line 1 is no switch"):
        read_switches(path, PLAN)


def test_a_running_experiment_follows_its_switches(tmp_path: Path) -> None:
    path, clock = tmp_path / "plan.yaml", [PLAN.begins + 4 * DAY]
    path.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    here, there = (LiveExperiment(path, lambda: clock[0]) for _ in range(2))
    user = next(user for user, given in assigned(4.0).items() if given == Assigned("new", "arm"))
    assert here.assign(user) == there.assign(user) == Assigned("new", "arm")
    here.switch(stop="new")
    assert here.assign(user) == Assigned("now", "stopped")  # at once
    clock[0] += 0.6
    assert there.assign(user) == Assigned("now", "stopped")  # and within a second elsewhere
    assert there.state() | {"plan": ""} == {
        "name": "ramped", "plan": "", "share": 1.0, "stopped": {"new": "2026-11-12T00:00:00+00:00"},
    }  # fmt: skip
    switches_path(path).write_text("nonsense\n", encoding="utf-8")
    clock[0] += 0.6
    assert there.assign(user) == Assigned("now", "stopped")  # a file that cannot be read switches nothing on
    switches_path(path).unlink()
    assert not LiveExperiment(path).frozen and not frozen_path(path).exists()  # a service that does not start
    here.freeze()
    assert LiveExperiment(path).frozen
    path.write_text(yaml.safe_dump(CONTENT | {"days": 8}), encoding="utf-8")
    with pytest.raises(UserError, match="was changed after it was frozen"):
        LiveExperiment(path)


def a_plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    return path


def test_a_switch_after_one_that_was_written_halfway_holds(tmp_path: Path) -> None:
    path = a_plan(tmp_path)
    moment = PLAN.begins + 4 * DAY
    live = LiveExperiment(path, lambda: moment)
    switches_path(path).write_text('{"time": 1.0, "share": 0.5}\n{"time": 17958', encoding="utf-8")  # a full disk
    made = live.switch(stop="new")
    assert live.state()["stopped"].keys() == {"new"} and {live.assign(user).arm for user in USERS} == {"now", "third"}
    assert read_switches(path, PLAN) == Switches(((1.0, 0.5),), {"new": made["time"]})


@pytest.mark.parametrize(
    "foreign", ["a diary without an end", '{"time": 1.0, "share": 0.5}', "notes\n", '{"time": 1.0, "share": 0.5}\nmine']
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, foreign: str, linked: bool) -> None:
    path = a_plan(tmp_path)
    file = tmp_path / "victim.txt" if linked else switches_path(path)
    file.write_text(foreign, encoding="utf-8")
    if linked:
        switches_path(path).symlink_to(file)
    for asked in ({"stop": "new"}, {"share": 0.9}, {"stop": "nobody"}):
        with pytest.raises(
            UserError, match=r"switches.jsonl: (is a link|its last line|line 1 is no)|is no arm"
        ) as error:
            add_switch(path, PLAN, now=PLAN.begins + 9 * DAY, **asked)  # type: ignore[arg-type]
        assert "\n" not in str(error.value) and file.read_text(encoding="utf-8") == foreign


def test_a_switch_that_is_refused_makes_no_file(tmp_path: Path) -> None:
    path = a_plan(tmp_path)
    with pytest.raises(UserError, match="is no arm"):
        add_switch(path, PLAN, now=1.0, stop="nobody")
    assert not switches_path(path).exists()


def test_a_switch_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_plan(tmp_path)
    add_switch(path, PLAN, now=1.0, share=0.5)
    before = switches_path(path).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adagrpo.experiments.allocation.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; it must be writable"):
        add_switch(path, PLAN, now=2.0, stop="new")
    assert switches_path(path).read_bytes() == before


def test_an_arm_that_is_off_stays_off_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path, clock = a_plan(tmp_path), [PLAN.begins + 4 * DAY]
    live = LiveExperiment(path, lambda: clock[0])
    user = next(user for user, given in assigned(4.0).items() if given == Assigned("new", "arm"))
    assert live.assign(user) == Assigned("new", "arm")
    add_switch(path, PLAN, now=clock[0] + 600, stop="new")  # by a machine whose clock is ahead
    clock[0] += 0.6
    assert live.assign(user) == Assigned("now", "stopped")
    switches_path(path).unlink()
    clock[0] += 0.6
    assert live.assign(user) == Assigned("now", "stopped")
    add_switch(path, PLAN, now=clock[0], stop="third")
    clock[0] += 0.6
    assert live.state()["stopped"].keys() == {"new", "third"}


def test_a_switch_while_a_service_starts_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moment = a_plan(tmp_path), PLAN.begins + 4 * DAY

    def read_and_then(path: Path, plan: Plan) -> Switches:
        found = read_switches(path, plan)
        if not found.stops:
            add_switch(path, plan, now=moment, stop="new")
        return found

    monkeypatch.setattr("adagrpo.experiments.live.read_switches", read_and_then)
    times = iter([moment])
    live = LiveExperiment(path, lambda: next(times, moment + 1))
    assert live.switches.stops == {}  # it read them a moment before
    assert live.state()["stopped"].keys() == {"new"}
