"""Recipes: immutable sections that reject unknown keys, read from YAML with `base:` and `--set a.b=c`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from adagrpo.config.data import DataConfig
from adagrpo.config.evaluation import CompareConfig, DecideConfig, EvaluationConfig
from adagrpo.config.models import FitConfig, PolicyConfig, RankerConfig, TokenizerConfig
from adagrpo.config.objective import ObjectiveConfig, in_sections
from adagrpo.config.reward import RewardOptions, SequentialOptions
from adagrpo.config.rules import RulesConfig
from adagrpo.config.section import Positive, Section, explain, read_mapping
from adagrpo.config.training import TrainConfig
from adagrpo.config.yaml_text import column_name, parse_yaml
from adagrpo.errors import UserError
from adagrpo.objective import GATES

COLUMNS = ("data.columns", "data.impressions.columns", "data.random.columns")  # whose values are names
DEFAULT_KIND = SequentialOptions().kind  # of a reward that does not say
MOST_BASES = 8  # of a recipe, its base, the base of that and so on


class Config(Section):
    """Configuration of a run."""

    not_of_the_result: ClassVar[frozenset[str]] = frozenset({"name", "threads", "compare"})

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_history: Annotated[int, Field(ge=2)] = 20
    threads: Positive | None = None
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    policy: PolicyConfig = PolicyConfig()
    sft: FitConfig = FitConfig(epochs=60, patience=3)
    ranker: RankerConfig = RankerConfig()
    reward: RewardOptions = SequentialOptions()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decide: DecideConfig = DecideConfig()
    rules: RulesConfig | None = None
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _sections_go_together(self) -> Self:
        data, ranker, kind = self.data, self.ranker, "data.split.kind impressions"
        if ranker.folds > 1 and self.reward != SequentialOptions():
            raise ValueError(
                "ranker.folds cross-fits the run's own sequential ranker alone; set it to 0 or drop reward"
            )
        if not self.without_order:
            return self
        least = max(data.min_user_interactions, data.min_item_interactions)
        for applies, message in (
            (
                data.split.users is not None,
                "data.split.users bounds the evaluated users of logs with an order; kind impressions has held_out",
            ),
            (data.marketplace is not None, f"{kind} is for logs without order; a marketplace has one"),
            (data.shuffle_ties or least > 1, f"{kind} takes neither shuffle_ties nor minimum interactions"),
            (
                data.keep_unseen_items,
                f"{kind} takes the items that were shown; keep_unseen_items has none to keep",
            ),
            (data.drop_duplicates, f"{kind} keeps each user and item once; drop_duplicates has nothing to drop"),
            (
                ranker.folds > 1,
                "ranker.folds is for post-training; impressions without order have none, set it to 0",
            ),
            (ranker.user_share < 1, "ranker.user_share is for logs with an order; set it to 1"),
            (self.reward.in_list_stds, "reward.weights are needed: a deviation within lists takes a policy"),
        ):
            if applies:
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _ends_have_no_logged_item(self) -> Self:
        for arm in self.train.arms:
            seen = arm.resolved_objective(self.objective)
            if arm.term is None or seen.rl_positions != "end":
                continue
            gate = GATES[str(arm.admits)]
            reads = [f"the gate '{gate.name}'"] if gate.reads_logged_item and not gate.shuffled else []
            reads += ["inject_target"] if seen.inject_target else []
            if reads:
                raise ValueError(f"train.arms: '{arm.name}': {reads[0]} reads logged items; rl_positions: end has none")
        return self

    def settings_of_arms(self) -> dict[str, dict[str, Any]]:
        """Return the full settings of each arm by name, presets expanded."""
        return {arm.name: arm.settings(self.objective) for arm in self.train.arms}

    @property
    def without_order(self) -> bool:
        """True for unordered impressions, which allow a ranker but no policy."""
        return self.data.split.kind == "impressions"


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, merge it over its `base`, a path relative to it, and apply overrides, `a.b=c` as for `--set`.

    Mappings merge, lists and scalars replace.

    Raises:
        UserError: the file is missing or not YAML, bases are cyclic or too many, a key is unknown or a value invalid.
    """
    return resolve_config(_with_base(path, ()), overrides, str(path))


def resolve_config(content: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Validate the content of a recipe, changed in place by overrides; UserError, of `source`, if it is invalid."""
    of_reward: set[str] = set()  # keys of the reward that an override has set
    _move_earlier_keys(content)
    for override in overrides:
        _apply(content, override, of_reward)
        _move_earlier_keys(content)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, Config)}") from error


def dump_config(config: Config) -> dict[str, Any]:
    """Return JSON-able values that `Config.model_validate` reads back; `rules` only where there are some."""
    content = config.model_dump(mode="json", by_alias=True)
    if config.rules is None:
        del content["rules"]  # a run without rules has the hash that it had before there were any
    else:
        content["rules"] = config.rules.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return content


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Merge a recipe over its base; `above` are the recipes that led here."""
    chain = (*above, path)
    if path.resolve() in [recipe.resolve() for recipe in above]:
        raise UserError(f"{above[-1]}: base comes back to itself: {' -> '.join(map(str, chain))}")
    if len(above) > MOST_BASES:
        raise UserError(f"{above[0]}: more than {MOST_BASES} recipes, each the base of another; let one inherit less")
    of_base = f" (base of {above[-1]})" if above else ""
    content = read_mapping(path, "recipe", of_base, "a mapping of sections")
    _move_earlier_keys(content)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: base is the path of one recipe, relative to this file (found {base!r})")
    inherited = _with_base(path.parent / base, chain)
    below, own = inherited.get("reward"), content.get("reward")
    if isinstance(below, dict) and isinstance(own, dict):
        kind = below.get("kind", DEFAULT_KIND)
        if own.get("kind", kind) != kind:
            del inherited["reward"]
    return dict(_merged(inherited, content))


def _merged(inherited: Any, own: Any) -> Any:
    if not isinstance(inherited, dict) or not isinstance(own, dict):
        return own
    return inherited | {key: _merged(inherited.get(key), value) for key, value in own.items()}


def _move_earlier_keys(content: dict[str, Any]) -> None:
    if isinstance(content.get("objective"), dict):
        content["objective"] = in_sections(content["objective"])


def _apply(content: dict[str, Any], override: str, of_reward: set[str]) -> None:
    """Set a dotted key; `of_reward` collects reward keys set so far."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write key=value, for example objective.lambda=0.5")
    try:
        value = column_name(text) if dotted.rpartition(".")[0] in COLUMNS else parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: '{text}' is not YAML") from error
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override}: '{key}' is not a section")
    if keys[0] == "reward":
        if keys[-1] == "kind" and content.get("kind", DEFAULT_KIND) != value:
            for key in content.keys() - of_reward:
                del content[key]  # the keys of one kind of reward mean nothing to another
        of_reward.update(keys[1:2] or (value if isinstance(value, dict) else ()))
    content[keys[-1]] = value
