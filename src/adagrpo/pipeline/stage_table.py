"""Table of stages, in execution order.

A row is one stage, or stages that differ only in arm, fold or checkpoint. To add a stage, add a module to
`adagrpo.pipeline.stages` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from adagrpo.config import Config
from adagrpo.config.reward import SequentialOptions
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD, RERANK, REWARD
from adagrpo.lists.table import BASELINES, FITTED, LISTED, SOURCES, baselines, listed
from adagrpo.pipeline.directory import Declare
from adagrpo.pipeline.list_makers import rewards_alone
from adagrpo.pipeline.rewards import first_look
from adagrpo.pipeline.stages.choose_weight import reranking
from adagrpo.pipeline.stages.diagnose import diagnosis
from adagrpo.pipeline.stages.evaluate import evaluate_arm, evaluate_start
from adagrpo.pipeline.stages.evaluate_list import evaluate_list
from adagrpo.pipeline.stages.exposure_report import report_exposures
from adagrpo.pipeline.stages.fit_lambdarank import lambdarank
from adagrpo.pipeline.stages.fit_ranker import ranker
from adagrpo.pipeline.stages.fitting import DECODING
from adagrpo.pipeline.stages.fuse import fit_sources, fuse
from adagrpo.pipeline.stages.impressions import fit_ranker, fit_trees, prepare_impressions
from adagrpo.pipeline.stages.paired_outcomes import pair_outcomes
from adagrpo.pipeline.stages.post_train import train_arm
from adagrpo.pipeline.stages.prepare import exposures, prepare, simulated
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.stages.rerank_arms import re_rankings
from adagrpo.pipeline.stages.sft import sft
from adagrpo.pipeline.stages.tokenize import VECTORS, encode, reads_texts, tokenize

RUN = ("prepare", "tokenize", "sft", "ranker", "train", "evaluate")  # commands of `adagrpo run`
MEASURES_REWARD = ("diagnose", "train", "evaluate", "decide")
# stages of a row that a recipe needs, by name
Members = Callable[[Config, Sequence[str]], Mapping[str, Declare]]


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        name: folder of the stage; `*` matches any name, `a|b` either.
        command: `adagrpo <command>` makes it.
        settings: recipe keys that its `Declaration` may read, and `--set` accepts.
        declare: its declaration; None if that depends on more than the recipe.
        when: whether a recipe needs it.
        members: instead of `declare` and `when`: stages of a row with several, by name.
        unused: why a recipe does not need it; `{0}` is the match of `*`.
        selects: chooses a checkpoint or weight on validation cases.
        evaluation_only: prefixes of files that no fit reads, which may be stored elsewhere.
        on_request: not made by `adagrpo run`.
        shared: made by whichever of `diagnose`, `train`, `evaluate` and `decide` comes first.
        page_only: shown in report.html, absent from metrics.json.
    """

    name: str
    command: str
    settings: tuple[str, ...] = ()
    declare: Declare | None = None
    when: Callable[[Config], bool] = lambda config: True
    members: Members | None = None
    unused: str = ""
    selects: bool = False
    evaluation_only: tuple[str, ...] = ()
    on_request: bool = False
    shared: bool = False
    page_only: bool = False

    def asked_for(self, config: Config, arms: Sequence[str]) -> Mapping[str, Declare]:
        """Return the declarations of the stages that a recipe needs, by name."""
        if self.members is not None:
            return self.members(config, arms)
        return {self.name: self.declare} if self.declare is not None and self.when(config) else {}

    def made_by(self, command: str) -> bool:
        """Return whether a command makes this row's stages."""
        return command == self.command or (self.shared and command in MEASURES_REWARD)

    def matches(self, name: str) -> bool:
        """Return whether a stage name belongs to this row."""
        ours, theirs = self.name.split("/"), name.split("/")
        return len(ours) == len(theirs) and all(
            any(fnmatchcase(part, option) for option in pattern.split("|"))
            for pattern, part in zip(ours, theirs, strict=True)
        )

    def why_unused(self, name: str, config: Config) -> str:
        """Return why a recipe does not need a stage; empty if it does, or unknown."""
        arms = [arm.name for arm in config.train.arms]
        if name in self.asked_for(config, arms):
            return ""
        star = next((part for mine, part in zip(self.name.split("/"), name.split("/"), strict=True) if "*" in mine), "")
        arm = star.removesuffix("+rerank")
        return "" if self.on_request and arm in arms else self.unused.format(arm, config=config)


def _ordered(config: Config) -> bool:
    return not config.without_order


def _by_order(ordered: Declare, without_order: Declare) -> Declare:
    return lambda run: (without_order if run.config.without_order else ordered)(run)


def _folds(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    count = config.ranker.folds if _ordered(config) and config.ranker.folds > 1 else 0
    return {f"ranker/fold-{fold}": partial(ranker, fold=fold) for fold in range(count)}


def _arms(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    trained = [arm for arm in config.train.arms if arm.name in arms and _ordered(config)]
    return {f"train/{arm.name}": partial(train_arm, arm=arm) for arm in trained}


def _evaluations(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    checkpoints = [(arm, kind) for arm in arms for kind in ("best", "final") if _ordered(config)]
    return {f"evaluate/{arm}/{kind}": partial(evaluate_arm, arm=arm, checkpoint=kind) for arm, kind in checkpoints}


def _sources(of: Sequence[str]) -> Members:
    def members(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
        used = {source.stage for source in SOURCES.values() if source.when(config)}
        return {stage: partial(fit_sources, stage=stage) for stage in of if stage in used and _ordered(config)}

    return members


def _fused(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"fuse/{arm}": partial(fuse, arm=arm) for arm in ("sft", *arms) if _ordered(config)}


def _alone(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"evaluate/{name}": partial(evaluate_list, name=name) for name in baselines(config) if _ordered(config)}


def _listed(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    """Return the lists evaluated as served."""
    if config.without_order:
        return {}
    without = [] if config.reward == SequentialOptions() else [FUSE_WITHOUT_REWARD]
    names = [
        *(name for name in listed(config) if name not in baselines(config)),
        *without,
        FUSE,
        *(f"{arm}+{FUSE}" for arm in arms),
        *rewards_alone(config.reward),
    ]
    return {f"evaluate/{name}": partial(evaluate_list, name=name) for name in names} | re_rankings(RERANK)


def _paired(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {"report/paired": partial(pair_outcomes, arms=arms)} if _ordered(config) else {}


DATA = ("data", "seed")
RANKED = ("ranker", "seed", "max_history", "evaluation.exclude_history", "evaluation.batch_size", *VECTORS)
REWARDED = ("reward", "seed", "max_history")
TRAINED = ("train", "objective", "reward", *DECODING, "seed", "ranker.folds")
DIAGNOSED = (*DECODING, "decide", "ranker", "reward", "seed")
NO_ARM = "'{0}' is not among train.arms"
KEPT = tuple(stage for stage in FITTED if stage in {SOURCES[name].stage for name in BASELINES})
OTHERS = tuple(stage for stage in FITTED if stage not in KEPT)
NAMED = (*LISTED, REWARD, f"{REWARD}-*", RERANK, FUSE, FUSE_WITHOUT_REWARD, f"*+{FUSE}", f"*+{FUSE_WITHOUT_REWARD}")

STAGES: tuple[Stage, ...] = (
    Stage(
        "simulate",
        "prepare",
        DATA,
        simulated,
        lambda config: config.data.marketplace is not None,
        evaluation_only=("truth/",),
    ),
    Stage(
        "exposures",
        "prepare",
        DATA,
        exposures,
        lambda config: config.data.exposures is not None,
        unused="the logs are no exposure log",
    ),
    Stage(
        "prepare",
        "prepare",
        DATA,
        _by_order(prepare, prepare_impressions),
        evaluation_only=("test.parquet", "later.parquet"),
    ),
    Stage("encode", "tokenize", (), encode, lambda config: _ordered(config) and reads_texts(config)),
    Stage("tokenize", "tokenize", ("tokenizer", "seed"), tokenize, _ordered),
    Stage("sft", "sft", ("sft", *DECODING, "seed", "train.rl_split", *VECTORS), sft, _ordered, selects=True),
    Stage("ranker", "ranker", RANKED, _by_order(ranker, fit_ranker), selects=True),
    Stage(
        "ranker/fold-*", "ranker", RANKED, members=_folds, unused="ranker.folds is {config.ranker.folds}", selects=True
    ),
    Stage(
        "ranker/lambdarank",
        "ranker",
        ("ranker", *REWARDED),
        _by_order(lambdarank, fit_trees),
        lambda config: config.reward.holds("lambdarank"),
        unused="the reward has no such trees",
        selects=True,
    ),
    Stage("ranker/exposures", "ranker", REWARDED, report_exposures, lambda config: config.without_order, selects=True),
    Stage(
        "reward",
        "diagnose",
        REWARDED,
        first_look,
        lambda config: _ordered(config) and config.reward != SequentialOptions(),
        unused="the reward is the run's own",
        shared=True,
    ),
    Stage("reranking", "diagnose", (*DECODING, "decide", "reward"), reranking, _ordered, selects=True, shared=True),
    Stage("|".join(KEPT), "evaluate", members=_sources(KEPT)),
    Stage("|".join(OTHERS), "decide", members=_sources(OTHERS)),
    Stage("fuse/*", "decide", (*DECODING, "decide", "reward", "seed"), members=_fused, unused=NO_ARM, selects=True),
    Stage("diagnose", "diagnose", DIAGNOSED, diagnosis, _ordered, on_request=True),
    Stage("train/*", "train", TRAINED, members=_arms, unused=NO_ARM, selects=True),
    Stage("evaluate/sft", "evaluate", TRAINED, evaluate_start, _ordered),
    Stage(f"evaluate/{'|'.join(BASELINES)}", "evaluate", DECODING, members=_alone),
    Stage("evaluate/*+rerank/best|final", "compare", unused=NO_ARM, on_request=True),
    Stage("evaluate/*/best|final", "evaluate", TRAINED, members=_evaluations, unused=NO_ARM),
    Stage(f"evaluate/{'|'.join(NAMED)}", "decide", (*DECODING, "decide", "reward"), members=_listed, unused=NO_ARM),
    Stage("report/paired", "evaluate", DECODING, members=_paired, page_only=True),
    Stage("ranker/report", "evaluate", (*DECODING, "reward", "seed"), report_ranker, _ordered, page_only=True),
    Stage("catalogs/*", "catalog update", on_request=True),
)


def commands_of_stages() -> tuple[str, ...]:
    """Return the commands that read a recipe."""
    return tuple(dict.fromkeys(row.command for row in STAGES if row.settings))


def declared(
    config: Config, commands: Collection[str] | None = None, arms: Sequence[str] | None = None
) -> dict[str, Declare]:
    """Return a recipe's declarations by name, in execution order.

    Args:
        commands: None: `RUN`.
        arms: arms to evaluate; None: all.
    """
    commands = RUN if commands is None else commands
    names = [arm.name for arm in config.train.arms] if arms is None else list(arms)
    rows = [row for row in STAGES if any(map(row.made_by, commands))]
    return {name: declare for row in rows for name, declare in row.asked_for(config, names).items()}


def row_of(name: str) -> Stage | None:
    """Return the row of a stage; None for an unknown name."""
    return next((row for row in STAGES if row.matches(name)), None)


def names_key(key: str, other: str) -> bool:
    """Return whether one of two dotted keys equals or contains the other.

    >>> names_key("train", "train.arms"), names_key("train.arms", "train"), names_key("train.fit", "train.arms")
    (True, True, False)
    """
    one, two = (name.replace("lambda_", "lambda").split(".") for name in (key, other))
    return one[: len(two)] == two[: len(one)]


def reads_key(command: str, key: str) -> bool:
    """Return whether a command reads a key or anything below it."""
    return any(names_key(key, read) for row in STAGES if row.made_by(command) for read in row.settings)


def readers(key: str) -> list[str]:
    """Return the commands that read a key."""
    return [command for command in commands_of_stages() if reads_key(command, key)]
