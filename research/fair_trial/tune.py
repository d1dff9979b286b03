"""Tunes every objective with every gate on validation cases, all with the same budget: the first half of the trial.

    python -m research.fair_trial.tune --data DIR --out runs/fair --sets amazon18-scientific

`DIR` holds a folder a data set, as in the recipes. `plan.yaml` says what is tried and how one setting is chosen; it was
written before the first run. Seed 0 alone is trained here and its test cases are never read. Rows are appended as they
are measured, to `tuning-<set>.jsonl`; what has its row is not measured again, so an interrupted command continues.
Rows name the plan and recipe that they are of, and those of another one end the command.
`chosen-<set>.yaml` holds the arms that the rule chose, and is written anew with every row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from adagrpo.config import ArmConfig, Config, load_config
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import locked
from adagrpo.report.page import read_rows
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.writing import write_file
from research.command import run
from research.rows import add_row

__all__ = [
    "Candidate",
    "candidates",
    "check_tuned",
    "chosen",
    "chosen_arms",
    "fixed",
    "folder_of",
    "leaders",
    "read_plan",
    "recipe_of",
    "set_parser",
    "short_ranker",
    "start",
    "tune",
    "tune_whole",
    "tuned_on",
    "unfinished",
    "written",
]

HERE = Path(__file__).parent
METRIC = "hr@10"


class Candidate(NamedTuple):
    """One setting of one family: an objective with a gate."""

    family: str
    pressure: float
    rollouts: str
    positions: str

    @property
    def label(self) -> str:
        """Its name, but for the rung."""
        return f"{self.family}-{self.rollouts}-{self.positions}-p{self.pressure:g}"

    def arm(self, plan: Mapping[str, Any], name: str) -> ArmConfig:
        """What trains it."""
        family = plan["families"][self.family]
        options = plan["rollouts"][self.rollouts] | plan["positions"][self.positions] | family.get("options", {})
        fields = {key: family[key] for key in ("objective", "gate") if key in family} | {"pressure": self.pressure}
        options = options | {"control_of": "rollout_miss"}
        if self.family.endswith("-gate"):  # `adagrpo` in the plan, whose hash is in the rows, and renamed since
            fields["gate"] = "rollout_miss"
        return ArmConfig.model_validate(fields | {"name": name, "options": options})


def candidates(plan: Mapping[str, Any], family: str, rung: int, rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """What a rung tries: all pressures and rollouts first, then the best of them at the other positions too.

    Args:
        plan: the content of plan.yaml.
        family: one of its families.
        rung: from 0.
        rows: of the earlier rungs.
    """
    about = plan["families"][family]
    if rung == 0:
        first = about["positions"][0]
        return [Candidate(family, p, kind, first) for p in plan["pressures"] for kind in about["rollouts"]]
    kept = leaders(rows, family, rung - 1)[: plan["rungs"][rung]["kept"]]
    return [one._replace(positions=place) for one in kept for place in about["positions"]]


def leaders(rows: Sequence[Mapping[str, Any]], family: str, rung: int) -> list[Candidate]:
    """The candidates of a rung, best first: the higher metric at the last step, of equals the lower pressure."""
    mine = [row for row in rows if row["family"] == family and row["rung"] == rung]
    mine.sort(key=lambda row: (-row["final"][METRIC], row["pressure"]))
    return [Candidate(family, row["pressure"], row["rollouts"], row["positions"]) for row in mine]


def unfinished(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no trial can follow yet; None where the last rung of every family is whole.

    Args:
        plan: the content of plan.yaml.
        name: of the set that is tuned on.
        rows: of its tuning.
    """
    of = fixed(plan, name)
    if any(row["plan"] != of for row in rows):
        return f"rows are of another plan or recipe; move tuning-{name}.jsonl away to tune anew"
    last, kept = len(plan["rungs"]) - 1, plan["rungs"][-1]["kept"]
    for family, about in plan["families"].items():
        found, asked = len(leaders(rows, family, last)), kept * len(about["positions"])
        if found < asked:
            more = f"python -m research.fair_trial.tune --data DIR --out DIR --sets {name} continues the tuning"
            return f"{family} has {found} of {asked} rows in the last rung; {more}"
    return None


def check_tuned(plan: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on from a tuning that is not done; see `unfinished`.

    Raises:
        UserError: why, and what continues it.
    """
    if (why := unfinished(plan, name, rows)) is not None:
        raise UserError(f"{name}: {why}")


def set_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every command of the trial has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of all sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    return parser


def main() -> None:
    """Measure and append rows."""
    parser = set_parser(__doc__)
    parser.add_argument("--starts", action="store_true", help="make the starting policies and rankers alone")
    given = parser.parse_args()
    for name in given.sets:
        plan = read_plan(name)
        if tuned_on(plan, name) != name:
            parser.error(f"--sets {name}: has the arms of {tuned_on(plan, name)}, and is not tuned on")
        run = start(plan, name, folder_of(plan, name, given.data), given.out)
        if not given.starts:
            tune(plan, name, run)


def read_plan(name: str) -> dict[str, Any]:
    """The content of plan.yaml, with the positions that the set has otherwise than the others.

    Args:
        name: of the set.

    Raises:
        UserError: the plan has no such set.
    """
    plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
    if name not in plan["sets"]:
        raise UserError(f"--sets {name}: plan.yaml has no such set; it has {', '.join(plan['sets'])}")
    return plan | {"positions": plan["positions"] | plan["sets"][name].get("positions", {})}


def tuned_on(plan: Mapping[str, Any], name: str) -> str:
    """The set whose tuning chose the arms of a set: its own, or that of another set that the plan names.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    return str(plan["sets"][name].get("tuned_on", name))


def recipe_of(plan: Mapping[str, Any], name: str, *options: str) -> Config:
    """The recipe of a set as the plan settles it, with the seed that is tuned on.

    Args:
        plan: the content of plan.yaml.
        name: of the set; of one that the plan has not, the shipped recipe of that name.
        options: more of it, as `--set` has them.
    """
    of_set = plan["sets"].get(name, {})
    recipe = of_set.get("recipe", name)
    own, shipped = HERE / f"{recipe}.yaml", HERE.parents[1] / "recipes" / f"{recipe}.yaml"
    settled = [*plan["settings"], *of_set.get("settings", []), f"seed={plan['tuning_seed']}"]
    return load_config(own if own.is_file() else shipped, [*settled, *options])


def short_ranker(plan: Mapping[str, Any], name: str) -> list[str]:
    """How the sequential ranker is fitted where it is no reward."""
    return ["ranker.fit.epochs=1", "ranker.fit.validations=1"] if name in plan["trial"]["short_ranker"] else []


def folder_of(plan: Mapping[str, Any], name: str, data: Path) -> Path:
    """Where the logs of a set are, in the folder of all sets."""
    return data / str(plan["sets"].get(name, {}).get("folder", name))


def start(plan: Mapping[str, Any], name: str, data: Path, out: Path) -> Run:
    """The run that is tuned on, with its starting policy and ranker; `data` is the folder of the set.

    Raises:
        UserError: there are rows of another plan, so that nothing could be done with it.
    """
    _check_plan(HERE / f"tuning-{name}.jsonl", fixed(plan, name))
    run = Run(out / f"tuning-{name}", recipe_of(plan, name, *short_ranker(plan, name)), data, StderrConsole())
    with locked(run):
        run.prepare()
        run.tokenize()
        run.sft()
        run.ranker()
    return run


def tune(plan: Mapping[str, Any], name: str, run: Run) -> None:
    """Train what the plan asks for, rung by rung; every family sees a rung before any sees the next."""
    results, of = HERE / f"tuning-{name}.jsonl", fixed(plan, name)
    for rung, about in enumerate(plan["rungs"]):
        for family in plan["families"]:
            for candidate in candidates(plan, family, rung, list(read_rows(results))):
                known = {(row["rung"], row["candidate"]) for row in read_rows(results)}
                if (rung, candidate.label) not in known:
                    add_row(results, {"plan": of} | measured(plan, run, candidate, rung, about["share"]))
                    write_file(HERE / f"chosen-{name}.yaml", chosen(plan, list(read_rows(results))))


def tune_whole(plan: Mapping[str, Any], name: str, run: Run) -> list[dict[str, Any]]:
    """The best of the last rung of some families for all of the steps: their rows, in `whole-<set>.jsonl`.

    Args:
        plan: the content of plan.yaml.
        name: of a set whose tuning is done.
        run: of `start`.

    Raises:
        UserError: there are rows of another plan.
    """
    results, of, last = HERE / f"whole-{name}.jsonl", fixed(plan, name), len(plan["rungs"]) - 1
    tuned = list(read_rows(HERE / f"tuning-{name}.jsonl"))
    _check_plan(results, of)
    for family in plan["trial"]["whole"]["families"]:
        for candidate in leaders(tuned, family, last)[: plan["trial"]["whole"]["kept"]]:
            if candidate.label not in {row["candidate"] for row in read_rows(results)}:
                add_row(results, {"plan": of} | measured(plan, run, candidate, last + 1, 1.0))
    return list(read_rows(results))


def _check_plan(results: Path, of: str) -> None:
    if any(row["plan"] != of for row in read_rows(results)):
        raise UserError(f"{results}: holds rows of another plan or recipe; move them away to tune anew")


def fixed(plan: Mapping[str, Any], name: str) -> str:
    """What all rows of a set have in common: the hash of its recipe and of the plan, less other sets and the trial.

    Of the recipe that is what differs from the defaults, so that a key which is new in the program changes nothing.

    Args:
        plan: the content of plan.yaml.
        name: of the set.
    """
    mine = {key: value for key, value in plan.items() if key not in ("sets", "seeds", "trial")}
    recipe = hash_json(recipe_of(plan, name).model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return hash_json(mine | {"set": plan["sets"][name], "recipe": recipe})[:12]


def measured(plan: Mapping[str, Any], run: Run, candidate: Candidate, rung: int, share: float) -> dict[str, Any]:
    """Train one candidate for a share of the recipe's steps, and take what validation says at its last step."""
    arm = candidate.arm(plan, f"{candidate.label}-r{rung}")
    fit = run.config.train.fit
    short = fit.model_copy(update={"epochs": fit.epochs * share, "validations": 1})
    whole = run.config
    run.config = whole.model_copy(update={"train": whole.train.model_copy(update={"fit": short, "arms": (arm,)})})
    try:
        with locked(run):
            run.stage(f"train/{arm.name}")
    finally:
        run.config = whole
    folder = run.path("train", arm.name)
    seen, steps = (list(read_rows(folder / file)) for file in ("validation.jsonl", "steps.jsonl"))
    kept = (METRIC, "ndcg@10", "invalid_samples")
    row: dict[str, Any] = {"rung": rung, "candidate": candidate.label, **candidate._asdict(), "steps": len(steps)}
    row |= {"start": _some(seen[0], kept), "final": _some(seen[-1], kept)}
    return row | {"pressure_found": json.loads((folder / "pressure.json").read_text(encoding="utf-8"))}


def chosen_arms(
    plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], rung: int | None = None
) -> dict[str, dict[str, Any]]:
    """By its name, the arm that the rule chooses for each family with a last rung, as a recipe's `train.arms` has it.

    The names are those of the families behind `fair-`, since `distill` and `distill-random` are arms already.

    Args:
        plan: the content of plan.yaml.
        rows: of the tuning.
        rung: that chooses; the last of the plan if none is given.
    """
    last = len(plan["rungs"]) - 1 if rung is None else rung
    best = {family: leaders(rows, family, last) for family in plan["families"]}
    arms = [first[0].arm(plan, f"fair-{family}") for family, first in best.items() if first]
    return {arm.name: written(arm) for arm in arms}


def written(arm: ArmConfig) -> dict[str, Any]:
    """An arm as a recipe's `train.arms` has it."""
    return arm.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def chosen(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The arms of the second half, as a recipe has them."""
    return yaml.safe_dump([*chosen_arms(plan, rows).values()], sort_keys=False)


def _some(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}


if __name__ == "__main__":
    run(main)
