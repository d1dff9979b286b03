"""Table of stages, in execution order: a new one is a module of `adagrpo.pipeline.stages` and a row here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from adagrpo.config import Config
from adagrpo.config.reward import SequentialOptions
from adagrpo.lists.names import CONTROL, FUSE, FUSE_WITHOUT_REWARD, RERANK, REWARD, parse_list
from adagrpo.lists.table import BASELINES, FITTED, LISTED, SOURCES, baselines, fused, listed
from adagrpo.pipeline.list_makers import rewards_alone
from adagrpo.pipeline.list_rules import RULES
from adagrpo.pipeline.rewards import first_look
from adagrpo.pipeline.stage import MEASURES_REWARD, STRATA, Declare, Members, Stage, StageTable
from adagrpo.pipeline.stages.control import control
from adagrpo.pipeline.stages.diagnose import diagnosis
from adagrpo.pipeline.stages.evaluate import evaluate
from adagrpo.pipeline.stages.evaluate_list import evaluate_list
from adagrpo.pipeline.stages.fit_policy import sft, train_arm
from adagrpo.pipeline.stages.fit_ranker import lambdarank, ranker
from adagrpo.pipeline.stages.fitting import DECODING
from adagrpo.pipeline.stages.fuse import fit_sources, fuse
from adagrpo.pipeline.stages.impressions import fit_ranker, fit_trees, prepare_impressions, report_exposures
from adagrpo.pipeline.stages.prepare import exposures, prepare, simulated
from adagrpo.pipeline.stages.ranker_report import pair_outcomes, report_ranker
from adagrpo.pipeline.stages.reranking import re_rankings, reranking
from adagrpo.pipeline.stages.strata import strata
from adagrpo.pipeline.stages.tokenize import VECTORS, encode, reads_texts, tokenize, vectors


def _folds(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    count = config.ranker.folds
    return {f"ranker/fold-{fold}": partial(ranker, fold=fold) for fold in range(count if count > 1 else 0)}


def _arms(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"train/{arm.name}": partial(train_arm, arm=arm) for arm in config.train.arms if arm.name in arms}


def _evaluations(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    checkpoints = [(arm, kind) for arm in arms for kind in ("best", "final")]
    return {f"evaluate/{arm}/{kind}": partial(evaluate, arm=arm, checkpoint=kind) for arm, kind in checkpoints}


def _sources(of: Sequence[str]) -> Members:
    def members(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
        used = {source.stage for source in SOURCES.values() if source.when(config)}
        return {stage: partial(fit_sources, stage=stage) for stage in of if stage in used}

    return members


def _fused(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"fuse/{arm}": partial(fuse, arm=arm) for arm in ("sft", *arms)}


def _alone(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {f"evaluate/{name}": partial(evaluate_list, name=name) for name in baselines(config)}


def _listed(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    without = [] if config.reward == SequentialOptions() else [FUSE_WITHOUT_REWARD]
    names = [
        *([] if config.decide.control is None else [CONTROL]),
        *(name for name in listed(config) if name not in baselines(config)),
        *without,
        FUSE,
        *(f"{arm}+{FUSE}" for arm in arms),
        *rewards_alone(config.reward),
    ]
    return {f"evaluate/{name}": partial(evaluate_list, name=name) for name in names} | re_rankings(RERANK)


def _paired(config: Config, arms: Sequence[str]) -> dict[str, Declare]:
    return {"report/paired": partial(pair_outcomes, arms=arms)}


DATA = ("data", "seed")
RANKED = ("ranker", "seed", "max_history", "evaluation.exclude_history", "evaluation.batch_size", *VECTORS)
REWARDED = ("reward", "seed", "max_history")
TRAINED = ("train", "objective", "reward", *DECODING, "seed", "ranker.folds")
DIAGNOSED = (*DECODING, "decide", "ranker", "reward", "seed")
NO_ARM = "'{0}' is not among train.arms"
KEPT = tuple(stage for stage in FITTED if stage in {SOURCES[name].stage for name in BASELINES})
OTHERS = tuple(stage for stage in FITTED if stage not in KEPT)
NAMED = (
    CONTROL,
    *LISTED,
    REWARD,
    f"{REWARD}-*",
    RERANK,
    FUSE,
    FUSE_WITHOUT_REWARD,
    f"*+{FUSE}",
    f"*+{FUSE_WITHOUT_REWARD}",
)

STAGES = StageTable(
    (
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
            without_order=exposures,
            unused="the logs are no exposure log",
        ),
        Stage(
            "prepare",
            "prepare",
            DATA,
            prepare,
            without_order=prepare_impressions,
            evaluation_only=("test.parquet", "test_days.parquet", "later.parquet"),
            refit=True,
        ),
        Stage("encode", "tokenize", (), encode, reads_texts, also_by=("ranker",)),
        Stage("vectors", "tokenize", (*VECTORS, "seed"), vectors, refit=True, also_by=("ranker",)),
        Stage("tokenize", "tokenize", ("tokenizer", "seed"), tokenize),
        Stage("sft", "sft", ("sft", *DECODING, "seed", "train.rl_split"), sft, selects=True, refit=True),
        Stage("ranker", "ranker", RANKED, ranker, without_order=fit_ranker, selects=True, refit=True),
        Stage(
            "ranker/fold-*",
            "ranker",
            RANKED,
            members=_folds,
            unused="ranker.folds is {config.ranker.folds}",
            selects=True,
            refit=True,
        ),
        Stage(
            "ranker/lambdarank",
            "ranker",
            ("ranker", *REWARDED),
            lambdarank,
            lambda config: config.reward.holds("lambdarank"),
            without_order=fit_trees,
            unused="the reward has no such trees",
            selects=True,
            refit=True,
        ),
        Stage("ranker/exposures", "ranker", REWARDED, without_order=report_exposures, selects=True),
        Stage(
            "reward",
            "diagnose",
            REWARDED,
            first_look,
            lambda config: config.reward != SequentialOptions(),
            unused="the reward is the run's own",
            also_by=MEASURES_REWARD,
        ),
        Stage(
            "reranking", "diagnose", (*DECODING, "decide", "reward"), reranking, selects=True, also_by=MEASURES_REWARD
        ),
        Stage("|".join(KEPT), "evaluate", members=_sources(KEPT), refit=True),
        Stage("|".join(OTHERS), "decide", members=_sources(OTHERS), refit=True),
        Stage(
            CONTROL,
            "decide",
            ("decide", "data.columns"),
            control,
            lambda config: config.decide.control is not None,
            unused="decide.control names no file",
        ),
        Stage("fuse/*", "decide", (*DECODING, "decide", "reward", "seed"), members=_fused, unused=NO_ARM, selects=True),
        Stage("diagnose", "diagnose", DIAGNOSED, diagnosis, on_request=True),
        Stage("train/*", "train", TRAINED, members=_arms, unused=NO_ARM, selects=True, refit=True),
        Stage("strata", STRATA, (*DECODING, "objective", "reward", "seed"), strata, on_request=True),
        Stage("evaluate/sft", "evaluate", TRAINED, evaluate),
        Stage(f"evaluate/{'|'.join(BASELINES)}", "evaluate", DECODING, members=_alone),
        Stage("evaluate/*+rerank/best|final", "compare", unused=NO_ARM, on_request=True),
        Stage("evaluate/*/best|final", "evaluate", TRAINED, members=_evaluations, unused=NO_ARM),
        Stage(f"evaluate/{'|'.join(NAMED)}", "decide", (*DECODING, "decide", "reward"), members=_listed, unused=NO_ARM),
        Stage("rules/*", "decide", (*DECODING, "reward", RULES), on_request=True),
        Stage("report/paired", "evaluate", DECODING, members=_paired, page_only=True),
        Stage("ranker/report", "evaluate", (*DECODING, "reward", "seed"), report_ranker, page_only=True),
        Stage("catalogs/*", "catalog update", on_request=True),
    )
)


def list_stages(name: str, config: Config) -> dict[str, Declare]:
    """Return the stages that measure a combined list whose policy is evaluated; none for other lists."""
    called = parse_list(name)
    if called.order == RERANK:
        return re_rankings(name)
    if called.policy is None or called.order == "policy":
        return {}
    sources = dict.fromkeys(SOURCES[source].stage for source in fused(config) if SOURCES[source].fit is not None)
    stages: dict[str, Declare] = {str(stage): partial(fit_sources, stage=str(stage)) for stage in sources}
    stages[f"{FUSE}/{called.policy}"] = partial(fuse, arm=called.policy)
    return {**stages, f"evaluate/{name}": partial(evaluate_list, name=name)}
