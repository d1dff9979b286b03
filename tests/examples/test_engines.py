"""The files of `examples/engines` import without an engine, and hold logits and a search to an exported catalogue."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo.policies import prefix_function

ENGINES = Path(__file__).parents[2] / "examples" / "engines"
INF = torch.inf


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's modules beside an export of three items: tokens (2, 4), (2, 5) and (3, 4); 1 is the end."""
    tokens = {"first_token": 2, "outside_token": 1, "level_sizes": [2, 2]}
    catalog = {"item_ids": ["a", "b", "c"], "codes": [[0, 0], [0, 1], [1, 0]], "max_history": 5}
    (tmp_path / "semantic_ids.json").write_text(json.dumps(tokens))
    (tmp_path / "catalog.json").write_text(json.dumps(catalog | {"preamble": [0], "between": [], "suffix": []}))
    shutil.copyfile(prefix_function.__file__, tmp_path / "semantic_ids.py")
    names = ("semantic_ids", "engine_client", "engine_rollouts", "sglang_processor", "vllm_processor")
    monkeypatch.syspath_prepend(ENGINES)
    monkeypatch.syspath_prepend(tmp_path)
    yield SimpleNamespace(folder=tmp_path, **{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def test_processors_leave_the_tokens_of_items_alone(modules: Any):
    ids, logits = modules.semantic_ids.SemanticIds(modules.folder), torch.arange(6.0)
    hold = modules.vllm_processor.held(ids, ["b"])
    rows = {(): [-INF, -INF, 2, 3, -INF, -INF], (2,): [-INF] * 4 + [4, -INF], (2, 4): [-INF, 1] + [-INF] * 4}
    for written, expected in rows.items():
        assert hold([*written], logits).tolist() == expected
    processor = pickle.loads(bytes.fromhex(json.loads(modules.sglang_processor.PROCESSOR)["callable"]))()
    params = [{"exclude": ["b"], "__req__": SimpleNamespace(output_ids=[*written])} for written in rows]
    assert processor(logits.expand(3, -1), params).tolist() == [*rows.values()]


def test_a_search_finds_the_best_items(modules: Any):
    ids = modules.semantic_ids.SemanticIds(modules.folder)
    table = {2: -1.0, 3: -0.5, 4: -0.25, 5: -2.0}
    server = SimpleNamespace(next_log_probs=lambda prompt, tokens: [table[token] for token in tokens])
    found = modules.engine_client.search(server, ids, ["a"], width=3)
    assert [(one.item, one.score) for one in found] == [("c", -0.75), ("a", -1.25), ("b", -3.0)]
    assert [one.item for one in modules.engine_client.search(server, ids, ["a"], exclude=["c"])] == ["a", "b"]
