"""Carries out a comparison: one run directory a seed, whose arms share Semantic IDs, sft policy and ranker.

    DIR/plan.json         baseline, family, metric, margins, the reward and its ranker, hashes of the data and of the
                          reward's files, the last part of an exposure log: written before the first run, held to
    DIR/seed-<n>/         an ordinary run
    DIR/comparison.json   the statistics (no times, no paths); comparison.md, comparison.html; results.jsonl

Some arms are no objective of their own. `rerank`, `fuse`, `<arm>+rerank` and `<arm>+fuse` are lists that more than a
policy makes at serving time, see `adagrpo.lists.names`. `mixture-matched` and `mixture-norm-matched` are mixtures
whose lambda is known when the gated arm of the same seed has been trained, see `adagrpo.pipeline.matching`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from adagrpo.config import ArmConfig, CompareConfig, Config, dump_config
from adagrpo.config.messages import explain
from adagrpo.config.settings import changed_settings, read_settings
from adagrpo.console import Console, Silent
from adagrpo.data.columns import USER_ID
from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import Measured, compare, compare_pairs
from adagrpo.exposures.exposure_parts import parts_of
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, ListName, parse_list
from adagrpo.metrics import cutoff
from adagrpo.pipeline.directory import Declare, RunDirectory, refuse_without_order
from adagrpo.pipeline.dry_run import plan
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines, read_json, read_rows, write_json
from adagrpo.pipeline.matching import MATCHED, check_matched, matched_arm
from adagrpo.pipeline.named_files import files_named_by
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.served_log import publish_first
from adagrpo.pipeline.stages.evaluate_list import list_stages
from adagrpo.pipeline.stages.paired_outcomes import read_measured
from adagrpo.pipeline.stages.prepare import exposure_parts, log_source
from adagrpo.report import finding, write_comparison
from adagrpo.storage.hashes import cached_hash, hash_json, with_hash, without_hash
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import check_kind, claim
from adagrpo.storage.writing import write_file

START = "sft"
PLAN = "plan.json"
DATA = "data"  # in it: the hashes of the data files and of those that the reward names, by label
REWARD = "reward"  # in it: the settings that say what the reward is
REWARD_READS = ("reward", "ranker")
THROUGH = "through"  # in it: the number of the last part of an exposure log that is read


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
        """Check what is asked for; nothing is written yet.

        Args:
            config: of all runs, less seed and arms.
            data: the folder that the recipe's relative paths are in.
            objectives: names of arms; None takes the recipe's.
            seeds: None takes the recipe's.
            code: the folder in which the recipe's modules are looked for; None is the working directory.

        Raises:
            UserError: an arm or seed that is unknown or there twice, a plan that these arms cannot answer, or logs
                without order, which have no arms.
        """
        refuse_without_order(config, "adagrpo run")
        check_kind(directory, "comparison")
        self.directory, self.data, self.console, self.code = directory, data, console or Silent(), code
        self.seeds = list(seeds) if seeds is not None else [config.seed]
        trained = list(config.train.arms)
        if objectives is not None:
            own = {arm.own_name: arm for arm in config.train.arms}
            trained = [own.get(name) or ArmConfig.parse(name) for name in objectives if not _named_here(name)]
        # an arm's own name, by which its folder is called: `mixture-lambda5` also where lambda was written 5.0
        names = iter(arm.name for arm in trained)
        self.arms = [*names] if objectives is None else [n if _named_here(n) else next(names) for n in objectives]
        _check_list("--seeds", self.seeds)
        _check_list("--objectives", self.arms)
        check_matched(self.arms)
        for name in self.arms:
            base = _base(name)
            if name != str(parse_list(name)):
                raise UserError(f"--objectives: {name} is called {parse_list(name)}")
            if base not in (None, START) and (base not in self.arms or _base(base) is not None):
                raise UserError(f"--objectives: {name} is a list of a trained arm, {base}, which is not here")
        self.config = _with_arms(config, trained)
        # None before the first start, and where a plan has none
        self.fixed_data: dict[str, str] | None = None
        self.fixed_reward: dict[str, Any] | None = None
        self.through: int | None = None
        self.plan = self._plan(config.compare)

    def _plan(self, options: CompareConfig) -> CompareConfig:
        """The comparison that is fixed: this one, or that of an earlier start in the same folder."""
        known = [START, *self.arms]
        if options.baseline not in known:
            raise UserError(f"compare.baseline: '{options.baseline}' is not among the arms {', '.join(known)}")
        before, self.fixed_data, self.through, self.fixed_reward = _read_plan(self.directory / PLAN)
        family = options.family
        if family is None:
            family = before.family if before else tuple(arm for arm in self.arms if arm != options.baseline)
        plan = options.model_copy(update={"family": family})
        if before is not None and before != plan:
            field = next(name for name in type(plan).model_fields if getattr(before, name) != getattr(plan, name))
            raise UserError(
                f"{self.directory / PLAN}: fixed with compare.{field} {getattr(before, field)}, asked for"
                f" {getattr(plan, field)}; a plan is not changed after its runs, take another --out"
            )
        for name in family or ():
            if name not in known or name == options.baseline:
                raise UserError(f"compare.family: '{name}' is not among the arms {', '.join(known)} less the baseline")
        for first, second in plan.pairs:
            for name in (first, second):
                if name not in known:
                    raise UserError(f"compare.pairs: '{name}' is not among the arms {', '.join(known)}")
            if first == second:
                raise UserError(f"compare.pairs: '{first}' is compared with itself")
        self._check_reward()
        self._check_data()
        self._hold_to_part()
        widest = max(cutoff(name) or 1 for name in (options.metric, *options.margins))
        if widest > self.config.evaluation.beam_width:
            raise UserError(
                f"compare: a metric at {widest} needs evaluation.beam_width of at least {widest},"
                f" found {self.config.evaluation.beam_width}; set it, or compare.metric and compare.margins"
            )
        return plan

    def _data_files(self) -> tuple[Run, list[Path]]:
        """The run of a seed, and the files that the data of all are read from; none of what a run makes itself."""
        run = self.run_of(self.seeds[0])
        paths = dict.fromkeys([*log_source(run).files, *files_named_by(run.config.reward, run)])
        return run, [path for path in paths if not path.is_relative_to(run.directory)]

    def _check_reward(self) -> None:
        """Refuse another reward than that of the runs before: their arms would be trained again in their place."""
        if self.fixed_reward is None:
            return
        changes = changed_settings(self.config, self.fixed_reward, read_settings(self.config, REWARD_READS))
        if changes:
            key, before, now = changes[0]
            raise UserError(
                f"{self.directory / PLAN}: fixed with {key} {before}, asked for {now}; the arms of another reward go"
                " into a new folder, another --out"
            )

    def _check_data(self) -> None:
        """Refuse other data than those of the runs before; a file that is gone is not held against them."""
        before = self.fixed_data
        if before is None:
            return
        run, paths = self._data_files()
        files = run.labels(paths)
        changed = [
            f"{path}: {'changed after' if label in before else 'was not among the files when'}"
            for label, path in files.items()
            if path.is_file() and cached_hash(path) != before.get(label)
        ]
        changed += [f"{label}: was among the files when" for label in before if label not in files]
        if changed:
            raise UserError(
                f"{changed[0]} {self.directory / PLAN} was fixed;"
                " take a new folder for the changed files, another --out"
            )

    def _hold_to_part(self) -> None:
        """Have every run read an exposure log up to the part at which the plan was fixed, whatever was logged since."""
        options = self.config.data.exposures
        if options is None or self.through is None:
            return
        numbers = [int(part.name) for part in parts_of(self.data / options.path, options.through)]
        if options.through is not None and numbers and numbers[-1] != self.through:
            raise UserError(
                f"data.exposures.through: asks for part {numbers[-1]}, {self.directory / PLAN} was fixed at part"
                f" {self.through}; take a new folder for another part of the log, another --out"
            )
        data = {"exposures": options.model_copy(update={"through": self.through})}
        self.config = self.config.model_copy(update={"data": self.config.data.model_copy(update=data)})

    def _fix_plan(self) -> None:
        """Write the plan, with what its data are, at the first start; of several processes, one writes it for all."""
        if not (self.directory / PLAN).exists():
            (run, files), through = self._data_files(), None
            data = run.hash_inputs(files)
            if (exposures := self.config.data.exposures) is not None:
                publish_first(run)
                through = int(exposure_parts(run, exposures)[-1].name)
            reward = read_settings(self.config, REWARD_READS)
            _write_plan(self.directory / PLAN, self.plan, data, through, reward)
        self.plan = self._plan(self.config.compare)

    @property
    def page(self) -> Path:
        """The place of the page."""
        return self.directory / "comparison.html"

    def describe(self) -> dict[str, Any]:
        """Describe what would be done, JSON-able."""
        plan = self.plan.model_dump(mode="json")
        return {"arms": self.arms, "seeds": self.seeds, "plan": plan, "config": dump_config(self.config)}

    def plan_of(self, seed: int) -> dict[str, Any]:
        """Plan the run of one seed, its lists too, see `adagrpo.pipeline.dry_run.plan`.

        An arm that is matched to another has stages here once that one is trained.
        """
        run = self.run_of(seed)
        matched = self._matched_before(run)
        run.config = _with_arms(run.config, [*run.config.train.arms, *matched.values()])
        return plan(run, more=self._lists(_names(matched)))

    def run_of(self, seed: int) -> Run:
        """The run of one seed, of which nothing is made yet."""
        directory = self.directory / f"seed-{seed}"
        config = self.config.model_copy(update={"seed": seed})
        return Run(directory, config, self.data, _Prefixed(self.console, directory.name), self.code)

    def carry_out(self) -> dict[str, Any]:
        """Make or continue the runs, and write the comparison.

        Returns:
            The content of comparison.json.
        """
        with lock_folder(self.directory, "comparison"):
            return self._carry_out()

    def make_runs(self, seeds: Sequence[int]) -> list[Path]:
        """Make or continue the runs of some seeds, and compare nothing; others may make the other seeds meanwhile.

        A run keeps other processes out of its own folder, and so may be made on another machine and moved here.

        Args:
            seeds: some of the comparison's.

        Returns:
            Their folders.

        Raises:
            UserError: a seed is not one of the comparison's, or is there twice.
        """
        _check_list("--only", seeds)
        other = [seed for seed in seeds if seed not in self.seeds]
        if other:
            raise UserError(f"--only: {other[0]} is not among the seeds {', '.join(map(str, self.seeds))}")
        claim(self.directory, "comparison")
        self._fix_plan()
        return [self._carry_out_seed(seed)[0].directory for seed in seeds]

    def _carry_out(self) -> dict[str, Any]:
        """In a folder that no other process works in."""
        self._fix_plan()
        runs = [self._carry_out_seed(seed) for seed in self.seeds]
        measured: dict[tuple[str, str], list[Measured]] = {}
        for run, names in runs:
            data = RunData(run)
            for arm in (START, *self.arms):
                for checkpoint in _checkpoints(arm):
                    measured_point = read_measured(data, evaluation_folder(run, names.get(arm, arm), checkpoint))
                    measured.setdefault((arm, checkpoint), []).append(measured_point)
        content = {
            "name": self.config.name,
            "config_hash": hash_json(dump_config(self.config)),
            "seeds": self.seeds,
            "users": len(pl.concat([entry.users[USER_ID] for entry in measured[START, "best"]]).unique()),
            "plan": self.plan.model_dump(mode="json"),
            "arms": {arm: _facts([(run, names.get(arm, arm)) for run, names in runs]) for arm in self.arms},
            "rows": compare(measured, self.seeds, self.plan),
        }
        if self.plan.pairs:
            content["pairs"] = compare_pairs(measured, self.plan)
        content["finding"] = finding(content)
        write_file(self.directory / "results.jsonl", "".join(_results(run, names, self.arms) for run, names in runs))
        write_comparison(self.directory, content)
        write_json(self.directory / "comparison.json", with_hash(content), allow_nan=False)
        return content

    def _carry_out_seed(self, seed: int) -> tuple[Run, dict[str, str]]:
        """One seed's run, and the folder names of arms that are called otherwise there."""
        run = self.run_of(seed)
        config = run.config
        with run.locked():
            matched = self._matched_before(run)
            while True:  # once more in the same directory, with some arms more, when their lambda has become known
                run.config, known = _with_arms(config, [*config.train.arms, *matched.values()]), matched
                run.complete()
                matched = self._matched(run, run.results)
                if matched == known:
                    break
            names = _names(matched)
            for name, declare in self._lists(names).items():
                run.make(name, declare(run))
        return run, names

    def _lists(self, names: Mapping[str, str]) -> dict[str, Declare]:
        """The stages of lists in a run, by name; `names` has the arms that are called otherwise there."""
        arms = dict.fromkeys(names.get(arm, arm) for arm in self.arms)
        return {stage: make for arm in arms for stage, make in list_stages(arm).items()}

    def _matched(self, run: Run, metrics: Mapping[str, Any]) -> dict[str, ArmConfig]:
        """The matched arms by the names that they have here."""
        return {name: matched_arm(name, run, metrics) for name in MATCHED if name in self.arms}

    def _matched_before(self, run: Run) -> dict[str, ArmConfig]:
        """The matched arms of an earlier start, so that none is left out and taken up again; none if it is damaged."""
        try:
            path = run.find("metrics.json")
            return {} if path is None else self._matched(run, read_json(path))
        except (UserError, KeyError):
            return {}


def _names(matched: Mapping[str, ArmConfig]) -> dict[str, str]:
    """Map the names of matched arms, and of their lists, to those in a run."""
    names = {name: arm.name for name, arm in matched.items()}
    orders = (RERANK, FUSE, FUSE_WITHOUT_REWARD)
    return names | {
        str(ListName(name, order)): str(ListName(arm, order)) for name, arm in names.items() for order in orders
    }


def _named_here(name: str) -> bool:
    return name in MATCHED or _base(name) is not None


def _base(name: str) -> str | None:
    """Return the arm whose beam a list of this name has; None of an arm itself."""
    called = parse_list(name)
    return None if called.order == "policy" else called.policy


def _is_measured_once(arm: str) -> bool:
    """Check whether one evaluation stands for best and final: of the starting policy, and of every fused list."""
    return arm == START or _base(arm) == START or parse_list(arm).order in (FUSE, FUSE_WITHOUT_REWARD)


class _Prefixed:
    """Progress with the seed before the name of the stage."""

    def __init__(self, console: Console, prefix: str) -> None:
        self.console, self.prefix = console, prefix

    def stage(self, name: str, event: str, seconds: float) -> None:
        self.console.stage(f"{self.prefix}/{name}", event, seconds)

    def progress(self, label: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.console.progress(f"{self.prefix}/{label}", done, total, values)

    def note(self, text: str) -> None:
        self.console.note(f"{self.prefix}/{text}")


def _write_plan(
    path: Path,
    plan: CompareConfig,
    data: Mapping[str, str] | None = None,
    through: int | None = None,
    reward: Mapping[str, Any] | None = None,
) -> None:
    fixed = {DATA: data, THROUGH: through, REWARD: reward}
    content = plan.model_dump(mode="json") | {name: value for name, value in fixed.items() if value is not None}
    write_file(path, json_lines(with_hash(content)), keep=True)


def _read_plan(path: Path) -> tuple[CompareConfig | None, dict[str, str] | None, int | None, dict[str, Any] | None]:
    """The plan of an earlier start, if there was one, and what it has of data, the last part of a log, and reward."""
    if not path.is_file():
        return None, None, None, None
    try:
        content = without_hash(read_json(path))
        data, through, reward = (content.pop(name, None) for name in (DATA, THROUGH, REWARD))
        return CompareConfig.model_validate(content), data, through, reward
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; take another --out, or delete it if no result was looked at") from error


def _check_list(option: str, values: Sequence[object]) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice or not values:
        raise UserError(f"{option}: {f'{twice[0]} is there twice' if twice else 'empty; name at least one'}")


def _with_arms(config: Config, arms: Sequence[ArmConfig]) -> Config:
    """The configuration with these arms, one that is there twice once, checked as if the recipe had named them."""
    different = {arm.name: arm for arm in arms}
    named = config.model_copy(update={"train": config.train.model_copy(update={"arms": (*different.values(),)})})
    try:
        return Config.model_validate(dump_config(named))
    except ValidationError as error:
        raise UserError(f"--objectives: {explain(error, Config)}") from error


def _checkpoints(arm: str) -> tuple[str, ...]:
    return ("best",) if _is_measured_once(arm) else ("best", "final")


def evaluation_folder(run: RunDirectory, name: str, checkpoint: str) -> Path:
    """Return the folder of the evaluation of an arm's checkpoint."""
    return run.path("evaluate", name, *(() if _is_measured_once(name) else (checkpoint,)))


def _facts(runs: Sequence[tuple[Run, str]]) -> dict[str, list[Any]]:
    """Lambda, pressure, admission, the weight of validation, and where the policy was lost, of an arm a seed."""
    facts: dict[str, list[Any]] = {name: [] for name in ("lambda", "pressure", "admission", "weight", "lost")}
    for run, name in runs:
        re_ordered = _base(name) is not None
        path = evaluation_folder(run, name, "best") / "metrics.json" if re_ordered else run.path("metrics.json")
        run.hash_input(path)
        values = read_json(path)
        values = values if re_ordered else values["stages"][name]
        for fact, listed in facts.items():
            listed.append(values.get(fact))
    if not any(facts["lost"]):
        del facts["lost"]
    return facts


def _results(run: Run, names: Mapping[str, str], arms: Sequence[str]) -> str:
    """The rows of a seed's results.jsonl under the names of this comparison, and those of re-ranking."""
    rows = read_rows(run.checked("results.jsonl"))
    trained = [row | {"arm": arm} for row in rows for arm in _called(row["arm"], names, arms)]
    lines = list(trained)
    for arm in arms:
        if (base := _base(arm)) is not None:
            for row in trained:
                if row["arm"] == base and row["checkpoint"] in _checkpoints(arm):
                    path = evaluation_folder(run, names.get(arm, arm), row["checkpoint"]) / "metrics.json"
                    values = read_json(path)
                    entry = {"objective": parse_list(arm).order, "arm": arm, "seconds": None}
                    entry |= {"weight": values["weight"]} if "weight" in values else {}
                    lines.append(row | entry | {"metrics": values[row["split"]]})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _called(folder: str, names: Mapping[str, str], arms: Sequence[str]) -> list[str]:
    """The arms that a run's arm is here: two matched ones may be one mixture, or one that was asked for as well."""
    own_names = [arm for arm, name in names.items() if name == folder]
    return [folder, *own_names] if folder in arms or not own_names else own_names
