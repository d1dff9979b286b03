"""Modules that commands use; see `adagrpo.cli.lazy`."""

import pydantic
import torch

from adagrpo import config, console, monitoring, networks, pipeline
from adagrpo.cli import tracking
from adagrpo.config import data, reward, rules, section, yaml_text
from adagrpo.data.logs import items, preview, question
from adagrpo.data.simulation import marketplace
from adagrpo.exposures import exposure_collect, user_hash
from adagrpo.lists import eligibility, exploration
from adagrpo.pipeline import (
    checks,
    compare,
    current_files,
    demo,
    directory,
    estimate,
    export,
    refresh,
    results,
    stage,
    staleness,
    status,
    suggest,
    watch,
)
from adagrpo.readers import cells, formats
from adagrpo.report import (
    comparison_page,
    decision,
    diagnosis_page,
    experiment_page,
    run_page,
    run_tables,
    strata_page,
    tables,
    training,
)
from adagrpo.rewards import model_files as rewards
from adagrpo.serving import options
from adagrpo.storage import artifacts, hashes, marks, writing
from adagrpo.trainer import processes
