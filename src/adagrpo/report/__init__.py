"""Reports of runs and comparisons: one offline HTML page, with tables as Markdown or plain text."""

from adagrpo.report.comparison_page import (
    comparison_figures,
    comparison_markdown,
    comparison_page,
    comparison_table,
    finding,
    pairs_table,
    read_comparison,
    write_comparison,
    write_comparison_figures,
)
from adagrpo.report.diagnosis_page import diagnosis_tables, write_diagnosis
from adagrpo.report.experiment_page import (
    daily_table,
    effects_table,
    guardrails_table,
    preference_table,
    write_experiment,
)
from adagrpo.report.page import read_rows
from adagrpo.report.run_page import build_report, write_figures, write_report, write_users
from adagrpo.report.run_tables import catalog_table, dataset_table, exposure_table, fits_table
from adagrpo.report.summary import summary_sentences
from adagrpo.report.tables import Table, results_table, to_markdown, to_text

__all__ = [
    "Table",
    "build_report",
    "catalog_table",
    "comparison_figures",
    "comparison_markdown",
    "comparison_page",
    "comparison_table",
    "daily_table",
    "dataset_table",
    "diagnosis_tables",
    "effects_table",
    "exposure_table",
    "finding",
    "fits_table",
    "guardrails_table",
    "pairs_table",
    "preference_table",
    "read_comparison",
    "read_rows",
    "results_table",
    "summary_sentences",
    "to_markdown",
    "to_text",
    "write_comparison",
    "write_comparison_figures",
    "write_diagnosis",
    "write_experiment",
    "write_figures",
    "write_report",
    "write_users",
]
