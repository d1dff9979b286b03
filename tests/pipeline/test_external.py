"""A checkpoint of somebody else's through every verb: its weights are kept, its lists are those of `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from adagrpo import Run, pipeline
from adagrpo.config import resolve_config
from adagrpo.errors import UserError
from adagrpo.pipeline.status import plan
from adagrpo.policies.prefix_function import SemanticIds

TEXTS = {"preamble": "history: ", "separator": ", ", "suffix": "\n\n### Response:\n"}
NAMES = ["<a_{code}>", "<b_{code}>", "<c_{code}>"]


def index(shared: bool) -> dict[str, list[str]]:
    """Three tokens for each of the 30 items of the world; with `shared` items 3 and 13 have the same."""
    draw = np.random.default_rng(0)
    space = [(a, b, c) for a in range(4) for b in range(5) for c in range(6)]
    rows = [space[place] for place in draw.permutation(len(space))[:30]]
    if shared:
        rows[1] = rows[0]
    return {
        str(10 * item + 3): [name.replace("{code}", str(2 * code)) for name, code in zip(NAMES, row, strict=True)]
        for item, row in enumerate(rows)
    }


def write_checkpoint(folder: Path, tokens: list[str]) -> None:
    """A tiny random GPT-2 saved with added tokens, in MiniOneRec's layout."""
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.add_tokens(sorted(tokens))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, eos_token_id=256
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def opened(world: Any, data: Path, folder: Path, *, shared: bool, **lm: Any) -> Run:
    """A run of the world's recipe on the checkpoint, its Semantic IDs imported, its weights as they are."""
    names = index(shared)
    folder.mkdir()
    (folder / "world.index.json").write_text(json.dumps(names))
    write_checkpoint(folder / "checkpoint", list({token for tokens in names.values() for token in tokens}))
    options = {"checkpoint": str(folder / "checkpoint"), "trained": True, "tokens": NAMES, **TEXTS} | lm
    recipe = world.recipe(
        tokenizer={"published": {"path": str(folder / "world.index.json")}},
        policy={"kind": "causal_lm", "lm": options, "dropout": 0.0},
        train={"arms": [{"objective": "adagrpo"}]},
        objective={
            "tau": 0.0,
            "tau_reward": 1.0,
            "rho": 0.0,
            "constrained": True,
        },  # a random model alone would name no item
        evaluation={"precision": "float32"},
    )
    run = Run.create(recipe, folder / "run", data)
    run.prepare()
    run.tokenize()
    return run.sft()


@torch.no_grad()
def generated(folder: Path, names: dict[str, list[str]], history: list[int]) -> list[tuple[list[str], float]]:
    """The ten best Semantic IDs of a history, by `generate` alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    items = TEXTS["separator"].join("".join(names[str(item)]) for item in history[-6:])
    prompt = torch.tensor([tokenizer(f"{TEXTS['preamble']}{items}{TEXTS['suffix']}")["input_ids"]])
    written = {tuple(tokenizer.convert_tokens_to_ids(tokens)): tokens for tokens in names.values()}
    start = prompt.shape[1]

    def allowed(batch: int, sequence: torch.Tensor) -> list[int]:
        done = tuple(sequence[start:].tolist())
        return sorted({name[len(done)] for name in written if name[: len(done)] == done})

    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=10,
        num_return_sequences=10,
        max_new_tokens=3,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=256,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = [written[tuple(row)] for row in output.sequences[:, start:].tolist()]
    return list(zip(found, output.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize("shared", [False, True])
def test_recommended_are_the_items_of_generate(world: Any, data: Path, tmp_path: Path, shared: bool):
    run = opened(world, data, tmp_path / "external", shared=shared)
    assert json.loads((run.directory / "sft/best/checkpoint.json").read_text())["step"] == 0
    (planned,) = plan(pipeline.Run.open(Path(run.directory)), ["sft"])["stages"]
    assert planned["steps"] == 0  # what a plan says is what is done
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "external/checkpoint").state_dict()
    kept = AutoModelForCausalLM.from_pretrained(run.directory / "sft/best").state_dict()
    assert source.keys() == kept.keys() and all(torch.equal(source[name], kept[name]) for name in source)
    histories = [sequence[: 1 + place % 8] for place, sequence in enumerate(list(world.sequences.values())[:20])]
    lists = run.recommend(histories, k=9)
    names = index(shared)
    for history, items, scores in zip(histories, lists.items, lists.scores, strict=True):
        expected: list[tuple[int, float]] = []
        for tokens, score in generated(tmp_path / "external/checkpoint", names, history):
            of_tokens = [int(item) for item, own in names.items() if own == tokens]
            expected += [(item, score - float(np.log(len(of_tokens)))) for item in of_tokens]
        expected.sort(key=lambda pair: -round(pair[1], 4))
        assert items == [item for item, _ in expected[:9]]
        assert scores == pytest.approx([score for _, score in expected[:9]], abs=1e-4)


@pytest.mark.slow  # a run
def test_every_verb_takes_the_checkpoint(world: Any, data: Path, tmp_path: Path):
    run = opened(world, data, tmp_path / "external", shared=True)
    run.ranker()
    found = run.diagnose()
    assert found.verdict in ("use", "do_not_use") and (run.directory / "diagnose.html").is_file()
    metrics = run.train(anyway=True).evaluate()
    assert run.report().is_file()
    assert {"sft", "adagrpo"} < set(metrics["stage"]) and metrics["value"].is_finite().all()
    steps = [json.loads(line) for line in (run.directory / "train/adagrpo/steps.jsonl").read_text().splitlines()]
    assert steps and all(np.isfinite(row["nll"]) and row["grad_norm"] > 0 for row in steps)
    assert any(row["admission"] > 0 for row in steps)
    codes = pl.read_parquet(run.directory / "tokenize/codes.parquet")["codes"].to_list()
    assert [len(row) for row in codes] == [4] * 30 and sum(row[-1] for row in codes) == 1
    with pytest.raises(UserError, match="items share Semantic IDs, which a prefix function cannot tell apart"):
        run.export(tmp_path / "out")


def test_what_is_trained_from_it_is_exported_with_its_prompt(world: Any, data: Path, tmp_path: Path):
    """The exported folder's own prompts are the texts of the checkpoint, and its lists those of the run."""
    run = opened(world, data, tmp_path / "external", shared=False)
    folder = run.export(tmp_path / "out", "sft")
    histories = [sequence[:5] for sequence in list(world.sequences.values())[:6]]
    ids, tokenizer = SemanticIds(folder), AutoTokenizer.from_pretrained(folder)
    names, model = index(False), AutoModelForCausalLM.from_pretrained(folder)
    lists = run.recommend(histories, arm="sft")
    for history, items in zip(histories, lists.items, strict=True):
        text = TEXTS["separator"].join("".join(names[str(item)]) for item in history)
        prompt = ids.prompt(history)
        assert prompt == tokenizer(f"{TEXTS['preamble']}{text}{TEXTS['suffix']}")["input_ids"]
        output = model.generate(torch.tensor([prompt]), prefix_allowed_tokens_fn=ids.prefix_function(len(prompt)))
        assert [ids.item(tokens) for tokens in output[:, len(prompt) :].tolist()] == items


@pytest.mark.parametrize(
    ("lm", "message"),
    [
        ({"tokens": NAMES[:2]}, "names the tokens of 2 levels, the Semantic IDs have 4"),
        ({"tokens": ["<x_{code}>", *NAMES[1:]]}, "the tokenizer has no token '<x_"),
    ],
)
def test_tokens_that_do_not_fit_are_said(world: Any, data: Path, tmp_path: Path, lm: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        opened(world, data, tmp_path / "external", shared=True, **lm)


@pytest.mark.parametrize(
    ("lm", "message"),
    [
        ({"tokens": ["<a>"]}, "'<a>' has no place for the number"),
        ({"item": "x"}, "'x' has no place for the codes"),
        ({"separator": ", "}, "item and separator are for tokens that the checkpoint has"),
        ({"checkpoint": None, "config": {"model_type": "gpt2"}, "trained": True}, "are of a checkpoint"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(lm: dict[str, Any], message: str):
    policy = {"kind": "causal_lm", "lm": {"checkpoint": "x"} | lm}
    with pytest.raises(UserError, match=message):
        resolve_config({"data": {"logs": ["a.csv"]}, "policy": policy}, [], "recipe")
    for path in ({"path": "x.json", "column": "sid"}, {"path": "x.parquet"}):
        with pytest.raises(UserError, match="column is the list column of a Parquet file"):
            resolve_config({"data": {"logs": ["a.csv"]}, "tokenizer": {"published": path}}, [], "recipe")
