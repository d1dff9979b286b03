"""AdaGRPO inside TRL on a toy world: users walk along a ring of 27 items, and the reward likes the next one.

    pip install -e '.[trl]' && python examples/trl_adagrpo.py

Prints, every ten steps, the NLL of the logged items, the share of prompts that the gate admits and the mean reward.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig

from adagrpo.integrations.trl import AdaGRPOTrainer
from adagrpo.policies.language_model import from_configuration

SIZES = (3, 3, 3)
SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "tie_word_embeddings": True,
}
CODES = list(itertools.product(*map(range, SIZES)))
TOKENS = {tuple(2 + 3 * level + code for level, code in enumerate(codes)): item for item, codes in enumerate(CODES)}
WORDS = {item: " ".join(f"t{token}" for token in tokens) for tokens, item in TOKENS.items()}


def item_of(ids: list[int]) -> int:
    """The item that three tokens name, -1 where they name none."""
    return TOKENS.get(tuple(ids[:3]), -1)


def reward(completion_ids: list[list[int]], last: list[int], **columns: Any) -> list[float | None]:
    """Closeness on the ring to the item after the last one; None for what is no item."""
    scores: list[float | None] = []
    for ids, item in zip(completion_ids, last, strict=True):
        away = (item_of(ids) - item - 1) % 27
        scores.append(None if item_of(ids) < 0 else -float(min(away, 27 - away)))
    return scores


class Print(TrainerCallback):
    """Shows what matters of TRL's log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line."""
        if logs and "admission" in logs:
            shown = {name: round(float(logs[name]), 3) for name in ("nll", "admission", "invalid_share", "reward")}
            print(state.global_step, shown)


def main() -> None:
    """Train for a minute."""
    random.seed(0)
    rows = []
    for _ in range(512):
        last = random.randrange(27)
        rows.append(
            {
                "prompt": " ".join(WORDS[(last - back) % 27] for back in (2, 1, 0)),
                "target": WORDS[(last + 1) % 27],
                "last": last,
            }
        )
    names = ["[pad]", "[end]", *(f"t{token}" for token in range(2, 2 + sum(SIZES)))]
    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model, _ = from_configuration(SHAPE, SIZES, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            loss_type="grpo",
            num_generations=8,
            per_device_train_batch_size=64,
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
        )
        AdaGRPOTrainer(
            model,
            reward,
            settings,
            Dataset.from_list(rows),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words, pad_token="[pad]", eos_token="[end]", padding_side="left"
            ),
            callbacks=[Print()],
            item_of=item_of,
            q_min=0.9,
        ).train()


if __name__ == "__main__":
    main()
