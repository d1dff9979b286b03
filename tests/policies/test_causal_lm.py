"""Causal language models as policies: against the model's own forward pass over each whole sequence."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from adagrpo.errors import UserError
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import (
    VOCABULARY_FILE,
    Vocabulary,
    adapt,
    from_configuration,
    from_folder,
    load_folder,
    merged,
)
from adagrpo.trainer.checkpoints import save_weights
from adagrpo.types import Histories

SIZES = (3, 2, 4)
CODES = torch.cartesian_prod(*map(torch.arange, SIZES))[
    torch.randperm(24, generator=torch.Generator().manual_seed(0))[:10]
]
HISTORIES = Histories(torch.tensor([[1, 5, 9, 2], [7, 3, 0, 0], [4, 0, 0, 0]]), torch.tensor([4, 2, 1]))
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}
LLAMA = QWEN | {"model_type": "llama", "tie_word_embeddings": False}
PHI = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {"model_type": "phi3"}
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}
MODELS = {"qwen3": QWEN, "llama": LLAMA, "gpt2": GPT}


def stir(model: PreTrainedModel, spread: float = 0.3) -> None:
    """Take a model away from weights under which all tokens are about equally likely."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def make(options: dict[str, Any] = QWEN, **settings: Any) -> CausalLMPolicy:
    model, vocabulary = from_configuration(options, SIZES, seed=0)
    stir(model)
    return CausalLMPolicy(model, vocabulary, CODES, max_history=4, **settings).eval()


def tokens(vocabulary: Vocabulary, codes: list[int]) -> list[int]:
    """The token of each code, by the formula of `language_model`; code K_l is the outside token."""
    result = []
    for level, code in enumerate(codes):
        start = vocabulary.first_token + sum(vocabulary.code_sizes[:level])
        result.append(vocabulary.outside_token if code == vocabulary.code_sizes[level] else start + code)
    return result


def plain(policy: CausalLMPolicy, row: int, codes: list[int]) -> Tensor:
    """(L,) log-probabilities of codes behind a whole history, from one plain sequence and the whole vocabulary."""
    vocabulary = policy.vocabulary
    preamble, suffix = policy.preamble.tolist(), policy.suffix.tolist()
    items = HISTORIES.items[row, : HISTORIES.lengths[row]].tolist()
    prompt = [*preamble, *(token for item in items for token in tokens(vocabulary, CODES[item].tolist())), *suffix]
    sequence = torch.tensor([prompt + tokens(vocabulary, codes)])
    probabilities = policy.lm(input_ids=sequence).logits[0, len(prompt) - 1 : -1].float().softmax(-1)
    scores = []
    for level, code in enumerate(codes):
        start = vocabulary.first_token + sum(vocabulary.code_sizes[:level])
        block = torch.zeros(probabilities.shape[1], dtype=torch.bool)
        block[start : start + vocabulary.code_sizes[level]] = True
        inside = code < vocabulary.code_sizes[level]
        scores.append(probabilities[level, start + code] if inside else probabilities[level, ~block].sum())
    return torch.stack(scores).log()


def all_plain(policy: CausalLMPolicy, codes: Tensor) -> Tensor:
    return torch.stack([torch.stack([plain(policy, b, row) for row in codes[b].tolist()]) for b in range(3)])


def codes_of(policy: CausalLMPolicy, group: int) -> Tensor:
    """(3, G, L) codes of every kind, outside ones too."""
    everything = torch.cartesian_prod(*(torch.arange(size) for size in policy.level_sizes))
    return everything[torch.randint(len(everything), (3, group), generator=torch.Generator().manual_seed(4))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_plain_sequences(name, packed):
    policy = make(MODELS[name])
    codes = codes_of(policy, 6)
    with torch.set_grad_enabled(packed):
        scores = policy.score(policy.encode(HISTORIES), codes)
    torch.testing.assert_close(scores.detach(), all_plain(policy, codes).detach(), rtol=1e-5, atol=1e-5)
    assert (scores.exp() > 0.5).any() and (scores.exp() < 0.1).any()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_plain_sequences(name):
    policy = make(MODELS[name])
    codes = codes_of(policy, 6)
    weights = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(5))
    parameters = list(policy.parameters())
    actual = torch.autograd.grad((policy.score(policy.encode(HISTORIES), codes) * weights).sum(), parameters)
    expected = torch.autograd.grad((all_plain(policy, codes) * weights).sum(), parameters)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("suffix", "elsewhere"), [((), False), ((), True), ((0, 1, 0), False)])
def test_the_loss_at_all_positions_is_one_pass_over_the_history(suffix, elsewhere):
    policy = make(suffix=suffix)
    shapes = []
    policy.lm.base_model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["inputs_embeds"].shape)), with_kwargs=True
    )
    rows, positions = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 0, 1, 0])
    targets = torch.tensor([5, 9, 2, 6, 3, 1, 8])
    if elsewhere:  # a target that is not what comes next
        targets[1] = 7
    policy.supervised_loss(policy.encode(HISTORIES, rows, positions), targets)
    # targets that are no part of the prompts, or stand behind a suffix, are packed behind them: at most 4 of a history
    packed = elsewhere or suffix
    assert shapes == ([(3, 12 + 4 * (len(suffix) + 2), 16)] if packed else [(3, 12 + 3 - 1, 16)])


def test_a_state_that_needs_gradients_has_them_after_sampling():
    """What was read without gradients must not stand in for what is scored with them."""
    policy = make()
    codes = codes_of(policy, 2)
    context = policy.encode(HISTORIES)
    with torch.no_grad():
        policy.score(context, codes)
    (one,) = torch.autograd.grad(policy.score(context, codes).sum(), [policy.lm.model.norm.weight])
    (other,) = torch.autograd.grad(policy.score(policy.encode(HISTORIES), codes).sum(), [policy.lm.model.norm.weight])
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_changes_no_number(name, training):
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if name == "gpt2" else {}
    policies = [make(MODELS[name] | quiet, gradient_checkpointing=on).train(training) for on in (False, True)]
    ran = []
    for module in policies[1].lm.base_model.modules():
        if type(module).__name__.endswith(("DecoderLayer", "GPT2Block")):
            module._gradient_checkpointing_func = (lambda inner: lambda *a: ran.append(1) or inner(*a))(
                module._gradient_checkpointing_func
            )
    codes = codes_of(policies[0], 4)
    gradients = []
    for policy in policies:
        context = policy.encode(HISTORIES)
        state = policy.advance(policy.start(context), torch.zeros(3, 2).long(), codes[:, :2, 0])
        loss = policy.logits(state).log_softmax(-1)[..., 0].sum()  # a pass with a cache, which cannot be checkpointed
        loss = loss + policy.score(policy.encode(HISTORIES), codes).sum()
        gradients.append(torch.autograd.grad(loss, list(policy.parameters())))
    assert len(ran) == 2  # one for each layer: the packed pass
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_checkpointing_is_refused_where_dropout_would_be_drawn_anew():
    with pytest.raises(UserError, match="here drop; set it to 0"):
        make(GPT, gradient_checkpointing=True)


def test_dropout_acts_in_training_only():
    policy = make(dropout=0.5)
    codes = codes_of(policy, 2)
    with torch.no_grad():
        once, twice = (policy.train().score(policy.encode(HISTORIES), codes) for _ in range(2))
        assert not torch.equal(once, twice)
        once, twice = (policy.eval().score(policy.encode(HISTORIES), codes) for _ in range(2))
        assert torch.equal(once, twice)


def test_a_frozen_body_leaves_embeddings_and_head():
    model, vocabulary = from_configuration(LLAMA, SIZES, seed=0)
    adapt(model, frozen_body=True, lora_rank=0, lora_alpha=16, bfloat16=False)
    policy = CausalLMPolicy(model, vocabulary, CODES, max_history=4)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {"lm.model.embed_tokens.weight", "lm.lm_head.weight"}
    policy.score(policy.encode(HISTORIES), codes_of(policy, 2)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())


def test_lora_starts_as_the_model_and_moves_its_adapters():
    whole = make()
    codes = codes_of(whole, 3)
    model, vocabulary = from_configuration(QWEN, SIZES, seed=0)
    stir(model)
    adapt(model, frozen_body=False, lora_rank=2, lora_alpha=4, bfloat16=False)
    policy = CausalLMPolicy(model, vocabulary, CODES, max_history=4).eval()
    scores = policy.score(policy.encode(HISTORIES), codes)
    torch.testing.assert_close(scores, whole.score(whole.encode(HISTORIES), codes), rtol=1e-5, atol=1e-5)
    scores.sum().backward()
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert "lm.model.embed_tokens.weight" in trained
    adapters = {name for name in trained if "lora_" in name}
    assert len(adapters) == 2 * 2 * 7  # A and B, of seven linear layers, in two blocks
    assert adapters | {"lm.model.embed_tokens.weight"} == trained
    assert all(policy.get_parameter(name).grad is not None for name in trained)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_train_may_be_bfloat16(name, rank):
    model, vocabulary = from_configuration(MODELS[name], SIZES, seed=0)
    exact = CausalLMPolicy(copy.deepcopy(model), vocabulary, CODES, max_history=4).eval()
    adapt(model, frozen_body=True, lora_rank=rank, lora_alpha=4, bfloat16=True)
    policy = CausalLMPolicy(model, vocabulary, CODES, max_history=4).eval()
    kinds = (
        {p.dtype for p in policy.parameters() if p.requires_grad},
        {p.dtype for p in policy.parameters() if not p.requires_grad},
    )
    assert kinds == ({torch.float32}, {torch.bfloat16})
    codes = codes_of(policy, 3)
    scores = policy.score(policy.encode(HISTORIES), codes)
    # bfloat16 has 8 bits of mantissa; logits of this size are then right to a few hundredths
    torch.testing.assert_close(scores, exact.score(exact.encode(HISTORIES), codes), rtol=0, atol=0.05)
    scores.sum().backward()


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_leaves_buffers_embeddings_and_head_as_they_are(name, rank):
    model, _ = from_configuration(MODELS[name], SIZES, seed=0)
    before = copy.deepcopy(model)
    adapt(model, frozen_body=True, lora_rank=rank, lora_alpha=4, bfloat16=True)
    outer = [
        [*one.get_input_embeddings().parameters(), *one.get_output_embeddings().parameters()] for one in (model, before)
    ]
    pairs = itertools.chain(zip(model.buffers(), before.buffers(), strict=True), zip(*outer, strict=True))
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def test_a_merged_bfloat16_model_is_the_folder_that_is_written_of_it(tmp_path: Path):
    model, vocabulary = from_configuration(QWEN, SIZES, seed=0)
    stir(model)
    adapt(model, frozen_body=True, lora_rank=2, lora_alpha=4, bfloat16=True)
    plain = merged(model).eval()
    plain.save_pretrained(tmp_path)
    tokens = torch.randint(2, vocabulary.end, (1, 300), generator=torch.Generator().manual_seed(2))  # 100 items
    with torch.no_grad():
        written, again = (one(input_ids=tokens).logits for one in (plain, load_folder(tmp_path, seed=0, weights=True)))
    assert torch.equal(written, again)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_codes_are_added_behind_the_tokens_of_a_folder(name, tmp_path):
    model, _ = from_configuration(MODELS[name], (20, 9), seed=3)  # a model with 31 tokens of its own
    stir(model)
    model.save_pretrained(tmp_path)
    (grown, vocabulary), (again, _) = (from_folder(tmp_path, SIZES, seed=1, weights=True) for _ in range(2))
    assert vocabulary == Vocabulary(31, SIZES, 1)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        weight, old = getattr(grown, part)().weight, getattr(model, part)().weight
        assert torch.equal(weight[:31], old) and len(weight) == 31 + 9
        assert 0.3 < weight[31:].std().item() / old.std().item() < 3
        assert torch.equal(weight, getattr(again, part)().weight)
    policy = CausalLMPolicy(grown, vocabulary, CODES, max_history=4, preamble=(5, 2), suffix=(30, 3, 3)).eval()
    codes = codes_of(policy, 3)
    scores = policy.score(policy.encode(HISTORIES), codes)
    torch.testing.assert_close(scores, all_plain(policy, codes), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_a_folder_that_transformers_opens_and_we_again(tmp_path: Path):
    policy = make(LLAMA)
    save_weights(tmp_path, policy.state_dict(), 3, policy.checkpoint_files)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    sequence = torch.tensor([[2, 5, 7, 3]])
    torch.testing.assert_close(model(input_ids=sequence).logits, policy.lm(input_ids=sequence).logits)
    opened, vocabulary = from_folder(tmp_path, SIZES, seed=9, weights=True)
    assert vocabulary == policy.vocabulary and opened.config.vocab_size == policy.lm.config.vocab_size
    with pytest.raises(UserError, match=rf"{VOCABULARY_FILE}: made for codes of sizes \(3, 2, 4\)"):
        from_folder(tmp_path, (3, 2, 5), seed=9, weights=True)


def test_one_level_works():
    model, vocabulary = from_configuration(QWEN, (5,), seed=0)
    policy = CausalLMPolicy(model, vocabulary, torch.arange(5).unsqueeze(1), max_history=4).eval()
    histories = Histories(torch.tensor([[1, 2]]), torch.tensor([2]))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            scores = policy.score(policy.encode(histories), torch.arange(6).view(1, 6, 1))
        torch.testing.assert_close(scores.exp().sum(), torch.tensor(1.0))
    assert policy.supervised_loss(policy.encode(histories), torch.tensor([3])).shape == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "none-such"}, "no causal LM can be made of it"),
        (QWEN | {"hidden_sise": 3}, r"config\.hidden_sise: qwen3 has no such key"),
        (QWEN | {"vocab_size": 30}, r"config\.vocab_size: the catalogue decides it"),
        (GPT | {"n_head": 3}, "no causal LM can be made of it"),
    ],
)
def test_a_configuration_of_no_use_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        from_configuration(options, SIZES, seed=0)


def test_a_folder_of_no_use_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no config\.json"):
        from_folder(tmp_path, SIZES, seed=0, weights=True)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="no causal LM in safetensors"):
        from_folder(tmp_path, SIZES, seed=0, weights=True)
    (tmp_path / VOCABULARY_FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.read(tmp_path / VOCABULARY_FILE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GPT | {"n_positions": 15}, "sees 15 tokens at once, a prompt and an item can take 16"),
        (QWEN | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}, "sees 6 tokens at once"),
        (LLAMA | {"model_type": "mistral", "sliding_window": 6}, "sees 6 tokens at once"),
        (PHI | {"sliding_window": 6}, "sees 6 tokens at once"),
        (
            {key: value for key, value in QWEN.items() if key != "head_dim"}
            | {"model_type": "granite", "logits_scaling": 3.0},  # what its head gives is not what the model gives
            "granite cannot be a policy",
        ),
    ],
)
def test_a_model_that_cannot_share_a_prompt_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(options, preamble=(0,), suffix=(1,))


def test_weights_are_a_function_of_the_seed():
    first, second, third = (from_configuration(QWEN, SIZES, seed=seed)[0] for seed in (0, 0, 1))
    state = torch.get_rng_state()
    from_configuration(QWEN, SIZES, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.model.embed_tokens.weight, second.model.embed_tokens.weight)
    assert not torch.equal(first.model.embed_tokens.weight, third.model.embed_tokens.weight)
