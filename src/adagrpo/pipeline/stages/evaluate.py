"""The last stages: evaluate checkpoints and collect results."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM_ID, USER_ID
from adagrpo.data.prepared import load_user_ids
from adagrpo.evaluation.predictions import Predictions, reordered, retrieval, summarise
from adagrpo.lists.table import baselines
from adagrpo.metrics import measured
from adagrpo.objective import GroupSummary
from adagrpo.pipeline.compare_arms import weight_used
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import (
    RunDirectory,
    events_of,
    find_content,
    hash_of,
    made_from,
    model_of,
    path_of,
    roots,
    weights_of,
)
from adagrpo.pipeline.factories import REWARD_WEIGHTS, Models, read_reward_weights
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import json_lines, read_rows, write_json
from adagrpo.pipeline.outputs import write_output
from adagrpo.pipeline.rewards import describe_reward
from adagrpo.pipeline.stage import Declaration, MadeFrom
from adagrpo.pipeline.stages.fitting import DECODING, progress
from adagrpo.storage.artifacts import manifest, verify
from adagrpo.storage.writing import MANIFEST
from adagrpo.trainer.pressure import mean_pressure
from adagrpo.types import Cases

EVALUATED = ("metrics.json", "predictions.parquet", "free.parquet")


def evaluate(run: RunDirectory, arm: str = "sft", checkpoint: str = "best") -> Declaration:
    """Declare the evaluation of a policy; of the starting one, also re-ranked."""
    data, reranked = RunData(run, CatalogVersion(run, run.catalog)), arm == "sft"
    models = Models(data)
    label = "evaluate/sft" if reranked else f"evaluate/{arm}/{checkpoint}"
    reads = [*data.training_files, "prepare:test.parquet", *data.catalog_files, model_of(arm, checkpoint)]
    reads += [*models.reward_files, *([REWARD_WEIGHTS] if reranked else [])]

    def build(work: Path) -> None:
        if copy_equal(run, declared, work):
            return
        policy, reward = models.policy(run.path(*weights_of(arm, checkpoint))), models.reward()
        values: dict[str, Any] = {}
        for split in ("validation", "test"):
            cases = data.measured_cases(split)
            report = progress(run, f"{label} {split}")
            predictions = models.predict(policy, cases, reward, report, eligible=data.eligible)
            utility = data.utility_at(cases) if split == "test" else None  # no choice may depend on it
            values[split] = summarise(predictions, cases, tail=data.tail, utility=utility)
            if reranked:
                chosen = read_reward_weights(path_of(run, REWARD_WEIGHTS))
                values[f"rerank_{split}"] = {
                    name: retrieval(reordered(predictions, weight, chosen.within_list_std).items, cases)
                    for name, weight in (("reward", np.inf), ("mix", chosen.rerank))
                }
        write_predictions(data, cases, predictions, work)
        values |= data.measured()
        write_json(work / "metrics.json", values)

    declared = Declaration(
        build,
        reads=[*reads, *data.truth_files],
        files=EVALUATED,
        settings=(*DECODING, *models.reward_reads),
        also={"metrics": measured(run.config.data.split.baskets)} | data.truth_read | data.validation_draw,
        version=3,
    )
    return declared


def copy_equal(run: RunDirectory, declared: Declaration, work: Path, kind: str = "evaluate") -> bool:
    """Copy a stage of equal weights and settings; return whether there is one."""
    now = made_from(run, declared)
    for root in reversed(roots(run)):
        for folder in sorted(path.parent for path in root.glob(f"{kind}/**/{MANIFEST}")):
            content = manifest(folder) or {}
            before = MadeFrom.of(content, run.stages)
            if before is None or Counter(now.hashes.values()) - Counter(before.hashes.values()):
                continue
            if before[:3] == now[:3]:  # version, settings, also
                verify(folder)
                for name in content["files"]:
                    shutil.copyfile(folder / name, work / name)
                return True
    return False


def write_lists(
    data: RunData,
    cases: Cases,
    items: NDArray[np.int64],  # (N, W)
    scores: NDArray[np.float32],  # (N, W)
    work: Path,
) -> None:
    """Write lists in log ids to `predictions.parquet`."""
    count, width = items.shape
    flat = items.reshape(-1)
    table = pl.DataFrame(
        {
            USER_ID: _repeated(data, cases, width),
            "rank": np.tile(np.arange(1, width + 1, dtype=np.int32), count),
            ITEM_ID: data.item_ids.gather(np.maximum(flat, 0)),
            "score": scores.reshape(-1),
        }
    )
    table.filter(flat >= 0).write_parquet(work / "predictions.parquet")


def write_predictions(data: RunData, cases: Cases, predictions: Predictions, work: Path) -> None:
    """Write constrained lists to `predictions.parquet` and free ones to `free.parquet`, in log ids."""
    write_lists(data, cases, predictions.items, predictions.scores, work)
    count, width = predictions.items.shape
    ranks = np.tile(np.arange(1, width + 1, dtype=np.int32), count)
    codes = pl.Series(predictions.free_codes.reshape(count * width, -1).astype(np.int32))
    columns = {USER_ID: _repeated(data, cases, width), "rank": ranks, "codes": codes}
    free = pl.DataFrame(columns | {"valid": predictions.free_valid.reshape(-1)})
    free.with_columns(pl.col("codes").cast(pl.List(pl.Int32))).write_parquet(work / "free.parquet")


def _repeated(data: RunData, cases: Cases, width: int) -> pl.Series:
    """(N · W,) user ids, one per rank."""
    users = load_user_ids(data.prepared).gather(cases.users)
    return users.gather(np.repeat(np.arange(len(cases)), width)).alias(USER_ID)


def read_lists(data: RunData, cases: Cases, folder: Path, length: int) -> NDArray[np.int64]:
    """Return (N, length) item rows of `predictions.parquet`, -1 where a list is shorter."""
    lists = by_case(data, cases, folder / "predictions.parquet", ITEM_ID, length)
    lists = lists.join(pl.DataFrame([data.item_ids.alias(ITEM_ID)]).with_row_index("row"), on=ITEM_ID, how="inner")
    items = np.full((len(cases), length), -1, dtype=np.int64)
    items[lists["case"].to_numpy(), lists["rank"].to_numpy() - 1] = lists["row"].to_numpy()
    return items


def by_case(data: RunData, cases: Cases, file: Path, column: str, length: int) -> pl.DataFrame:
    """Return a column of lists, up to a length, by `case` and `rank`, from 1."""
    lists = pl.read_parquet(file, columns=[USER_ID, "rank", column]).filter(pl.col("rank") <= length)
    users = load_user_ids(data.prepared).gather(cases.users).alias(USER_ID)
    return lists.join(pl.DataFrame([users]).with_row_index("case"), on=USER_ID, how="inner")


def collect(run: RunDirectory, arms: list[str], left_out: Mapping[str, str]) -> None:
    """Write metrics.json, without times and paths: equal runs give equal bytes; and results.jsonl, with them."""
    sft = run.content("evaluate", "sft", "metrics.json")
    weights = run.content("reranking", "weight.json")
    stages: dict[str, Any] = {"sft": {split: sft[split] for split in ("validation", "test")}}
    for name in arms:
        arm = next(arm for arm in run.config.train.arms if arm.name == name)
        steps = read_rows(run.checked("train", name, "steps.jsonl"))
        groups = [GroupSummary.of_row(row) for row in steps]
        admitted = [group.admission for group in groups if group.admission is not None]
        entry: dict[str, Any] = {
            "objective": arm.objective,
            "gate": arm.admits,
            "lambda": weight_used(run, arm),
            "admission": float(np.mean(admitted)) if admitted else None,  # None where no group was drawn
            "pressure": mean_pressure(steps),
        }
        counts: Counter[str] = Counter()
        for row, group in zip(steps, groups, strict=True):
            found = {"empty_groups": group.empty_groups, "skipped": row.get("skipped")}
            counts.update({event: int(count) for event, count in found.items() if count is not None})
        lost = find_content(run, "train", name, "lost.json")
        entry |= ({"events": dict(counts)} if counts else {}) | ({} if lost is None else {"lost": lost})
        if arm.left_to_validation(run.config.objective) is not None:
            entry["weight"] = weights["distill"]
        if arm.options.model_fields_set:
            entry["options"] = arm.model_dump(mode="json")["options"]
        for kind in ("best", "final"):
            results = run.content("evaluate", name, kind, "metrics.json")
            step = run.content("train", name, kind, "checkpoint.json")["step"]
            entry[kind] = {"step": step} | {split: results[split] for split in ("validation", "test")}
        stages[name] = entry
    summary = run.content("prepare", "summary.json")
    summary.pop("understood", None)  # about the files, no result depends on it
    ranker = run.content("ranker", "metrics.json")
    ranker["rerank"] = {split: sft[f"rerank_{split}"] for split in ("validation", "test")}
    ranker["reranking"] = {"weight": weights["rerank"]} | {name: weights[name] for name in ("spread", "warning")}
    alone = {name: run.content("evaluate", name, "metrics.json") for name in baselines(run.config)}
    content = {
        "name": run.config.name,
        "config_hash": config_hash(run.config),
        "dataset": summary,
        "catalog": run.content("tokenize", "audit.json"),
        "ranker": ranker,
        "reward": describe_reward(Models(RunData(run))),
        "baselines": alone,
        "stages": stages,
    }
    content |= {name: sft[name] for name in ("eligible", "validation_sample") if name in sft}
    content |= {"left_out": dict(left_out)} if left_out else {}
    write_output(run, "metrics.json", json_lines(content))
    rows = []
    common = {
        "dataset": run.config.name,
        "seed": run.config.seed,
        "recipe": run.config.name,
        "config_hash": content["config_hash"],
        "data_hash": hash_of(run, "prepare:train.parquet"),
        "commit": _commit(),
        "command": _command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    seconds = {row["stage"]: row["seconds"] for row in events_of(run) if row["event"] == "end"}  # of the latest build
    for name, entry in stages.items():
        for checkpoint in ("best", "final") if "final" in entry else ("best",):
            for split in ("validation", "test"):
                metrics = entry[split] if name == "sft" else entry[checkpoint][split]
                row = {"objective": entry.get("objective", "sft"), "gate": entry.get("gate"), "arm": name}
                row |= {"lambda": entry.get("lambda"), "checkpoint": checkpoint, "split": split, "metrics": metrics}
                row |= {"step": None if name == "sft" else entry[checkpoint]["step"]}
                row |= {key: entry.get(key) for key in ("admission", "pressure")}
                row |= {key: entry[key] for key in ("weight", "events", "lost") if key in entry}
                row |= {"seconds": seconds.get("sft" if name == "sft" else f"train/{name}")}
                rows.append(json.dumps(common | row))
    for name, splits in alone.items():
        for split, metrics in splits.items():
            row = {"objective": name, "gate": None, "arm": name, "lambda": None, "checkpoint": "best", "split": split}
            rows.append(
                json.dumps(common | row | {"metrics": metrics, "step": None, "admission": None, "seconds": None})
            )
    write_output(run, "results.jsonl", "\n".join(rows) + "\n")


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = "adagrpo" if module is None else module.name.removesuffix(".__main__")
    return shlex.join([*([name] if name == "adagrpo" else ["python", "-m", name]), *sys.argv[1:]])


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
