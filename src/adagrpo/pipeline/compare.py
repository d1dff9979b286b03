"""Run a comparison: one run per seed, whose arms share Semantic IDs, sft policy and ranker.

DIR/plan.json is pre-registered; DIR/seed-<n> are ordinary runs; comparison.json has statistics without times and paths.
For the names of arms see `adagrpo.pipeline.compare_arms` and `adagrpo.lists.names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from adagrpo.config import ArmConfig, CompareConfig, Config, dump_config
from adagrpo.config.section import explain
from adagrpo.config.settings import changed_settings, read_settings
from adagrpo.console import Console, Silent
from adagrpo.data.columns import USER_ID
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs
from adagrpo.exposures.exposure_store import parts_of
from adagrpo.lists.names import START, parse_list
from adagrpo.metrics import cutoff
from adagrpo.pipeline.compare_arms import (
    MATCHED,
    base_of,
    checkpoints_of,
    evaluation_folder,
    facts_of_arm,
    is_named_here,
    matched_arm,
    names_in_run,
    result_rows,
)
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import by_label, find_content, hashes_of, locked, refuse_without_order
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines, read_json, write_json
from adagrpo.pipeline.make import make
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Declare
from adagrpo.pipeline.stage_table import list_stages
from adagrpo.pipeline.stages.prepare import exposure_parts, log_source, publish_first
from adagrpo.pipeline.stages.ranker_report import read_measured
from adagrpo.pipeline.status import plan
from adagrpo.report.comparison_page import finding, write_comparison
from adagrpo.storage.hashes import cached_hash, with_hash, without_hash
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import check_kind, claim
from adagrpo.storage.writing import write_file

PLAN = "plan.json"
REWARD_READS = ("reward", "ranker")


class Comparison:
    """Arms and seeds of one recipe in one folder."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        data: Path,
        *,
        objectives: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        console: Console | None = None,
        code: Path | None = None,
    ) -> None:
        """Check the request without writing.

        Args:
            objectives: names of arms; None takes the recipe's, as for `seeds`.
            data: base folder of the recipe's relative paths.
            code: folder of the recipe's modules; None is the working directory.

        Raises:
            UserError: an arm or seed is unknown or repeated, the plan does not fit, or the logs have no order.
        """
        refuse_without_order(config, "adagrpo run")
        check_kind(directory, "comparison")
        self.directory, self.data, self.console, self.code = directory, data, console or Silent(), code
        self.seeds = list(seeds) if seeds is not None else [config.seed]
        trained = list(config.train.arms)
        if objectives is not None:
            own = {arm.own_name: arm for arm in config.train.arms}
            trained = [own.get(name) or ArmConfig.parse(name) for name in objectives if not is_named_here(name)]
        # the canonical name, as in the folder: `mixture-lambda5` for a lambda of 5.0
        names = iter(arm.name for arm in trained)
        self.arms = [*names] if objectives is None else [n if is_named_here(n) else next(names) for n in objectives]
        _check_list("--seeds", self.seeds)
        _check_list("--objectives", self.arms)
        for name in self.arms:
            if missing := [source for source in MATCHED.get(name, ()) if source not in self.arms]:
                sources = " and ".join(MATCHED[name])
                raise UserError(f"--objectives: {name} takes its lambda from {sources}; add {' and '.join(missing)}")
            base = base_of(name)
            if name != str(parse_list(name)):
                raise UserError(f"--objectives: {name} is called {parse_list(name)}")
            if base not in (None, START) and (base not in self.arms or base_of(base) is not None):
                raise UserError(f"--objectives: {name} is a list of a trained arm, {base}, which is not here")
        self.config = _with_arms(config, trained)
        self.plan = self._hold_to_plan()

    def _hold_to_plan(self) -> CompareConfig:
        asked, known, path = self.config.compare, [START, *self.arms], self.directory / PLAN
        if asked.baseline not in known:
            raise UserError(f"compare.baseline: '{asked.baseline}' is not among the arms {', '.join(known)}")
        before, others = _read_plan(path) if path.is_file() else (None, {})
        family = asked.family
        if family is None:
            family = before.family if before else tuple(arm for arm in self.arms if arm != asked.baseline)
        options = asked.model_copy(update={"family": family})
        if before is not None and before != options:
            field = next(name for name in CompareConfig.model_fields if getattr(before, name) != getattr(options, name))
            raise UserError(
                f"{path}: fixed with compare.{field} {getattr(before, field)}, asked for {getattr(options, field)};"
                " a plan is not changed after its runs, take another --out"
            )
        for name in family or ():
            if name not in known or name == asked.baseline:
                raise UserError(f"compare.family: '{name}' is not among the arms {', '.join(known)} less the baseline")
        for first, second in options.pairs:
            if unknown := [name for name in (first, second) if name not in known]:
                raise UserError(f"compare.pairs: '{unknown[0]}' is not among the arms {', '.join(known)}")
            if first == second:
                raise UserError(f"compare.pairs: '{first}' is compared with itself")
        if before is not None:
            self._hold_to_inputs(path, **others)
        widest = max(cutoff(name) or 1 for name in (options.metric, *options.margins))
        if widest > self.config.evaluation.beam_width:
            raise UserError(
                f"compare: a metric at {widest} needs evaluation.beam_width of at least {widest},"
                f" found {self.config.evaluation.beam_width}; set it, or compare.metric and compare.margins"
            )
        return options

    def _hold_to_inputs(
        self, path: Path, data: Mapping[str, str], reward: Mapping[str, Any], through: int | None
    ) -> None:
        """Refuse another reward or other data than a plan's; missing files are not compared."""
        if changes := changed_settings(self.config, reward, read_settings(self.config, REWARD_READS)):
            key, before, now = changes[0]
            raise UserError(
                f"{path}: fixed with {key} {before}, asked for {now}; the arms of another reward go into a new folder,"
                " another --out"
            )
        labelled = {label: file for label, file in by_label(*self._data_files()).items() if isinstance(file, Path)}
        changed = [
            f"{file}: {'changed after' if label in data else 'was not among the files when'}"
            for label, file in labelled.items()
            if file.is_file() and cached_hash(file) != data.get(label)
        ]
        changed += [f"{label}: was among the files when" for label in data if label not in labelled]
        if changed:
            raise UserError(f"{changed[0]} {path} was fixed; take a new folder for the changed files, another --out")
        if (options := self.config.data.exposures) is None or through is None:
            return
        numbers = [int(part.name) for part in parts_of(self.data / options.path, options.through)]
        if options.through is not None and numbers and numbers[-1] != through:
            raise UserError(
                f"data.exposures.through: asks for part {numbers[-1]}, {path} was fixed at part {through};"
                " take a new folder for another part of the log, another --out"
            )
        held = {"exposures": options.model_copy(update={"through": through})}
        self.config = self.config.model_copy(update={"data": self.config.data.model_copy(update=held)})

    def _data_files(self) -> tuple[Run, list[Path]]:
        """One seed's run, and data files not made by it."""
        run = self.run_of(self.seeds[0])
        files = dict.fromkeys([*log_source(run).files, *Models(RunData(run)).files_of(run.config.reward)])
        return run, [file for file in files if isinstance(file, Path) and not file.is_relative_to(run.directory)]

    def _fix_plan(self) -> None:
        if not (self.directory / PLAN).exists():
            run, files = self._data_files()
            content = self.plan.model_dump(mode="json") | {"data": hashes_of(run, files)}
            if (exposures := self.config.data.exposures) is not None:
                publish_first(run)
                content["through"] = int(exposure_parts(run, exposures)[-1].name)
            content["reward"] = read_settings(self.config, REWARD_READS)
            write_file(self.directory / PLAN, json_lines(with_hash(content)), keep=True)  # once for all processes
        self.plan = self._hold_to_plan()

    @property
    def page(self) -> Path:
        """The path of the HTML page."""
        return self.directory / "comparison.html"

    def describe(self) -> dict[str, Any]:
        """Describe the plan, JSON-able."""
        plan = self.plan.model_dump(mode="json")
        return {"arms": self.arms, "seeds": self.seeds, "plan": plan, "config": dump_config(self.config)}

    def plan_of(self, seed: int) -> dict[str, Any]:
        """Plan one seed's run; matched arms appear once their counterpart is trained."""
        run = self.run_of(seed)
        matched = self._matched_before(run)
        run.config = _with_arms(run.config, [*run.config.train.arms, *matched.values()])
        return plan(run, more=self._lists(names_in_run(matched)))

    def run_of(self, seed: int) -> Run:
        """Return one seed's run without making it."""
        directory = self.directory / f"seed-{seed}"
        config = self.config.model_copy(update={"seed": seed})
        return Run(directory, config, self.data, _Prefixed(self.console, directory.name), self.code)

    def carry_out(self) -> dict[str, Any]:
        """Run everything, write the comparison and return the content of comparison.json."""
        with lock_folder(self.directory, "comparison"):
            self._fix_plan()
            runs = [self._carry_out_seed(seed) for seed in self.seeds]
            measured: dict[tuple[str, str], list[Measured]] = {}
            for run, names in runs:
                data = RunData(run)
                for arm in (START, *self.arms):
                    for checkpoint in checkpoints_of(arm):
                        measured_point = read_measured(data, evaluation_folder(run, names.get(arm, arm), checkpoint))
                        measured.setdefault((arm, checkpoint), []).append(measured_point)
            content = {
                "name": self.config.name,
                "config_hash": config_hash(self.config),
                "seeds": self.seeds,
                "users": len(pl.concat([entry.users[USER_ID] for entry in measured[START, "best"]]).unique()),
                "plan": self.plan.model_dump(mode="json"),
                "arms": {arm: facts_of_arm([(run, names.get(arm, arm)) for run, names in runs]) for arm in self.arms},
                "rows": compare(measured, self.seeds, self.plan),
            }
            if self.plan.pairs:
                content["pairs"] = compare_pairs(measured, self.plan)
            content["finding"] = finding(content)
            rows = "".join(result_rows(run, names, self.arms) for run, names in runs)
            write_file(self.directory / "results.jsonl", rows)
            write_comparison(self.directory, content)
            write_json(self.directory / "comparison.json", with_hash(content), allow_nan=False)
            return content

    def make_runs(self, seeds: Sequence[int]) -> list[Path]:
        """Make or continue the runs of some seeds without comparing them, even in parallel or on other machines."""
        _check_list("--only", seeds)
        other = [seed for seed in seeds if seed not in self.seeds]
        if other:
            raise UserError(f"--only: {other[0]} is not among the seeds {', '.join(map(str, self.seeds))}")
        claim(self.directory, "comparison")
        self._fix_plan()
        return [self._carry_out_seed(seed)[0].directory for seed in seeds]

    def _carry_out_seed(self, seed: int) -> tuple[Run, dict[str, str]]:
        run = self.run_of(seed)
        config = run.config
        with locked(run):
            matched = self._matched_before(run)
            while True:  # repeat with the matched arms once their lambda is known
                run.config, known = _with_arms(config, [*config.train.arms, *matched.values()]), matched
                run.complete()
                matched = self._matched(run, run.results)
                if matched == known:
                    break
            names = names_in_run(matched)
            for name, declare in self._lists(names).items():
                make(run, name, declare(run))
        return run, names

    def _lists(self, names: Mapping[str, str]) -> dict[str, Declare]:
        arms = dict.fromkeys(names.get(arm, arm) for arm in self.arms)
        return {stage: make for arm in arms for stage, make in list_stages(arm, self.config).items()}

    def _matched(self, run: Run, metrics: Mapping[str, Any]) -> dict[str, ArmConfig]:
        return {name: matched_arm(name, run, metrics) for name in MATCHED if name in self.arms}

    def _matched_before(self, run: Run) -> dict[str, ArmConfig]:
        """Matched arms of an earlier start; none if damaged."""
        try:
            metrics = find_content(run, "metrics.json")
            return {} if metrics is None else self._matched(run, metrics)
        except (UserError, KeyError):
            return {}


class _Prefixed:
    def __init__(self, console: Console, prefix: str) -> None:
        self.console, self.prefix = console, prefix

    def stage(self, name: str, event: str, seconds: float) -> None:
        self.console.stage(f"{self.prefix}/{name}", event, seconds)

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.console.progress(f"{self.prefix}/{label}", done, total, values)

    def note(self, text: str) -> None:
        self.console.note(f"{self.prefix}/{text}")


def _check_list(option: str, values: Sequence[object]) -> None:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice or not values:
        raise UserError(f"{option}: {f'{twice[0]} is there twice' if twice else 'empty; name at least one'}")


def _with_arms(config: Config, arms: Sequence[ArmConfig]) -> Config:
    different = {arm.name: arm for arm in arms}
    named = config.model_copy(update={"train": config.train.model_copy(update={"arms": (*different.values(),)})})
    try:
        return Config.model_validate(dump_config(named))
    except ValidationError as error:
        raise UserError(f"--objectives: {explain(error, Config)}") from error


def _read_plan(path: Path) -> tuple[CompareConfig, dict[str, Any]]:
    """Return a plan's options, and what else it fixed."""
    try:
        content = without_hash(read_json(path))
        others = {"through": content.pop("through", None)} | {name: content.pop(name) for name in ("data", "reward")}
        return CompareConfig.model_validate(content), others
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; take another --out, or delete it if no result was looked at") from error
