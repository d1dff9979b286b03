"""Did a change of the code change a number? Short runs of each policy kind, and a hash of all that they measure.

    python -m benchmarks.reference --out reference.json            before the change
    python -m benchmarks.reference --against reference.json        after it: names what differs, ends with 1

A recipe may be written otherwise after the change, so the hashes leave out what names it (`config_hash`, the options of
an arm). They hold on one machine, with one thread; they are therefore never committed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import research.gates  # noqa: F401 (before what reads recipes)
from adagrpo.cli import main as adagrpo
from adagrpo.storage.hashes import hash_file, hash_json

ENDS = {"rl_positions": "end", "rollout": "beam", "num_generations": 32, "exclude_history": True}
VALID, CHOSEN = (
    {
        "objective": "distill",
        "name": name,
        "lambda": 5,
        "options": ENDS | {"distill": {"reward_weight": weight, "validity_weight": 5.0}},
    }
    for name, weight in (("distill-valid", 2.0), ("distill-chosen", "validation"))
)
COMMON: dict[str, Any] = {
    "threads": 1,
    "max_history": 60,
    "data": {"marketplace": {"users": 400, "items": 400}},
    "tokenizer": {"vectors": {"attributes": 1.0, "cooccurrence": 1.0}, "levels": 3, "codes": 32},
    "sft": {"epochs": 6, "batch_size": 128, "learning_rate": 2.0e-3, "validations": 4, "validation_users": 300},
    "ranker": {
        "width": 32,
        "negatives": 64,
        "dropout": 0.2,
        "folds": 2,
        "fit": {"epochs": 2, "batch_size": 128, "learning_rate": 3.0e-3, "validations": 2, "validation_users": 300},
    },
    "train": {
        "arms": [
            *("nll", "grpo", "mixture", "adagrpo", "adagrpo-random", "adagrpo-shuffled", "adagrpo-inverted"),
            *("adagrpo-difficulty", "adagrpo-discriminability", "adagrpo-oracle", "best_of_n", "distill"),
            *(VALID, CHOSEN),
        ],
        "fit": {"epochs": 1, "batch_size": 128, "learning_rate": 5.0e-4, "validations": 2, "validation_users": 300},
        "gradient_norms_every": 2,
    },
    "evaluation": {"exclude_history": True},
}
POLICIES: dict[str, dict[str, Any]] = {
    "compact": {"width": 48, "heads": 4, "decoder_hidden": 96, "dropout": 0.2},
    "hybrid": {"kind": "hybrid", "width": 48, "heads": 4, "decoder_hidden": 96, "dropout": 0.0},
    "causal_lm": {
        "kind": "causal_lm",
        "lm": {
            "config": {
                "model_type": "gpt2",
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 256,
            }
        },
    },
}
DRAWN = ("weights", "by_exposure")  # of a diagnosis, for its page
FEWER = ["nll", "adagrpo", VALID]  # of a language model, whose step takes longer


def measure(folder: Path) -> dict[str, str]:
    """Run every policy kind below a folder; the hash of each thing measured, by its name."""
    result: dict[str, str] = {}
    for kind, policy in POLICIES.items():
        recipe = COMMON | {"name": kind, "policy": policy}
        if kind == "causal_lm":
            recipe |= {"train": COMMON["train"] | {"arms": FEWER}, "objective": {"constrained": True}}
        path, run = folder / f"{kind}.yaml", folder / kind
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        _carry_out("run", str(path), "--out", str(run), "--quiet")
        _carry_out("diagnose", "--run", str(run), "--quiet")
        result |= {f"{kind}/{name}": digest for name, digest in _hashes(run).items()}
    return result


def _hashes(run: Path) -> dict[str, str]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    stages = metrics.pop("stages")
    for values in stages.values():
        values.pop("options", None)
    result = {f"metrics/{arm}": hash_json(values) for arm, values in stages.items()}
    del metrics["config_hash"]
    metrics["dataset"].pop("exact_duplicates", None)  # a count that earlier versions did not make
    result["metrics"] = hash_json(metrics)
    for path in sorted(run.rglob("*.json")):
        if path.name in ("diagnose.json", "report.json", "weight.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            result[path.stem] = hash_json({name: value for name, value in content.items() if name not in DRAWN})
    for path in sorted([*run.rglob("model.safetensors"), *run.rglob("predictions.parquet"), *run.rglob("codes.*")]):
        result[path.relative_to(run).as_posix()] = hash_file(path)
    for path in sorted(run.glob("train/*/steps.jsonl")):
        result[path.relative_to(run).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return result


def _carry_out(*arguments: str) -> None:
    sys.argv = ["adagrpo", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            adagrpo()
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    """Write the hashes, or hold them against those of another time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        differ = [name for name in sorted(before.keys() | result.keys()) if before.get(name) != result.get(name)]
        print("\n".join(differ) if differ else f"equal: {len(result)} things measured")
        sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
