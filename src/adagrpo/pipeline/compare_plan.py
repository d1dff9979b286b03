"""plan.json of a comparison, fixed before its first run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.config import CompareConfig, Config
from adagrpo.config.settings import changed_settings, read_settings
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_store import parts_of
from adagrpo.pipeline.directory import RunDirectory, by_label
from adagrpo.pipeline.json_files import json_lines, read_json
from adagrpo.storage.hashes import cached_hash, with_hash, without_hash
from adagrpo.storage.writing import write_file

REWARD_READS = ("reward", "ranker")


class FixedPlan(NamedTuple):
    """The content of plan.json, None where absent."""

    options: CompareConfig | None = None
    data: Mapping[str, str] | None = None  # hashes of the data and reward files, by label
    through: int | None = None  # number of the last part of the exposure log to read
    reward: Mapping[str, Any] | None = None  # settings of the reward

    @classmethod
    def read(cls, path: Path) -> FixedPlan:
        """Read an earlier plan, if any."""
        if not path.is_file():
            return cls()
        try:
            content = without_hash(read_json(path))
            data, through, reward = (content.pop(name, None) for name in ("data", "through", "reward"))
            return cls(CompareConfig.model_validate(content), data, through, reward)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: damaged; take another --out, or delete it if no result was looked at") from error

    def write(self, path: Path) -> None:
        """Write the plan, once for all processes."""
        assert self.options is not None
        others = {"data": self.data, "through": self.through, "reward": self.reward}
        content = self.options.model_dump(mode="json") | {k: value for k, value in others.items() if value is not None}
        write_file(path, json_lines(with_hash(content)), keep=True)

    def options_for(self, asked: CompareConfig, arms: Sequence[str], path: Path) -> CompareConfig:
        """Return the current options with the planned family."""
        before, family = self.options, asked.family
        if family is None:
            family = before.family if before else tuple(arm for arm in arms[1:] if arm != asked.baseline)
        options = asked.model_copy(update={"family": family})
        if before is not None and before != options:
            fields = type(options).model_fields
            field = next(name for name in fields if getattr(before, name) != getattr(options, name))
            raise UserError(
                f"{path}: fixed with compare.{field} {getattr(before, field)}, asked for {getattr(options, field)};"
                " a plan is not changed after its runs, take another --out"
            )
        for name in family or ():
            if name not in arms or name == asked.baseline:
                raise UserError(f"compare.family: '{name}' is not among the arms {', '.join(arms)} less the baseline")
        for first, second in options.pairs:
            for name in (first, second):
                if name not in arms:
                    raise UserError(f"compare.pairs: '{name}' is not among the arms {', '.join(arms)}")
            if first == second:
                raise UserError(f"compare.pairs: '{first}' is compared with itself")
        return options

    def check_reward(self, config: Config, path: Path) -> None:
        """Refuse a changed reward, which would retrain the arms."""
        if self.reward is None:
            return
        changes = changed_settings(config, self.reward, read_settings(config, REWARD_READS))
        if changes:
            key, before, now = changes[0]
            raise UserError(
                f"{path}: fixed with {key} {before}, asked for {now}; the arms of another reward go into a new folder,"
                " another --out"
            )

    def check_data(self, run: RunDirectory, files: Iterable[Path], path: Path) -> None:
        """Refuse changed data; missing files are not compared."""
        before = self.data or {}
        labelled = {label: file for label, file in by_label(run, files).items() if isinstance(file, Path)}
        changed = [
            f"{file}: {'changed after' if label in before else 'was not among the files when'}"
            for label, file in labelled.items()
            if file.is_file() and cached_hash(file) != before.get(label)
        ]
        changed += [f"{label}: was among the files when" for label in before if label not in labelled]
        if changed:
            raise UserError(f"{changed[0]} {path} was fixed; take a new folder for the changed files, another --out")

    def held_to_part(self, config: Config, data: Path, path: Path) -> Config:
        """Limit an exposure log to the planned last part."""
        options = config.data.exposures
        if options is None or self.through is None:
            return config
        numbers = [int(part.name) for part in parts_of(data / options.path, options.through)]
        if options.through is not None and numbers and numbers[-1] != self.through:
            raise UserError(
                f"data.exposures.through: asks for part {numbers[-1]}, {path} was fixed at part {self.through};"
                " take a new folder for another part of the log, another --out"
            )
        held = {"exposures": options.model_copy(update={"through": self.through})}
        return config.model_copy(update={"data": config.data.model_copy(update=held)})
