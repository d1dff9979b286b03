"""An exported folder, opened by `transformers` and by nothing of ours, recommends what we recommend."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adagrpo.config import ArmConfig
from adagrpo.data.prepared import load_item_ids
from adagrpo.data.sequences import pad
from adagrpo.decoding import beam_search
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import predict
from adagrpo.lists.query import Query
from adagrpo.networks import autocast_dtype
from adagrpo.pipeline import (
    Run,
    open_version,
    update_catalog,
)
from adagrpo.pipeline.choose_checkpoint import Chosen
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import folder_of
from adagrpo.pipeline.export import _measured, _results, _training, export
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.named_lists import ListOptions
from adagrpo.pipeline.serve import recommender
from adagrpo.policies.language_model import template_tokens
from adagrpo.storage.artifacts import seal
from adagrpo.types import Cases, Ragged

LM = {
    "config": {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "tie_word_embeddings": False,
    }
}


def trained(world: Any, directory: Path, data: Path, **lm: Any) -> Run:
    run = world.run(
        directory,
        data,
        policy={"kind": "causal_lm", "lm": LM | lm, "dropout": 0.0},
        train={"arms": [{"objective": "adagrpo"}]},
        objective={"tau": 0.0, "tau_reward": 1.0, "rho": 0.0, "constrained": True},
    )
    for stage in (Run.prepare, Run.tokenize, Run.sft):
        stage(run)
    return run


@pytest.fixture(scope="module")
def run(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = trained(world, tmp_path_factory.mktemp("export") / "run", data)
    run.ranker()
    run.stage(f"train/{run.config.train.arms[0].name}")
    return run


def opened(folder: Path) -> ModuleType:
    """The prefix function as it lies in the folder."""
    spec = importlib.util.spec_from_file_location("exported_ids", folder / "semantic_ids.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def assert_same_top_ten(run: Run, weights: Path, folder: Path) -> None:
    models = Models(RunData(run))
    policy = models.policy(weights).eval()
    cases = models.data.cases("test")
    rows = np.arange(0, len(cases), 4)
    histories = pad(cases.histories, rows, run.config.max_history)
    beams = beam_search(policy, policy.encode(histories), 10, trie=models.data.catalog.trie)
    names = load_item_ids(models.data.prepared)
    expected = [[names[item] for item in row] for row in models.data.catalog.lookup(beams.codes).tolist()]

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = opened(folder).SemanticIds(folder)
    prompts = [ids.prompt([names[int(item)] for item in cases.histories.row(row)]) for row in rows]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(padded, attention_mask=real, prefix_allowed_tokens_fn=ids.prefix_function(longest))
    result = [ids.item(tokens) for tokens in output[:, longest:].tolist()]
    assert [result[first : first + 10] for first in range(0, len(result), 10)] == expected


def test_generate_gives_our_top_ten(run: Run, tmp_path: Path):
    actual = export(run, tmp_path / "out", "adagrpo", "final")
    expected = {"folder": str(tmp_path / "out"), "arm": "adagrpo", "checkpoint": "final", "step": 4, "items": 30}
    expected |= {"catalog_version": open_version(run).name}
    assert actual == expected | {"why": "as named", "precision": "float32"}
    assert_same_top_ten(run, run.path("train", "adagrpo", "final"), tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "semantic_ids.json", "catalog.json", "semantic_ids.py"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert str(run.directory) not in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
def lists_of_generate(folder: Path, histories: list[list[Any]], size: int) -> tuple[list[list[Any]], np.ndarray]:
    """Items (N, 10) and their scores (N, 10), `size` prompts at a time."""
    ids, model = opened(folder).SemanticIds(folder), AutoModelForCausalLM.from_pretrained(folder)
    items: list[list[Any]] = []
    scores = []
    for first in range(0, len(histories), size):
        prompts = [ids.prompt(history) for history in histories[first : first + size]]
        longest = max(map(len, prompts))
        output = model.generate(
            torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
            prefix_allowed_tokens_fn=ids.prefix_function(longest),
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = [ids.item(tokens) for tokens in output.sequences[:, longest:].tolist()]
        items += [found[place : place + 10] for place in range(0, len(found), 10)]
        scores.append(output.sequences_scores.view(-1, 10).numpy())
    return items, np.concatenate(scores)


def test_what_was_delisted_is_never_generated_and_still_read(run: Run, tmp_path: Path):
    changed = Run.open(Path(shutil.copytree(run.directory, tmp_path / "run")))
    gone = [3, 13, 23, 33, 43]
    update_catalog(changed, delist=[",".join(map(str, gone))])
    assert export(changed, tmp_path / "out", "adagrpo", "final")["items"] == 25
    answers, _ = recommender(changed, ListOptions("adagrpo", "final", precision="float32"))
    histories = [[3, 13], [33, 53], [63, 73, 3]]
    lists, _ = lists_of_generate(tmp_path / "out", histories, 3)
    assert lists == [one.items for one in answers.recommend([Query(answers.known(row)[0]) for row in histories])]
    assert not {*gone} & {item for row in lists for item in row}
    ids = opened(tmp_path / "out").SemanticIds(tmp_path / "out")
    assert ids.prefix_function(0, exclude=[[3, 53]])(0, [])  # what is gone may be excluded too


@pytest.mark.slow
def test_export_serve_and_evaluate_agree_in_float32(run: Run, tmp_path: Path):
    """90 histories of all lengths in batches of several sizes: every order, and every score to 1e-5."""
    export(run, tmp_path / "out", "adagrpo", "final")
    draw = np.random.default_rng(0)
    rows = [draw.permutation(30)[: 1 + place % 9].astype(np.int32) for place in range(90)]
    offsets = np.cumsum([0, *map(len, rows)])
    cases = Cases(np.zeros(90, np.int32), Ragged(np.concatenate(rows), offsets), np.zeros(90, np.int32))
    models = Models(RunData(run))
    names = load_item_ids(models.data.prepared).to_list()
    policy, evaluation = models.policy(run.path("train", "adagrpo", "final")), run.config.evaluation
    found: dict[str, tuple[list[list[Any]], np.ndarray]] = {}
    for size in (1, 64):
        answers, _ = recommender(run, ListOptions("adagrpo", "final", precision="float32"))
        given = [Query([int(item) for item in row]) for row in rows]
        lists = [one for first in range(0, 90, size) for one in answers.recommend(given[first : first + size])]
        found[f"serve, {size} at a time"] = [one.items for one in lists], np.array([one.scores for one in lists])
        named = [[names[item] for item in row] for row in rows]
        found[f"generate, {size} at a time"] = lists_of_generate(tmp_path / "out", named, size)
        predicted = predict(
            policy,
            models.data.catalog,
            cases,
            width=evaluation.beam_width,
            batch_size=size,
            max_history=run.config.max_history,
            precision="float32",
        )
        found[f"evaluate, {size} at a time"] = [[names[i] for i in row] for row in predicted.items], predicted.scores
    (_, (items, scores)), *others = found.items()
    assert len({len(row) for row in rows}) == 9
    for name, (other_items, other_scores) in others:
        assert other_items == items, name
        np.testing.assert_allclose(other_scores, scores, rtol=0, atol=1e-5, err_msg=name)


def test_each_says_which_precision_it_uses(run: Run, tmp_path: Path):
    for precision in ("float32", "bfloat16"):
        assert recommender(run, ListOptions("sft", precision=precision))[1]["precision"] == precision
    native = "float32" if autocast_dtype(torch.device("cpu")) is None else "bfloat16"
    assert recommender(run, ListOptions("sft"))[1]["precision"] == native
    export(run, tmp_path / "out", "sft")
    assert "Weights are float32" in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
def test_generate_leaves_out_a_whole_history(run: Run, tmp_path: Path):
    export(run, tmp_path / "out", "adagrpo", "final")
    models = Models(RunData(run))
    policy, catalog = models.policy(run.path("train", "adagrpo", "final")).eval(), models.data.catalog
    items = np.stack([np.random.default_rng(row).permutation(30)[:18] for row in range(12)])
    seen = items[:, -run.config.max_history :]
    histories = pad(Ragged(seen.reshape(-1).astype(np.int32), seen.shape[1] * np.arange(13)), np.arange(12), 50)
    excluded = catalog.trie.excluding(torch.from_numpy(items))
    beams = beam_search(policy, policy.encode(histories), 10, trie=catalog.trie, excluded=excluded)
    names = load_item_ids(models.data.prepared)
    expected = [[names[item] for item in row] for row in catalog.lookup(beams.codes).tolist()]

    ids = opened(tmp_path / "out").SemanticIds(tmp_path / "out")
    named = [[names[int(item)] for item in row] for row in items]
    prompts = torch.tensor([ids.prompt(history) for history in named])
    length = prompts.shape[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        prefix_allowed_tokens_fn=ids.prefix_function(length, exclude=named),
    )
    actual = [ids.item(tokens) for tokens in output[:, length:].tolist()]
    actual = [actual[first : first + 10] for first in range(0, len(actual), 10)]
    assert actual == expected
    assert not any(set(row) & set(history) for row, history in zip(actual, named, strict=True))


def test_a_prefix_of_excluded_items_alone_is_not_entered(run: Run, tmp_path: Path):
    export(run, tmp_path / "out", "adagrpo")
    ids = opened(tmp_path / "out").SemanticIds(tmp_path / "out")
    first = next(iter(ids.item_of))[0]
    below = [item for item, tokens in ids.tokens_of.items() if tokens[0] == first]
    other = next(item for item, tokens in ids.tokens_of.items() if tokens[0] != first)
    for exclude in ([], [other], below, below[1:], [other, *below, other], list(ids.tokens_of)):
        allowed = ids.prefix_function(2, exclude=[[], exclude])
        kept = [tokens for item, tokens in ids.tokens_of.items() if item not in exclude]
        for prefix, following in ids.following.items():
            level = len(prefix)
            expected = sorted({tokens[level] for tokens in kept if tokens[:level] == prefix})
            assert allowed(1, [7, 7, *prefix]) == expected
            assert allowed(0, [7, 7, *prefix]) == following
    with pytest.raises(KeyError):
        ids.prefix_function(2, exclude=[["nowhere"]])
    for one in ([3, 13], ["3", "13"]):
        with pytest.raises(TypeError, match=r"exclude=\[history\]"):
            ids.prefix_function(2, exclude=one)


@pytest.mark.slow
def test_adapters_are_merged(run: Run, world: Any, data: Path, tmp_path: Path):
    export(run, tmp_path / "base", "sft")
    second = trained(world, tmp_path / "second", data, config=None, checkpoint=str(tmp_path / "base"), lora_rank=2)
    export(second, tmp_path / "out")
    assert_same_top_ten(second, second.path("sft", "best"), tmp_path / "out")
    names = json.loads((tmp_path / "out" / "config.json").read_text())
    assert names["model_type"] == "llama"
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata of a model card, and its text."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_says_what_has_not_been_measured(run: Run, tmp_path: Path):
    export(run, tmp_path / "out", "adagrpo")
    metadata, text = card_of(tmp_path / "out")
    assert metadata["library_name"] == "transformers" and "model-index" not in metadata and "license" not in metadata
    assert "# license: name yours here" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`adagrpo evaluate` had not measured this checkpoint" in text and "`adagrpo diagnose` had not been" in text
    assert f"configuration `{config_hash(run.config)}`" in text and "| objective | adagrpo, gate adagrpo |" in text
    assert "| users | 62 |" in text and "| history | the last 6 items |" in text


@pytest.fixture(scope="module")
def evaluated(run: Run, world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = Path(shutil.copytree(run.directory, tmp_path_factory.mktemp("evaluated") / "run"))
    copy = world.run(folder, data, **run.config.model_dump())
    copy.evaluate()
    copy.diagnose()
    return copy


def test_the_card_has_the_results_with_their_intervals(evaluated: Run, tmp_path: Path):
    copy = evaluated
    metrics = json.loads(copy.path("metrics.json").read_text(encoding="utf-8"))
    verdict = json.loads(copy.path("diagnose", "diagnose.json").read_text(encoding="utf-8"))["verdict"]
    export(copy, tmp_path / "out", "adagrpo", "final")
    metadata, text = card_of(tmp_path / "out")
    measured = metrics["stages"]["adagrpo"]["final"]["test"]
    listed = metadata["model-index"][0]["results"][0]["metrics"]
    assert {entry["type"]: entry["value"] for entry in listed} == {
        name: round(measured[name], 6) for name in ("hr@10", "ndcg@10", "hallucination@10", "mean_reward@10")
    }
    paired = json.loads(copy.path("report", "paired", "paired.json").read_text(encoding="utf-8"))
    own = next(row for row in paired["checkpoints"] if (row["arm"], row["checkpoint"]) == ("adagrpo", "final"))
    hr = own["metrics"]["hr@10"]
    assert hr["mean"] == pytest.approx(measured["hr@10"], rel=1e-12)
    assert f"| HR@10 | {100 * hr['mean']:.2f} % | {100 * hr['low']:.2f} % to {100 * hr['high']:.2f} % |" in text
    assert f"said **{verdict['decision'].replace('_', ' ')}**. {verdict['sentences'][0]}" in text
    assert str(tmp_path) not in text and "another configuration" not in text
    for checkpoint, known in (("best", True), ("final", False)):  # of sft the best one alone is evaluated
        export(copy, tmp_path / checkpoint, "sft", checkpoint)
        metadata, text = card_of(tmp_path / checkpoint)
        assert ("model-index" in metadata) is known and ("had not measured" in text) is not known


def train_again(run: Run, stage: str, checkpoint: str) -> None:
    """Other weights in a checkpoint of as many steps, in a stage that is whole and up to date."""
    folder = folder_of(run, stage)
    weights = load_file(folder / checkpoint / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / checkpoint / "model.safetensors")
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    seal(folder, kind=content["kind"], fingerprint=content["fingerprint"], made_from=content["made_from"])


def test_the_card_has_no_results_and_no_verdict_of_other_weights(evaluated: Run, tmp_path: Path):
    copy = Run.open(Path(shutil.copytree(evaluated.directory, tmp_path / "run")))
    train_again(copy, "train/adagrpo", "final")
    for checkpoint, known in (("best", True), ("final", False)):
        export(copy, tmp_path / checkpoint, "adagrpo", checkpoint)
        metadata, text = card_of(tmp_path / checkpoint)
        assert ("model-index" in metadata) is known and ("had not measured this checkpoint" in text) is not known
        assert "`adagrpo diagnose` said **" in text
    train_again(copy, "sft", "best")
    export(copy, tmp_path / "sft", "sft")
    metadata, text = card_of(tmp_path / "sft")
    assert "model-index" not in metadata and "had not measured this checkpoint" in text
    assert "said is of another policy or reward" in text and "said **" not in text


def test_intervals_of_an_earlier_evaluation_are_not_shown(evaluated: Run, tmp_path: Path):
    copy = Run.open(Path(shutil.copytree(evaluated.directory, tmp_path / "run")))
    folder = folder_of(copy, "report/paired")
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    reads = dict.fromkeys(content["made_from"]["reads"], "0" * 64)
    seal(folder, kind="stage", fingerprint="", made_from=content["made_from"] | {"reads": reads})
    chosen = Chosen("adagrpo", copy.path("train", "adagrpo", "final"), 4, "")
    results = _results(copy, chosen, "final", _measured(copy, chosen, "final")["test"])
    assert {"mean"} == {name for value in results.values() for name in value}


def test_the_card_states_the_thresholds_of_the_arm(run: Run):
    arms = (
        (
            {"objective": "adagrpo", "options": {"tau": 0.8, "tau_reward": None, "rho": 0.5}},
            "| tau 0.8, rho 0.5, rho\\_from top |",
        ),
        ({"objective": "mixture"}, None),
    )
    for content, says in arms:
        arm = content | {"name": "own"}
        train = run.config.train.model_copy(update={"arms": (ArmConfig.model_validate(arm),)})
        told: Any = SimpleNamespace(config=run.config.model_copy(update={"train": train}), find=lambda *parts: None)
        text = _training(told, Chosen("own", Path(), 3, ""), "best")
        assert (says in text) if says else ("thresholds" not in text)


def write_tokenizer(folder: Path) -> None:
    """Two words and a token that opens a sequence."""
    tokens = Tokenizer(models.WordLevel({"<open>": 0, "viewed": 1, "next": 2}, unk_token="<open>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="<open> $A", special_tokens=[("<open>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<open>").save_pretrained(folder)


def test_texts_around_the_history_are_exported(run: Run, world: Any, data: Path, tmp_path: Path):
    export(run, tmp_path / "base", "sft")
    write_tokenizer(tmp_path / "base")
    texts = {"preamble": "viewed viewed", "suffix": "next viewed"}
    second = trained(world, tmp_path / "second", data, config=None, checkpoint=str(tmp_path / "base"), **texts)
    weights = second.path("sft", "best")
    policy = Models(RunData(second)).policy(weights)
    assert policy.preamble.tolist() == [0, 1, 1] and policy.suffix.tolist() == [2, 1]
    export(second, tmp_path / "out")
    ids = opened(tmp_path / "out").SemanticIds(tmp_path / "out")
    assert ids.prompt([3, 13]) == [0, 1, 1, *ids.tokens_of[3], *ids.tokens_of[13], 2, 1]
    assert_same_top_ten(second, weights, tmp_path / "out")


def test_a_text_needs_a_tokenizer(run: Run, tmp_path: Path):
    export(run, tmp_path / "base", "sft")
    with pytest.raises(UserError, match=r"base: no tokenizer here, so policy\.lm\.suffix cannot be read"):
        template_tokens(tmp_path / "base", "suffix", "next")


def test_all_files_may_be_read_by_whom_other_new_files_may(run: Run, tmp_path: Path):
    export(run, tmp_path / "out", "adagrpo")
    (tmp_path / "plain").write_text("", encoding="utf-8")
    mode = (tmp_path / "plain").stat().st_mode
    weights = run.path("sft", "best", "model.safetensors")
    assert {path.stat().st_mode for path in (*(tmp_path / "out").rglob("*.*"), weights)} == {mode}


@pytest.mark.slow
def test_what_a_killed_export_left_goes_with_the_next_one(run: Run, tmp_path: Path):
    code = f"""
import os, signal
from importlib import import_module
from pathlib import Path
from adagrpo.pipeline import Run
module = import_module("adagrpo.pipeline.export")
def write(data, chosen, checkpoint, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
module._write = write
module.export(Run.open(Path({str(run.directory)!r})), Path({str(tmp_path / "out")!r}), "sft")
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert ended.returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "model.safetensors").read_bytes() == b"half"
    others = [tmp_path / f".{name}" for name in ("out.tmp", "out2.0123456789abcdef.tmp", "out.fedcba9876543210.tmp")]
    for folder in others:
        folder.mkdir()
    at_work = os.open(others[-1], os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)  # as another export to the same folder holds its own
    export(run, tmp_path / "out", "sft")
    os.close(at_work)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", *others])


def test_the_prefix_function_needs_nothing_but_python(run: Run, tmp_path: Path):
    export(run, tmp_path / "out", "adagrpo")
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from semantic_ids import SemanticIds\n"
        "ids = SemanticIds('.')\n"
        "prompt = ids.prompt([3, 13, 23])\n"
        "allowed = ids.prefix_function(len(prompt))\n"
        "for item, tokens in ids.tokens_of.items():\n"
        "    for level in range(ids.levels):\n"
        "        assert tokens[level] in allowed(0, prompt + list(tokens[:level]))\n"
        "    assert allowed(0, prompt + list(tokens)) == [ids.end_token]\n"
        "    assert ids.item(tokens) == item\n"
        "assert allowed(0, prompt + [-1]) == [] and ids.item([-1, -1]) is None\n"
        "assert ids.prompt([3] * 50) == ids.prompt([3] * 6)\n"
        "assert not {name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'adagrpo'}\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path / "out", timeout=60)


def test_what_cannot_be_exported_is_said(run: Run, copied: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"--arm mixture: not trained in .*; there is sft, adagrpo"):
        export(run, tmp_path / "out", "mixture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="full: is not empty"):
        export(run, tmp_path / "full", "sft")
    small = Run.open(copied)
    with pytest.raises(UserError, match=r"the policy is 'compact', which no other program opens"):
        export(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
