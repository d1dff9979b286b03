"""The table of stages: what each is called, which command makes it, what it is made from, and how.

A row is a stage, or the stages that differ in an arm, a fold or a checkpoint alone. Rows stand in the order of the
work. `adagrpo run` makes what the rows of `RUN` ask for, one after the other; a command makes the rows of its name;
status, dry runs and refusals ask the same rows (`adagrpo.pipeline.staleness`). A new stage is a module in
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
from adagrpo.lists.table import BASELINES, FITTED, LISTED, SOURCES
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

RUN = ("prepare", "tokenize", "sft", "ranker", "train", "evaluate")  # the commands that `adagrpo run` stands for
MEASURES_REWARD = ("diagnose", "train", "evaluate", "decide")
# the stages of a row that a recipe asks for, by name, for some of its arms
Members = Callable[[Config, Sequence[str]], Mapping[str, Declare]]


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        name: the folder of the stage; `*` is any one name, `a|b` one of two.
        command: `adagrpo <command>` makes it.
        settings: keys and sections of the recipe that its `Declaration` may read: what `--set` of the command takes.
        declare: what it is made from and how it is built; None where that depends on more than the recipe.
        when: the recipes that ask for it.
        members: in place of these two, the stages of a row that has several, by name.
        unused: why a recipe does not ask for a stage that is there; `{0}` is what `*` stands for.
        selects: it chooses a checkpoint or a weight on validation cases, as `evaluation` measures them.
        evaluation_only: the beginnings of files that may be kept elsewhere: nothing that is fitted reads them.
        on_request: `adagrpo run` does not make it.
        shared: it is read by `diagnose`, `train`, `evaluate` and `decide`, and made by whichever of them comes first.
        page_only: report.html shows it, and metrics.json holds nothing of it.
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
        """Return the stages of this row that a recipe asks for, by name, and what declares each."""
        if self.members is not None:
            return self.members(config, arms)
        return {self.name: self.declare} if self.declare is not None and self.when(config) else {}

    def made_by(self, command: str) -> bool:
        """Return whether a command makes the stages of this row where that is needed."""
        return command == self.command or (self.shared and command in MEASURES_REWARD)

    def matches(self, name: str) -> bool:
        """Return whether a stage of this name is of this row."""
        ours, theirs = self.name.split("/"), name.split("/")
        return len(ours) == len(theirs) and all(
            any(fnmatchcase(part, option) for option in pattern.split("|"))
            for pattern, part in zip(ours, theirs, strict=True)
        )

    def why_unused(self, name: str, config: Config) -> str:
        """Say why a recipe does not ask for a stage of this row; empty where it does, or where that is not known."""
        arms = [arm.name for arm in config.train.arms]
        if name in self.asked_for(config, arms):
            return ""
        star = next((part for mine, part in zip(self.name.split("/"), name.split("/"), strict=True) if "*" in mine), "")
        arm = star.removesuffix("+rerank")
        return "" if self.on_request and arm in arms else self.unused.format(arm, config=config)


def _ordered(config: Config) -> bool:
    return not config.without_order


def _by_order(ordered: Declare, without_order: Declare) -> Declare:
    """The declaration of a stage that is another one where the logs have no order."""
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
    """The stages of sources that are fitted."""
    return lambda config, arms: {stage: partial(fit_sources, stage=stage) for stage in of if _ordered(config)}


def _fused(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"fuse/{arm}": partial(fuse, arm=arm) for arm in ("sft", *arms) if _ordered(config)}


def _alone(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"evaluate/{name}": partial(evaluate_list, name=name) for name in BASELINES if _ordered(config)}


def _listed(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    """The lists that are measured as they are served; of a reward that is the ranker of the run there is one less."""
    if config.without_order:
        return {}
    without = [] if config.reward == SequentialOptions() else [FUSE_WITHOUT_REWARD]
    names = [
        *(name for name in LISTED if name not in BASELINES),
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
    """Return the commands that read a recipe, in the order of the work."""
    return tuple(dict.fromkeys(row.command for row in STAGES if row.settings))


def declared(
    config: Config, commands: Collection[str] | None = None, arms: Sequence[str] | None = None
) -> dict[str, Declare]:
    """The stages that a recipe asks for, by name and in the order of the work, and what declares each.

    Args:
        commands: those that make the stages; None: `RUN`.
        arms: that are evaluated; None: all of the recipe.
    """
    commands = RUN if commands is None else commands
    names = [arm.name for arm in config.train.arms] if arms is None else list(arms)
    rows = [row for row in STAGES if any(map(row.made_by, commands))]
    return {name: declare for row in rows for name, declare in row.asked_for(config, names).items()}


def row_of(name: str) -> Stage | None:
    """The row of a stage; None where no version of this program that is known made one of this name."""
    return next((row for row in STAGES if row.matches(name)), None)


def names_key(key: str, other: str) -> bool:
    """Return whether one of two dotted keys is the other or a section above it.

    >>> names_key("train", "train.arms"), names_key("train.arms", "train"), names_key("train.fit", "train.arms")
    (True, True, False)
    """
    one, two = (name.replace("lambda_", "lambda").split(".") for name in (key, other))
    return one[: len(two)] == two[: len(one)]


def reads_key(command: str, key: str) -> bool:
    """Return whether a command reads a key of the configuration, or something below it."""
    return any(names_key(key, read) for row in STAGES if row.made_by(command) for read in row.settings)


def readers(key: str) -> list[str]:
    """The commands that read a key, in the order of the work."""
    return [command for command in commands_of_stages() if reads_key(command, key)]
