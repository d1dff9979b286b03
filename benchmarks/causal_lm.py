"""Language-model policies against what a team would run otherwise: TRL's `GRPOTrainer`, and `generate` with beams.

A Qwen3-shaped model, prompts of 80 tokens (20 items of 4 codes), 12,101 items, G 16. Both sides have the same weights,
prompts, group size, number of new tokens and precision. Needs the extra `trl`. The models are `KINDS`: `qwen3-tiny`
(4 layers, width 128) for a processor, and `qwen3-0.6b` for a GPU, whose rows carry its name.

The model FLOPs of a step over its time are given beside the rate of a large matrix product of the same type on the same
machine, so that no data sheet is needed. OneRec (Zhou et al. 2025) reports 23.7 % of the peak of its GPUs in training
and 28.8 % in inference.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adagrpo.decoding import beam_search, sample
from adagrpo.networks import autocast_dtype
from adagrpo.objective import clipped_surrogate, gated_sum, group_advantages, group_loss
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import from_configuration
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories
from benchmarks.rows import Row, median_spread, timed, timed_in_turn

__all__ = ["KINDS", "Kind", "beam50_vs_generate", "histories", "our_step", "policy_and_catalog", "rl_step_vs_trl"]

SIZES = (256, 256, 256, 8)
ITEMS, HISTORY, GROUP, STEPS = 12_101, 20, 16, 6


@dataclass(frozen=True)
class Kind:
    """A model, and where it runs."""

    name: str
    shape: dict[str, Any]
    device: str
    scale: float  # of the embeddings, so that random weights are far enough from uniform that beams have an order

    def named(self, row: str) -> str:
        """The name of a row: that of the targets table for the first kind."""
        return row if self.name == "qwen3-tiny" else f"{row}_{self.name}"


KINDS = {
    "qwen3-tiny": Kind(
        "qwen3-tiny",
        {
            "model_type": "qwen3",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "intermediate_size": 512,
            "tie_word_embeddings": True,
        },
        "cpu",
        8.0,
    ),
    "qwen3-0.6b": Kind(
        "qwen3-0.6b",
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "tie_word_embeddings": True,
        },
        "cuda",
        8.0,
    ),
}


def policy_and_catalog(kind: Kind) -> tuple[CausalLMPolicy, Catalog]:
    """A policy with random weights, and random distinct codes, on the kind's device."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(size, (2 * ITEMS,), generator=generator) for size in SIZES], dim=1)
    codes = torch.unique(codes, dim=0)
    codes = codes[torch.randperm(len(codes), generator=generator)[:ITEMS]]
    catalog = Catalog.from_codes(codes, SIZES).with_outside()
    model, vocabulary = from_configuration(kind.shape, SIZES, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(kind.scale)
    policy = CausalLMPolicy(model, vocabulary, catalog.codes, max_history=HISTORY)
    return policy.to(kind.device), catalog.to(kind.device)


def histories(count: int, kind: Kind, length: int = HISTORY) -> Histories:
    """Full histories of random items."""
    items = torch.randint(ITEMS, (count, length), generator=torch.Generator().manual_seed(1))
    return Histories(items.to(kind.device), torch.full((count,), length, device=kind.device))


def our_step(policy: CausalLMPolicy, batch: Histories, admitted: int, group: int = GROUP) -> Callable[[], None]:
    """A GRPO step: a group for every history, surrogate and backward for the first `admitted` of them."""
    policy = copy.deepcopy(policy).eval()  # the model has no dropout; TRL's is in training mode
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(2)
    count, device = len(batch.lengths), batch.items.device
    kept = torch.arange(count, device=device) < admitted

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=_bfloat16(device)):
            with torch.no_grad():
                uniforms = torch.rand(count, group, len(SIZES), generator=generator).to(device)
                drawn = sample(policy, policy.encode(batch), uniforms)
            rewards = reward_of(drawn.codes[..., 0])
            advantages = group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool), invalid_penalty=1.0)
            chosen = Histories(batch.items[kept], batch.lengths[kept])
            log_probs = policy.score(policy.encode(chosen), drawn.codes[kept])
            surrogate = clipped_surrogate(
                log_probs, log_probs.detach(), advantages[kept], epsilon=0.2, epsilon_high=0.2
            )
            loss = gated_sum(group_loss(surrogate.loss), kept[kept], total=count)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        _wait(device)

    return step


def reward_of(codes: Tensor) -> Tensor:
    """Any reward that costs nothing."""
    return (codes % 7).float()


def trl_seconds(policy: CausalLMPolicy, batch: Histories, steps: int) -> list[float]:
    """Seconds of each step of TRL's trainer on the same prompts, the first one left out."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    names = ["[pad]", "[end]", *(f"t{token}" for token in range(2, policy.vocabulary.end))]
    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[pad]", eos_token="[end]", padding_side="left"
    )
    prompts = policy.encode(batch).prompts.tokens.tolist()
    rows = [{"prompt": " ".join(f"t{token}" for token in prompt)} for prompt in prompts]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            _wait(batch.items.device)
            seconds.append(time.perf_counter() - self.started)

    def reward(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float(ids[0] % 7) for ids in completion_ids]

    settings = GRPOConfig(
        output_dir="unused",
        max_steps=steps + 1,
        per_device_train_batch_size=len(rows) * GROUP,
        num_generations=GROUP,
        max_completion_length=len(SIZES),
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        bf16=_bfloat16(batch.items.device),
        use_cpu=batch.items.device.type == "cpu",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        copy.deepcopy(policy.lm),
        reward,
        settings,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds[1:]


def rl_step_vs_trl(data: Path, work: Path, kind: Kind) -> list[Row]:
    """Seconds of a GRPO step of TRL over ours, with all samples admitted and with one in eight."""
    policy, _ = policy_and_catalog(kind)
    batch = histories(16, kind)

    def ours_in_turn() -> list[list[float]]:
        return timed_in_turn([our_step(policy, batch, 16), our_step(policy, batch, 2)], repeats=2 * STEPS, warmup=2)

    before, theirs, after = ours_in_turn(), trl_seconds(policy, batch, STEPS), ours_in_turn()
    ours = [first + second for first, second in zip(before, after, strict=True)]  # a drift shows in the spread
    with FlopCounterMode(display=False) as counter:
        our_step(policy, batch, 16)()
    flops = counter.get_total_flops()
    rows = []
    for name, target, seconds in (("all", 10.0, ours[0]), ("eighth", 20.0, ours[1])):
        step, spread = median_spread(seconds)
        peer, peer_spread = median_spread(theirs)
        value = peer / step
        detail = {
            "our_step_ms": 1000 * step,
            "trl_step_ms": 1000 * peer,
            "prompts": 16,
            "prompt_tokens": HISTORY * len(SIZES),
            "group": GROUP,
            "new_tokens": len(SIZES),
            "dtype": "bfloat16" if _bfloat16(batch.items.device) else "float32",
        }
        if name == "all":
            detail |= flop_share(flops, step, kind, _bfloat16(batch.items.device))
        between = (peer_spread[0] / spread[1], peer_spread[1] / spread[0])
        against = "TRL GRPOTrainer, same model, prompts, group and precision"
        rows.append(
            Row(
                kind.named(f"rl_step_vs_trl_{name}"),
                value,
                "ratio",
                between,
                f">= {target:g}",
                value >= target,
                against,
                detail,
            )
        )
    return rows


def flop_share(flops: int, seconds: float, kind: Kind, bfloat16: bool) -> dict[str, float]:
    """Model FLOPs of a chunk of work, and its rate over that of a large matrix product."""
    size = 2048 if kind.device == "cpu" else 8192
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    matrix = torch.randn(size, size, device=kind.device).to(dtype)

    def product() -> None:
        torch.mm(matrix, matrix)
        _wait(matrix.device)

    rate = 2 * size**3 / median_spread(timed(product, repeats=15, warmup=5))[0]
    return {
        "model_gflops": flops / 1e9,
        "matrix_gflops_a_second": rate / 1e9,
        "flop_share": flops / seconds / rate,
    }


def beam50_vs_generate(data: Path, work: Path, kind: Kind) -> list[Row]:
    """Seconds of `generate` with 50 beams and a prefix function over our beam search, float32, same top ten."""
    policy, catalog = policy_and_catalog(kind)
    policy.eval()
    batch = histories(32, kind)
    prompts = policy.encode(batch).prompts.tokens
    names = [tuple(row) for row in policy.item_tokens.tolist()]
    following: dict[tuple[int, ...], set[int]] = {}
    for name in names:
        for level, token in enumerate(name):
            following.setdefault(name[:level], set()).add(token)
    lists = {prefix: sorted(tokens) for prefix, tokens in following.items()}
    result: dict[str, list[list[int]]] = {}
    item_of = {name: item for item, name in enumerate(names)}

    @torch.no_grad()
    def ours() -> None:
        beams = beam_search(policy, policy.encode(batch), 50, trie=catalog.trie)
        _wait(batch.items.device)
        result["ours"] = catalog.lookup(beams.codes)[:, :10].tolist()

    @torch.no_grad()
    def theirs() -> None:
        output = policy.lm.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=50,
            num_return_sequences=10,
            max_new_tokens=len(SIZES),
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=lambda _, ids: lists[tuple(ids[prompts.shape[1] :].tolist())],
        )
        items = [item_of[tuple(row)] for row in output[:, prompts.shape[1] :].tolist()]
        result["theirs"] = [items[first : first + 10] for first in range(0, len(items), 10)]

    seconds = timed_in_turn([ours, theirs], repeats=5)
    with FlopCounterMode(display=False) as counter:
        ours()
    same = sum(a == b for a, b in zip(result["ours"], result["theirs"], strict=True))
    value, spread = median_spread([b / a for a, b in zip(*seconds, strict=True)])
    detail = {
        "ours_ms": 1000 * median_spread(seconds[0])[0],
        "generate_ms": 1000 * median_spread(seconds[1])[0],
        "prompts": 32,
        "items": ITEMS,
        "same_top_ten": same,
    }
    detail |= flop_share(counter.get_total_flops(), median_spread(seconds[0])[0], kind, False)
    met = value >= 30 and same == 32
    against = "transformers generate, 50 beams, prefix function, float32"
    return [Row(kind.named("beam50_vs_generate"), value, "ratio", spread, ">= 30", met, against, detail)]


def _bfloat16(device: torch.device) -> bool:
    return autocast_dtype(device) is torch.bfloat16


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
