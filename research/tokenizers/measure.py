"""Every tokenizer of a data set under one audit, and what a small policy makes of its codes on validation cases.

    python -m research.tokenizers.measure recipes/amazon-beauty.yaml --data DIR/amazon-beauty \
        --out runs/tokenizers-beauty --published semantic_ids.parquet --epochs 8

A tokenizer is the recipe with some settings changed (`--variants`), or a column of a file of published codes
(`--published`), with both ways to tell colliding items apart where they collide. With `--epochs`, the compact policy is
trained on each for that long, without weight averaging, and its final weights rank every validation target; the item
head of a hybrid policy would hide what the codes are worth. Each is compared with the first tokenizer, user by user.
Test cases are not read.

All tokenizers of a data set share one run directory, so that data and language-model vectors are made once. Rows are
appended as they are measured; what has its row is not measured again, so an interrupted command continues. Seconds of a
tokenizer are CPU seconds, of the language model's encoding too where this command made it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.evaluation.predictions import summarise
from adagrpo.pipeline import Run
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Alignment, Table, to_markdown
from adagrpo.statistics import Interval, paired_difference
from research.command import run
from research.rows import add_row

VARIANTS = Path(__file__).with_name("tokenizers.yaml")
Rows = list[Mapping[str, Any]]


def main() -> None:
    """Measure the tokenizers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("tokenizers.jsonl"))
    parser.add_argument("--variants", type=Path, default=VARIANTS)
    parser.add_argument("--published", help="file of published codes below --data; each of its list columns is one")
    parser.add_argument("--epochs", type=float, default=0.0, help="of the compact policy; 0: no policy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", help="names of tokenizers; the reference is always among them")
    options = parser.parse_args()
    variants: list[tuple[str, list[str]]] = [
        (row["name"], row.get("set", [])) for row in yaml.safe_load(options.variants.read_text(encoding="utf-8"))
    ]
    if options.published:
        variants += published(options.data, options.published)
    chosen = {variants[0][0], *(options.only or [name for name, _ in variants])}
    rows: Rows = []  # of these settings: the file may hold rows of others
    for seed in options.seeds:
        for name, settings in variants:
            if name not in chosen:
                continue
            config = load_config(options.recipe, [*settings, f"seed={seed}", *policy_settings(options.epochs)])
            run = Run(options.out, config, options.data, StderrConsole())
            known = read_rows(options.results)
            row: Mapping[str, Any] | None = find(known, config.name, name, seed, config_hash(run.config))
            if row is None:
                facts = {"set": settings, "epochs": options.epochs, "command": command(options)}
                row = measure(run, name, seed, options.epochs > 0) | facts
                add_row(options.results, row)
            rows.append(row)
    names = [name for name, _ in variants if name in chosen]
    print(to_markdown(audit_table(rows, names)))
    if options.epochs > 0:
        print("\n" + to_markdown(policy_table(options.out, rows, names)))


def command(options: argparse.Namespace) -> str:
    """How to measure the row again, wherever the data lie."""
    parts = ["python", "-m", "research.tokenizers.measure", options.recipe.as_posix()]
    parts += ["--data", f"DIR/{options.data.name}", "--out", f"runs/{options.out.name}"]
    parts += ["--published", options.published] if options.published else []
    return shlex.join([*parts, "--epochs", f"{options.epochs:g}", "--seeds", *map(str, options.seeds)])


def published(data: Path, file: str) -> list[tuple[str, list[str]]]:
    """The list columns of a file of published codes, twice where items collide."""
    result = []
    table = pl.read_parquet(data / file)
    for column in (name for name, kind in table.schema.items() if isinstance(kind, pl.List)):
        setting = f"tokenizer.published={{path: {file}, column: {column}}}"
        result.append((f"published {column}", [setting]))
        if table[column].n_unique() < len(table):
            result.append((f"published {column}, nearest", [setting, "tokenizer.collisions=nearest"]))
    return result


def policy_settings(epochs: float) -> list[str]:
    """The policy that every tokenizer is tried with."""
    settings = ["policy.kind=compact", "sft.average=0", "sft.validations=0"]
    return [*settings, f"sft.epochs={epochs}"] if epochs > 0 else settings


def measure(run: Run, name: str, seed: int, policy: bool) -> dict[str, Any]:
    """Make a tokenizer and train the policy on its codes.

    Returns:
        The row of results; the users' ranks lie in the run directory.
    """
    run.prepare()
    shutil.rmtree(run.path("tokenize"), ignore_errors=True)  # made again, to be timed
    started = time.process_time()
    run.tokenize()
    row: dict[str, Any] = {
        "dataset": run.config.name,
        "tokenizer": name,
        "seed": seed,
        "config_hash": config_hash(run.config),
        "audit": json.loads(run.path("tokenize", "audit.json").read_text(encoding="utf-8")),
        "tokenize_cpu_seconds": round(time.process_time() - started, 2),
    }
    if policy:
        run.sft()
        models = Models(RunData(run))
        cases = models.data.cases("validation")
        result = models.predict(models.policy(run.path("sft", "final")), cases, None)
        ranks = metrics.target_rank_in(result.items, cases.targets.astype(np.int64))
        ranks_file(run.directory, name, seed).parent.mkdir(exist_ok=True)
        pl.DataFrame({"user": cases.users, "rank": ranks}).write_parquet(ranks_file(run.directory, name, seed))
        row |= {"split": "validation", "users": len(cases), "metrics": summarise(result, cases, tail=models.data.tail)}
    return row


def ranks_file(out: Path, name: str, seed: int) -> Path:
    """Where the rank of each user's target is kept, for paired comparisons."""
    return out / "ranks" / f"{name.replace(' ', '-')}-{seed}.parquet"


def find(rows: Rows, dataset: str, name: str, seed: int, config_hash: str) -> Mapping[str, Any] | None:
    """The row of a tokenizer that was measured with these settings."""
    chosen = (dataset, name, seed, config_hash)
    keys = ("dataset", "tokenizer", "seed", "config_hash")
    return next((row for row in rows if tuple(row[key] for key in keys) == chosen), None)


def audit_table(rows: Rows, names: list[str]) -> Table:
    """The audit of every tokenizer, of its first seed: what codes there are, how evenly used, what they lose."""
    header = ("tokenizer", "collision rate", "largest", "codes used", "entropy, share", "error", "levels", "CPU s")
    cells = []
    for name in names:
        row = next((row for row in rows if row["tokenizer"] == name), None)
        if row is None:
            continue
        audit, levels = row["audit"], row["audit"]["per_level"]
        shares = [MISSING if level["entropy_share"] is None else f"{level['entropy_share']:.2f}" for level in levels]
        error = audit["reconstruction_error"]
        cells.append(
            (
                name,
                f"{100 * audit['collision_rate']:.1f} %",
                str(audit["largest_collision"]),
                " ".join(str(level["codes_used"]) for level in levels),
                " ".join(shares),
                MISSING if error is None else f"{error:.3f}",
                str(audit["levels"]),
                f"{row['tokenize_cpu_seconds']:.1f}",
            )
        )
    return Table(header, tuple(cells), alignment(header))


def policy_table(out: Path, rows: Rows, names: list[str]) -> Table:
    """Validation metrics, means over the seeds, and the difference from the first tokenizer over users."""
    header = ("tokenizer", "HR@10", "NDCG@10", "hallucination@10", "Δ HR@10", "Δ NDCG@10", "seeds")
    cells = []
    for name in names:
        mine = [row for row in rows if row["tokenizer"] == name and "metrics" in row]
        if not mine:
            continue
        seeds = [row["seed"] for row in mine]
        means = [float(np.mean([row["metrics"][key] for row in mine])) for key in ("hr@10", "ndcg@10")]
        invalid = float(np.mean([row["metrics"]["hallucination@10"] for row in mine]))
        changes = ["reference"] * 2
        if name != names[0]:
            both = [seed for seed in seeds if all(ranks_file(out, n, seed).is_file() for n in (name, names[0]))]
            changes = [change(out, name, names[0], both, metric) for metric in (metrics.hit_rate, metrics.ndcg)]
        cells.append((name, *(f"{mean:.4f}" for mean in means), f"{100 * invalid:.1f} %", *changes, str(len(seeds))))
    return Table(header, tuple(cells), alignment(header))


def change(out: Path, name: str, reference: str, seeds: list[int], metric: Any) -> str:
    """Mean difference from the reference with its 95 % interval over users, whose values are means over the seeds."""
    if not seeds:
        return MISSING
    values = [np.mean([metric(_ranks(out, who, seed), 10) for seed in seeds], axis=0) for who in (name, reference)]
    result: Interval = paired_difference(values[0], values[1])
    return f"{result.mean:+.4f} ({result.low:+.4f} to {result.high:+.4f})"


def alignment(header: tuple[str, ...]) -> tuple[Alignment, ...]:
    """The first column to the left, the others to the right."""
    right: Alignment = "right"
    return ("left", *[right] * (len(header) - 1))


def _ranks(out: Path, name: str, seed: int) -> NDArray[np.int64]:
    ranks: NDArray[np.int64] = pl.read_parquet(ranks_file(out, name, seed))["rank"].to_numpy()
    return ranks


if __name__ == "__main__":
    run(main)
