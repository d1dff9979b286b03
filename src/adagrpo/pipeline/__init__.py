"""Stages of a recipe, skipped while their inputs are unchanged."""

from adagrpo.console import Console, Silent
from adagrpo.pipeline.catalog_update import update_catalog
from adagrpo.pipeline.description import kept_settings, reset_settings
from adagrpo.pipeline.files import CatalogVersion
from adagrpo.pipeline.named_lists import ListOptions
from adagrpo.pipeline.recommend import recommend_users
from adagrpo.pipeline.results import Chart, Diagnosis, Recommended
from adagrpo.pipeline.run import Run
from adagrpo.pipeline.serve import Operation, serve
from adagrpo.pipeline.stages.prepare import latest_exposures
from adagrpo.pipeline.versions import catalog_diff, catalog_versions, evaluate_with, open_version

__all__ = [
    "CatalogVersion",
    "Chart",
    "Console",
    "Diagnosis",
    "ListOptions",
    "Operation",
    "Recommended",
    "Run",
    "Silent",
    "catalog_diff",
    "catalog_versions",
    "evaluate_with",
    "kept_settings",
    "latest_exposures",
    "open_version",
    "recommend_users",
    "reset_settings",
    "serve",
    "update_catalog",
]
