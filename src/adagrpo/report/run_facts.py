"""Facts of a run: data set, code levels, stages and their durations, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.config.yaml_text import dump_yaml
from adagrpo.report.tables import MISSING, Table, format_number

LEVEL_COLUMNS = {
    "size": "codes",
    "codes_used": "used",
    "entropy_share": "entropy, share of the most",
    "prefixes": "prefixes",
}


def code_levels(catalog: Any) -> Table | None:
    """Tabulate the codes of each level; accepts both names of the list."""
    levels = (catalog.get("per_level") or catalog.get("level")) if isinstance(catalog, Mapping) else None
    if not levels:
        return None
    known = [key for key in LEVEL_COLUMNS if any(level.get(key) is not None for level in levels)]
    rows = tuple((str(i + 1), *(_fact(key, level.get(key)) for key in known)) for i, level in enumerate(levels))
    return Table.of(("level", *(LEVEL_COLUMNS[key] for key in known)), rows, 0)


def facts(values: Any) -> list[tuple[str, str]]:
    """Return the names and texts of the scalar values of a mapping."""
    if not isinstance(values, Mapping):
        return []
    plain = [(key, value) for key, value in values.items() if isinstance(value, str | int | float)]
    return [(str(key).replace("_", " "), _fact(str(key), value)) for key, value in plain]


def _fact(key: str, value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if key.endswith(("_rate", "_share")) else format_number(value)


def stage_table(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """Tabulate the duration of each stage's last run and its last event."""
    seconds: dict[str, float] = {}
    last: dict[str, str] = {}
    for event in events:
        stage = str(event.get("stage", MISSING))
        last[stage] = str(event.get("event", MISSING))
        if last[stage] == "end" and isinstance(event.get("seconds"), int | float):
            seconds[stage] = event["seconds"]
    rows = [(stage, _duration(seconds.get(stage)), what) for stage, what in last.items()]
    if not rows:
        return None
    total = ("all", _duration(sum(seconds.values())), "")
    return Table.of(("stage", "duration", "last event"), (*rows, total), 1, 1)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def as_yaml(value: Any) -> str:
    """Format a part of run.yaml; empty if there is none."""
    return dump_yaml(value, allow_unicode=True) if value else ""
