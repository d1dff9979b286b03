"""Which stages a run has, what each would be made from now, and which are therefore out of date.

The declarations of the stages are walked without making anything: `Look` is a run whose `stage` compares the
fingerprint that the stage would get now with the one in its manifest. So a stage is called stale exactly if its own
verb would make it again, or if a stage that it was made from is stale. Why is said from the ingredients that manifests
keep.

Files outside the run that are gone are not held against a stage: a run can be read where the logs are not. The logs
themselves are read once, by `prepare`; that they have changed since is only looked for where that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adagrpo.config import Change, Config, changed_settings, read_settings
from adagrpo.config.reward import SequentialOptions
from adagrpo.errors import UserError
from adagrpo.pipeline import unordered
from adagrpo.pipeline.commands import fits_trees, names_key
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Ingredients, Part, StageFolder, State
from adagrpo.pipeline.stages.evaluate import evaluate_baselines, evaluate_checkpoint, evaluate_start
from adagrpo.pipeline.stages.exposure_report import report_exposures
from adagrpo.pipeline.stages.fit_ranker import fit_ranker
from adagrpo.pipeline.stages.post_train import fit_arm
from adagrpo.pipeline.stages.prepare import prepare, simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.reranking import re_ranked
from adagrpo.pipeline.stages.sft import fit_sft
from adagrpo.pipeline.stages.tokenize import tokenize
from adagrpo.storage.artifacts import manifest
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.locks import WORK
from adagrpo.storage.marks import is_marked
from adagrpo.storage.removal import MANIFEST

__all__ = ["parts_of", "reward_parts", "unused", "upstream"]

# test cases and truth may be kept elsewhere: what is fitted reads neither
PUT_AWAY = {"prepare": ("test.parquet", "later.parquet"), "simulate": ("truth/",)}
FITTED = ("sft", "ranker", "reranking", "train")  # they choose by validation, which `evaluation` has a say in
GONE = "gone"  # in the place of a hash
UNKNOWN = "unknown"


def parts_of(run: Run, *, logs: bool = False, measuring: bool = False) -> dict[str, Part]:
    """Every stage that a run has or is to have, in the order of the work, by name.

    Args:
        run: whose settings they are held against.
        logs: also say whether the log files have changed since they were read, which hashes them, and whether test
            cases or truth are gone.
        measuring: for verbs that only measure. In a run that goes on from another one, other settings of `evaluation`
            are then not held against a model whose best checkpoint was chosen by those of the other run.
    """
    look = Look(run, logs=logs, lenient=measuring and run.source is not None)
    with look.walking("simulate"):
        simulate_marketplace(look)
    if run.config.without_order:
        with look.walking("prepare"):
            unordered.prepare(look)
        with look.walking("ranker"):
            unordered.fit_ranker(look)
        with look.walking("ranker/exposures"):
            report_exposures(look)
    else:
        _walk_in_order(look)
    for name in _other_stages(run):
        if name not in look.parts:
            look.recorded(name)
    if logs:
        look.miss_what_is_put_away()
    return look.parts


def upstream(parts: Mapping[str, Part], names: Iterable[str]) -> list[str]:
    """Some stages and all that they are made from, directly or not, in the order of the work."""
    wanted, found = list(names), set()
    while wanted:
        name = wanted.pop()
        if name in parts and name not in found:
            found.add(name)
            wanted += parts[name].sources
    return [name for name in parts if name in found]


def unused(config: Config, name: str) -> str:
    """Why nothing reads or makes a stage under these settings; empty where something may.

    Example:
        >>> unused(Config.model_validate({"name": "x", "data": {"logs": ["x.csv"]}}), "evaluate/grpo/best")
        "'grpo' is not among train.arms"
    """
    kind, _, rest = name.partition("/")
    arms, folds = config.train.arms, config.ranker.folds
    if kind == "train" or (kind == "evaluate" and "/" in rest):
        arm = re_ranked(rest.split("/")[0]) or rest.split("/")[0]
        return "" if arm in [one.name for one in arms] else f"'{arm}' is not among train.arms"
    if rest.startswith("fold-"):
        return f"ranker.folds is {folds}" if folds < 2 or int(rest.removeprefix("fold-")) >= folds else ""
    reasons = {
        "ranker/lambdarank": "" if fits_trees(config.reward) else "the reward has no such trees",
        "reward": "the reward is the run's own" if config.reward == SequentialOptions() else "",
        "exposures": "" if config.data.exposures else "the logs are no exposure log",
    }
    return reasons.get(name, "")


def reward_parts(run: Run) -> list[str]:
    """The stages that the reward of a run is read from."""
    look = Look(run)
    models, paths = Models(RunData(look)), []
    with look.walking("reward"):
        paths = [*models.reward_files, *models.group_reward_files]
    return list(dict.fromkeys(owner for path in paths if (owner := look.owner(path)) is not None))


def _walk_in_order(look: Look) -> None:
    """The stages of logs with an order."""
    for name, declare in (("prepare", prepare), ("tokenize", tokenize), ("sft", fit_sft), ("ranker", fit_ranker)):
        with look.walking(name):
            declare(look)
    for arm in look.config.train.arms:
        with look.walking(f"train/{arm.name}"):
            fit_arm(look, arm)
    with look.walking("evaluate/sft"):
        evaluate_start(look, {})
    with look.walking("evaluate/baselines"):
        evaluate_baselines(look)
    for name in (arm.name for arm in look.config.train.arms):
        for kind in ("best", "final"):
            with look.walking(f"evaluate/{name}/{kind}"):
                evaluate_checkpoint(look, f"evaluate/{name}/{kind}", look.path("train", name, kind), {})
    with look.walking("ranker/report"):
        report_ranker(look)


class Look(Run):
    """A run of which nothing is made, verified or written; its stages are compared."""

    def __init__(self, run: Run, *, logs: bool = False, lenient: bool = False) -> None:
        self.__dict__.update(run.__dict__)
        self.parts: dict[str, Part] = {}
        self._logs, self._lenient = logs, lenient

    @contextmanager
    def walking(self, name: str) -> Iterator[None]:
        """Go through the declaration of a stage; where that cannot be had, it is judged by what its manifest keeps."""
        try:
            yield
        except (UserError, OSError):
            if name not in self.parts:
                self.recorded(name)

    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[Path],
        build: Callable[[Path], None],
        reads: Sequence[str] = (),
        but: Sequence[str] = (),
        also: Any = None,
        schema: int = 1,
        together: bool = False,
    ) -> Path:
        """Compare a stage with its declaration; see `Run.stage`."""
        if also == {"model": {}}:  # a language model's folder that is gone
            self.recorded(name)
            return self.folder(name)
        settings = read_settings(self.config, reads, but)
        self._compare(name, Ingredients(schema, settings, also, self.hash_inputs(inputs)), inputs)
        return self.folder(name)

    def recorded(self, name: str) -> None:
        """Compare a stage with what its manifest keeps of its declaration."""
        was, damage = self._manifest(name)
        kept = None if was is None else Ingredients.of(was)
        if kept is None:
            if was is not None or damage:
                self.parts[name] = Part(name, "damaged" if damage else "done", damage)
            return
        if why := unused(self.config, name):
            self.parts[name] = Part(name, "unused", why)
            return
        try:
            settings = read_settings(self.config, kept.reads, kept.but)
        except (KeyError, ValueError):
            self.parts[name] = Part(name, "stale", "made by another version of this program")
            return
        paths = [self._place(label) for label in kept.inputs]
        hashes = {label: self.hash_input(path) for label, path in zip(kept.inputs, paths, strict=True)}
        self._compare(name, kept._replace(settings=settings, inputs=hashes), paths)

    def miss_what_is_put_away(self) -> None:
        """Call a stage damaged whose test cases or truth are gone; what was made without them stays as it is."""
        for name in PUT_AWAY.keys() & self.parts.keys():
            folder, part = self.folder(name), self.parts[name]
            files = (manifest(folder) or {"files": ()})["files"] if part.there else ()
            gone = next((folder / file for file in files if not (folder / file).exists()), None)
            if gone is not None:
                why = f"{gone}: missing; put it back, or delete {folder} to have it made again"
                self.parts[name] = replace(part, state="damaged", why=why)

    def owner(self, path: Path) -> str | None:
        """The stage of this run that a file is of."""
        if not any(root is not None and path.is_relative_to(root) for root in (self.directory, self.source)):
            return None
        label = self.label(path)
        return max((name for name in self.parts if label.startswith(f"{name}/")), key=len, default=label.split("/")[0])

    def hash_input(self, path: Path) -> str:
        """What the manifest of its stage says of a file, or its hash; `GONE` where there is no file."""
        if not path.is_file():
            return GONE
        for folder in path.parents:
            try:
                content = manifest(folder)
            except UserError:  # its own part says that it is damaged
                return GONE
            if content is not None:
                entry = content["files"].get(path.relative_to(folder).as_posix())
                return GONE if entry is None else str(entry["sha256"])
            if is_marked(folder):
                break
        return cached_hash(path)

    def checked(self, *parts: str) -> Path:
        """The path alone."""
        return self.path(*parts)

    def checked_stage(self, name: str, *, but: object = ()) -> Path:
        """The path alone."""
        return self.folder(name)

    def write_description(self, data_files: Mapping[str, str]) -> None:
        """Nothing."""

    def _place(self, label: str) -> Path:
        """Where a file of a label is, of the run or below the data folder."""
        own = self.path(*label.split("/"))
        return own if own.exists() or any(label.startswith(f"{name}/") for name in self.parts) else self.data / label

    def _manifest(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """The manifest of a stage, and what is wrong with it."""
        folder = self.folder(name)
        try:
            found = manifest(folder)
        except UserError as error:
            return None, str(error)
        away = PUT_AWAY.get(name, ())
        missing = [file for file in (found or {"files": ()})["files"] if not (folder / file).exists()]
        gone = next((file for file in missing if not file.startswith(away)), None)
        if gone is not None:
            return None, f"{folder / gone}: missing; delete {folder} to have it made again"
        return found, ""

    def _compare(self, name: str, now: Ingredients, paths: Sequence[Path]) -> None:
        was, damage = self._manifest(name)
        owners = {label: self.owner(path) for label, path in zip(now.inputs, dict.fromkeys(paths), strict=True)}
        sources = tuple(dict.fromkeys(owner for owner in owners.values() if owner not in (None, name)))
        attempt = StageFolder(self.directory, name).begun_for()
        if was is None:
            state: State = "damaged" if damage else "missing" if attempt is None else "interrupted"
            self.parts[name] = Part(name, state, damage, (), sources, there=False)
            return
        kept = Ingredients.of(was)
        inputs = {
            label: UNKNOWN if kept is None else kept.inputs.get(label, UNKNOWN)
            for label, owner in owners.items()
            if owner is None and (now.inputs[label] == GONE or name == "prepare")
        }
        changed = [label for label, digest in inputs.items() if now.inputs[label] not in (GONE, digest, UNKNOWN)]
        now, said = self._leniently(name, kept, now._replace(inputs=now.inputs | inputs))
        outdated = self._logs and kept is not None and name == "prepare" and bool(changed)
        if outdated:
            new = [label for label in changed if inputs[label] == UNKNOWN]
            read = [label for label in changed if label not in new]
            said = f"{', '.join(read)} changed after it was read" if read else f"made without {', '.join(new)}"
        before = [self.parts[source] for source in sources if source in self.parts]
        behind = next((part for part in before if not part.there), None) or next(
            (part for part in before if not part.usable), None
        )
        if behind is not None and not behind.there:
            found = Part(name, "stale", f"{behind.name} is {behind.state}", (), sources)
        elif was["fingerprint"] != now.fingerprint(name) and UNKNOWN not in inputs.values():
            changes, why = _differences(self, kept, now, owners)
            state = "interrupted" if attempt == now.fingerprint(name) else "stale"
            found = Part(name, state, why, tuple(changes), sources)
        elif behind is not None:
            found = Part(name, "stale", f"{behind.name} is {behind.state}", (), sources)
        else:
            found = Part(name, "done", said, (), sources, outdated=outdated)
        self.parts[name] = found

    def _leniently(self, name: str, kept: Ingredients | None, now: Ingredients) -> tuple[Ingredients, str]:
        """What is held against a stage, and what is to be said if that is less than everything."""
        if not self._lenient or kept is None or name.split("/")[0] not in FITTED or name == "ranker/report":
            return now, ""
        settings = {key: value for key, value in now.settings.items() if key.split(".")[0] != "evaluation"}
        settings |= {key: value for key, value in kept.settings.items() if key.split(".")[0] == "evaluation"}
        changes = changed_settings(self.config, settings, now.settings)
        chosen = "weight" if name == "reranking" else "best checkpoint"
        said = "".join(f"its {chosen} was chosen with {one.key}={_text(one.before)}" for one in changes[:1])
        return now._replace(settings=settings), said


def _differences(
    look: Look, kept: Ingredients | None, now: Ingredients, owners: Mapping[str, str | None]
) -> tuple[list[Change], str]:
    """The settings that differ, and the first difference in words."""
    if kept is None:
        return [], "made from other settings or files than there are now"
    changes = changed_settings(look.config, kept.settings, now.settings)
    if all(isinstance(also, dict) and "arm" in also for also in (kept.also, now.also)):
        arms = ({"objective": also["arm"]} for also in (kept.also, now.also))
        changes += changed_settings(look.config, *arms)
    if changes:
        first, more = changes[0], len(changes) - 1
        says = "run.yaml" if look.described else "the recipe"
        if any(names_key(first.key, text.partition("=")[0]) for text in look.overrides):
            says = "--set"
        others = f", and {more} other setting{'s' if more > 1 else ''}" if more else ""
        return changes, f"made with {first.key}={_text(first.before)}{others}, {says} says {_text(first.now)}"
    for label, digest in now.inputs.items():
        if label not in kept.inputs:
            return [], f"made without {label}"
        if digest == GONE:
            return [], f"{label} is gone"
        if digest != kept.inputs[label]:
            return [], f"made from another {label} than {'is there' if owners[label] else 'the file is'} now"
    without = next((label for label in kept.inputs if label not in now.inputs), None)
    return [], f"made from {without}" if without else "made by another version of this program"


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _other_stages(run: Run) -> list[str]:
    """The names of all stages that lie in a run."""
    roots = [root for root in (run.source, run.directory) if root is not None]
    names = {
        path.parent.relative_to(root).as_posix()
        for root in roots
        for depth in ("*", "*/*", "*/*/*")
        for path in root.glob(f"{depth}/{MANIFEST}")
    }
    return sorted(name for name in names if not name.startswith(WORK))
