"""The stage `report/paired`: each evaluated checkpoint against sft and continued NLL on test cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adagrpo.data.prepared import load_user_ids
from adagrpo.evaluation.comparison import START, Measured, paired_outcomes, per_user
from adagrpo.evaluation.predictions import ranks_in
from adagrpo.metrics import RankedLists, measured
from adagrpo.pipeline.directory import RunDirectory, hash_of
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.evaluate import read_lists, read_valid

FILES = ("predictions.parquet", "free.parquet", "metrics.json")


def pair_outcomes(run: RunDirectory, arms: Sequence[str]) -> Declaration:
    """Declare the comparison of the arms by user."""
    data = RunData(run, CatalogVersion(run, run.catalog))
    points: dict[tuple[str, str], tuple[str, ...]] = {(START, "start"): (START,)}
    points |= {(arm, kind): (arm, kind) for arm in arms for kind in ("best", "final")}

    def build(work: Path) -> None:
        users = {point: read_measured(data, run.path("evaluate", *parts)).users for point, parts in points.items()}
        write_json(work / "paired.json", paired_outcomes(users), allow_nan=False)

    reads = [*data.training_files, "prepare:test.parquet"]
    reads += [f"evaluate/{'/'.join(parts)}:{name}" for parts in points.values() for name in FILES]
    return Declaration(
        build,
        reads=[*reads, *data.truth_files],
        files=("paired.json",),
        settings=("evaluation.beam_width",),
        also={"metrics": measured(run.config.data.split.baskets), "arms": list(arms)} | data.truth_read,
    )


def read_measured(data: RunData, folder: Path) -> Measured:
    """Read per-user results; UserError if a file is missing or changed."""
    cases = data.measured_cases("test")
    for name in FILES:
        hash_of(data.run, folder / name)
    width = data.config.evaluation.beam_width
    items = read_lists(data, cases, folder, width)
    lists = RankedLists(
        ranks_in(items, cases),
        width,
        items=items,
        valid=read_valid(data, cases, folder, width),
        tail=data.tail,
        utility=data.utility_at(cases),
        sizes=cases.sizes,
    )
    users = per_user(load_user_ids(data.prepared).gather(cases.users), lists)
    values = read_json(folder / "metrics.json")
    return Measured(users, values["test"], values["validation"])
