"""Data: logs to numbered interactions, splits that do not leak, the prepared files of a run, padded batches."""

from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.logs.interactions import Columns, Logs, Refusals, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.data.prepared import (
    load_cases,
    load_impressions,
    load_item_ids,
    load_items,
    load_training,
    load_user_ids,
    write_prepared,
)
from adagrpo.data.splits import Split, leave_one_out, temporal

__all__ = [
    "Columns",
    "Dataset",
    "Logs",
    "Refusals",
    "Split",
    "build_dataset",
    "leave_one_out",
    "load_cases",
    "load_impressions",
    "load_item_ids",
    "load_items",
    "load_training",
    "load_user_ids",
    "read_items",
    "read_logs",
    "temporal",
    "write_prepared",
]
