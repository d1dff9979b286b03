"""Library names that commands use; see `adagrpo.cli.lazy`."""

import torch
from pydantic import ValidationError

from adagrpo.cli.planning import plan_text, print_plan, print_plan_of
from adagrpo.cli.tracking import TrackingConsole, parse_tracker
from adagrpo.config import Config, dump_config, load_config, resolve_config
from adagrpo.config.data import EVENT_KINDS, Columns
from adagrpo.config.reward import REWARD_KINDS
from adagrpo.config.yaml_text import column_name, dump_yaml, json_text, parse_yaml
from adagrpo.console import StderrConsole
from adagrpo.data.logs.formats import UNNAMED, columns_of, listed, one_line
from adagrpo.data.logs.items import read_items
from adagrpo.data.logs.lists import ONE_EACH
from adagrpo.data.logs.notes import unread_note
from adagrpo.data.logs.preview import ROWS, format_lines, preview_items, preview_logs, roles_of
from adagrpo.data.logs.question import order_notes, question_lines
from adagrpo.data.simulation.marketplace import Marketplace, simulate, write_simulation
from adagrpo.exposures.exposure_collect import collect_log
from adagrpo.exposures.user_hash import VARIABLE
from adagrpo.lists.eligibility import parse_filter
from adagrpo.lists.exploration import Exploration
from adagrpo.monitoring.signs import SignRule
from adagrpo.networks.layers import autocast_dtype
from adagrpo.pipeline import (
    Console,
    ListOptions,
    Operation,
    Run,
    Silent,
    catalog_diff,
    catalog_versions,
    evaluate_with,
    kept_settings,
    latest_exposures,
    open_version,
    recommend_users,
    reset_settings,
    serve,
    update_catalog,
)
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.current_files import CurrentFiles
from adagrpo.pipeline.demo import demo_runs, run_demo
from adagrpo.pipeline.directory import locked
from adagrpo.pipeline.dry_run import plan
from adagrpo.pipeline.estimate import estimate_policy
from adagrpo.pipeline.export import export
from adagrpo.pipeline.named_files import check_logs
from adagrpo.pipeline.outcomes import catalog_outcome, fit_outcome, trained_outcomes
from adagrpo.pipeline.stage import RUN
from adagrpo.pipeline.staleness import parts_of
from adagrpo.pipeline.status import status, status_tables
from adagrpo.pipeline.suggest import recipe_text, sizes_note
from adagrpo.pipeline.watch import watch
from adagrpo.report import (
    Table,
    catalog_table,
    comparison_table,
    daily_table,
    dataset_table,
    diagnosis_tables,
    effects_table,
    exposure_table,
    fits_table,
    guardrails_table,
    preference_table,
    read_comparison,
    results_table,
    to_text,
    write_comparison,
    write_comparison_figures,
    write_experiment,
    write_figures,
)
from adagrpo.report.decision import decision_table, decision_text
from adagrpo.report.reward_trial import contenders_table, trial_sentences
from adagrpo.report.tables import MISSING
from adagrpo.serving.limits import Limits
from adagrpo.storage.artifacts import check_replaceable, publish, seal
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.marks import check_kind, claim, is_marked, read_mark
from adagrpo.storage.writing import temporary, write_file
from adagrpo.trainer.processes import processes
