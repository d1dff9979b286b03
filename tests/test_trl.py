"""TRL's trainer with the anchor and the gate, against the package's own trainer on the same groups."""

from __future__ import annotations

import copy
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from adagrpo.config import ObjectiveConfig
from adagrpo.errors import UserError
from adagrpo.groups import draw
from adagrpo.groups.gated import gated_groups, summary
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import from_configuration
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.trainer.batches import TrainingBatch
from adagrpo.trainer.post_training import Arm, Micro, PostTraining
from adagrpo.types import Histories, Rollouts

pytest.importorskip("trl")
pytestmark = pytest.mark.slow  # importing trl takes seconds, so it is imported where it is used

SIZES = (3, 3, 3)
EVERY = torch.tensor(list(itertools.product(*map(range, SIZES))))
CODES = EVERY[torch.randperm(27, generator=torch.Generator().manual_seed(0))]
ITEMS = 20  # the first rows of CODES are items, of which the first eight are only in histories
PROMPTS, GROUP, LAMBDA, PENALTY, SEED = 8, 4, 0.7, 0.4, 3
HISTORIES = torch.stack([torch.arange(PROMPTS), (torch.arange(PROMPTS) + 3) % PROMPTS], dim=1)
TARGETS = torch.tensor([8, 9, 10, 11, 12, 13, 14, 8])
DRAWN = torch.randint(8, 23, (PROMPTS, GROUP), generator=torch.Generator().manual_seed(2))  # rows of CODES
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}


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


def tokens(row: int) -> list[int]:
    return [2 + 3 * level + code for level, code in enumerate(CODES[row].tolist())]


def text(*rows: int) -> str:
    return " ".join(f"t{token}" for row in rows for token in tokens(row))


ITEM_OF = {tuple(tokens(item)): item for item in range(ITEMS)}
PROMPT_ROWS = {text(*row): index for index, row in enumerate(HISTORIES.tolist())}


def item_of(ids: list[int]) -> int:
    return ITEM_OF.get(tuple(ids), -1)


def value(row: int, item: int) -> float:
    """A reward that mostly likes the logged item."""
    return 1.5 * (item == int(TARGETS[row])) + math.sin(3.0 * row + 1.7 * item)


def reward(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    items = [item_of(ids[:3]) for ids in completion_ids]
    return [None if i < 0 else value(PROMPT_ROWS[p], i) for p, i in zip(prompts, items, strict=True)]


class OurReward:
    def score(self, histories: Histories, items: torch.Tensor) -> torch.Tensor:
        rows = histories.items[:, 0].tolist()
        return torch.tensor([[value(r, i) for i in own] for r, own in zip(rows, items.tolist(), strict=True)])


def start() -> tuple[Any, Any]:
    model, vocabulary = from_configuration(MODEL, SIZES, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, vocabulary


def watched(kind: type[Any]) -> type[Any]:
    """A trainer that keeps every micro-batch's loss and gradient, and what the gate decided."""

    class Watched(kind):
        drawn: torch.Tensor | None = None

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            if self.drawn is None:
                return super()._generate_single_turn(*args, **kwargs)
            return [tokens(row) for row in self.drawn.flatten().tolist()], None

        def _gated_groups(self, *args: Any) -> Any:
            self.groups = super()._gated_groups(*args)
            return self.groups

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            if not torch.is_grad_enabled():
                return loss
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            self.__dict__.setdefault("parts", []).append((loss.detach(), gradients))
            return loss

    return Watched


def trainer(
    path: Path, rows: list[dict[str, Any]] | None = None, rewards: Any = reward, model: Any = None, **given: Any
) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig

    from adagrpo.trl import AdaGRPOTrainer

    names = ["[pad]", "[end]", *(f"t{token}" for token in range(2, 11))]
    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[pad]", eos_token="[end]", padding_side="left"
    )
    settings = {
        "output_dir": str(path),
        "max_steps": 1,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "num_generations": GROUP,
        "max_completion_length": 3,
        "loss_type": "grpo",
        "learning_rate": 0.0,
        "logging_steps": 1,
        "shuffle_dataset": False,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": SEED,
    }
    changes = {name: given.pop(name) for name in [*given] if name in GRPOConfig.__dataclass_fields__}
    rows = rows or [{"prompt": text(*h), "target": text(t)} for h, t in zip(HISTORIES.tolist(), TARGETS, strict=True)]
    options = {"item_of": item_of, "lambda_": LAMBDA, "invalid_penalty": PENALTY} | given
    return watched(AdaGRPOTrainer)(
        model or start()[0], rewards, GRPOConfig(**settings | changes), Dataset.from_list(rows),
        processing_class=tokenizer, **options,
    )  # fmt: skip


@pytest.mark.parametrize("gate", ["adagrpo", "random", "all"])
def test_admitted_prompts_loss_and_gradient_are_those_of_our_trainer(tmp_path, monkeypatch, gate):
    thresholds = {"tau": 0.5, "tau_reward": 0.7, "rho": 0.1}
    objective = ObjectiveConfig(
        lambda_=LAMBDA, num_generations=GROUP, negatives=3, adagrpo=thresholds, grpo={"invalid_penalty": PENALTY}
    )
    model, vocabulary = start()
    policy = CausalLMPolicy(model, vocabulary, CODES[:ITEMS], max_history=2)
    catalog = Catalog.from_codes(CODES[:ITEMS], SIZES).with_outside()
    histories, codes = Histories(HISTORIES, torch.full((PROMPTS,), 2)), CODES[DRAWN]

    def prescribed(policy: Any, context: Any, trie: Any, *rest: Any, **options: Any) -> Rollouts:
        return Rollouts(codes, trie.lookup(codes), policy.score(context, codes))

    monkeypatch.setattr(draw, "draw_rollouts", prescribed)
    generator = torch.Generator().manual_seed(SEED)
    groups = gated_groups(
        policy.eval(), catalog, OurReward(), histories, TARGETS, objective, generator, gate=gate, running_std=0.0
    )
    admitted = groups.decision.admitted.nonzero().squeeze(1)
    all_rows, every = torch.arange(PROMPTS), torch.ones(PROMPTS, dtype=torch.bool)
    positions, firsts = torch.ones(PROMPTS, dtype=torch.int64), np.zeros(PROMPTS, np.int64)
    batch = TrainingBatch(np.arange(PROMPTS), histories, all_rows, positions, TARGETS, every, every, firsts)
    task = PostTraining(policy, catalog, OurReward(), None, objective, Arm(True, LAMBDA, gate), steps=1, validate=dict)  # type: ignore[arg-type]
    terms, _ = task.loss(Micro(batch, PROMPTS, groups, admitted, admitted))
    expected = sum(terms.values())
    gradients = torch.autograd.grad(expected, list(policy.lm.parameters()))

    taken = trainer(tmp_path, model=copy.deepcopy(model), gate=gate, negatives=3, **thresholds)
    taken.drawn = DRAWN
    taken.generator = torch.Generator().manual_seed(SEED)
    torch.rand(PROMPTS, GROUP, 3, generator=taken.generator)  # what our trainer draws the rollouts by
    taken.train()

    assert taken.groups.decision.admitted.tolist() == groups.decision.admitted.tolist()
    assert gate == "all" or 0 < len(admitted) < PROMPTS - int(groups.decision.degenerate.sum())
    assert len(taken.parts) == 2
    torch.testing.assert_close(sum(loss for loss, _ in taken.parts), expected.detach(), rtol=1e-5, atol=1e-5)
    for index, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(part[index] for _, part in taken.parts), gradient, rtol=1e-5, atol=1e-5)
    logged, ours = taken.state.log_history[0], summary(groups).to_json()
    assert logged["nll"] == pytest.approx(float(terms["nll"].detach()), rel=1e-4)
    shared = {"admission", "rejected_easy", "rejected_undiscriminated", "rejected_degenerate", "contains_target"}
    for name in shared | {"invalid_share"} | ({"shuffled_admission"} if gate != "all" else set()):
        assert logged[name] == pytest.approx(ours[name]), name
    assert 0 < logged["invalid_share"] < 1 and 0 < logged["contains_target"] < 1


def test_admit_finds_thresholds_before_a_step_and_a_checkpoint_keeps_them(tmp_path):
    taken = trainer(tmp_path, admit=0.125, admit_samples=8, save_strategy="steps", save_steps=1)
    taken.drawn = DRAWN
    taken.train()
    gate = taken.options.of_gate("adagrpo")
    assert taken.options.adagrpo.admit is None
    assert taken.state.log_history[0]["tau"] == gate["tau"] and taken.state.log_history[0]["rho"] == gate["rho"]
    assert taken.state.log_history[0]["num_tokens"] == PROMPTS * GROUP * 9  # without those of the search
    resumed = trainer(tmp_path, admit=0.125, admit_samples=8, max_steps=2)
    resumed.drawn = DRAWN
    resumed._find_thresholds = lambda: pytest.fail("found again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.options == taken.options


def test_lora_variable_lengths_and_several_steps_of_one_generation_run(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    taken = trainer(
        tmp_path, rewards=lambda completions, **columns: [float(len(text)) for text in completions], peft_config=lora,
        tau=0.0, tau_reward=1.0, rho=0.0, item_of=None, max_completion_length=5, steps_per_generation=4,
        gradient_accumulation_steps=2, per_device_train_batch_size=8, max_steps=3, learning_rate=0.01, beta=0.0,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in taken.model.named_parameters() if p.requires_grad}
    taken.train()
    logged = taken.state.log_history[0]
    assert logged["admission"] > 0 and math.isfinite(logged["nll"]) and len(taken.parts) == 6
    assert all("lora" in name for name in before)
    assert any(not torch.equal(p, before[name]) for name, p in taken.model.named_parameters() if name in before)
    assert taken.evaluate(taken.train_dataset)["eval_admission"] > 0
    assert taken._targets([{"target": text(8)}]) == [[*tokens(8), 1]]  # there is room for an end


def test_prompts_may_be_messages(tmp_path):
    asked: list[Any] = []

    def length(completions: list[Any], **columns: Any) -> list[float]:
        asked.extend(completions)
        return [float(len(messages[0]["content"])) for messages in completions]

    rows = [{"prompt": [{"role": "user", "content": text(row)}], "target": text(TARGETS[row])} for row in range(8)]
    taken = trainer(tmp_path, rows, length, item_of=None, tau=0.0, tau_reward=1.0, rho=0.0)
    taken.processing_class.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    taken.train()
    assert [{"role": "assistant", "content": text(TARGETS[0])}] in asked
    assert taken.state.log_history[0]["admission"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "dapo"}, "loss_type 'dapo'"),
        ({"beta": 0.1}, "beta 0.1: TRL adds its KL"),
        ({"tau": 1.2}, r"tau: .* \(found 1.2\)"),
        ({"rho": -0.1}, r"rho: .* \(found -0.1\)"),
        ({"tau_reward": 2.0}, r"tau_reward: .* \(found 2.0\)"),
        ({"admit": 1.0}, r"admit: .* \(found 1.0\)"),
        ({"admit": 0.1, "tau": 0.3}, r"tau 0.3 and admit 0.1"),
        ({"negatives": -1}, r"negatives: .* \(found -1\)"),
        ({"lambda_": -1.0}, r"lambda_: .* \(found -1.0\)"),
        ({"gate": "none"}, "gate: 'none' is none of adagrpo, random, all"),
        ({"rewards": None}, "reward_funcs: no reward function"),
        ({"rows": [{"prompt": "t2"}]}, "no text column 'target'"),
        ({"rows": [{"prompt": "t2", "target": 5}]}, "no text column 'target'"),
        ({"rows": [{"prompt": "t2", "target": text(26)}]}, "is no item by item_of"),
        ({"max_completion_length": 2}, "has 3 tokens, and completions at most 2"),
        ({"scale_rewards": "batch"}, "scale_rewards 'batch'"),
        ({"per_device_train_batch_size": 2}, "generation_batch_size 4: one prompt"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_training(tmp_path, given, message):
    with pytest.raises(UserError, match=message) as caught:
        trainer(tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    from trl import GRPOConfig

    monkeypatch.setattr(GRPOConfig, "world_size", 2)
    with pytest.raises(UserError, match="world_size 2"):
        trainer(tmp_path)


@pytest.mark.parametrize(("rewards", "message"), [
    (lambda prompts, **columns: [1.0] * len(prompts), "the reward orders no group"),
    (lambda prompts, **columns: [math.sin(i) for i in range(len(prompts))], "admit 0.9: no pair of tau and rho"),
])  # fmt: skip
def test_a_share_that_no_thresholds_admit_ends_it_before_a_step(tmp_path, rewards, message):
    taken = trainer(tmp_path, rewards=rewards, admit=0.9)
    taken.drawn = DRAWN
    with pytest.raises(UserError, match=message):
        taken.train()
    assert not hasattr(taken, "parts")


def test_the_example_runs_from_any_folder(tmp_path):
    script = Path(__file__).parents[1] / "examples/trl_ring/train.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [line.split() for line in ran.stdout.splitlines() if line.startswith("step")]
    logged = [dict(zip(line[2::2], map(float, line[3::2]), strict=True)) for line in lines]
    assert len(logged) == 6
    assert logged[-1]["nll"] < logged[0]["nll"] and logged[-1]["invalid_share"] < logged[0]["invalid_share"]
    assert logged[-1]["reward"] > logged[0]["reward"]
