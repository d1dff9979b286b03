"""A run and what is done with it: each command of the command line is a method of `Run`.

    from adagrpo import Run

    run = Run.open("runs/mine")
    run.diagnose()
    run.recommend([["item-7", "item-3"]])

A method makes the stages of its command, row by row of the table (`adagrpo.pipeline.stage_table`), in the folder that
the command line works in: either can go on where the other stopped. Results are typed; tables are polars frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl

from adagrpo.config import Settings, as_overrides, dump_config, load_config, resolve_config
from adagrpo.console import Silent, StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.answers import answer
from adagrpo.lists.eligibility import Filter
from adagrpo.lists.query import ItemId
from adagrpo.networks.layers import Precision
from adagrpo.pipeline.catalog_update import update_catalog
from adagrpo.pipeline.choose_checkpoint import Checkpoint
from adagrpo.pipeline.commands import remake_command
from adagrpo.pipeline.decide import contenders, decision, leave_leaks_out, not_measured
from adagrpo.pipeline.diagnosed import is_diagnosed
from adagrpo.pipeline.export import export
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import json_lines
from adagrpo.pipeline.named_files import check_functions, check_named, check_test_cases
from adagrpo.pipeline.named_lists import DECISION, ListOptions, check_served, decision_now, list_read, served_list
from adagrpo.pipeline.output_sources import COLLECTED, DECIDED, is_stale, record_sources
from adagrpo.pipeline.results import Diagnosis, Recommended, metrics_table
from adagrpo.pipeline.serve import recommender
from adagrpo.pipeline.served_log import publish_first
from adagrpo.pipeline.stage_maker import StageMaker
from adagrpo.pipeline.stage_table import declared, row_of
from adagrpo.pipeline.stages.diagnose import diagnosis
from adagrpo.pipeline.staleness import finished_arms, parts_of, sources_of, stages_of
from adagrpo.pipeline.versions import LATEST, catalog_diff, open_version
from adagrpo.report import write_diagnosis


class Run(StageMaker):
    """A run directory and what is done with it; make one with `Run.open` or `Run.create`."""

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
        """A run of a recipe, whose stages are still to be carried out; where there are some, it goes on from them.

        Args:
            recipe: a YAML file, or its content as a mapping.
            out: the run directory.
            data: the folder that the recipe's relative paths are in.
            settings: changes of the recipe, see `open`.
            progress: show on stderr how far the work is.

        Raises:
            UserError: the recipe has an unknown key or a bad value, or the folder holds something else.
        """
        code = None
        if isinstance(recipe, Mapping):
            content = json.loads(json.dumps(recipe, default=str))  # a path is its text
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
        """The recipe, resolved, as plain values; `Run.create` takes it back."""
        return dump_config(self.config)

    def remake_command(self, place: Path | str) -> str:
        """The command that makes a stage, or the stage of a file, as a user types it."""
        return remake_command(self, place)

    def complete(self) -> pl.DataFrame:
        """Carry out every stage of the recipe that is not done, with a report; see `metrics` for what comes back.

        Of several processes, those that do not lead have no part in what follows training: they get an empty table.
        """
        if self.processes.is_main_process:
            self._note_made_again(None)
        with self._working():
            publish_first(self)
            self._make("prepare")
            check_named(RunData(self), ("train", "evaluate"))
            check_test_cases(self)
            for command in ("tokenize", "sft", "ranker"):
                self._make(command)
            self._train(anyway=True)
            self.go_on_alone()
            if not self.processes.is_main_process:
                return metrics_table({})
            self._evaluate([arm.name for arm in self.config.train.arms])
            self._write_report()
            self.keep_settings()
        return self.metrics

    def prepare(self) -> dict[str, Any]:
        """Read the logs, or simulate them: filter, number, split. Returns what was counted."""
        with self._doing("prepare"):
            self._make("prepare")
        return self.content("prepare", "summary.json")

    def tokenize(self) -> dict[str, Any]:
        """Make the Semantic IDs of the items. Returns their audit."""
        with self._doing("tokenize"):
            self._make("tokenize")
        return self.content("tokenize", "audit.json")

    def sft(self) -> Self:
        """Train the starting policy."""
        with self._doing("sft"):
            self._make("sft")
        return self

    def ranker(self) -> Self:
        """Train the reward model; of impressions without order, its report too."""
        with self._doing("ranker"):
            self._make("ranker")
            if self.config.without_order and self.processes.is_main_process:
                self._collect([])
                self._write_report()
        return self

    def train(self, *, anyway: bool = False) -> Self:
        """Post-train every arm of the recipe.

        Args:
            anyway: also on a reward that by `diagnose` leaks or is inverted.

        Raises:
            UserError: by the diagnosis the reward leaks or is inverted, and not `anyway`.
        """
        with self._doing("train"):
            self._train(anyway=anyway)
        return self

    def evaluate(self) -> pl.DataFrame:
        """Evaluate sft and every trained arm on validation and test; see `metrics` for what comes back."""
        with self._doing("evaluate"):
            self._evaluate()
        return self.metrics

    def diagnose(self) -> Diagnosis:
        """Does re-ranking by this reward help, and is its sign right? On validation cases; writes diagnose.html.

        Raises:
            UserError: a stage is missing.
        """
        with self._doing("diagnose"):
            self._look_at_reward()
            self._make("diagnose", but="diagnose")
            self.make("diagnose", diagnosis(self))
            content, decided = self.content("diagnose", "diagnose.json"), decision_now(self)
            write_diagnosis(self.directory, content, self.config.name, decided, self.called)
            self._renew_report()  # which shows the verdict
        return Diagnosis.of(content, decided, self.called)

    def decide(self, budget_ms: float | None = None, *, train: bool = False, control: str = "sft") -> dict[str, Any]:
        """Which list to serve: item-kNN, the policy, re-ranked, fused and others, by the rule of `pipeline.decide`.

        Writes decision.json, and decision.plan.yaml, an experiment that holds the chosen list against another one.

        Args:
            budget_ms: milliseconds that a list may take; None: any.
            train: train the arms of the recipe first, which then compete too, alone and fused.
            control: the list that users get today, one of those that compete.

        Returns:
            The content of decision.json: `chosen`, `why`, a `warning` where the policy loses to a simple list, what
            `training` adds where there was some, what the reward adds to the fused list (`reward_in_fusion`), `doubts`,
            the command to `serve` it, the `experiment`, None where the control is chosen, and all `contenders`.

        Raises:
            UserError: budget that is not above 0 or that no list is within, a control that does not compete, or
                something that the lists are made from is stale.
        """
        if self.catalog:
            raise UserError(
                f"decide: {self.called} is about version {self.catalog} of the catalogue, and lists are fitted and"
                " compared over that of training; decide in the run that this one was made from"
            )
        if budget_ms is not None and not 0 < budget_ms < float("inf"):
            raise UserError(f"--budget-ms: must be above 0 and finite, got {budget_ms:g}")
        trained = [arm.name for arm in self.config.train.arms] if train else []
        if control not in (competing := contenders(self.config.reward, trained)):
            raise UserError(f"--control {control}: none of the lists that compete: {', '.join(competing)}")
        with self._doing("decide"):
            check_functions(self, self.config.reward)
            first = ("prepare", "tokenize", "sft", "ranker")
            self._note_made_again((*first, "train") if train else first)
            for command in first:
                self._make(command)
            leaking = leave_leaks_out(self)
            if leaking and control not in contenders(self.config.reward, trained):
                raise UserError(f"--control {control}: is not there any more: {leaking[0]}")
            if train:
                self._train(anyway=True)
            arms = finished_arms(self) if train else []
            self._look_at_reward()
            read, left_out = ["prepare"], {}
            for name, declare in stages_of(self, ["evaluate", "decide"], arms).items():
                row = row_of(name)
                if row is not None and not row.page_only and not name.endswith("/final"):
                    wanted = declare(self)
                    if (why := not_measured(self, name, wanted)) is not None:
                        left_out[name.removeprefix("evaluate/")] = why
                        continue
                    self.make(name, wanted)
                    read.append(name)
            if control in left_out:
                raise UserError(f"--control {control}: was not measured: {left_out[control]}")
            content = decision(self, arms, budget_ms, control, left_out, leaking)
            self.write_output(DECISION, json_lines(content))
            record_sources(self, DECIDED, read)
            self._renew_report()  # which opens with it
            said = parts_of(self).get("diagnose")
            if said is not None and said.usable and (self.directory / "diagnose.html").is_file():  # it names the list
                diagnosed = self.content("diagnose", "diagnose.json")
                write_diagnosis(self.directory, diagnosed, self.config.name, content, self.called)
        return content

    def report(self) -> Path:
        """Write report.html of what was measured, and return where it is.

        Raises:
            UserError: nothing was measured, or what was is out of date.
        """
        with self._working():
            return self._write_report()

    def stage(self, name: str) -> Path:
        """Make one stage that the recipe asks for, by its name, such as `train/nll`.

        Returns:
            Its folder.

        Raises:
            UserError: the recipe asks for no such stage, or what it is made from is missing or out of date.
        """
        row = row_of(name)
        wanted = {} if row is None else declared(self.config, [row.command])
        if row is None or name not in wanted:
            raise UserError(f"{name}: no stage of this recipe; it has {', '.join(declared(self.config))}")
        with self._doing(row.command):
            for source in sources_of(self, wanted[name](self).inputs):
                if source in wanted and source != name:  # of the same command, such as `teacher`
                    self.make(source, wanted[source](self))
            return self.make(name, wanted[name](self))

    def export(self, to: str | Path, arm: str | None = None, checkpoint: Checkpoint = "best") -> Path:
        """Write a language-model policy as a Hugging Face folder, and return where it is.

        Args:
            to: a new folder.
            arm: sft or a trained arm; None is the one that the other commands take.
            checkpoint: of that arm.
        """
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
    ) -> Recommended:
        """The lists that `adagrpo serve` answers with and `evaluate` measures.

        The policy is loaded at the first call, and kept for the next ones. What another process has replaced
        since is refused as stale; open the run anew to read it.

        Args:
            histories: item ids of the input data, oldest first. Ids that name no item are left out, and counted.
            k: length of the lists, at most the beam's width.
            arm: a list, see `adagrpo.lists.names`: sft, a trained arm, or such as `fuse` and `nll+rerank`; None is
                the one that the other commands take.
            checkpoint: of that arm.
            exclude: ids that are never recommended, a list for each history; `"history"` takes each whole history. A
                mapping such as `{"brand": ["acme"]}` leaves named groups out of all lists, see
                `adagrpo.lists.eligibility`. What the recipe masks (`evaluation.exclude_history`) is left out anyway.
            reward_weight: above 0, re-rank by log-probability + this weight x reward, in units of the reward's
                spread, as `diagnose` advises it.
            precision: of the policy; None is the recipe's, `evaluation.precision`.
            include: named groups, or item ids: what the lists may hold.
            popular: give histories of which nothing is known the most popular items.
            catalog: the version of the catalogue: `latest`, or a number; 0 is the one of training.

        Raises:
            UserError: there is no such arm, version, group or precision, `k` is too large, the weight is below 0 or not
                finite, or `histories` is not a list of lists of ids.
        """
        self.refuse_without_order()
        name, chosen = served_list(self, arm, checkpoint, reward_weight)
        version = open_version(self, catalog)
        key = (str(name), checkpoint, reward_weight, precision, version.number)
        check_served(self, chosen, version, name, checkpoint)
        weights = self.hash_input(chosen.weights / "model.safetensors")  # another process may have trained since
        made_from = (weights, list_read(self, name, reward_weight, checkpoint))
        if key not in self._served or self._served[key][0] != made_from:
            asked = ListOptions(str(name), checkpoint, reward_weight, precision=precision, catalog=str(version.number))
            self._served[key] = (made_from, *recommender(self, asked))
        _, served, about = self._served[key]
        groups, lists = (exclude, None) if isinstance(exclude, Mapping) else (None, exclude)
        answers = answer(
            served,
            histories,
            k,
            exclude=histories if lists == "history" else lists,
            narrowing=served.narrow(include, groups),
            popular=popular,
            batch_size=self.config.evaluation.batch_size,
        )
        return Recommended(
            [one.items for one in answers],
            [one.scores for one in answers],
            [one.codes for one in answers],
            [one.unknown for one in answers],
            about | {"why": chosen.why},
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
        """Make the next version of the catalogue, without training; `recommend` takes it from then on.

        Args:
            items: a table of items that come, with the columns of the recipe's `data.items`.
            delist: ids of items that leave, or files that hold them.
            interactions: files like the run's logs, to see new items beside others in.
            start: the version that is changed.

        Returns:
            What differs between the versions, see `adagrpo.pipeline.versions.catalog_diff`.

        Raises:
            UserError: an id or a file is not what it should be, or nothing says what a new item is like.
        """
        with self._working():
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
        """The content of metrics.json.

        Raises:
            UserError: nothing was evaluated, or the file was changed since.
        """
        return self.content("metrics.json")

    @property
    def metrics(self) -> pl.DataFrame:
        """Read what `evaluate` measured, one row a value: stage, checkpoint, split, metric, value.

        Baselines are stages too; `checkpoint` is null where a stage has one alone.

        Raises:
            UserError: nothing was evaluated, or something that it was evaluated on was made again since.
        """
        content = self.results
        if why := is_stale(self, COLLECTED, parts_of(self, measuring=True)):
            raise UserError(f"{self.called}: metrics.json is stale: {why}; run {self.remake_command('metrics.json')}")
        return metrics_table(content)

    @property
    def diagnosis(self) -> Diagnosis:
        """Read the last diagnosis.

        Raises:
            UserError: nothing was diagnosed, or another policy or reward.
        """
        content = self.content("diagnose", "diagnose.json")
        if not is_diagnosed(self, content):
            again = self.remake_command("diagnose")
            raise UserError(f"{self.called}: the diagnosis is of another policy or reward; run {again}")
        return Diagnosis.of(content, decision_now(self), self.called)
