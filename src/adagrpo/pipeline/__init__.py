"""A recipe, carried out: stages that are skipped when nothing they read has changed."""

from adagrpo.pipeline.checks import finished_arms
from adagrpo.pipeline.description import kept_settings
from adagrpo.pipeline.run import Console, Run, Silent
from adagrpo.pipeline.serve import Operation
from adagrpo.pipeline.served_log import latest_exposures
from adagrpo.pipeline.stages.prepare import simulate_marketplace
from adagrpo.pipeline.stages.ranker_report import report_ranker
from adagrpo.pipeline.verbs import (
    collect,
    diagnose_reward,
    evaluate,
    export,
    fit_and_report,
    fit_arm,
    fit_ranker,
    fit_sft,
    prepare,
    recommend_users,
    run_all,
    serve,
    tokenize,
    train,
    write_report,
)

__all__ = [
    "Console",
    "Operation",
    "Run",
    "Silent",
    "collect",
    "diagnose_reward",
    "evaluate",
    "export",
    "finished_arms",
    "fit_and_report",
    "fit_arm",
    "fit_ranker",
    "fit_sft",
    "kept_settings",
    "latest_exposures",
    "prepare",
    "recommend_users",
    "report_ranker",
    "run_all",
    "serve",
    "simulate_marketplace",
    "tokenize",
    "train",
    "write_report",
]
