"""TRL's trainer with the anchor and the gate, against our objective on the same rollouts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adagrpo.errors import UserError
from adagrpo.objective import clipped_surrogate, gated_sum, group_advantages, group_loss, nll
from adagrpo.policies.language_model import from_configuration

SIZES = (3, 3, 3)
TOKENS = 11  # padding, end, nine codes
PROMPTS = ["t2 t5 t8", "t3 t5 t9 t4 t7 t10", "t4 t6 t8", "t2 t7 t9 t3 t6 t10"]
TARGETS = ["t3 t6 t9", "t4 t5 t8", "t2 t6 t10", "t4 t7 t10"]
GROUP, LAMBDA, PENALTY, Q_MIN = 4, 0.7, 0.4, 0.9

pytestmark = pytest.mark.slow  # importing trl takes seconds, so it is imported where it is used


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A trainer of `transformers` leaves settings of accelerate behind, in the process and in its environment."""
    environment = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.clear()
    os.environ.update(environment)


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def item_of(ids: list[int]) -> int:
    """Any number for a completion: few of the free ones would be codes of one item."""
    return -1 if ids[0] == 2 else 5 * ids[0] + ids[1] % 3


def value(prompt: str, ids: list[int]) -> float:
    return math.sin(3.0 * sum(ids_of(prompt)) + 1.7 * item_of(ids))


def reward(prompts: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [value(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]


def watched(kind: type[Any]) -> type[Any]:
    """A trainer that keeps what was drawn, and every micro-batch's loss and gradient."""

    class Watched(kind):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.drawn = super()._generate_and_score_completions(inputs)
            return {name: value.clone() for name, value in self.drawn.items()}

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            self.__dict__.setdefault("parts", []).append((loss.detach(), gradients))
            return loss

    return Watched


def trainer(tmp_path: Any, **changes: Any) -> Any:
    from trl import GRPOConfig

    from examples.trl_adagrpo import AdaGRPOTrainer

    options = {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "tie_word_embeddings": True,
    }
    model, _ = from_configuration(options, SIZES, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    names = ["[pad]", "[end]", *(f"t{token}" for token in range(2, TOKENS))]
    tokens = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="[pad]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[pad]", eos_token="[end]", padding_side="left"
    )
    settings = GRPOConfig(
        **{
            "output_dir": str(tmp_path),
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": GROUP,
            "max_completion_length": 3,
            "temperature": 1.0,
            "beta": 0.0,
            "loss_type": "grpo",
            "learning_rate": 0.0,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "generation_kwargs": {"suppress_tokens": [0, 1]},  # completions of three tokens each
            "seed": 3,
        }
        | changes
    )
    rows = [{"prompt": p, "target": t} for p, t in zip(PROMPTS, TARGETS, strict=True)]
    return watched(AdaGRPOTrainer)(
        model,
        reward,
        settings,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        item_of=item_of,
        miss_min=0.0,
        q_min=Q_MIN,
        negatives=3,
        lambda_=LAMBDA,
        invalid_penalty=PENALTY,
    )


def log_probs_of(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    every = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return every.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


def test_loss_and_gradient_are_our_objective_on_the_same_rollouts(tmp_path):
    taken = trainer(tmp_path)
    taken.train()
    model, drawn = taken.model, taken.drawn
    prompts = [row[mask.bool()].tolist() for row, mask in zip(drawn["prompt_ids"], drawn["prompt_mask"], strict=True)]
    texts = [PROMPTS[[ids_of(text) for text in PROMPTS].index(prompt)] for prompt in prompts[::GROUP]]
    targets = [ids_of(TARGETS[PROMPTS.index(text)]) for text in texts]
    completions = drawn["completion_ids"].view(4, GROUP, 3).tolist()
    assert drawn["completion_mask"].all()

    items = torch.tensor([[item_of(ids) for ids in group] for group in completions])
    rewards = torch.tensor(
        [[value(text, ids) for ids in group] for text, group in zip(texts, completions, strict=True)]
    )
    admitted = []
    for b, text in enumerate(texts):
        mine = value(text, targets[b])
        beaten = {item: mine > r for item, r in zip(items[b].tolist(), rewards[b].tolist(), strict=True) if item >= 0}
        beaten |= {item_of(ids): mine > value(text, ids) for ids in targets}
        beaten.pop(item_of(targets[b]), None)
        distinct = {item for item in items[b].tolist() if item >= 0}
        admitted.append(len(distinct) > 1 and sum(beaten.values()) / len(beaten) >= Q_MIN)
    assert 0 < sum(admitted) < 4  # both sides of the gate are seen

    valid = items >= 0
    advantages = group_advantages(rewards.masked_fill(~valid, torch.nan), valid, invalid_penalty=PENALTY)
    assert not valid.all()
    log_probs = torch.stack(
        [
            torch.stack([log_probs_of(model, ids_of(text), ids) for ids in group])
            for text, group in zip(texts, completions, strict=True)
        ]
    )
    surrogate = clipped_surrogate(log_probs, log_probs.detach(), advantages, epsilon=0.2, epsilon_high=0.2)
    gated = gated_sum(group_loss(surrogate.loss), torch.tensor(admitted), total=4)
    anchor = nll(
        torch.stack([log_probs_of(model, ids_of(text), ids) for text, ids in zip(texts, targets, strict=True)])
    )
    expected = anchor.mean() + LAMBDA * gated
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(expected, parameters)

    assert len(taken.parts) == 2
    torch.testing.assert_close(sum(loss for loss, _ in taken.parts), expected.detach(), rtol=1e-5, atol=1e-5)
    for index, gradient in enumerate(gradients):
        actual = sum(part[index] for _, part in taken.parts)
        torch.testing.assert_close(actual, gradient, rtol=1e-5, atol=1e-5)
    logged = taken.state.log_history[0]
    assert logged["admission"] == pytest.approx(sum(admitted) / 4)
    assert logged["nll"] == pytest.approx(anchor.mean().item(), rel=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="loss_type: 'dapo'"):
        trainer(tmp_path, loss_type="dapo")
    with pytest.raises(UserError, match="KL for rejected groups"):
        trainer(tmp_path, beta=0.1)
    nameless = trainer(tmp_path)
    nameless.train_dataset = nameless.train_dataset.remove_columns("target")
    with pytest.raises(UserError, match="no text column 'target'"):
        nameless.train()
