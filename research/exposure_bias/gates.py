"""What every gate admits of the groups that post-training would draw, and whether the reward is right there.

The starting policy draws one epoch of groups; they are the same for every reward, and the true utility says which of
their pairs of rollouts the reward orders rightly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.evaluation.reward_quality import interval
from adagrpo.groups.gated import GatedGroups, gate_by_evidence, gated_groups
from adagrpo.objective import GATES, GateDecision, pairwise_agreement
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.rewards.protocol import Reward
from adagrpo.trainer.batches import group_step, keyed_generator

CONTROLS = tuple(name for name, gate in GATES.items() if gate.is_shadowed)


@torch.no_grad()
def gates_of(models: Models, reward: Reward) -> dict[str, Any]:
    """Admission by the starting policy over one epoch, and the reward's accuracy inside each outcome of the gate.

    Args:
        models: of a run in a simulated marketplace.
        reward: that scores the groups.
    """
    data, options = models.data, models.config.train
    schedule = replace(models.schedule(options.fit), rl_split=options.rl_split)
    policy = models.policy(data.run.path("sft", "best")).eval()
    objective, running_std, utility = data.config.objective, 0.0, data.true_utility()
    outcomes: dict[str, list[NDArray[np.bool_]]] = {}
    chosen: dict[str, list[NDArray[np.bool_]]] = {}
    users, shares, shuffled = [], [], []
    for step in range(schedule.steps_per_epoch):
        data.run.console.progress("gates", step, schedule.steps_per_epoch, {})
        drawn_at = group_step(schedule, step, objective, data.device)
        joined = drawn_at.joined()
        if joined is None:
            continue
        groups = gated_groups(
            policy,
            data.catalog,
            reward,
            *joined,
            objective,
            drawn_at.generator,
            gate=objective.control_of,
            running_std=running_std,
        )
        running_std = groups.running_std
        owners = groups.histories.users
        assert owners is not None and groups.shuffled_decision is not None, "drawn at training positions"
        users.append(owners.cpu().numpy())
        shuffled.append(groups.shuffled_decision.admitted.float().mean().item() * len(owners))
        for name, outcome in groups.decision._asdict().items():
            outcomes.setdefault(name, []).append(outcome.cpu().numpy())
        items = groups.rollouts.items
        agreement = pairwise_agreement(groups.rewards, utility(owners, groups.targets, items), items)
        shares.append(agreement.share.double().masked_fill(agreement.pairs == 0, torch.nan).cpu().numpy())
        for gate, decision in _every_gate(data, groups, agreement.share, step).items():
            chosen.setdefault(gate, []).append(decision.admitted.cpu().numpy())
    owner, share = np.concatenate(users), np.concatenate(shares)
    masks = {name: np.concatenate(parts) for name, parts in outcomes.items()}

    def accuracy(within: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
        intervals = {name: interval(share[kept], owner[kept]) for name, kept in within.items()}
        return {name: value for name, value in intervals.items() if value is not None}

    content: dict[str, Any] = {"samples": len(owner)}
    content |= {name: float(outcome.mean()) for name, outcome in masks.items() if name != "closed"}
    content |= {"admitted_if_shuffled": float(sum(shuffled) / len(owner))}
    everything = np.ones(len(owner), dtype=np.bool_)
    content["pairwise_accuracy"] = accuracy({"all": everything, **masks, "rejected": ~masks["admitted"]})
    content["gates"] = {
        gate: {"admitted": float(kept.mean()), "pairwise_accuracy": accuracy({"admitted": kept, "rejected": ~kept})}
        for gate, kept in ((gate, np.concatenate(parts)) for gate, parts in chosen.items())
    }
    return content


def _every_gate(data: RunData, groups: GatedGroups, agreement: torch.Tensor, step: int) -> dict[str, GateDecision]:
    """Decide the same groups by every gate; `shuffled` decides by permuted rewards, whatever the true ones say.

    The draws of `random` and `inverted` are those of no training.
    """
    options, own, permuted = data.config.objective, groups.evidence, groups.shuffled_evidence
    uniforms = torch.rand(len(agreement), generator=keyed_generator(data.config.seed, step, 2)).to(agreement.device)
    gates = ("all", options.control_of, *CONTROLS, "oracle")
    return {
        gate: gate_by_evidence(
            gate, permuted if GATES[gate].shuffled else own, options, uniforms=uniforms, agreement=agreement
        )
        for gate in gates
    }
