"""A run directory as an object: each verb of the command line is a method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl

from adagrpo import pipeline
from adagrpo.api.results import Diagnosis, Recommended
from adagrpo.config import Config, dump_config, load_config, resolve_config
from adagrpo.config.yaml_text import json_text
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.networks.layers import Precision
from adagrpo.pipeline.chain import parts_of
from adagrpo.pipeline.choose_checkpoint import choose_checkpoint
from adagrpo.pipeline.collected import metrics_are_stale
from adagrpo.pipeline.commands import remake
from adagrpo.pipeline.diagnosed import is_diagnosed
from adagrpo.pipeline.list_parts import reward_read
from adagrpo.pipeline.serve import check_served, recommender
from adagrpo.pipeline.versions import LATEST
from adagrpo.serving.answers import answer
from adagrpo.serving.eligibility import Filter
from adagrpo.serving.recommender import ItemId, Recommender

__all__ = ["Run"]

Checkpoint = Literal["best", "final"]
Settings = Mapping[str, Any] | Sequence[str]


class Run:
    """A run directory and the verbs on it; make one with `Run.open` or `Run.create`."""

    def __init__(self, run: pipeline.Run) -> None:
        self._run = run
        self._served: dict[tuple[Any, ...], tuple[Any, Recommender, dict[str, Any]]] = {}  # with what it was made from

    @classmethod
    def open(
        cls, directory: str | Path, settings: Settings = (), *, out: str | Path | None = None, progress: bool = False
    ) -> Run:
        """Open a run that is there.

        Args:
            directory: of the run.
            settings: changes of the recipe, as `--set` makes them: `{"reward.kind": "noise"}`.
            out: another run directory, for all that is written from here on; the run itself is only read.
            progress: show on stderr how far the work is.

        Raises:
            UserError: there is no run, or a setting is none.
        """
        overrides = _overrides(settings)
        opened = pipeline.Run.open(Path(directory), overrides, _console(progress), None if out is None else Path(out))
        return cls(opened)

    @classmethod
    def create(
        cls,
        recipe: str | Path | Mapping[str, Any],
        out: str | Path,
        data: str | Path = ".",
        settings: Settings = (),
        *,
        progress: bool = False,
    ) -> Run:
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
            config = resolve_config(content, _overrides(settings), "recipe")
        else:
            config, code = load_config(Path(recipe), _overrides(settings)), Path(recipe).parent
        if not Path(data).is_dir():
            raise UserError(f"{data}: no such folder (data)")
        return cls(pipeline.Run(Path(out), config, Path(data), _console(progress), code))

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, {self._run.config.name!r})"

    @property
    def directory(self) -> Path:
        """Where the run is."""
        return self._run.directory

    @property
    def config(self) -> Config:
        """The recipe, resolved."""
        return self._run.config

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe, resolved, as plain values; `Run.create` takes it back."""
        return dump_config(self._run.config)

    def complete(self) -> pl.DataFrame:
        """Carry out every stage of the recipe that is not done, with a report; see `metrics` for what comes back."""
        with self._working():
            pipeline.run_all(self._run)
        return self.metrics

    def prepare(self) -> dict[str, Any]:
        """Read the logs, or simulate them: filter, number, split. Returns what was counted."""
        with self._working():
            pipeline.simulate_marketplace(self._run)
            pipeline.prepare(self._run)
        return self._json("prepare", "summary.json")

    def tokenize(self) -> dict[str, Any]:
        """Make the Semantic IDs of the items. Returns their audit."""
        with self._working():
            pipeline.tokenize(self._run)
        return self._json("tokenize", "audit.json")

    def sft(self) -> Run:
        """Train the starting policy."""
        with self._working():
            pipeline.fit_sft(self._run)
        return self

    def ranker(self) -> Run:
        """Train the reward model; of impressions without order, its report too."""
        with self._working():
            pipeline.fit_and_report(self._run)
        return self

    def train(self, *, anyway: bool = False) -> Run:
        """Post-train every arm of the recipe.

        Args:
            anyway: also on a reward that `diagnose` does not recommend for training.

        Raises:
            UserError: the reward was diagnosed and not recommended, and not `anyway`.
        """
        with self._working():
            pipeline.train(self._run, anyway=anyway)
        return self

    def evaluate(self) -> pl.DataFrame:
        """Evaluate sft and every trained arm on validation and test; see `metrics` for what comes back."""
        with self._working():
            arms = pipeline.finished_arms(self._run)
            pipeline.evaluate(self._run, arms)
            pipeline.report_ranker(self._run)
            pipeline.collect(self._run, arms)
        return self.metrics

    def diagnose(self, second_ranker: str | Path | None = None) -> Diagnosis:
        """Should this reward be used here? On validation cases, before any post-training; writes diagnose.html.

        Args:
            second_ranker: checkpoint folder of another ranker, to form strata for the run's own.
        """
        with self._working():
            content = pipeline.diagnose_reward(self._run, None if second_ranker is None else Path(second_ranker))
        return _diagnosis(content)

    def report(self) -> Path:
        """Write report.html, and return where it is."""
        with self._working():
            return pipeline.write_report(self._run)

    def export(self, to: str | Path, arm: str | None = None, checkpoint: Checkpoint = "best") -> Path:
        """Write a language-model policy as a Hugging Face folder, and return where it is.

        Args:
            to: a new folder.
            arm: sft or a trained arm; None is the one that the other verbs take.
            checkpoint: of that arm.
        """
        pipeline.export(self._run, Path(to), arm, checkpoint)
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
            arm: sft or a trained arm; None is the one that the other verbs take.
            checkpoint: of that arm.
            exclude: ids that are never recommended, a list for each history; `"history"` takes each whole history. A
                mapping such as `{"brand": ["acme"]}` leaves named groups out of all lists, see
                `adagrpo.serving.eligibility`. What the recipe masks (`evaluation.mask_history`) is left out anyway.
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
        chosen = choose_checkpoint(self._run, arm, checkpoint)
        version = pipeline.open_version(self._run, catalog)
        key = (chosen.arm, checkpoint, reward_weight, precision, version.number)
        check_served(self._run, chosen, version, reward_weight)
        weights = self._run.hash_input(chosen.weights / "model.safetensors")  # another process may have trained since
        made_from = (weights, reward_read(self._run, reward_weight))
        if key not in self._served or self._served[key][0] != made_from:
            made = recommender(
                self._run, chosen.arm, checkpoint, reward_weight, precision=precision, catalog=str(version.number)
            )
            self._served[key] = (made_from, *made)
        _, served, about = self._served[key]
        groups, lists = (exclude, None) if isinstance(exclude, Mapping) else (None, exclude)
        answers = answer(
            served,
            histories,
            k,
            exclude=histories if lists == "history" else lists,
            narrowing=served.narrow(include, groups),
            popular=popular,
            batch_size=self._run.config.evaluation.batch_size,
        )
        return Recommended(
            [one.items for one in answers],
            [one.scores for one in answers],
            [one.codes for one in answers],
            [one.unknown for one in answers],
            about,
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
            made, _ = pipeline.update_catalog(
                self._run,
                items=None if items is None else Path(items),
                delist=[str(one) for one in delist],
                interactions=[Path(one) for one in interactions],
                start=str(start),
            )
        return pipeline.catalog_diff(pipeline.open_version(self._run, made.about["parent"] or "0"), made)

    @property
    def metrics(self) -> pl.DataFrame:
        """What `evaluate` measured, one row a value: stage, checkpoint, split, metric, value.

        Baselines are stages too; `checkpoint` is null where a stage has one alone.

        Raises:
            UserError: nothing was evaluated, or something that it was evaluated on was made again since.
        """
        content = self._json("metrics.json")
        run = self._run
        why = metrics_are_stale(run, parts_of(run, measuring=True), run.path("metrics.json"))
        if why:
            raise UserError(f"{run.called}: metrics.json is stale: {why}; run {remake(run, 'metrics.json')}")
        rows = [
            (stage, checkpoint, split, metric, value)
            for stage, checkpoint, splits in _splits(content)
            for split in ("validation", "test")
            for metric, value in splits.get(split, {}).items()
        ]
        schema = dict.fromkeys(("stage", "checkpoint", "split", "metric"), pl.String) | {"value": pl.Float64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def diagnosis(self) -> Diagnosis:
        """What the last `diagnose` found.

        Raises:
            UserError: nothing was diagnosed, or another policy or reward.
        """
        content = self._json("diagnose", "diagnose.json")
        if not is_diagnosed(self._run, content):
            again = remake(self._run, "diagnose")
            raise UserError(f"{self._run.called}: the diagnosis is of another policy or reward; run {again}")
        return _diagnosis(content)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Alone in the directory; what is served is loaded again afterwards."""
        self._served.clear()
        try:
            with self._run.locked():
                yield
        finally:
            if isinstance(self._run.console, StderrConsole):
                self._run.console.close()

    def _json(self, *parts: str) -> dict[str, Any]:
        return dict(json.loads(self._run.checked(*parts).read_text(encoding="utf-8")))


def _splits(content: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """Stage, checkpoint and metrics by split."""
    for name, splits in content["baselines"].items():
        yield name, None, splits
    for name, entry in content["stages"].items():
        if "best" not in entry:
            yield name, None, entry
            continue
        for checkpoint in ("best", "final"):
            yield name, checkpoint, entry[checkpoint]


def _diagnosis(content: Mapping[str, Any]) -> Diagnosis:
    verdict = content["verdict"]
    return Diagnosis(verdict["decision"], tuple(verdict["sentences"]), content)


def _overrides(settings: Settings) -> list[str]:
    """Settings as `--set` takes them.

    >>> _overrides({"objective.lambda": 0.5, "reward": {"kind": "noise"}}), _overrides(["seed=3"])
    (['objective.lambda=0.5', 'reward={"kind": "noise"}'], ['seed=3'])
    """
    if isinstance(settings, Mapping):
        return [f"{key}={json_text(value)}" for key, value in settings.items()]
    return list(settings)


def _console(progress: bool) -> StderrConsole | pipeline.Silent:
    return StderrConsole() if progress else pipeline.Silent()
