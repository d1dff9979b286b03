"""Beam search on one copy of the prompt against `generate` of Hugging Face with a prefix function."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from adagrpo.decoding import beam_search, sample
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import from_configuration
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories

SIZES = (8, 8, 8)
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "qwen3": {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
    "llama": {"intermediate_size": 24, "tie_word_embeddings": False},
    "gpt2": {},
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    codes = space[torch.randperm(len(space), generator=torch.Generator().manual_seed(0))[:120]]
    return Catalog.from_codes(codes, SIZES).with_outside()


@pytest.fixture(scope="module", params=MODELS)
def policy(request: pytest.FixtureRequest, catalog: Catalog) -> CausalLMPolicy:
    options = {"model_type": request.param, **SHAPE, **MODELS[request.param]}
    model, vocabulary = from_configuration(options, SIZES, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return CausalLMPolicy(model, vocabulary, catalog.codes, max_history=5).eval()


def histories(count: int) -> Histories:
    items = torch.randint(120, (count, 5), generator=torch.Generator().manual_seed(2))
    lengths = 1 + torch.arange(count) % 5
    return Histories(items.masked_fill(torch.arange(5) >= lengths.unsqueeze(1), 0), lengths)


def generated(model: PreTrainedModel, catalog: Catalog, items: list[int], beams: int) -> tuple[list[int], list[float]]:
    """Items and scores of `generate` for one history; the prefix function is a walk over the catalogue."""
    token = {
        (level, code): 2 + 8 * level + code for level in range(3) for code in range(8)
    }  # padding and end come first
    names = [[token[pair] for pair in enumerate(codes)] for codes in catalog.codes.tolist()]
    prompt = [t for item in items for t in names[item]]

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        written = ids[len(prompt) :].tolist()
        return sorted({name[len(written)] for name in names if name[: len(written)] == written})

    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        num_beams=beams,
        num_return_sequences=10,
        do_sample=False,
        max_new_tokens=3,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    result = [names.index(row[len(prompt) :].tolist()) for row in output.sequences]
    return result, output.sequences_scores.tolist()


@torch.no_grad()
def test_the_top_ten_are_those_of_generate(policy, catalog):
    batch = histories(6)
    beams = beam_search(policy, policy.encode(batch), 20, trie=catalog.trie)
    actual = catalog.lookup(beams.codes)
    for b in range(6):
        items, scores = generated(policy.lm, catalog, batch.items[b, : batch.lengths[b]].tolist(), 20)
        assert actual[b, :10].tolist() == items
        torch.testing.assert_close(beams.scores[b, :10], torch.tensor(scores), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_cache_of_a_prompt_is_held_once(policy, catalog):
    """However many hypotheses: the prompt's keys have a batch of the samples, not of samples times hypotheses."""
    batches = []
    hook = policy.lm.base_model.register_forward_hook(
        lambda module, args, kwargs, output: batches.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    context = policy.encode(histories(6))
    state = policy.start(context)
    storage = state.prompt[0][0].data_ptr()
    wide = policy.advance(state, torch.zeros(6, 40).long(), torch.zeros(6, 40).long())
    assert wide.prompt[0][0].data_ptr() == storage and wide.prompt[0][0].shape[0] == 6
    assert wide.written[0][0].shape[2] == 40
    beam_search(policy, context, 20, trie=catalog.trie)
    sample(policy, context, torch.rand(6, 30, 3))
    hook.remove()
    assert set(batches) == {6}
