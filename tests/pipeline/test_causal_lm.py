"""A run whose policy is a causal language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoModelForCausalLM

from adagrpo.errors import UserError
from adagrpo.pipeline import Run

LM = {
    "config": {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
        "tie_word_embeddings": True,
    }
}


def changes(**lm: Any) -> dict[str, Any]:
    return {
        "policy": {"kind": "causal_lm", "lm": LM | lm, "dropout": 0.1},
        "train": {"arms": [{"objective": "adagrpo"}]},
        "objective": {"tau": 0.0, "tau_reward": 1.0, "rho": 0.0, "constrained": True},
    }


def test_a_run_from_logs_to_report(world, data: Path, tmp_path: Path):
    world.run(tmp_path / "run", data, **changes()).complete()
    actual = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]["adagrpo"]["final"]["test"]
    assert actual["hr@10"] > 0
    # codes outside the level are codes that name no item
    free = pl.read_parquet(tmp_path / "run" / "evaluate" / "sft" / "free.parquet")
    outside = pl.Series([any(c == k for c, k in zip(codes, (8, 8), strict=False)) for codes in free["codes"].to_list()])
    assert outside.any() and not free["valid"].filter(outside).any()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "train" / "adagrpo" / "final")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    steps = [json.loads(line) for line in (tmp_path / "run/train/adagrpo/steps.jsonl").read_text().splitlines()]
    assert any("grpo" in step for step in steps)


@pytest.mark.slow
def test_adapters_train_on_a_folder_and_are_taken_up(world, data: Path, tmp_path: Path):
    first = world.run(tmp_path / "run", data, **changes())
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        stage(first)
    folder = first.path("sft", "best")
    lora = changes(config=None, checkpoint=str(folder), lora_rank=2) | {"sft": {"average": 0.9}}
    second = world.run(tmp_path / "second", data, **lora)
    for stage in (Run.prepare, Run.tokenize, Run.sft, Run.ranker):
        stage(second)
    second.stage(f"train/{second.config.train.arms[0].name}")
    assert (second.path("train", "adagrpo", "final") / "model.safetensors").is_file()


def test_a_missing_folder_is_named(world, data: Path, tmp_path: Path):
    run = world.run(tmp_path / "run", data, **changes(config=None, checkpoint="nowhere"))
    run.prepare()
    run.tokenize()
    with pytest.raises(UserError, match=r"nowhere: no Hugging Face folder"):
        run.sft()
