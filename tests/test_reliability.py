"""Short versions of what docs/reliability.md measures: kills, a full disk, damage, lists; and the page itself."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.reliability import findings, invariance, stale
from benchmarks.reliability.eligible_lists import check_eligible
from benchmarks.reliability.exposures import kill_log
from benchmarks.reliability.foreign import foreign_tree, prepare_trees
from benchmarks.reliability.lists import check_lists
from benchmarks.reliability.logs import FORMATS, check_log
from benchmarks.reliability.masking import check_masking
from benchmarks.reliability.own_artifacts import give_own_artifacts
from benchmarks.reliability.processes import FULL, Server, run_together, server
from benchmarks.reliability.readers import READERS, cut_short, damage_files, flip_bit
from benchmarks.reliability.trials import false_alarms, imbalances, planted

from adagrpo.trainer.processes import LostProcess

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server")) as result:
        yield result


def names(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow  # starts a process twice
def test_an_exposure_log_that_is_killed_has_one_row_for_each_answer(tmp_path: Path) -> None:
    found = kill_log(tmp_path, answers=2000, kills=1)
    assert found.passes and "1 kills in 2,000 acknowledged answers" in found.figure


@pytest.mark.slow  # each is a run that is killed and one that ends
@pytest.mark.parametrize(("moment", "count"), [("write", 3), ("published", 2), ("micro", 6), ("stage", 4)])
def test_a_killed_run_ends_as_if_it_had_not_been(
    processes: Server,
    finished: Path,
    data: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    moment: str,
    count: int,
) -> None:
    command = ["run", str(data / "recipe.yaml"), "--data", str(data), "--out", str(tmp_path / "run"), "--quiet"]
    assert processes.run(command, moment, count)[0] == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.json").exists()
    status, message = processes.run(command)
    assert status == 0, message
    assert contents(tmp_path / "run") == contents(finished)
    assert names(tmp_path / "run") == names(finished) | {".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("count", [7])  # the third of the four files of the second checkpoint
def test_a_full_disk_leaves_the_checkpoint_before_and_names_the_file(
    processes: Server,
    finished: Path,
    data: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    count: int,
) -> None:
    run = tmp_path / "run"
    command = ["run", str(data / "recipe.yaml"), "--data", str(data), "--out", str(run), "--quiet"]
    status, message = processes.run(command, FULL, count)
    assert status == 1 and str(run / ".work" / "sft" / "checkpoints") in message and "File too large" in message
    assert len([*run.glob(".work/sft/checkpoints/[0-9]*/manifest.json")]) == (count > 4)
    assert processes.run(command)[0] == 0
    assert contents(run) == contents(finished)


@pytest.fixture(scope="module")
def trees(processes: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("trees")
    prepare_trees(processes, work)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_what_somebody_else_has_put_into_a_folder_stays_there(processes: Server, trees: Path, seed: int) -> None:
    kept, _, _ = foreign_tree(processes, trees, np.random.default_rng((1, seed)))
    assert kept


@pytest.mark.slow
def test_no_verb_replaces_what_another_has_made(processes: Server, tmp_path: Path) -> None:
    given, wrong = give_own_artifacts(processes, tmp_path)
    assert wrong == [] and given > 140


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_short, flip_bit])
def test_a_damaged_file_changes_no_answer(trees: Path, damage: Callable[..., bytes]) -> None:
    answers = damage_files(trees / "finished", 4, damage)
    assert answers["silent"] == answers["unnamed"] == 0
    assert answers["refused"] > 0 and answers["refused"] + answers["equal"] == 4 * len(READERS)


@pytest.mark.slow
def test_stages_that_are_out_of_date_are_read_by_no_verb(processes: Server, tmp_path: Path) -> None:
    stale.begin(processes, tmp_path)
    answers = stale.Answers()
    answers.add(stale.carry_out(processes, tmp_path, ["other sft", "other reward"], ("train", "evaluate", "report")))
    answers.add(stale.carry_out(processes, tmp_path, ["failed command"], ("diagnose", "sft"), follow=False))
    assert answers.wrong == [] and answers.commands > 0
    assert [dict(answers.by_verb[verb]) for verb in ("train", "report", "sft")] == [
        {"done": 1},
        {"refused": 1},
        {"done": 1},
    ]


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("follower")) as result:
        yield result


@pytest.mark.slow  # a run by one process, and one by two of which each is killed once
def test_two_processes_end_with_the_bits_of_one_also_after_a_kill(
    processes: Server, follower: Server, data: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    """Of two micro-batches each takes one, and a sum of two numbers is the same either way round."""
    halves = [
        f"--set={fit}.{key}" for fit in ("sft", "ranker.fit", "train.fit") for key in ("batch_size=8", "accumulation=2")
    ]

    def command(run: str) -> list[str]:
        out = str(tmp_path / run)
        return ["run", str(data / "recipe.yaml"), "--data", str(data), "--out", out, "--quiet", *halves]

    assert processes.run(command("one"))[0] == 0
    killed = run_together([processes, follower], command("two"), "published", 8)
    assert killed[0][0] == -signal.SIGKILL and killed[1][0] == 1, killed
    killed = run_together([processes, follower], command("two"), "micro", 5, dies=1)
    assert killed[1][0] == -signal.SIGKILL and killed[0][0] == 1, killed
    assert killed[0][1] == f"adagrpo: {LostProcess()}", "one line, and no trace"
    status, message = zip(*run_together([processes, follower], command("two")), strict=True)
    assert status == (0, 0), message
    assert message[1] == "", "the first process speaks for both"
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert names(tmp_path / "two") == names(tmp_path / "one")
    status, message = zip(
        *run_together([processes, follower], ["evaluate", "--run", str(tmp_path / "two")]), strict=True
    )
    assert status == (2, 2) and "evaluate: is for one process" in message[0]


@pytest.mark.slow  # a process, and forks that fit three models three times
def test_however_a_step_is_cut_and_by_however_many_the_weights_are_those_of_one(tmp_path: Path) -> None:
    """With SGD and without clipping: Adam and a clipped gradient hide a sum that is taken for a mean."""
    assert max(invariance.deviations(tmp_path, 15, "sgd").values()) < 1e-6


@pytest.mark.slow  # a process, and forks that fit three models three times
def test_a_process_that_is_killed_ends_the_other_and_the_same_two_go_on_to_the_same_bits(tmp_path: Path) -> None:
    found = json.loads(invariance.run(tmp_path, 6, "killed"))
    assert found["ends"] == [invariance.LOST, -signal.SIGKILL]
    assert found["saved"] == [2], "the state before the step in hand"
    assert found["equal"]


@pytest.mark.parametrize(("sizes", "seed"), [((6, 5), 0), ((5, 3, 4, 3), 1), ((2,) * 9, 2)])
def test_lists_are_valid_and_where_they_can_be_exact(sizes: tuple[int, ...], seed: int) -> None:
    made, valid, compared, exact, dead = check_lists(sizes, seed, 40)
    assert made == valid == compared == exact == 40 and dead == 1


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize(("sizes", "seed"), [((6, 5), 0), ((8, 8, 8), 1), ((300,), 2)])
def test_lists_hold_what_is_eligible_and_all_of_it_where_they_can(
    sizes: tuple[int, ...], seed: int, hybrid: bool
) -> None:
    counts = check_eligible(sizes, seed, 60, hybrid=hybrid)
    assert (counts.lists, counts.compared) == (60, 12)
    assert (counts.ineligible, counts.short, counts.exact) == (0, 0, 12)


@pytest.mark.parametrize("suffix", FORMATS)
def test_logs_with_bad_rows(tmp_path: Path, suffix: str) -> None:
    assert check_log(tmp_path / f"log.{suffix}", 3000, 200, seed=5)


# ---------------------------------------------------------------- the page


def test_no_list_holds_an_item_of_a_history_that_is_longer_than_what_the_policy_sees(tmp_path: Path) -> None:
    actual = check_masking(tmp_path, evaluated=100, generated=10)
    assert actual.pop("the last 6 items alone").holding > 50
    assert [counts.lists for counts in actual.values()] == [100, 100, 10]
    assert all(counts.holding == 0 and counts.short == 0 for counts in actual.values())


DO_NOT_HOLD = {"endings-proxied", "malformed-proxied", "overload"}  # what was measured and is printed as it came


def test_the_pages_of_reliability_are_what_the_figures_give(tmp_path: Path) -> None:
    page, raw, results = tmp_path / "page.md", tmp_path / "raw.md", ROOT / "benchmarks" / "reliability" / "results.json"
    page.write_bytes((ROOT / "docs" / "reliability.md").read_bytes())
    findings.table(results, page, raw)
    assert page.read_bytes() == (ROOT / "docs" / "reliability.md").read_bytes()
    assert raw.read_bytes() == results.with_suffix(".md").read_bytes()
    figures: dict[str, dict[str, Any]] = json.loads(results.read_text())
    assert {name for name, figure in figures.items() if not figure["passes"]} == DO_NOT_HOLD
    for name, figure in figures.items():
        assert f"`{name}` {'yes' if figure['passes'] else '**no**'}" in page.read_text()


@pytest.mark.slow  # 40 experiments, each looked at daily
def test_experiments_that_are_looked_at_daily_are_not_wrong_more_often() -> None:
    errors = false_alarms(40, users=600)
    assert errors.at_any_look > errors.at_the_end
    assert errors.at_any_look_anytime <= 3  # of 40; more than 3 at a rate of 5 % would be seen once in 7 times


@pytest.mark.slow
def test_a_planted_lift_is_found_and_covered_and_a_planted_loss_refused() -> None:
    users, found, covered = planted(20)
    assert 5000 < users < 7000 and found >= 11 and covered >= 16  # each below what 1 in 100 draws would give
    assert imbalances(2) == (2, 0)
