"""Carries out the trial with what the tuning chose: other seeds, test cases, and teachers to hold the reward against.

    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --alike
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --unseen
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --teachers

`--out` is that of the tuning. Each family has the arm that `chosen-<set>.yaml` names, under the seeds of `plan.yaml`,
in one comparison with continued NLL and with re-ranking. A gate is held against the random one and against none, with
an interval on that difference. Stopped at any point, the same command continues. `--only 3` makes the run of one seed,
beside another process that makes the others. A set with `tuned_on` has the arms of another set's tuning, and those of
its `families` alone if it names some.

With `--alike` nothing that was tuned is read: all arms have one pressure, one place and the rollouts of their
objective, so that a gate, the random one and none differ in nothing else. Each of the plan's pressures is a comparison.

With `--unseen` all arms are alike too, and groups are drawn where the starting policy had no target; the trees leave a
user out of the counts that they score the user by. So the gate judges what nobody has memorised. It is held against the
random gate, the inverted one and none.

With `--teachers` the chosen distillation is trained again with other rewards, each re-ranked with too: counts, other
seeds of the policy, the sequential ranker, a reward whose scores are shuffled. All of them, the trial's own reward
among them, have the weight that validation chooses; the starting policies are those of the trial.

`trial-<set>`, `alike-<set>-p<pressure>`, `unseen-<set>` and `teacher-<set>-<teacher>` are kept beside this file, each
as `.comparison.json` and with its rows as `.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import Config
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline import Run, fit_sft, prepare, tokenize
from adagrpo.pipeline.compare import Comparison
from adagrpo.report import read_rows
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import write_file
from research.fair_trial.tune import (
    HERE,
    Candidate,
    chosen_arms,
    read_plan,
    recipe_of,
    short_ranker,
    tuned_on,
    unfinished,
    written,
)

__all__ = ["alike_config", "pairs", "teacher_config", "trial_config", "unseen_config"]

SHARED = ("prepare", "tokenize", "sft", "ranker", "train/nll", "evaluate/sft", "evaluate/nll")  # whatever the reward


def pairs(families: Sequence[str]) -> list[list[str]]:
    """Each gate against the random one and against none.

    Example:
        >>> pairs(["best", "best-gate", "best-random"])
        [['fair-best-gate', 'fair-best-random'], ['fair-best-gate', 'fair-best'], ['fair-best-random', 'fair-best']]
    """
    named = [name for name in families if {f"{name}-gate", f"{name}-random"} <= set(families)]
    ends = (("-gate", "-random"), ("-gate", ""), ("-random", ""))
    return [[f"fair-{name}{first}", f"fair-{name}{second}"] for name in named for first, second in ends]


def trial_config(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> Config:
    """The recipe with the arms that were chosen, and what they are held against.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of the tuning that chose its arms.

    Raises:
        UserError: the tuning is not complete, or its rows are of another plan.
    """
    source = tuned_on(plan, name)
    if (why := unfinished(plan, source, rows)) is not None:
        raise UserError(f"{source}: {why}; python -m research.fair_trial.tune --sets {source} continues the tuning")
    families, found_arms = plan["sets"][name].get("families", list(plan["families"])), chosen_arms(plan, rows)
    return _with_arms(plan, name, pairs(families), [found_arms[f"fair-{family}"] for family in families])


def alike_config(plan: Mapping[str, Any], name: str, pressure: float) -> Config:
    """The recipe with every family at one pressure and one place, with the rollouts of its objective.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        pressure: of all of them.
    """
    about, arms = plan["trial"]["alike"], []
    for family in plan["families"]:
        rollouts = about["rollouts"][family.removesuffix("-gate").removesuffix("-random")]
        arm = Candidate(family, pressure, rollouts, about["positions"]).arm(plan, f"fair-{family}")
        arms.append(written(arm))
    return _with_arms(plan, name, pairs(list(plan["families"])), arms)


def unseen_config(plan: Mapping[str, Any], name: str) -> Config:
    """The recipe with each gate where the starting policy had no target, all arms alike.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    about, arms, held = plan["trial"]["unseen"], [], []
    for objective, rollouts in about["rollouts"].items():
        ungated, gated = (
            written(Candidate(family, about["pressure"], rollouts, about["positions"]).arm(plan, f"fair-{family}"))
            for family in (objective, f"{objective}-gate")
        )
        others = [gated | {"gate": gate, "name": f"fair-{objective}-{gate}"} for gate in about["gates"]]
        arms += [ungated, gated, *others]
        held += [[gated["name"], other["name"]] for other in (*others, ungated)]
    return _with_arms(plan, name, held, arms, *about["settings"])


def teacher_config(
    plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]], teacher: str, ensemble: Sequence[Path]
) -> Config:
    """The recipe with another reward, and the one arm that distils it with the weight that validation chooses.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
        rows: of its tuning.
        teacher: one of `trial.teachers`.
        ensemble: the runs of the policies whose mean is a reward, for `policies`.
    """
    reward = dict(plan["trial"]["teachers"][teacher])
    if reward["kind"] == "policies":
        reward["runs"] = [str(run) for run in ensemble]
    arm = chosen_arms(plan, rows)["fair-distill"]
    arm["options"]["distill"] |= {"reward_weight": "validation"}
    ranker = [] if reward["kind"] == "sequential" else short_ranker(plan, name)
    return _recipe(plan, name, *ranker, f"train.arms={json.dumps(['nll', arm])}", f"reward={json.dumps(reward)}")


def carry_out(plan: Mapping[str, Any], name: str, data: Path, out: Path, only: Sequence[int] = ()) -> None:
    """The trial of one set, or no more than the runs of some of its seeds."""
    config = trial_config(plan, name, _rows(plan, name))
    arms = [arm.name for arm in config.train.arms] + ["rerank"]
    seeds, console = _seeds(plan, name), StderrConsole()
    comparison = Comparison(out / f"trial-{name}", config, data, objectives=arms, seeds=seeds, console=console)
    if only:
        comparison.make_runs(only)
        return
    comparison.carry_out()
    _keep(comparison, f"trial-{name}")


def carry_out_alike(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """All families under one setting, at each of its pressures, from the starting policies of the trial."""
    for pressure in plan["trial"]["alike"]["pressures"]:
        config, of = alike_config(plan, name, pressure), f"{name}-p{pressure:g}"
        directory = _with_starts(plan, name, out, out / f"alike-{of}")
        arms, seeds = [arm.name for arm in config.train.arms], _seeds(plan, name)
        comparison = Comparison(directory, config, data, objectives=arms, seeds=seeds, console=StderrConsole())
        comparison.carry_out()
        _keep(comparison, f"alike-{of}")


def carry_out_unseen(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """Every gate where nobody has memorised what it judges; the starting policies are this comparison's own."""
    config, seeds = unseen_config(plan, name), _seeds(plan, name)
    arms = [arm.name for arm in config.train.arms] + ["rerank"]
    comparison = Comparison(out / f"unseen-{name}", config, data, objectives=arms, seeds=seeds, console=StderrConsole())
    comparison.carry_out()
    _keep(comparison, f"unseen-{name}")


def teach(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The chosen distillation with each teacher, from the starting policies of the trial."""
    rows, seeds, console = _rows(plan, name), _seeds(plan, name), StderrConsole()
    ensemble = [_start(plan, name, data, out / f"ensemble-{name}" / f"seed-{s}", s) for s in plan["trial"]["ensemble"]]
    for teacher in plan["trial"]["teachers"]:
        config = teacher_config(plan, name, rows, teacher, ensemble)
        directory = _with_starts(plan, name, out, out / f"trial-{name}-{teacher}")
        arms = ["nll", "fair-distill", "rerank", "fair-distill+rerank"]
        comparison = Comparison(directory, config, data, objectives=arms, seeds=seeds, console=console)
        comparison.carry_out()
        _keep(comparison, f"teacher-{name}-{teacher}")


def _start(plan: Mapping[str, Any], name: str, data: Path, folder: Path, seed: int) -> Path:
    """A run with a starting policy alone, one of those whose mean is a reward."""
    run = Run(folder, recipe_of(plan, name, f"seed={seed}"), data, StderrConsole())
    with run.locked():
        prepare(run)
        tokenize(run)
        fit_sft(run)
    return folder.resolve()


def _with_starts(plan: Mapping[str, Any], name: str, out: Path, directory: Path) -> Path:
    """A comparison whose runs have what no arm enters, from those of the trial."""
    claim(directory, "comparison")
    for seed in _seeds(plan, name):
        source, target = (folder / f"seed-{seed}" for folder in (out / f"trial-{name}", directory))
        if not target.exists() and source.exists():
            _copied(source, target)
        elif not target.exists():
            StderrConsole().stage(str(source), f"no such run; seed {seed} has its starting policy made again", 0.0)
    return directory


def _copied(source: Path, target: Path) -> None:
    """A run with the stages that no reward enters, under its name when it is whole."""
    partial = target.with_name(f"{target.name}.copying")
    shutil.rmtree(partial, ignore_errors=True)
    claim(partial, "run")
    for stage in SHARED:
        if (source / stage).is_dir():
            shutil.copytree(source / stage, partial / stage)
    partial.rename(target)


def _with_arms(
    plan: Mapping[str, Any],
    name: str,
    held: Sequence[Sequence[str]],
    arms: Sequence[Mapping[str, Any]],
    *options: str,
) -> Config:
    """The recipe with continued NLL, some arms, and those of them that are held against each other."""
    settled = [f"train.arms={json.dumps(['nll', *arms])}", f"compare.pairs={json.dumps(held)}", *options]
    return _recipe(plan, name, *short_ranker(plan, name), *settled)


def _recipe(plan: Mapping[str, Any], name: str, *options: str) -> Config:
    return recipe_of(plan, name, *plan["trial"]["settings"], *options)


def _rows(plan: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return list(read_rows(HERE / f"tuning-{tuned_on(plan, name)}.jsonl"))


def _seeds(plan: Mapping[str, Any], name: str) -> list[int]:
    return list(plan["seeds"].get(name, plan["seeds"]["others"]))


def _keep(comparison: Comparison, name: str) -> None:
    for file, kept in (("results.jsonl", f"{name}.jsonl"), ("comparison.json", f"{name}.comparison.json")):
        write_file(HERE / kept, (comparison.directory / file).read_text(encoding="utf-8"))


def main() -> None:
    """Carry out what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--only", nargs="+", type=int, default=[], help="seeds whose runs are made, and nothing more")
    parser.add_argument("--alike", action="store_true", help="all arms under one setting, after the trial of the set")
    parser.add_argument("--unseen", action="store_true", help="gates where the starting policy had no target")
    parser.add_argument("--teachers", action="store_true", help="other rewards, after the trial of the set")
    given = parser.parse_args()
    if bool(given.only) + given.alike + given.unseen + given.teachers > 1:
        parser.error("--only is of the trial itself, and --alike, --unseen and --teachers are three commands")
    for name in given.sets:
        plan = read_plan(name)
        data = given.data / plan["sets"][name].get("folder", name)
        if given.alike:
            carry_out_alike(plan, name, data, given.out)
        elif given.unseen:
            carry_out_unseen(plan, name, data, given.out)
        elif given.teachers:
            teach(plan, name, data, given.out)
        else:
            carry_out(plan, name, data, given.out, given.only)


if __name__ == "__main__":
    main()
