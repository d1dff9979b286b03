"""The gate's thresholds by the share of training samples that it should admit at the starting policy.

Groups are those of the first steps of post-training, each drawn and scored once; see `adagrpo.objective.admission`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from adagrpo.config import ObjectiveConfig
from adagrpo.errors import UserError
from adagrpo.groups.gated import gated_groups
from adagrpo.objective import Evidence, admission_by_test, admission_grid, choose_thresholds
from adagrpo.policies.policy import Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.storage.writing import write_file
from adagrpo.trainer.batches import BatchSchedule, group_step
from adagrpo.trainer.processes import Processes

FILE = "thresholds.json"
GATE = "adagrpo"
SAMPLES = 2048


@torch.no_grad()
def starting_evidence(
    policy: Policy[Any, Any],
    catalog: Catalog,
    reward: Reward,
    schedule: BatchSchedule,
    objective: ObjectiveConfig,
    samples: int = SAMPLES,
) -> tuple[Evidence, Evidence]:
    """Return the evidence of at least `samples` training groups, or of one epoch's, by rewards and by shuffled ones.

    UserError if no group's rewards define an order.
    """
    policy.eval()
    parts: list[tuple[Evidence, Evidence]] = []
    std, drawn = 0.0, 0
    for step in range(schedule.steps_per_epoch):
        at = group_step(schedule, step, objective, catalog.codes.device)
        joined = at.joined()
        if joined is None:
            continue
        groups = gated_groups(policy, catalog, reward, *joined, objective, at.generator, gate=GATE, running_std=std)
        std = groups.running_std
        parts.append((groups.evidence, groups.shuffled_evidence))
        drawn += len(groups.targets)
        if drawn >= samples:
            break
    own, shuffled = (Evidence(*map(torch.cat, zip(*(pair[side] for pair in parts), strict=True))) for side in (0, 1))
    if bool(own.degenerate.all()):
        raise UserError(
            f"the reward orders no group: in each of {drawn:,} training groups its scores are equal, or fewer than two"
            " items were drawn; give another reward"
        )
    return own, shuffled


def find_thresholds(
    policy: Policy[Any, Any],
    catalog: Catalog,
    reward: Reward,
    schedule: BatchSchedule,
    objective: ObjectiveConfig,  # with `adagrpo.admit`
    work: Path,
    shared_by: Processes,
    known: dict[str, Any] | None = None,  # what another arm of the same groups found
) -> tuple[dict[str, Any], bool]:
    """Return the content of `thresholds.json` in `work`, and whether it is new.

    Keys: `admit`, `tau`, `rho`, `groups`, `tests` (shares that each test admits alone, and the gate: by rewards and by
    shuffled ones) and `grid` (rows of tau, rho and the two shares).

    Raises:
        UserError: no pair admits that share, or the reward orders no group.
    """
    options, admit = objective.of_gate(GATE), getattr(objective, GATE).admit
    path = work / FILE
    before = shared_by.broadcast(path.read_text(encoding="utf-8") if path.is_file() else "")
    if before:
        return json.loads(before), False
    if known is None:
        own, shuffled = starting_evidence(policy, catalog, reward, schedule, objective)
        others = {name: value for name, value in options.items() if name not in ("tau", "rho")}
        grid = admission_grid(own, shuffled, **others)
        chosen = choose_thresholds(grid, admit, len(own.degenerate))
        at = {**others, "tau": chosen.tau, "rho": chosen.rho}
        known = {
            "admit": admit,
            "tau": chosen.tau,
            "rho": chosen.rho,
            "groups": len(own.degenerate),
            "tests": admission_by_test(own, shuffled, **at) | {"gate": (chosen.admitted, chosen.shuffled)},
            "grid": [list(row) for row in grid],
        }
    if shared_by.is_main_process:
        work.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(known) + "\n")
    return known, True
