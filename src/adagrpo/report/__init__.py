"""The report of a run: one offline HTML page, and its tables as Markdown or plain text."""

from adagrpo.report.charts import Point, Series, line_chart, scatter_chart, stacked_area_chart
from adagrpo.report.comparison import (
    comparison_figures,
    comparison_markdown,
    comparison_page,
    comparison_table,
    finding,
    summary_table,
)
from adagrpo.report.diagnosis import diagnosis_tables, write_diagnosis
from adagrpo.report.documents import figures_into, tables_into, with_tables
from adagrpo.report.page import build_report, write_figures, write_report
from adagrpo.report.quality import quality_figure, quality_table
from adagrpo.report.ranker import exposure_table
from adagrpo.report.results import ablation_table, arms_table, results_file_table, starting_table
from adagrpo.report.tables import Table, results_table, to_markdown, to_text
from adagrpo.report.verdict import arm_sentences, summary_sentences

__all__ = [
    "Point",
    "Series",
    "Table",
    "ablation_table",
    "arm_sentences",
    "arms_table",
    "build_report",
    "comparison_figures",
    "comparison_markdown",
    "comparison_page",
    "comparison_table",
    "diagnosis_tables",
    "exposure_table",
    "figures_into",
    "finding",
    "line_chart",
    "quality_figure",
    "quality_table",
    "results_file_table",
    "results_table",
    "scatter_chart",
    "stacked_area_chart",
    "starting_table",
    "summary_sentences",
    "summary_table",
    "tables_into",
    "to_markdown",
    "to_text",
    "with_tables",
    "write_diagnosis",
    "write_figures",
    "write_report",
]
