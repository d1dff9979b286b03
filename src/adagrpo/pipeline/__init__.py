"""A recipe, carried out: stages that are skipped when nothing they read has changed."""

from adagrpo.pipeline.catalog_update import update_catalog
from adagrpo.pipeline.checks import finished_arms
from adagrpo.pipeline.description import kept_settings, reset_settings
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
from adagrpo.pipeline.versions import CatalogVersion, catalog_diff, catalog_versions, evaluate_with, open_version

__all__ = [
    "CatalogVersion",
    "Console",
    "Operation",
    "Run",
    "Silent",
    "catalog_diff",
    "catalog_versions",
    "collect",
    "diagnose_reward",
    "evaluate",
    "evaluate_with",
    "export",
    "finished_arms",
    "fit_and_report",
    "fit_arm",
    "fit_ranker",
    "fit_sft",
    "kept_settings",
    "latest_exposures",
    "open_version",
    "prepare",
    "recommend_users",
    "report_ranker",
    "reset_settings",
    "run_all",
    "serve",
    "simulate_marketplace",
    "tokenize",
    "train",
    "update_catalog",
    "write_report",
]
