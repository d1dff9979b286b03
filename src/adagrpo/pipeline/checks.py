"""What a verb refuses: a stage that is out of date anywhere above what it reads, and a `--set` that it does not read.

The rule: a verb makes the stages of its own again where that is needed, and reads no stage that is stale. It refuses
with the first stale stage in the order of the work, why it is stale, and the command that makes it again. Evaluation
and the report go on without arms that are stale, and name them. `adagrpo run` makes again whatever is stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adagrpo.config import dump_config
from adagrpo.errors import UserError
from adagrpo.pipeline.chain import parts_of, reward_parts, upstream
from adagrpo.pipeline.commands import ALWAYS, READS, command, fits_trees, names_key, readers, reads_key, remake
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.stage import Part

__all__ = ["check", "finished_arms", "left_out_arms"]

# what a verb reads, beside all that this was made from
NEEDS: dict[str, tuple[str, ...]] = {
    "tokenize": ("prepare",),
    "sft": ("tokenize",),
    "ranker": ("prepare",),
    "train": ("sft",),
    "diagnose": ("sft",),
    "evaluate": ("sft", "ranker"),
    "serve": ("tokenize",),
    "export": ("tokenize",),
}
ASKS_REWARD = ("train", "diagnose", "evaluate")
MEASURES = ("diagnose", "evaluate", "serve", "export", "report")  # nothing that they make is trained on
ALL_OTHERS = ("diagnose", "evaluate")  # for what they change by `--set`, no finished stage may become stale


def check(run: Run, verb: str, stages: Iterable[str] = ()) -> None:
    """Refuse to carry out a verb on what is out of date.

    Args:
        run: as it is opened, with what was set for this command.
        verb: to be carried out.
        stages: that it reads in this case, beside those that it always reads.

    Raises:
        UserError: a stage is stale or damaged, or a setting is not for this verb; with the command that mends it.
    """
    parts = parts_of(run, measuring=verb in MEASURES)
    wanted = [*NEEDS.get(verb, ()), *stages, *(reward_parts(run) if verb in ASKS_REWARD else ())]
    needed = [parts[name] for name in upstream(parts, wanted)]
    keys = [text.partition("=")[0] for text in run.overrides if _changes(run, text.partition("=")[0])]
    for part in needed:
        if part.state == "damaged":
            raise UserError(part.why)
        if part.there and not part.usable:
            raise UserError(_refusal(run, part, keys))
    for key in keys:
        if key not in ALWAYS and not _reads(run, verb, key):
            raise UserError(_not_read(verb, key))
    if verb in ALL_OTHERS and run.directory == run.called:
        for part in parts.values():
            made_stale = _asked_for(part, keys)
            if made_stale and part.there and part not in needed and not _makes(verb, part.name):
                raise UserError(_spares(run, verb, part, made_stale))


def left_out_arms(run: Run) -> dict[str, str]:
    """The arms of a run that were trained and are not what its settings and files would give now, and why."""
    parts = parts_of(run, measuring=True)
    trained = {name.removeprefix("train/"): part for name, part in parts.items() if name.startswith("train/")}
    return {name: part.why for name, part in trained.items() if part.there and not part.usable}


def finished_arms(run: Run) -> list[str]:
    """The arms of the configuration that have been trained, and are not out of date."""
    usable = set(run.trained()) - left_out_arms(run).keys()
    return [arm.name for arm in run.config.train.arms if arm.name in usable]


def _refusal(run: Run, part: Part, keys: list[str]) -> str:
    key = _asked_for(part, keys)
    if key is None:
        return f"{run.called}: {part.name} is stale: {part.why}; run {remake(run, part.name)}"
    change = next(change for change in part.changes if names_key(change.key, key))
    return (
        f"--set {key}: {part.name} reads it too, and was made with {change.key}={change.before};"
        f" run {remake(run, part.name)} first"
    )


def _reads(run: Run, verb: str, key: str) -> bool:
    if verb == "ranker" and names_key(key, "reward") and not run.config.without_order:
        return fits_trees(run.config.reward)  # what else it is, does not concern the ranker
    return verb in READS and reads_key(verb, key)


def _not_read(verb: str, key: str) -> str:
    others = [f"`adagrpo {other}`" for other in readers(key)]
    return f"--set {key}: {verb} does not read it; " + (
        f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}" if others else "no verb of a run does"
    )


def _spares(run: Run, verb: str, part: Part, key: str) -> str:
    """Why a verb that measures does not change what stages beside its own were made with."""
    given = [text for text in run.overrides if names_key(text.partition("=")[0], key)]
    elsewhere = run.called.with_name(f"{run.called.name}-{verb}")
    first = f"{remake(run, part.name)} first, or " if part.name.startswith("train/") and verb == "evaluate" else ""
    return (
        f"--set {key}: {part.name} was made with another one, and would be stale; run {first}"
        f"{command(run, verb, given, out=elsewhere)}, which leaves {run.called} as it is"
    )


def _asked_for(part: Part, keys: list[str]) -> str | None:
    """The key, of those that are set for this command, that makes a stage stale."""
    return next((key for change in part.changes for key in keys if names_key(change.key, key)), None)


def _makes(verb: str, stage: str) -> bool:
    own = {"diagnose": ("diagnose",), "evaluate": ("evaluate", "ranker/report")}[verb] + ("reranking", "reward")
    return any(stage == name or stage.startswith(f"{name}/") for name in own)


def _changes(run: Run, key: str) -> bool:
    """Whether a key has another value in this command than in run.yaml."""
    if run.described is None:
        return True
    before, now = (_value(dump_config(config), key) for config in (run.described, run.config))
    return bool(before != now)


def _value(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
