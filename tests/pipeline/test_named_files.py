"""What a recipe names for its last stages is looked for before its first model is fitted, and by a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.pipeline.status import plan

WRONG = {
    "trees": ({"reward": {"kind": "lightgbm", "model": "gone.txt"}}, r"gone\.txt: no such file"),
    "module": ({"reward": {"kind": "callable", "function": "gone:score"}}, "no module 'gone'"),
    "member": (
        {
            "reward": {
                "kind": "weighted",
                "weights": [1, 1],
                "members": [{"kind": "sequential"}, {"kind": "lightgbm", "model": "gone.txt"}],
            }
        },
        r"gone\.txt: no such file",
    ),
    "group": ({"evaluation": {"eligible": {"include": {"market": ["de"]}}}}, r"evaluation\.eligible\.include\.market"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_is_said_before_anything_is_fitted(world: Any, data: Path, tmp_path: Path, name: str) -> None:
    sections, message = WRONG[name]
    run = world.run(tmp_path / "run", data, **sections)
    with pytest.raises(UserError, match=message):
        plan(run, ("prepare", "tokenize", "sft", "ranker", "train", "evaluate"))
    assert not run.directory.exists()
    plan(run, ("prepare", "tokenize", "sft", "ranker"))  # which read none of it
    with pytest.raises(UserError, match=message):
        run.complete()
    assert not run.path("tokenize").exists()


def test_a_missing_model_of_texts_is_part_of_a_plan(world: Any, data: Path, tmp_path: Path) -> None:
    tokenizer = {"vectors": {"language_model": 1.0}, "language_model": "gone"}
    run = world.run(tmp_path / "run", data, tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"tokenizer\.language_model: .*gone is no sentence-transformers model"):
        plan(run, ("prepare", "tokenize"))
    plan(run, ("prepare",))
