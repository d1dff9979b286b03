"""`Run`: each command is a method, and works in the same folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl

from adagrpo.config import Settings, as_overrides, dump_config, load_config, resolve_config
from adagrpo.config.reward import SequentialOptions
from adagrpo.console import Silent, StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.answers import answer
from adagrpo.lists.eligibility import Filter
from adagrpo.lists.names import CONTROL, START
from adagrpo.networks import Precision
from adagrpo.pipeline import stage_table
from adagrpo.pipeline.catalog_update import update_catalog
from adagrpo.pipeline.checks import check, check_named, check_reward_files, check_test_cases
from adagrpo.pipeline.choose_checkpoint import Checkpoint
from adagrpo.pipeline.current_files import CurrentFiles, shown_users
from adagrpo.pipeline.decide import decision, leave_leaks_out, not_measured
from adagrpo.pipeline.description import DESCRIPTION, is_described
from adagrpo.pipeline.directory import (
    RunDirectory,
    by_label,
    hash_of,
    locked,
    model_of,
    path_of,
    refuse_without_order,
    remake_command,
)
from adagrpo.pipeline.export import export
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines
from adagrpo.pipeline.list_makers import contenders
from adagrpo.pipeline.list_rules import check_rules, cost_of_rules, rules_set
from adagrpo.pipeline.make import make
from adagrpo.pipeline.named_lists import DECISION, ListOptions, answering, decision_now, list_read
from adagrpo.pipeline.outputs import COLLECTED, DECIDED, is_stale, keep_settings, record_sources, write_output
from adagrpo.pipeline.refit import make_refit
from adagrpo.pipeline.refresh import refresh, serve_before
from adagrpo.pipeline.results import Diagnosis, Recommended, metrics_table
from adagrpo.pipeline.rewards import check_reward, describe_reward, first_look, look_before_fitting
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.stage import RUN, STRATA, StageTable, sources_of
from adagrpo.pipeline.stages.control import control as read_control
from adagrpo.pipeline.stages.diagnose import check_diagnosis, is_diagnosed
from adagrpo.pipeline.stages.evaluate import collect
from adagrpo.pipeline.stages.impressions import collect_exposures
from adagrpo.pipeline.stages.prepare import log_source, note_described, publish_first
from adagrpo.pipeline.staleness import finished_arms, left_out_arms, made_again, parts_of, stages_of
from adagrpo.pipeline.versions import LATEST, catalog_diff, open_version
from adagrpo.readers.formats import files_of
from adagrpo.report.diagnosis_page import write_diagnosis
from adagrpo.report.run_page import write_report, write_users
from adagrpo.report.strata_page import write_strata
from adagrpo.trainer.processes import processes
from adagrpo.types import ItemId

DAY = 86_400.0  # seconds


class Run(RunDirectory):
    """A run directory; create one with `Run.open` or `Run.create`."""

    @classmethod
    def create(
        cls,
        recipe: str | Path | Mapping[str, Any],
        out: str | Path,
        data: str | Path = ".",
        settings: Settings = (),
        *,
        progress: bool = False,
    ) -> Self:
        """Create or continue a run of a recipe; no stage is made yet.

        Args:
            recipe: a YAML file, or its content.
            data: folder of the recipe's relative paths.
            settings: changes of the recipe, see `open`.
            progress: show progress on stderr.

        Raises:
            UserError: the recipe is invalid, or the folder holds something else.
        """
        code = None
        if isinstance(recipe, Mapping):
            content = json.loads(json.dumps(recipe, default=str))  # paths as text
            config = resolve_config(content, as_overrides(settings), "recipe")
        else:
            config, code = load_config(Path(recipe), as_overrides(settings)), Path(recipe).parent
        if not Path(data).is_dir():
            raise UserError(f"{data}: no such folder (data)")
        return cls(Path(out), config, Path(data), StderrConsole() if progress else Silent(), code)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, {self.config.name!r})"

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain values, accepted by `Run.create`."""
        return dump_config(self.config)

    @property
    def stages(self) -> StageTable:
        """The table of stages."""
        return stage_table.STAGES

    def complete(self) -> pl.DataFrame:
        """Make all missing stages and the report, and return `metrics`.

        Processes other than the main one return an empty table.
        """
        if processes().is_main_process:
            self._note_made_again(None)
        with self._doing():
            publish_first(self)
            self._make("prepare")
            check_named(RunData(self), ("train", "evaluate"))
            check_test_cases(self)
            if not self.path("sft").is_dir():  # a reward that cannot teach is refused before anything is trained
                look_before_fitting(Models(RunData(self)))
            for command in ("tokenize", "sft", "ranker"):
                self._make(command)
            self._train(anyway=True)
            self._followed = False
            if not processes().is_main_process:
                return metrics_table({})
            self._evaluate([arm.name for arm in self.config.train.arms])
            self._write_report()
            keep_settings(self, also=self._noted)
        return self.metrics

    def prepare(self) -> dict[str, Any]:
        """Read or simulate, filter, number and split the logs, and return the counts."""
        with self._doing("prepare"):
            self._make("prepare")
        return self.content("prepare", "summary.json")

    def tokenize(self) -> dict[str, Any]:
        """Assign Semantic IDs to the items and return their audit."""
        with self._doing("tokenize"):
            self._make("tokenize")
        return self.content("tokenize", "audit.json")

    def sft(self) -> Self:
        """Train the starting policy."""
        with self._doing("sft"):
            self._make("sft")
        return self

    def ranker(self) -> Self:
        """Train the reward model; with impressions without order, also write its report."""
        with self._doing("ranker"):
            self._make("ranker")
            if self.config.without_order and processes().is_main_process:
                self._collect([])
                self._write_report()
        return self

    def train(self, *, anyway: bool = False) -> Self:
        """Post-train every arm of the recipe; `anyway` also by a reward that `diagnose` says leaks or is inverted."""
        with self._doing("train"):
            self._train(anyway=anyway)
        return self

    def evaluate(self) -> pl.DataFrame:
        """Evaluate sft and every trained arm, and return `metrics`."""
        with self._doing("evaluate"):
            self._evaluate()
        return self.metrics

    def diagnose(self) -> Diagnosis:
        """Test whether re-ranking by the reward helps and its sign is right; write diagnose.html."""
        with self._doing("diagnose"):
            self._look_at_reward()
            self._make("diagnose")
            content, decided = self.content("diagnose", "diagnose.json"), decision_now(self)
            write_diagnosis(self.directory, content, self.config.name, decided, self.called)
            self._renew_report()  # it shows the verdict
        return Diagnosis.of(content, decided, self.called)

    def strata(self) -> dict[str, Any]:
        """Measure re-ranking by the reward, by difficulty and by the gate's tests; write strata.html.

        Returns:
            The content of strata/strata.json: `settings`, with the thresholds, and `rows`, one per stratum.
        """
        with self._doing(STRATA):
            self._look_at_reward()
            self._make(STRATA)
            content = self.content("strata", "strata.json")
            write_strata(self.directory, content, self.config.name)
            self._renew_report()
        return content

    def decide(
        self, budget_ms: float | None = None, *, train: bool = False, control: str | None = None
    ) -> dict[str, Any]:
        """Choose the list to serve by the rule of `pipeline.decide`; write decision.json and decision.plan.yaml.

        Args:
            budget_ms: milliseconds per list; None: no limit.
            train: first train the recipe's arms, which then compete too, alone and fused.
            control: list that users get today, one of the contenders; None: that of `decide.control`, else `sft`.

        Returns:
            The content of decision.json: `chosen`, `why`, a `warning` if the policy loses to a simple list, gains from
            `training` and from the reward in fusion (`reward_in_fusion`), `doubts`, the command to `serve`, the
            `experiment` (None if the control is chosen) and `contenders`; with rules, `under_rules`: test metrics of
            the chosen list and their change; unless `decide.refit` is false, `refit`: its `interactions`, and the
            `seconds` that it took.
        """
        if self.catalog:
            raise UserError(
                f"decide: {self.called} is about version {self.catalog} of the catalogue, and lists are fitted and"
                " compared over that of training; decide in the run that this one was made from"
            )
        if budget_ms is not None and not 0 < budget_ms < float("inf"):
            raise UserError(f"--budget-ms: must be above 0 and finite, got {budget_ms:g}")
        control = control or (START if self.config.decide.control is None else CONTROL)
        trained = [arm.name for arm in self.config.train.arms] if train else []
        if control not in (competing := contenders(self.config, trained)):
            raise UserError(f"--control {control}: none of the lists that compete: {', '.join(competing)}")
        with self._doing("decide"):
            check_reward_files(self, self.config.reward)
            first = ("prepare", "tokenize", "sft", "ranker")
            self._note_made_again((*first, "train") if train else first)
            for command in first:
                self._make(command)
                if command == "prepare":
                    if command not in self.made and not self.config.data.keep_unseen_items:  # else it has been said
                        summary = self.content("prepare", "summary.json")
                        note_described(self, log_source(self), summary, summary["items"])
                    look_before_fitting(Models(RunData(self)))
                    if self.config.decide.control is not None:
                        make(self, CONTROL, read_control(self))
                if command == "tokenize":
                    check_rules(self)
            leaking = leave_leaks_out(self)
            if leaking and control not in contenders(self.config, trained):
                raise UserError(f"--control {control}: is not there any more: {leaking[0]}")
            if train:
                self._train(anyway=True)
            arms = finished_arms(self) if train else []
            self._look_at_reward()
            read, left_out = ["prepare"], {}
            for name, declare in stages_of(self, ["evaluate", "decide"], arms).items():
                row = self.stages.row(name)
                if row is not None and not row.page_only and not name.endswith("/final"):
                    wanted = declare(self)
                    if (why := not_measured(self, name, wanted)) is not None:
                        left_out[name.removeprefix("evaluate/")] = why
                        continue
                    make(self, name, wanted)
                    if name not in (CONTROL, f"evaluate/{CONTROL}"):  # another export of it leaves the decision
                        read.append(name)
            if control in left_out:
                raise UserError(f"--control {control}: was not measured: {left_out[control]}")
            content = decision(self, arms, budget_ms, control, left_out, leaking)
            if rules_set(self):
                without = next(row["test"] for row in content["contenders"] if row["list"] == content["chosen"])
                content["under_rules"] = cost_of_rules(self, content["chosen"], without)
            write_output(self, DECISION, json_lines(content))
            record_sources(self, DECIDED, read)
            self._renew_report()  # it opens with the decision
            said = parts_of(self).get("diagnose")
            if said is not None and said.usable and (self.directory / "diagnose.html").is_file():  # it names the list
                diagnosed = self.content("diagnose", "diagnose.json")
                write_diagnosis(self.directory, diagnosed, self.config.name, content, self.called)
            if self.config.decide.refit:
                keep_settings(self, also=self._noted)  # if the refit is killed, the measured list is served
                content = content | {"refit": make_refit(self, content["chosen"])}
        return content

    def refresh(self, logs: Sequence[str | Path]) -> dict[str, Any]:
        """Take newer rows of the logs into the list that is served, see `adagrpo.pipeline.refresh`.

        Args:
            logs: only the new rows, or longer logs that repeat the old ones, as files or folders of them; with the
                columns of the run's.

        Returns:
            The content of refresh.json: what is new, the comparison on the newest rows, and whether the list with them
            `takes_over`.

        Raises:
            UserError: the run has no refit list, or the logs no newer rows of it.
        """
        with self._doing():
            return refresh(self, files_of(map(Path, logs)))

    def serve_before(self) -> dict[str, Any]:
        """Serve what was served before the last refresh that took over; return both numbers, 0 for the refit."""
        with self._doing():
            return serve_before(self)

    def report(self) -> Path:
        """Write report.html and return its path."""
        with self._doing():
            return self._write_report()

    def stage(self, name: str) -> Path:
        """Make one stage by name, such as `train/nll`, and return its folder."""
        row = self.stages.row(name)
        wanted = {} if row is None else self.stages.declared(self.config, [row.command])
        if row is None or name not in wanted:
            raise UserError(f"{name}: no stage of this recipe; it has {', '.join(self.stages.declared(self.config))}")
        with self._doing(row.command):
            for source in sources_of(wanted[name](self).reads):
                if source in wanted and source != name:  # of the same command, such as `teacher`
                    make(self, source, wanted[source](self))
            return make(self, name, wanted[name](self))

    def export(self, to: str | Path, arm: str | None = None, checkpoint: Checkpoint = "best") -> Path:
        """Write a language-model policy, sft or a trained arm, as a new Hugging Face folder and return its path."""
        export(self, Path(to), arm, checkpoint)
        return Path(to)

    def recommend(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int = 10,
        arm: str | None = None,
        checkpoint: Checkpoint = "best",
        exclude: Sequence[Sequence[ItemId]] | Literal["history"] | Mapping[str, Any] | None = None,
        reward_weight: float = 0.0,
        precision: Precision | None = None,
        include: Filter | None = None,
        popular: bool = False,
        catalog: str | int = LATEST,
        times: Sequence[Sequence[float] | None] | None = None,
        now: float | None = None,
        users: Sequence[ItemId | None] | None = None,
        as_measured: bool = False,
    ) -> Recommended:
        """Return the lists that `adagrpo serve` answers; with `as_measured`, those that `evaluate` measures.

        The policy is cached; if another process replaces it, calls fail as stale until the run is reopened.

        Args:
            histories: item ids of the input data, oldest first; unknown ids are dropped and counted.
            k: length of the lists, at most the beam width.
            arm: a list, see `adagrpo.lists.names`, such as `sft`, `fuse` or `nll+rerank`; None: see `served_list`.
            exclude: item ids per history, or `"history"` for each whole history, or groups for all, such as
                `{"brand": ["acme"]}`; in addition to `evaluation.exclude_history`.
            reward_weight: above 0, re-rank by log-probability + weight x reward, in within-list standard deviations.
            precision: of the policy; None: `evaluation.precision`.
            include: groups or item ids that lists are restricted to.
            popular: return the most popular items for histories without a known item.
            catalog: catalogue version: `latest` or a number; 0 is the one of training.
            times: when each item of each history was had, in seconds since 1970; items of one time are one basket.
            now: seconds since 1970; None: the time of each history's last item.
            users: whose each history is, for rewards and sources that know users; None: unknown.
            as_measured: answer by the list that was measured, not by its refit on all interactions.

        Raises:
            UserError: an argument is out of range or names no list, version or group of the run.
        """
        refuse_without_order(self.config, f"adagrpo ranker --run {self.called}")
        asked = ListOptions(
            arm, checkpoint, reward_weight, precision=precision, catalog=str(catalog), as_measured=as_measured
        )
        found = answering(self, asked)
        key = (str(found.name), checkpoint, reward_weight, precision, found.version.name, found.refit)
        # another process may have retrained
        weights = hash_of(found.run, found.chosen.weights / "model.safetensors")
        made_from = (weights, list_read(found.run, found.name, reward_weight, checkpoint))
        if key not in self._served or self._served[key][0] != made_from:
            asked = replace(asked, arm=str(found.name), catalog=found.version.name)
            self._served[key] = (made_from, *recommender(self, asked))
        _, served, about = self._served[key]
        groups, lists = (exclude, None) if isinstance(exclude, Mapping) else (None, exclude)
        if users is not None and len(users) != len(histories):
            raise UserError(f"users: holds {len(users)} ids for {len(histories)} histories; give one for each")
        answers = answer(
            served,
            histories,
            k,
            exclude=histories if lists == "history" else lists,
            days=None if times is None else [one and [at / DAY for at in one] for one in times],
            now=None if now is None else now / DAY,
            users=users,
            time=now,
            narrowing=served.narrow(include, groups),
            popular=popular,
            batch_size=self.config.evaluation.batch_size,
        )
        return Recommended(
            [one.items for one in answers],
            [one.scores for one in answers],
            [one.codes for one in answers],
            [one.unknown for one in answers],
            about | {"why": found.chosen.why},
            [one.source for one in answers],
        )

    def update_catalog(
        self,
        items: str | Path | None = None,
        delist: Sequence[ItemId] = (),
        interactions: Sequence[str | Path] = (),
        *,
        start: str | int = LATEST,
    ) -> dict[str, Any]:
        """Create the next catalogue version without training, used by `recommend` from then on; return `catalog_diff`.

        Args:
            items: table of new items, with the columns of `data.items`.
            delist: item ids, or files of them.
            interactions: files like the run's logs, in which new items occur with others.

        Raises:
            UserError: an id or file is invalid, or a new item cannot be related to any other.
        """
        with self._doing():
            made, _ = update_catalog(
                self,
                items=None if items is None else Path(items),
                delist=[str(one) for one in delist],
                interactions=[Path(one) for one in interactions],
                start=str(start),
            )
        return catalog_diff(open_version(self, made.about["parent"] or "0"), made)

    @property
    def results(self) -> dict[str, Any]:
        """The content of metrics.json; `UserError` if missing or changed."""
        return self.content("metrics.json")

    @property
    def metrics(self) -> pl.DataFrame:
        """Results of `evaluate`, one row per value: stage, checkpoint, split, metric, value.

        `checkpoint` is null for stages with only one, such as baselines.
        """
        content = self.results
        if why := is_stale(self, COLLECTED, parts_of(self, measuring=True)):
            raise UserError(f"{self.called}: metrics.json is stale: {why}; run {remake_command(self, 'metrics.json')}")
        return metrics_table(content)

    @property
    def diagnosis(self) -> Diagnosis:
        """The last diagnosis; `UserError` if missing or stale."""
        content = self.content("diagnose", "diagnose.json")
        if not is_diagnosed(self, content):
            again = remake_command(self, "diagnose")
            raise UserError(f"{self.called}: the diagnosis is of another policy or reward; run {again}")
        return Diagnosis.of(content, decision_now(self), self.called)

    @contextmanager
    def _doing(self, command: str | None = None) -> Iterator[None]:
        """Lock the directory; run.yaml takes a command's settings only on success."""
        if command not in (None, "prepare", "ranker"):
            refuse_without_order(self.config, f"adagrpo ranker --run {self.called}")
        self._served.clear()
        self._ready.clear()
        try:
            with locked(self):
                if command not in (None, "prepare") and processes().is_main_process:
                    check(self, command)
                yield
                if command is not None and is_described(self.path(DESCRIPTION).parent):
                    keep_settings(self, also=self._noted)
        finally:
            if isinstance(self.console, StderrConsole):
                self.console.close()

    def _note_made_again(self, commands: Sequence[str] | None) -> None:
        for part in made_again(self):
            row = self.stages.row(part.name)
            if commands is None or (row is not None and row.command in commands):
                self.console.note(f"note: {part.name} is made again, with what is made from it: {part.why}")

    def _make(self, command: str, arms: Sequence[str] | None = None) -> None:
        for name, declare in stages_of(self, [command], arms).items():
            if name in self._ready:
                continue
            wanted = declare(self)
            make(self, name, wanted)
            if (row := self.stages.row(name)) is not None and row.also_by:
                self._ready.add(name)
            if name == "prepare" and (name in self.made or not is_described(self.directory)):
                logs = by_label(self, wanted.reads)  # by name alone, unless one is in different folders
                by_name = {path_of(self, read).name: read for read in logs.values()}
                named = by_name if len(by_name) == len(logs) else logs
                keep_settings(self, {name: hash_of(self, read) for name, read in named.items()})

    def _train(self, *, anyway: bool) -> None:
        if self.config.without_order:
            return
        self._look_at_reward()
        check_diagnosis(self, anyway=anyway)
        self._make("train")

    def _look_at_reward(self) -> None:
        data = RunData(self)
        models = Models(data)
        for file in [*data.training_files, *data.catalog_files, model_of("sft")]:
            hash_of(self, file)  # names the first missing stage
        if self.config.reward == SequentialOptions():
            check_reward(models)
        elif "reward" not in self._ready:
            make(self, "reward", first_look(self))
            self._ready.add("reward")
        self._noted["reward"] = describe_reward(models)

    def _evaluate(self, arms: list[str] | None = None) -> None:
        """Evaluate some arms; None: all that are up to date."""
        if not self.config.without_order:
            self._look_at_reward()
        arms = finished_arms(self) if arms is None else arms
        self._make("evaluate", arms)
        self._collect(arms)

    def _collect(self, arms: list[str]) -> None:
        if self.config.without_order:
            collect_exposures(self)
        else:
            left_out = left_out_arms(self)
            for arm, why in left_out.items():
                self.console.stage(f"train/{arm}", f"left out: {why}", 0.0)
            collect(self, arms, left_out)
        stages = {name: self.stages.row(name) for name in self.stages.declared(self.config, RUN, arms)}
        shown = [name for name, row in stages.items() if row is not None and not row.page_only]
        record_sources(self, COLLECTED, shown)

    def _renew_report(self) -> None:
        if (self.directory / "report.html").is_file():
            try:
                self._write_report()
            except UserError as error:  # its other content is stale
                self.console.note(f"report.html is left as it is: {error}")

    def _write_report(self) -> Path:
        shown = CurrentFiles(self)
        if not self.config.without_order:
            write_users(self.directory, self.config.name, shown_users(shown))
        return write_report(shown, shown.notes)
