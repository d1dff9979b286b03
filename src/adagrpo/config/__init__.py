"""Configuration of a run, one module per section."""

from adagrpo.config.data import ItemTable
from adagrpo.config.evaluation import CompareConfig
from adagrpo.config.models import FitConfig
from adagrpo.config.objective import ObjectiveConfig
from adagrpo.config.recipe import Config, dump_config, load_config, resolve_config
from adagrpo.config.settings import Change, changed_settings, read_settings
from adagrpo.config.training import ArmConfig
from adagrpo.config.yaml_text import Settings, as_overrides

__all__ = [
    "ArmConfig",
    "Change",
    "CompareConfig",
    "Config",
    "FitConfig",
    "ItemTable",
    "ObjectiveConfig",
    "Settings",
    "as_overrides",
    "changed_settings",
    "dump_config",
    "load_config",
    "read_settings",
    "resolve_config",
]
