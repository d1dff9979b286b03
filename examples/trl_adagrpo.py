"""AdaGRPO's objective in TRL: `GRPOTrainer` with the NLL anchor and a gate, on a toy world.

    pip install -e '.[trl]' && python examples/trl_adagrpo.py

    loss = NLL(target) + (λ / B_rl) Σ_b gate_b · GRPO_b

TRL generates and logs; advantages come from `adagrpo.objective`, and the NLL counts once per prompt. As TRL keeps no
log-probability of targets, the gate is not the paper's: it admits a prompt whose completions miss the target, and whose
target the reward puts above its negatives. `loss_type: grpo` averages over a completion's own tokens, so short ones
weigh as much as long ones. TRL copies prompts for every completion; `adagrpo.policies.causal_lm` is faster.

In the toy world users walk along a ring of 27 items, and the reward likes the next one. Printed are, every ten steps,
the NLL of the logged items, the share of prompts that the gate admits and the mean reward.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from adagrpo.errors import UserError
from adagrpo.groups.score import in_batch_negatives
from adagrpo.objective import GroupSummary, degenerate_groups, discriminability, group_advantages, rollout_miss
from adagrpo.policies.language_model import from_configuration
from adagrpo.types import Histories

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


class AdaGRPOTrainer(GRPOTrainer):
    """GRPO trainer with the AdaGRPO objective, used like TRL's.

    The data set has a text column `target`, the logged item.
    """

    def __init__(
        self,
        *args: Any,
        item_of: Callable[[list[int]], int],  # maps the tokens of a completion to its item number; -1 makes it invalid
        miss_min: float = 0.5,  # minimum share of completions that miss the target
        q_min: float = 0.95,  # minimum share of negatives with a reward below the target's
        negatives: int = 5,  # `M`, targets of other prompts scored for the gate
        lambda_: float = 1.0,  # weight of the gated term
        invalid_penalty: float = 1.0,  # minus the advantage of an invalid completion
        reward_floor: float = 1e-3,  # least reward difference in a group, as a share of the running deviation
        **kwargs: Any,
    ) -> None:
        """Create a trainer; other arguments are those of `GRPOTrainer`.

        UserError if `loss_type` is not `grpo`, `beta` is not 0, or there are several processes.
        """
        if any(getattr(given, "beta", None) for given in (*args, kwargs.get("args"))):
            raise UserError("beta: TRL adds its KL for rejected groups too, and without lambda; AdaGRPOTrainer takes 0")
        super().__init__(*args, **kwargs)
        if self.loss_type != "grpo":
            raise UserError(
                f"loss_type: '{self.loss_type}' weighs samples by their admission; AdaGRPOTrainer takes 'grpo'"
            )
        if self.accelerator.num_processes > 1:
            raise UserError("AdaGRPOTrainer runs in one process: targets of other processes are not seen as negatives")
        self.item_of, self.miss_min, self.q_min, self.num_negatives = item_of, miss_min, q_min, negatives
        self.lambda_, self.invalid_penalty, self.reward_floor = lambda_, invalid_penalty, reward_floor
        self.running_std = 0.0
        self._rewards = torch.empty(0)

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weights = self.reward_weights.to(rewards.device)
        self._rewards = torch.where(rewards.isnan().all(1), torch.nan, (rewards * weights).nansum(1))
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        rewards = self._rewards.view(-1, group)  # (B, G)
        device = rewards.device
        if not all(isinstance(row.get("target"), str) for row in inputs):
            raise UserError("the data set has no text column 'target': what the logged item of a prompt is written as")
        texts = [row["target"] for row in inputs]
        ids = [list(map(int, row)) for row in self.processing_class(text=texts, add_special_tokens=False)["input_ids"]]
        lengths = output["completion_mask"].sum(1).tolist()
        written = [row[:length] for row, length in zip(output["completion_ids"].tolist(), lengths, strict=True)]
        items = torch.tensor([self.item_of(row) for row in written], device=device).view(-1, group)
        targets = torch.tensor([self.item_of(row) for row in ids[::group]], device=device)
        valid = (items >= 0) & ~rewards.isnan()
        rewards = rewards.masked_fill(~valid, torch.nan)
        admitted = self._admit(inputs[::group], ids[::group], targets, rewards, items.masked_fill(~valid, -1))
        advantages = group_advantages(rewards, valid, invalid_penalty=self.invalid_penalty)
        output["advantages"] = (self.lambda_ * advantages * admitted.unsqueeze(1)).flatten()
        longest = max(map(len, ids))
        output["target_ids"] = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        output["target_mask"] = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device
        )
        output["anchor"] = torch.arange(len(ids), device=device) % group == 0
        mode = "train" if self.model.training else "eval"
        summary = GroupSummary(admission=float(admitted.float().mean()), invalid_share=float((~valid).float().mean()))
        for name, value in summary.to_json().items():
            self._metrics[mode][name].append(value)
        return output

    def _admit(
        self, rows: list[dict[str, Any]], ids: list[list[int]], targets: Tensor, rewards: Tensor, items: Tensor
    ) -> Tensor:  # (B,) bool
        count = len(rows)
        itself = Histories(targets.unsqueeze(1), torch.ones_like(targets))
        negatives = in_batch_negatives(
            targets, itself, torch.rand(count, count, device=targets.device), min(self.num_negatives, count)
        )
        row_of = {int(item): index for index, item in enumerate(targets.tolist())}
        pairs = [(row, row) for row in range(count)]
        pairs += [
            (row, row_of[item])
            for row, negative_items in enumerate(negatives.tolist())
            for item in negative_items
            if item >= 0
        ]
        chosen = [rows[row] for row, _ in pairs]
        kept = self._rewards
        self._calculate_rewards(
            chosen,
            [row["prompt"] for row in chosen],
            [rows[of]["target"] for _, of in pairs],
            [ids[of] for _, of in pairs],
        )
        scored, self._rewards = self._rewards, kept
        others = torch.full(negatives.shape, torch.nan, device=rewards.device)
        others[negatives >= 0] = scored[count:]
        q = discriminability(scored[:count], rewards, items, others, negatives, targets).q
        real = rewards[~rewards.isnan()]
        if len(real) > 1 and self.model.training:  # evaluation uses the deviation without updating it
            now = float(real.std())
            self.running_std = now if self.running_std == 0.0 else 0.9 * self.running_std + 0.1 * now
        running_std = torch.tensor(self.running_std, device=rewards.device)
        degenerate = degenerate_groups(rewards, items, running_std=running_std, relative_floor=self.reward_floor)
        return ~degenerate & (rollout_miss(items, targets) >= self.miss_min) & (q >= self.q_min)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Add the mean NLL of the targets, in nats per token, to TRL's loss."""
        loss: Tensor = super()._compute_loss(model, inputs)
        rows = inputs["anchor"]
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if self.model.training else self.num_generations_eval
        if not bool(rows.any()):
            return loss
        ids, mask = inputs["target_ids"][rows], inputs["target_mask"][rows]
        tokens = torch.cat([inputs["prompt_ids"][rows], ids], dim=1)
        attention = torch.cat([inputs["prompt_mask"][rows], mask], dim=1)
        logits = model(input_ids=tokens, attention_mask=attention).logits[:, -ids.shape[1] - 1 : -1].float()
        log_probs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        nll = -(log_probs * mask).sum(1) / mask.sum(1)  # (prompts,)
        anchor = nll.sum() * group / len(rows)  # each prompt has `group` rows
        self._metrics[mode]["nll"].append(float(nll.detach().mean()))
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        total: Tensor = loss + anchor / steps
        return total


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
