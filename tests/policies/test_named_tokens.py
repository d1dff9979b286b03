"""Checkpoints of others, in the layouts of MiniOneRec and OpenOneRec: tokens, prompts, and beams against `generate`."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from adagrpo.config import load_config
from adagrpo.data.sequences import pad
from adagrpo.decoding import beam_search, sample
from adagrpo.errors import UserError
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import embedded_tokens, end_token, load_folder
from adagrpo.policies.named_tokens import NamedTokens
from adagrpo.policies.shared_codes import SharedCodesPolicy
from adagrpo.semantic_ids.catalog import Catalog, resolve_collisions
from adagrpo.semantic_ids.published import read_index
from adagrpo.types import Histories, Ragged

EXAMPLES = Path(__file__).parents[2] / "examples"
# items 1 and 4 share their Semantic ID; numbers have gaps, so that some codes have no token
CODES = np.array([[2, 10, 0], [11, 3, 7], [2, 3, 7], [0, 0, 0], [11, 3, 7], [2, 10, 9], [11, 0, 1]])
SHAPES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "qwen3": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 8},
    },
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|sid_begin|>", "<|sid_end|>"]


def checkpoint(folder: Path, kind: str, tokens: list[str], **options: Any) -> Path:
    """A tiny random model saved as these projects do: a byte-level tokenizer, the tokens added, embeddings resized."""
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[0], **options)
    tokenizer.add_tokens(SPECIAL[1:], special_tokens=True)
    tokenizer.add_tokens(tokens)
    torch.manual_seed(0)
    eos = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 3, **SHAPES[kind], **eos)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def names(pattern: str, codes: np.ndarray = CODES) -> list[str]:
    """What MiniOneRec adds: the tokens that some item has, sorted as text, so that their numbers are in no order."""
    return sorted({pattern.format("abc"[level], code) for row in codes for level, code in enumerate(row)})


LAYOUTS = {
    "minionerec": (names("<{}_{}>"), "<{}_{}>"),
    "openonerec": ([f"<s_{level}_{code}>" for level in "abc" for code in range(16)], "<s_{}_{}>"),
}
PAIRS = list(itertools.product(LAYOUTS, SHAPES))


def made(folder: Path, layout: str, kind: str, codes: np.ndarray = CODES) -> tuple[Any, CausalLMPolicy]:
    """The layout's recipe, and the policy of its checkpoint."""
    lm = load_config(EXAMPLES / f"{layout}.yaml").policy.lm
    assert lm is not None
    checkpoint(folder, kind, LAYOUTS[layout][0])
    model = load_folder(folder, seed=0, weights=True)
    sizes = tuple(int(size) + 1 for size in codes.max(0))
    named = NamedTokens(folder, lm.tokens, sizes, torch.from_numpy(codes))
    pieces = named.pieces(lm.preamble or "", lm.item, lm.separator, lm.suffix or "")
    vocabulary = named.vocabulary(end_token(model), embedded_tokens(model))
    return lm, CausalLMPolicy(model, vocabulary, torch.from_numpy(codes), max_history=4, **pieces._asdict()).eval()


def prompt(lm: Any, pattern: str, history: list[int]) -> str:
    items = ["".join(pattern.format("abc"[level], code) for level, code in enumerate(CODES[item])) for item in history]
    return f"{lm.preamble}{lm.separator.join(lm.item.replace('{codes}', item) for item in items)}{lm.suffix}"


HISTORIES = [[0], [3, 1], [6, 5, 2, 0], [4, 4, 1]]


def batch(rows: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, rows)])
    return pad(Ragged(np.concatenate(rows).astype(np.int32), offsets), np.arange(len(rows)), 4)


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_prompts_are_those_that_the_tokenizer_makes(tmp_path: Path, layout: str, kind: str):
    lm, policy = made(tmp_path, layout, kind)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    context = policy.encode(batch(HISTORIES))
    for row, history in enumerate(HISTORIES):
        tokens = context.prompts.tokens[row, : context.prompt_lengths[row]].tolist() + policy.suffix.tolist()
        assert tokens == tokenizer(prompt(lm, LAYOUTS[layout][1], history))["input_ids"]


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
@torch.no_grad()
def test_lists_are_those_of_generate_with_a_prefix_function(tmp_path: Path, layout: str, kind: str):
    lm, policy = made(tmp_path, layout, kind)
    tokenizer, pattern = PreTrainedTokenizerFast.from_pretrained(tmp_path), LAYOUTS[layout][1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    catalog = Catalog.from_codes(resolve_collisions(CODES)).with_outside()
    shared = SharedCodesPolicy(policy, catalog.trie).eval()
    beams = beam_search(shared, shared.encode(batch(HISTORIES)), 20, trie=catalog.trie)
    found = catalog.lookup(beams.codes)
    sequences = sorted({tuple(row) for row in CODES.tolist()})
    written = {}
    for codes in sequences:
        texts = [pattern.format("abc"[level], code) for level, code in enumerate(codes)]
        written[tuple(tokenizer.convert_tokens_to_ids(texts))] = codes
    for row, history in enumerate(HISTORIES):
        ids = torch.tensor([tokenizer(prompt(lm, pattern, history))["input_ids"]])

        def allowed(place: int, sequence: torch.Tensor, start: int = ids.shape[1]) -> list[int]:
            done = tuple(sequence[start:].tolist())
            return sorted({name[len(done)] for name in written if name[: len(done)] == done})

        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=20,
            num_return_sequences=len(sequences),
            max_new_tokens=3,
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=0,
            prefix_allowed_tokens_fn=allowed,
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = []
        for sequence, score in zip(output.sequences[:, ids.shape[1] :].tolist(), output.sequences_scores, strict=True):
            items = [item for item, own in enumerate(CODES.tolist()) if tuple(own) == written[tuple(sequence)]]
            expected += [(item, float(score) - np.log(len(items))) for item in items]
        expected.sort(key=lambda pair: -round(pair[1], 4))
        count = len(CODES)
        assert found[row, :count].tolist() == [item for item, _ in expected] and found[row, count] == -1
        np.testing.assert_allclose(beams.scores[row, :count], [score for _, score in expected], atol=1e-4)


def test_shared_codes_are_a_distribution_and_score_what_was_sampled(tmp_path: Path):
    _, policy = made(tmp_path, "minionerec", "gpt2")
    catalog = Catalog.from_codes(resolve_collisions(CODES)).with_outside()
    shared = SharedCodesPolicy(policy, catalog.trie).eval()
    assert shared.level_sizes == catalog.level_sizes == (13, 12, 11, 3)
    context = shared.encode(batch(HISTORIES))
    every = catalog.codes.unsqueeze(0).expand(4, -1, -1)
    with torch.no_grad():
        scores = shared.score(context, every)
        plain = policy.score(context, every[..., :-1])
        torch.testing.assert_close(scores[..., :-1], plain)
        assert scores[0, :, -1].exp().tolist() == pytest.approx([1, 0.5, 1, 1, 0.5, 1, 1])
        uniforms = torch.rand(4, 64, 4, generator=torch.Generator().manual_seed(0))
        drawn = sample(shared, context, uniforms)
        again = shared.score(context, drawn.codes)
    torch.testing.assert_close(drawn.log_probs, again, rtol=1e-4, atol=1e-4)
    assert set(catalog.lookup(drawn.codes)[drawn.codes[..., -1] == 1].tolist()) <= {4}
    targets = torch.tensor([0, 1, 4, 6])
    loss = shared.supervised_loss(context, targets)
    torch.testing.assert_close(loss, -shared.score(context, catalog.codes[targets].unsqueeze(1)).squeeze(1).mean(-1))
    state = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    assert state.keys() == policy.state_dict().keys()
    shared.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert all(torch.equal(policy.state_dict()[name], tensor + 1) for name, tensor in state.items())


def test_a_code_without_a_token_has_no_probability(tmp_path: Path):
    _, policy = made(tmp_path, "minionerec", "gpt2")
    with torch.no_grad():
        logits = policy.logits(policy.start(policy.encode(batch(HISTORIES))))
    shares = logits.softmax(-1)
    assert logits.shape == (4, 1, 13)
    assert shares[0, 0].gt(0).nonzero().flatten().tolist() == [0, 2, 11, 12]  # and the rest of the vocabulary, last
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.cat([policy.encode(batch(HISTORIES[:1])).prompts.tokens[0], policy.suffix])
    with torch.no_grad():
        whole = model(tokens.unsqueeze(0)).logits[0, -1].softmax(-1)
    known = PreTrainedTokenizerFast.from_pretrained(tmp_path).convert_tokens_to_ids(["<a_0>", "<a_2>", "<a_11>"])
    torch.testing.assert_close(shares[0, 0, [0, 2, 11]], whole[known], rtol=1e-4, atol=1e-7)


def test_what_does_not_fit_is_said(tmp_path: Path):
    checkpoint(tmp_path, "gpt2", LAYOUTS["minionerec"][0])
    templates, sizes, codes = ["<a_{code}>", "<b_{code}>", "<c_{code}>"], (12, 11, 10), torch.from_numpy(CODES)
    with pytest.raises(UserError, match="the tokenizer has no token '<x_0>', code 0 of level 1"):
        NamedTokens(tmp_path, ["<x_{code}>", *templates[1:]], sizes, codes)
    named = NamedTokens(tmp_path, templates, sizes, codes)
    with pytest.raises(UserError, match="the model embeds 100 tokens"):
        named.vocabulary(0, 100)
    assert named.pieces("", "{codes}é", "", "").between == named.pieces("", "{codes}", "é", "").between != ()
    with pytest.raises(UserError, match="does not read '<a_2><b_10><c_0> <a_11>"):
        named.pieces("after <a_2><b_10><c_0> came ", "{codes}", " ", "")


# ---------------------------------------------------------------- indices


def test_an_index_is_read_in_both_forms(tmp_path: Path):
    index = {"7": ["<a_2>", "<b_10>"], "3": ["<a_11>", "<b_0>"], "9": ["<a_1>", "<b_1>"]}
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    (tmp_path / "x.txt").write_text("<a_2><b_10>\tA title\t7\n<a_11><b_0>\ttwo\ttabs\t3\n<a_1><b_1>\t\t9\n")
    for name in ("x.index.json", "x.txt"):
        for ids in (pl.Series([3, 7]), pl.Series(["3", "7"])):
            assert read_index(tmp_path / name, ids).tolist() == [[11, 0], [2, 10]]
        with pytest.raises(UserError, match="no entry for item '8' of 2 items"):
            read_index(tmp_path / name, pl.Series([3, 8]))
    (tmp_path / "y.json").write_text('{"3": ["<a_1>", "<b_1>"], "7": ["<a_1>", "<c_1>"]}')
    with pytest.raises(UserError, match=r"item '7' has \['<a_1>', '<c_1>'\]; expected tokens such as <a_7>, <b_7>"):
        read_index(tmp_path / "y.json", pl.Series([3, 7]))
    for name, text in (("z.json", "[1]"), ("z.json", '{"3": [1]}'), ("z.txt", "a_1 b\n"), ("z.json", '{"3": []}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=r"expected (\{|<a_7>|tokens)"):
            read_index(tmp_path / name, pl.Series([3]))
    with pytest.raises(UserError, match="no such file"):
        read_index(tmp_path / "none.json", pl.Series([3]))


def test_lines_of_an_index_end_in_a_line_feed_alone(tmp_path: Path):
    titles = ["one\u2028two", "a\x85b", "\x0b\x0c\x1c\x1d\x1e\u2029", "bare\rreturn", ""]
    for end in ("\n", "\r\n"):
        rows = [f"<a_{item}>\t{title}\t{item}{end}" for item, title in enumerate(titles)]
        (tmp_path / "x.txt").write_bytes("".join([*rows, end]).encode())
        assert read_index(tmp_path / "x.txt", pl.Series(range(5))).tolist() == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "<a_1>\tA\t7\n<a_2>\tB\t3\n<a_1>\tC\t7\n"),
        ("x.json", '{"7": ["<a_1>"], "3": ["<a_2>"], "7": ["<a_1>"]}'),
    ],
)
def test_an_item_that_is_in_an_index_twice_is_named(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="item '7' has more than one entry; keep one"):
        read_index(tmp_path / name, pl.Series([3, 7]))
    assert read_index(tmp_path / name, pl.Series([3])).tolist() == [
        [2]
    ]  # of another catalogue's items nothing is asked


@pytest.mark.parametrize("code", [str(2**31), "9" * 20, "9" * 5000])
def test_a_code_that_no_catalogue_stores_is_named(tmp_path: Path, code: str):
    (tmp_path / "x.json").write_text(json.dumps({"3": [f"<a_{'0' * 5000}{2**31 - 1}>"], "7": [f"<a_{code}>"]}))
    assert read_index(tmp_path / "x.json", pl.Series([3])).tolist() == [[2**31 - 1]]
    with pytest.raises(UserError, match=r"item '7' has \['<a_[0-9.]*.*; codes end at 2147483647"):
        read_index(tmp_path / "x.json", pl.Series([3, 7]))


def test_minionerec_samples_become_a_log(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("minionerec_logs", EXAMPLES / "minionerec_logs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = {
        "train": [("A", [5], 6), ("B", [1, 2], 3), ("A", [5, 6], 7)],
        "valid": [("B", [1, 2, 3], 4), ("C", [9], 8)],
        "test": [("A", [5, 6, 7], 5)],
    }
    files = []
    for name, rows in parts.items():
        lines = [f'{user},"{history}",{item}' for user, history, item in rows]
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join(["user_id,history_item_id,item_id", *lines]) + "\n")
    log, starts = module.to_log(files)
    assert starts == [1003, 1005]
    by_user = {user: rows.sort("timestamp")["item_id"].to_list() for (user,), rows in log.group_by("user_id")}
    assert by_user == {"A": [5, 6, 7, 5], "B": [1, 2, 3, 4], "C": [9, 8]}
    assert log.filter(user_id="C")["timestamp"].to_list() == [0, 1004]


def test_an_item_is_written_when_another_one_of_its_codes_leaves_the_catalogue(tmp_path: Path):
    _, policy = made(tmp_path, "minionerec", "gpt2")
    listed = torch.tensor([True, False, True, True, True, True, True])  # of 1 and 4, which share their codes
    catalog = Catalog.from_codes(resolve_collisions(CODES), None, listed).with_outside()
    shared = SharedCodesPolicy(policy, catalog.trie).eval()
    with torch.no_grad():
        numbers = shared.score(shared.encode(batch(HISTORIES)), catalog.codes.unsqueeze(0).expand(4, -1, -1))[0, :, -1]
        beams = beam_search(shared, shared.encode(batch(HISTORIES)), 20, trie=catalog.trie)
    assert numbers.exp().tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert {*catalog.trie.leaf_items(beams.leaves)[0].tolist()} - {-1} == {0, 2, 3, 4, 5, 6}
