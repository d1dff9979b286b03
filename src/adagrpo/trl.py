"""AdaGRPO in TRL: a `GRPOTrainer` with the NLL anchor and the paper's gate, for any prompts and targets.

    loss = NLL(target) + (λ / B) Σ_b gate_b · GRPO_b        over the B prompts of an optimiser step

AdaGRPO (Xu et al. 2026, arXiv 2606.08480); the gate is `adagrpo.objective.adagrpo_gate`. TRL generates, trains and
logs; groups are tested as by the package's own trainer, and the NLL counts once a prompt. Above the policy's
log-probability of a target are those of its group's completions, both by a forward pass without gradients where the
completions are generated; the NLL has its own. Items of other prompts are completions of the generation batch.

Departures: histories are not known as items, so one may be an item of another prompt. TRL's `loss_type: grpo` averages
over a completion's own tokens, so short ones weigh as much as long ones. TRL reads a prompt for every completion;
`adagrpo.policies.causal_lm` reads it once.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.config.section import explain
from adagrpo.errors import UserError, install
from adagrpo.groups.gated import GatedGroups, gate_by_evidence, gather_evidence, summary, update_running_std
from adagrpo.groups.score import (
    GroupRewards,
    ScoredGroups,
    constant_share,
    distinct_candidates,
    distinct_rollouts,
    other_rollouts,
    read_rewards,
    shuffled,
)
from adagrpo.objective import GATES, Evidence, admission_by_test, admission_grid, choose_thresholds, group_advantages
from adagrpo.storage.writing import write_file
from adagrpo.types import Histories, Rollouts

try:
    from trl import GRPOConfig, GRPOTrainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"adagrpo.trl needs TRL: {install('trl')}", name=error.name) from error

__all__ = ["AdaGRPOTrainer"]

FILE = "adagrpo.json"  # in a checkpoint
CHECKED = 1000  # rows of the data set whose targets are read before training
LOGGED_BY_TRL = ("reward", "entropy")
logger = logging.getLogger(__name__)


class Rated(NamedTuple):
    """Completions with their rewards."""

    rewards: Tensor  # (N,) weighted sums, NaN where no reward function gives one
    completions: list[Any]  # texts or messages
    ids: list[list[int]]


class AdaGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's `GRPOTrainer` with the AdaGRPO objective; `args` needs `loss_type="grpo"`.

    The data set has a text column `target`, the logged item as it is written after `prompt`. An end token follows it
    where `max_completion_length` has room for one. A completion is invalid if the reward is None or `item_of` is -1.

    TRL's log gets the means of `adagrpo.objective.GroupSummary`, and `nll`, nats per token.
    """

    _metrics: dict[str, dict[str, list[float]]]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        gate: Literal["adagrpo", "random", "all"] = "adagrpo",
        tau: float | None = None,
        rho: float | None = None,
        tau_reward: float | None = None,
        admit: float | None = None,
        admit_samples: int = 256,
        negatives: int = 5,
        lambda_: float = 1.0,
        invalid_penalty: float = 1.0,
        reward_floor: float = 1e-3,
        item_of: Callable[[list[int]], int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create a trainer; other arguments are those of `GRPOTrainer`.

        Args:
            gate: `random` admits as many prompts as the gate would, by chance; `all` admits all.
            tau: see `adagrpo.objective.adagrpo_gate`, as for `rho` and `tau_reward`.
            admit: the share of prompts to admit; finds `tau` and `rho` on `admit_samples` prompts before a step.
            negatives: completions of other prompts that are scored for each prompt.
            lambda_: weight of the gated term.
            invalid_penalty: minus the advantage of an invalid completion.
            reward_floor: least reward range of a group, as a share of the running deviation.
            item_of: maps a completion's tokens, without its end, to its item number, or -1; by default each text is an
                item.

        Raises:
            UserError: an argument, a setting of TRL or the data set does not fit.
        """
        thresholds = {"tau": tau, "rho": rho, "tau_reward": tau_reward, "admit": admit}
        self.options = _options(
            lambda_=lambda_,
            negatives=negatives,
            reward_floor=reward_floor,
            adagrpo={name: value for name, value in thresholds.items() if value is not None},
            grpo={"invalid_penalty": invalid_penalty},
        )
        if gate not in (names := ("adagrpo", "random", "all")):
            raise UserError(f"gate: '{gate}' is none of {', '.join(names)}")
        if admit_samples < 1:
            raise UserError(f"admit_samples: {admit_samples} prompts find no thresholds; give 1 or more")
        if reward_funcs is None or reward_funcs == []:
            raise UserError("reward_funcs: no reward function; give one that scores completions")
        if args is None:
            raise UserError("args: give a GRPOConfig with loss_type='grpo'")
        self.gate, self.item_of, self.admit, self.admit_samples = gate, item_of, admit, admit_samples
        _check_settings(args, tested=self._tests)
        sets = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
        for rows in (train_dataset, *sets):
            if rows is not None:
                _check_row(next(iter(rows), {}))
        self.running_std = 0.0
        self.generator = torch.Generator().manual_seed(args.seed)  # negatives, shuffled rewards and the random gate
        self._rated = Rated(torch.empty(0), [], [])
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs)
        if self._is_vlm or self.tools or self.environment_factories is not None:
            raise UserError("AdaGRPOTrainer trains on text alone: leave out images, tools and environments")
        self._ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        if train_dataset is not None:
            rows = list(islice(train_dataset, CHECKED))
            self._numbers(rows, self._targets(rows))

    @property
    def _tests(self) -> bool:
        return GATES[self.gate].reads_tests

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "target" not in self._signature_columns:
            self._signature_columns.append("target")

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Keep what TRL scores, as a weighted sum, NaN where no reward function scores it."""
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        summed = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        self._rated = Rated(summed.masked_fill(rewards.isnan().all(1), torch.nan), completions, completion_ids_list)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.options.finds_thresholds(self.gate):
            self._find_thresholds()
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        groups = self._gated_groups(inputs, output)
        training, size = self.model.training, groups.rewards.shape[1]
        if training:  # evaluation reads it without a change
            self.running_std = groups.running_std
        advantages = group_advantages(
            groups.rewards,
            groups.rollouts.valid,
            invalid_penalty=self.options.of_term("grpo")["invalid_penalty"],
            scale_rewards=self.scale_rewards != "none",
        )
        output["advantages"] = (self.options.lambda_ * advantages * groups.decision.admitted.unsqueeze(1)).flatten()
        ids, mask = self._padded(self._targets(inputs))
        output |= {"target_ids": ids, "target_mask": mask}
        output["anchor"] = (
            torch.arange(len(ids), device=ids.device) % size == 0
        )  # rows are shuffled; a prompt counts once
        logged = {name: value for name, value in summary(groups).to_json().items() if name not in LOGGED_BY_TRL}
        if self._tests:
            logged |= {name: self.options.of_gate("adagrpo")[name] for name in ("tau", "rho")}
        for name, value in logged.items():
            self._metrics["train" if training else "eval"][name].append(value)
        return output

    @torch.no_grad()
    def _gated_groups(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> GatedGroups:
        """Test the groups that TRL has generated; random numbers are drawn in the order of `groups.gated`."""
        rated, training = self._rated, self.model.training
        size = self.num_generations if training else self.num_generations_eval
        rows, device = inputs[::size], rated.rewards.device
        count, codes = len(rows), output["completion_ids"].view(len(rows), size, -1)  # (B, G, L)
        target_ids = self._targets(rows)
        numbers = torch.tensor(self._numbers(rows, target_ids, rated.ids), device=device)
        targets, items = numbers[:count], numbers[count:].view(count, size)
        rewards = rated.rewards.view(count, size)
        items = items.masked_fill(~rewards.isfinite(), -1)
        rewards = rewards.masked_fill(items < 0, torch.nan)
        histories = Histories(targets.new_zeros(count, 0), torch.zeros_like(targets))

        def uniforms(*shape: int) -> Tensor:
            return torch.rand(shape, generator=self.generator).to(device)

        negatives = targets.new_empty(count, 0)
        own_scores, other_scores = rewards.new_full((count,), torch.nan), rewards.new_empty(count, 0)
        log_probs, target_log_probs = torch.zeros_like(codes, dtype=torch.float32), None
        if self._tests:
            pool = distinct_rollouts(items)
            negatives = other_rollouts(targets, histories, pool, uniforms(*pool.counts.shape), self.options.negatives)
            own_scores, other_scores = self._scores(rows, target_ids, items, negatives)
            negatives = negatives.masked_fill(other_scores.isnan(), -1)
            log_probs = self._completion_log_probs(output).view(codes.shape)
            prompts = output["prompt_ids"][::size], output["prompt_mask"][::size]
            target_log_probs = self._log_probs(*prompts, *self._padded(target_ids))
        candidates = distinct_candidates(targets.masked_fill(own_scores.isnan(), -1), items, negatives)
        slots = torch.cat([candidates.target.unsqueeze(1), candidates.rollouts, candidates.negatives], dim=1)
        values = torch.cat([own_scores.unsqueeze(1), rewards, other_scores], dim=1)
        width = candidates.items.shape[1]
        scores = values.new_zeros(count, width + 1).scatter(1, slots.masked_fill(slots < 0, width), values)[:, :width]
        rollouts = Rollouts(codes, items, log_probs)
        scored = ScoredGroups(
            histories,
            targets,
            rollouts,
            rollouts,
            target_codes=self._padded(target_ids)[0],
            target_log_probs=target_log_probs,
            negatives=negatives,
            rewards=GroupRewards(own_scores, rewards, other_scores, int((candidates.items >= 0).sum())),
            shuffled_rewards=read_rewards(candidates, shuffled(candidates, scores, uniforms(*scores.shape))),
            constant=constant_share(candidates, scores),
        )
        std = update_running_std(self.running_std, rewards[items >= 0]) if training else self.running_std
        own, permuted = (
            gather_evidence(scored, values, self.options, running_std=torch.tensor(std, device=device))
            for values in (scored.rewards, scored.shuffled_rewards)
        )
        chance = uniforms(count) if "uniforms" in GATES[self.gate].reads else None
        decision = gate_by_evidence(self.gate, own, self.options, uniforms=chance)
        control = gate_by_evidence(self.options.tested_by(self.gate), permuted, self.options) if self._tests else None
        return GatedGroups(scored, own, permuted, decision, control, rewards, reference=None, running_std=std)

    def _scores(
        self,
        rows: list[dict[str, Any]],
        target_ids: list[list[int]],
        items: Tensor,  # (B, G)
        negatives: Tensor,  # (B, M)
    ) -> tuple[Tensor, Tensor]:  # (B,) of the targets and (B, M) of the negatives, NaN where absent
        """Score the targets and the items of other prompts in one call."""
        rated = self._rated
        named = {item: index for index, item in enumerate(items.flatten().tolist())}  # a completion that names the item
        pairs = [(row, named[item]) for row, drawn in enumerate(negatives.tolist()) for item in drawn if item >= 0]
        chat = not isinstance(rated.completions[0], str)
        texts = [[{"role": "assistant", "content": row["target"]}] if chat else row["target"] for row in rows]
        asked = [*rows, *(rows[row] for row, _ in pairs)]
        self._calculate_rewards(
            asked,
            [row["prompt"] for row in asked],
            [*texts, *(rated.completions[of] for _, of in pairs)],
            [*target_ids, *(rated.ids[of] for _, of in pairs)],
        )
        for pending in (self._pending_extra_logs, self._pending_metrics):  # they are of completions that TRL logs
            pending.clear()
        scored, self._rated = self._rated.rewards, rated
        scored = scored.masked_fill(~scored.isfinite(), torch.nan)
        others = scored.new_full(negatives.shape, torch.nan)
        others[negatives >= 0] = scored[len(rows) :]
        return scored[: len(rows)], others

    def _find_thresholds(self) -> None:
        """Set `tau` and `rho` by the groups of the first prompts, generated without a step.

        UserError if no completions of a prompt differ in reward, or no pair of thresholds admits `admit`.
        """
        size, mode = self.num_generations, self.model.training
        rows = list(islice(self.train_dataset.shuffle(seed=self.args.seed), self.admit_samples))
        batch = self.args.generation_batch_size // size  # prompts at a time, as in training
        metrics, seen = self._metrics, self.state.num_input_tokens_seen
        self._metrics = {name: defaultdict(list) for name in metrics}
        self.model.train()
        pairs = []
        try:
            for first in range(0, max(1, len(rows) - batch + 1), batch):
                inputs = [dict(row) for row in rows[first : first + batch] for _ in range(size)]
                groups = self._gated_groups(inputs, super()._generate_and_score_completions(inputs))
                pairs.append((groups.evidence, groups.shuffled_evidence))
        finally:
            self.model.train(mode)
            self._metrics, self.state.num_input_tokens_seen = metrics, seen
        own, permuted = (Evidence(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*pairs, strict=True))
        count = len(own.degenerate)
        if bool(own.degenerate.all()):
            raise UserError(
                f"reward_funcs: the reward orders no group, so admit finds no thresholds: in each of {count} groups its"
                " scores are equal, or fewer than two items were generated; give another reward"
            )
        admit = self.admit
        assert admit is not None, "asked only where a share is given"
        others = {n: value for n, value in self.options.of_gate("adagrpo").items() if n not in ("tau", "rho")}
        try:
            found = choose_thresholds(admission_grid(own, permuted, **others), admit, count)
        except UserError as error:
            raise UserError(str(error).removeprefix("objective.adagrpo.")) from error
        self._set_thresholds(found.tau, found.rho)
        tests = admission_by_test(own, permuted, **others, tau=found.tau, rho=found.rho)
        logger.info(
            "admit %g is tau %g and rho %g: of %d prompts %.3f are admitted, %.3f by shuffled rewards; tests alone: %s",
            *(admit, found.tau, found.rho, count, found.admitted, found.shuffled, tests),
        )

    def _set_thresholds(self, tau: float, rho: float) -> None:
        self.options = self.options.with_options("adagrpo", tau=tau, rho=rho, admit=None)

    def _targets(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return the tokens of the targets; UserError if one is no text or longer than completions."""
        for row in rows:
            _check_row(row)
        ids: list[list[int]] = self._tokenizer([row["target"] for row in rows], add_special_tokens=False)["input_ids"]
        for own, row in zip(ids, rows, strict=True):
            if len(own) > self.max_completion_length:
                raise UserError(
                    f"max_completion_length: target {row['target'][:80]!r} has {len(own)} tokens, and completions at"
                    f" most {self.max_completion_length}; raise it"
                )
        end = [self._tokenizer.eos_token_id]
        short = self.max_completion_length
        return [own + end if len(own) < short and own[-1] not in self.eos_token_ids else own for own in ids]

    def _numbers(
        self, rows: Sequence[Mapping[str, Any]], targets: list[list[int]], completions: Sequence[list[int]] = ()
    ) -> list[int]:
        """Return the item numbers of targets, then of completions; UserError if a target is no item."""
        written = []
        for ids in (*targets, *completions):
            length = next((n for n in range(len(ids), 0, -1) if ids[n - 1] not in self._ends), 0)
            written.append(list(ids[:length]))
        if self.item_of is not None:
            numbers = [int(self.item_of(ids)) if ids else -1 for ids in written]
        else:
            known: dict[str, int] = {}
            texts = [text.strip() for text in self._tokenizer.batch_decode(written)]
            numbers = [known.setdefault(text, len(known)) if text else -1 for text in texts]
        for number, row in zip(numbers, rows, strict=False):
            if number < 0:
                raise UserError(f"target: {row['target'][:80]!r} is no item by item_of; give targets of the catalogue")
        return numbers

    def _padded(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:  # (N, T) tokens and their mask
        longest, device = max(map(len, ids)), self.accelerator.device
        pad = self._tokenizer.pad_token_id
        tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        return tokens, mask

    def _completion_log_probs(self, output: Mapping[str, Tensor]) -> Tensor:  # (B * G, L), 0 after the end
        mask = output["completion_mask"]
        if "old_per_token_logps" in output:
            return output["old_per_token_logps"].float().masked_fill(mask == 0, 0.0)
        return self._log_probs(output["prompt_ids"], output["prompt_mask"], output["completion_ids"], mask)

    def _log_probs(self, prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the log-probabilities (N, T) under the distribution that is sampled, 0 after the end."""
        found, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([prompt_ids, ids], dim=1),
            torch.cat([prompt_mask, mask], dim=1),
            ids.shape[1],
            batch_size=self.args.per_device_train_batch_size,
        )
        log_probs: Tensor = found.float().masked_fill(mask == 0, 0.0)
        return log_probs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Add the mean NLL of the targets, nats per token, to TRL's loss."""
        loss: Tensor = super()._compute_loss(model, inputs)
        rows, training = inputs["anchor"], self.model.training
        if not bool(rows.any()):
            return loss
        ids, mask = inputs["target_ids"][rows], inputs["target_mask"][rows]
        tokens = torch.cat([inputs["prompt_ids"][rows], ids], dim=1)
        attention = torch.cat([inputs["prompt_mask"][rows], mask], dim=1)
        logits = model(input_ids=tokens, attention_mask=attention).logits[:, -ids.shape[1] - 1 : -1].float()
        log_probs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        each = -(log_probs * mask).sum(1) / mask.sum(1)  # (prompts,)
        self._metrics["train" if training else "eval"]["nll"].extend(each.tolist())
        size = self.num_generations if training else self.num_generations_eval
        steps = self.current_gradient_accumulation_steps if training else 1
        total: Tensor = loss + each.sum() * size / len(rows) / steps  # one of a prompt's `size` rows holds its NLL
        return total

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            gate = self.options.of_gate("adagrpo")
            found = {"tau": gate["tau"], "rho": gate["rho"]} if self.admit is not None else {}
            write_file(folder / FILE, json.dumps({"running_std": self.running_std, **found}) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / FILE).is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            self.running_std = float(state["running_std"])
            if self.admit is not None and "tau" in state:
                self._set_thresholds(state["tau"], state["rho"])


def _options(**given: Any) -> ObjectiveConfig:
    try:
        return ObjectiveConfig.model_validate(given)
    except ValidationError as error:
        raise UserError(explain(error, ObjectiveConfig).removeprefix("adagrpo.").removeprefix("grpo.")) from error


def _check_settings(args: GRPOConfig, *, tested: bool) -> None:
    prompts = args.generation_batch_size // (args.num_generations or 1)
    for name, wrong, why in (
        ("beta", args.beta != 0, "TRL adds its KL for rejected groups too, and without lambda_; give 0"),
        ("loss_type", args.loss_type != "grpo", "it weighs samples by their admission; give 'grpo'"),
        ("scale_rewards", args.scale_rewards == "batch", "give 'group' or 'none'"),
        (
            "multi_objective_aggregation",
            args.multi_objective_aggregation != "sum_then_normalize",
            "rewards are summed before they are compared; give 'sum_then_normalize'",
        ),
        ("mask_truncated_completions", args.mask_truncated_completions, "the gate needs all completions; give False"),
        ("world_size", args.world_size > 1, "items of other processes are not seen; run one process"),
        ("generation_batch_size", tested and prompts < 2, "one prompt has no items of others; give two or more groups"),
    ):
        if wrong:
            raise UserError(f"{name} {getattr(args, name)!r}: {why}")


def _check_row(row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("target"), str) or not row["target"]:
        raise UserError("the data set has no text column 'target': the logged item, as it is written after 'prompt'")
