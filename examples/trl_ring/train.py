"""AdaGRPO in TRL on a toy world: `adagrpo.trl.AdaGRPOTrainer`, used like `GRPOTrainer`.

    pip install -e '.[trl]' && python examples/trl_ring/train.py

Users walk along a ring of 27 items, one to three at a time or, one time in five, anywhere; the reward likes two. A
policy is first fitted to the log, and AdaGRPO starts from there: `admit` finds the gate's thresholds. Every ten steps a
line shows the NLL of the logged items, the share of prompts that the gate admits, by shuffled rewards too, the share of
completions that are no item, and the mean reward.
"""

from __future__ import annotations

import itertools
import logging
import random
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig

from adagrpo.trl import AdaGRPOTrainer

ITEMS = ["".join(f"<{letter}{code}>" for letter, code in zip("abc", codes, strict=True)) for codes in
         itertools.product(range(3), repeat=3)]  # fmt: skip
NAMES = ["[pad]", "[end]", *(f"<{letter}{code}>" for letter in "abc" for code in range(3))]
ITEM_OF = {tuple(NAMES.index(f"<{part}") for part in item.split("<")[1:]): number for number, item in enumerate(ITEMS)}
SHOWN = ("nll", "admission", "shuffled_admission", "invalid_share", "reward")


def item_of(ids: list[int]) -> int:
    """The item that the tokens of a completion name, -1 for none."""
    return ITEM_OF.get(tuple(ids), -1)


def reward(completion_ids: list[list[int]], last: list[int], **columns: Any) -> list[float | None]:
    """Closeness on the ring to the second item after the last one; None for what is no item."""
    scores: list[float | None] = []
    for ids, item in zip(completion_ids, last, strict=True):
        away = (item_of(ids[:3]) - item - 2) % len(ITEMS)
        scores.append(None if item_of(ids[:3]) < 0 else -float(min(away, len(ITEMS) - away)))
    return scores


def fit(model: Qwen3ForCausalLM, ids: torch.Tensor, steps: int) -> None:  # ids (N, 12)
    """Minimise the NLL of the last three tokens."""
    labels = ids.clone()
    labels[:, :-3] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class Print(TrainerCallback):
    """Shows what matters of TRL's log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line."""
        if logs and "admission" in logs:
            print(f"step {state.global_step:3d}", *(f"{name} {float(logs[name]):.3f}" for name in SHOWN))


def main() -> None:
    """Train for less than a minute."""
    logging.getLogger("trl").setLevel(logging.ERROR)  # it warns of every reward that is None
    random.seed(0)
    torch.manual_seed(0)
    rows = []
    for _ in range(512):
        last = random.randrange(len(ITEMS))
        target = (
            (last + random.choice((1, 2, 3))) % len(ITEMS) if random.random() < 0.8 else random.randrange(len(ITEMS))
        )
        prompt = "".join(ITEMS[(last - back) % len(ITEMS)] for back in (2, 1, 0))
        rows.append({"prompt": prompt, "target": ITEMS[target], "last": last})
    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(NAMES)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.Split("<", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[pad]", eos_token="[end]", padding_side="left"
    )
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(NAMES), head_dim=16, intermediate_size=128, eos_token_id=1, **shape)
    )
    fit(model, torch.tensor(tokenizer([row["prompt"] + row["target"] for row in rows])["input_ids"]), steps=40)
    with tempfile.TemporaryDirectory() as folder:
        trainer = AdaGRPOTrainer(
            model,
            reward,
            GRPOConfig(
                output_dir=folder,
                loss_type="grpo",
                num_generations=16,
                per_device_train_batch_size=256,
                max_completion_length=3,
                max_steps=60,
                learning_rate=3e-3,
                logging_steps=10,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Print()],
            admit=0.12,
            item_of=item_of,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
