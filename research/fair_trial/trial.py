"""Carries out the trial with what the tuning chose: other seeds, test cases, and teachers to hold the reward against.

    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --alike
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --unseen
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --apart
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --thresholds
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --fixed-rate
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --frontier
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --whole
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --rewards
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --recommended
    python -m research.fair_trial.trial --data DIR --out runs/fair --sets amazon18-scientific --teachers

`--out` is that of the tuning. Each family has the arm that `chosen-<set>.yaml` names, under the seeds of `plan.yaml`,
in one comparison with continued NLL and with re-ranking. A gate is held against the random one and against none, with
an interval on that difference. Stopped at any point, the same command continues. A set with `tuned_on` has the arms of
another set's tuning, and those of its `families` alone if it names some.

`--only 3` makes the run of one seed, beside another process that makes the others. `--seeds 1 2` is a comparison of
these seeds, kept as `trial-<set>-seeds-1-2`; a table pools it with those of the other seeds.

With `--alike` nothing that was tuned is read: all arms have one pressure, one place and the rollouts of their
objective, so that a gate, the random one and none differ in nothing else. Each of the plan's pressures is a comparison.

With `--unseen` all arms are alike too, and groups are drawn where the starting policy had no target; the trees leave a
user out of the counts that they score the user by. So at the start nobody has memorised what the gate judges. It is
held against the random gate, the inverted one and none. With `--apart`, after that, NLL does not train at those
positions either.

With `--thresholds` the earlier gate has other thresholds than its own, all arms alike for the rest. Each is held
against the random gate that admits as many as it would.

With `--fixed-rate` a gate that admits a fixed share by chance stands beside the earlier gate and the random one,
which learns from the earlier gate how much of each batch to admit; all arms alike for the rest.

With `--rewards` GRPO and its gates have other rewards than the trees, all arms alike; each is a comparison.

With `--frontier` the chosen gate of the mixture on samples is held against the mixture at each of the plan's pressures.

With `--whole` the best settings of some families are tuned again for all of the steps, with rows in
`whole-<set>.jsonl`. The one that is then best is tried.

With `--recommended` the arm that the pages recommend is trained as it is shipped, beside continued NLL.

With `--teachers` the chosen distillation is trained again with other rewards, each re-ranked with too: counts, other
seeds of the policy, the sequential ranker, a reward whose scores are shuffled. All of them, the trial's own reward
among them, have the weight that validation chooses; the starting policies are those of the trial.

`trial-<set>`, `alike-<set>-p<pressure>`, `unseen-<set>`, `apart-<set>`, `thresholds-<set>`, `fixed-rate-<set>`,
`frontier-<set>`, `at-length-<set>`, `reward-<set>-<reward>`, `recommended-<set>` and `teacher-<set>-<teacher>` are kept
beside this file, each as `.comparison.json` and with its rows as `.jsonl`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import Config
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.directory import locked
from adagrpo.report.page import read_rows
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import write_file
from research.command import run
from research.fair_trial.configs import (
    alike_config,
    fixed_rate_config,
    frontier_config,
    recommended_config,
    reward_config,
    teacher_config,
    thresholds_config,
    trial_config,
    unseen_config,
    whole_config,
)
from research.fair_trial.tune import (
    HERE,
    check_tuned,
    folder_of,
    read_plan,
    recipe_of,
    set_parser,
    start,
    tune_whole,
    tuned_on,
)
from research.rows import keep_rows

SHARED = ("prepare", "tokenize", "sft", "ranker", "train/nll", "evaluate/sft", "evaluate/nll")  # whatever the reward


def carry_out(
    plan: Mapping[str, Any], name: str, data: Path, out: Path, only: Sequence[int] = (), part: Sequence[int] = ()
) -> None:
    """The trial of one set; or no more than the runs of some of its seeds; or a comparison of some of them.

    Raises:
        UserError: a seed of the part is none of the plan's.
    """
    if unknown := [seed for seed in part if seed not in _seeds(plan, name)]:
        raise UserError(f"--seeds {unknown[0]}: the plan has {', '.join(map(str, _seeds(plan, name)))} for {name}")
    config, of = trial_config(plan, name, _rows(plan, name)), "-".join([f"trial-{name}", *_named(part)])
    comparison = _comparison(plan, name, config, data, out / of, "rerank", seeds=part)
    if only:
        comparison.make_runs(only)
    else:
        _carry_out(comparison, of)


def carry_out_alike(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """All families under one setting, at each of its pressures, from the starting policies of the trial."""
    for pressure in plan["trial"]["alike"]["pressures"]:
        config, of = alike_config(plan, name, pressure), f"alike-{name}-p{pressure:g}"
        _from_starts(plan, name, data, out, config, of)


def carry_out_unseen(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """Every gate where nobody has memorised what it judges; the starting policies are this comparison's own."""
    config, of = unseen_config(plan, name), f"unseen-{name}"
    _carry_out(_comparison(plan, name, config, data, out / of, "rerank"), of)


def carry_out_apart(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The same where NLL has no target there either, from the starting policies of `carry_out_unseen`."""
    config, of = unseen_config(plan, name, apart=True), f"apart-{name}"
    directory = _with_starts(plan, name, out, out / of, "unseen")
    _carry_out(_comparison(plan, name, config, data, directory), of)


def carry_out_fixed_rate(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """A gate of a fixed rate beside the earlier gate and the random one, from the starting policies of the trial."""
    _from_starts(plan, name, data, out, fixed_rate_config(plan, name), f"fixed-rate-{name}")


def carry_out_frontier(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The chosen gate beside mixtures of all pressures, from the starting policies of the trial."""
    _from_starts(plan, name, data, out, frontier_config(plan, name, _rows(plan, name)), f"frontier-{name}")


def carry_out_rewards(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """GRPO and its gates under each of the plan's other rewards, from the starting policies of the trial."""
    for kind in plan["trial"]["rewards"]["kinds"]:
        _from_starts(plan, name, data, out, reward_config(plan, name, kind), f"reward-{name}-{kind}")


def carry_out_recommended(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The arm that the pages recommend, as it is shipped, from the starting policies of the trial."""
    _from_starts(plan, name, data, out, recommended_config(plan, name), f"recommended-{name}")


def carry_out_thresholds(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The earlier gate at other thresholds, from the starting policies of the trial."""
    _from_starts(plan, name, data, out, thresholds_config(plan, name), f"thresholds-{name}")


def teach(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The chosen distillation with each teacher, from the starting policies of the trial."""
    rows = _rows(plan, name)
    for teacher in plan["trial"]["teachers"]:
        seeds = plan["trial"]["ensemble"] if teacher == "ensemble" else []
        ensemble = [_start(plan, name, data, out / f"ensemble-{name}" / f"seed-{seed}", seed) for seed in seeds]
        config = teacher_config(plan, name, rows, teacher, ensemble)
        directory = _with_starts(plan, name, out, out / f"trial-{name}-{teacher}")
        comparison = _comparison(plan, name, config, data, directory, "rerank", "fair-distill+rerank")
        _carry_out(comparison, f"teacher-{name}-{teacher}")


def carry_out_whole(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> None:
    """The families whose settings are chosen again at full length, from the starting policies of the trial."""
    check_tuned(plan, name, list(read_rows(HERE / f"tuning-{name}.jsonl")))  # before the start is made
    config = whole_config(plan, name, tune_whole(plan, name, start(plan, name, data, out)))
    _from_starts(plan, name, data, out, config, f"at-length-{name}")


SIDES = {
    "--alike": (carry_out_alike, "all arms under one setting, after the trial of the set"),
    "--unseen": (carry_out_unseen, "gates where the starting policy had no target"),
    "--apart": (carry_out_apart, "gates where nobody had a target, after --unseen of the set"),
    "--thresholds": (carry_out_thresholds, "other thresholds of the gate, after the trial of the set"),
    "--fixed-rate": (carry_out_fixed_rate, "a random gate of a fixed rate, after the trial of the set"),
    "--frontier": (carry_out_frontier, "mixtures of all pressures, after the trial of the set"),
    "--whole": (carry_out_whole, "settings chosen again at full length, after the trial of the set"),
    "--rewards": (carry_out_rewards, "gates under other rewards, after the trial of the set"),
    "--recommended": (carry_out_recommended, "the recommended arm as shipped, after the trial of the set"),
    "--teachers": (teach, "other rewards, after the trial of the set"),
}


def _comparison(
    plan: Mapping[str, Any],
    name: str,
    config: Config,
    data: Path,
    directory: Path,
    *served: str,
    seeds: Sequence[int] = (),
) -> Comparison:
    """All arms of a recipe under the seeds of the set, or some of them, and arms that are not trained."""
    arms, console = [arm.name for arm in config.train.arms] + [*served], StderrConsole()
    under = sorted(seeds) or _seeds(plan, name)
    return Comparison(directory, config, data, objectives=arms, seeds=under, console=console)


def _named(part: Sequence[int]) -> list[str]:
    return ["seeds", *map(str, sorted(part))] if part else []


def _from_starts(plan: Mapping[str, Any], name: str, data: Path, out: Path, config: Config, of: str) -> None:
    """A comparison that begins with the starting policies of the set's trial."""
    _carry_out(_comparison(plan, name, config, data, _with_starts(plan, name, out, out / of)), of)


def _carry_out(comparison: Comparison, name: str) -> None:
    """Carry a comparison out, and keep what it says beside this file."""
    comparison.carry_out()
    keep_rows(comparison.directory / "results.jsonl", HERE / f"{name}.jsonl")
    comparison_file = (comparison.directory / "comparison.json").read_text(encoding="utf-8")
    write_file(HERE / f"{name}.comparison.json", comparison_file)


def _start(plan: Mapping[str, Any], name: str, data: Path, folder: Path, seed: int) -> Path:
    """A run with a starting policy alone, one of those whose mean is a reward."""
    run = Run(folder, recipe_of(plan, name, f"seed={seed}"), data, StderrConsole())
    with locked(run):
        run.prepare()
        run.tokenize()
        run.sft()
    return folder.resolve()


def _with_starts(plan: Mapping[str, Any], name: str, out: Path, directory: Path, of: str = "trial") -> Path:
    """A comparison whose runs have what no arm enters, from those of another one."""
    claim(directory, "comparison")
    for seed in _seeds(plan, name):
        target = directory / f"seed-{seed}"
        trials = [out / f"{of}-{name}", *sorted(out.glob(f"{of}-{name}-seeds-*"))]
        sources = [trial / target.name for trial in trials if (trial / target.name).is_dir()]
        if target.exists():
            continue
        if sources:
            _copied(sources[0], target)
        else:
            StderrConsole().stage(str(target), "no run of the trial under this seed; its start is made again", 0.0)
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


def _rows(plan: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return list(read_rows(HERE / f"tuning-{tuned_on(plan, name)}.jsonl"))


def _seeds(plan: Mapping[str, Any], name: str) -> list[int]:
    return list(plan["seeds"].get(name, plan["seeds"]["others"]))


def main() -> None:
    """Carry out what is asked for."""
    parser = set_parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", type=int, default=[], help="seeds whose runs are made, and nothing more")
    which.add_argument("--seeds", nargs="+", type=int, default=[], help="a comparison of these seeds, to be pooled")
    for flag, (side, about) in SIDES.items():
        which.add_argument(flag, action="store_const", dest="side", const=side, help=about)
    given = parser.parse_args()
    for name in given.sets:
        plan = read_plan(name)
        data = folder_of(plan, name, given.data)
        if given.side is None:
            carry_out(plan, name, data, given.out, given.only, given.seeds)
        else:
            given.side(plan, name, data, given.out)


if __name__ == "__main__":
    run(main)
