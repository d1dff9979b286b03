"""The stage `report/rollouts`: some validation cases with the rollouts of the starting policy, and what the gate makes.

The groups are those that post-training would see, drawn for one batch of cases whose logged item is listed. Of every
outcome of the gate that occurs in the batch a case is kept, so that a reader sees why a group is admitted and why one
is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo.diagnosis import case_groups, evidence_of
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import sample_cases, select_cases
from adagrpo.groups.apply_gates import gate_by_evidence
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import GATES, Evidence, GateDecision, group_advantages
from adagrpo.pipeline.directory import RunDirectory
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stage import Declaration
from adagrpo.pipeline.stages.fitting import DECODING, NOT_FITTED
from adagrpo.pipeline.versions import CatalogVersion
from adagrpo.storage.writing import write_file
from adagrpo.types import Cases

CASES = 128  # of the batch
OUTCOMES = ("admitted", "easy", "undiscriminated", "degenerate")
SHOWN = {"rollouts": 10, "history": 5, "title": 90}


def draw_examples(run: RunDirectory) -> Declaration:
    """A group for each case of a batch, drawn and scored, of which a case of each outcome is written."""
    data = RunData(run, CatalogVersion(run, run.catalog))
    models = Models(data)
    weights = run.path("sft", "best")

    def build(work: Path) -> None:
        content = _examples(models, weights)
        write_file(work / "rollouts.json", json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    return Declaration(
        build,
        inputs=[*data.training_files, *data.catalog_files, weights / "model.safetensors", *models.reward_files],
        files=("rollouts.json",),
        settings=(*DECODING, "objective", *models.reward_reads, "seed"),  # the ranker's settings are those of its files
        but=NOT_FITTED,
        also={"cases": CASES, "shown": SHOWN},
    )


def _examples(models: Models, weights: Path) -> dict[str, Any]:
    data, config = models.data, models.config
    objective, options = config.objective, config.objective.of_term("grpo")
    cases = sample_cases(_listed(data), CASES, config.seed)
    groups = case_groups(
        models.policy(weights),
        data.catalog,
        models.reward(),
        cases,
        objective,
        batch_size=len(cases),
        max_history=config.max_history,
        seed=config.seed,
        source=GATES[objective.control_of].negatives,
    )
    evidence = evidence_of(groups, objective)
    decision = gate_by_evidence(objective.control_of, evidence, objective)
    advantages = group_advantages(
        groups.rewards.rollouts,
        groups.rollouts.valid,
        invalid_penalty=options["invalid_penalty"],
        scale_rewards=options["scale_rewards"],
    )
    titles = _titles(data)
    return {
        "cases": len(cases),
        "gate": objective.control_of,
        "thresholds": objective.of_gate(objective.control_of),
        "num_generations": objective.num_generations,
        "shares": {name: float(getattr(decision, name).float().mean()) for name in OUTCOMES},
        "examples": [
            {"outcome": outcome, **_example(row, data, groups, evidence, advantages, titles)}
            for row, outcome in _chosen(decision)
        ],
    }


def _listed(data: RunData) -> Cases:
    """The validation cases whose logged item is listed: no rollout that is held to the catalogue is delisted."""
    cases = data.cases("validation")
    kept = np.flatnonzero(data.catalog.listed.cpu().numpy()[cases.targets])
    if len(kept) == 0:
        raise UserError(f"report/rollouts: none of the {len(cases)} logged items of validation is listed any more")
    return cases if len(kept) == len(cases) else select_cases(cases, kept)


def _chosen(decision: GateDecision) -> list[tuple[int, str]]:
    """The first case of each outcome, and its name; two of those that were admitted."""
    chosen = []
    for outcome in OUTCOMES:
        rows = getattr(decision, outcome).nonzero().squeeze(1).tolist()
        chosen += [(row, outcome) for row in rows[: 2 if outcome == "admitted" else 1]]
    return chosen


def _example(
    row: int, data: RunData, groups: ScoredGroups, evidence: Evidence, advantages: torch.Tensor, titles: list[str]
) -> dict[str, Any]:
    """One case: what the user did, what was logged next, and each of the first rollouts."""
    assert groups.target_codes is not None and groups.target_log_probs is not None, "cases have a logged item"
    length, target = int(groups.histories.lengths[row]), int(groups.targets[row])
    history = groups.histories.items[row, :length].tolist()
    named = data.catalog.to("cpu").lookup(groups.rollouts.codes[row]).tolist()
    rewards, log_probs = groups.rewards.rollouts[row], groups.rollouts.log_probs[row].double().sum(1)
    rollouts = []
    for place, codes in enumerate(groups.rollouts.codes[row].tolist()[: SHOWN["rollouts"]]):
        item, valid = named[place], bool(groups.rollouts.valid[row, place])
        rollouts.append(
            {
                "codes": codes,
                "title": titles[item] if item >= 0 else None,
                "is_target": item == target,
                "validity": "valid" if valid else ("in_history" if item >= 0 else "names_no_item"),
                "log_prob": float(log_probs[place]),
                "reward": float(rewards[place]) if valid else None,
                "advantage": float(advantages[row, place]),
            }
        )
    return {
        "history": [titles[item] for item in history[-SHOWN["history"] :]],
        "history_length": length,
        "target": {
            "title": titles[target],
            "codes": groups.target_codes[row].tolist(),
            "log_prob": float(groups.target_log_probs[row].double().sum()),
            "reward": float(groups.rewards.target[row]),
        },
        "evidence": {
            "above_policy": float(evidence.above_policy[row]),
            "above_reward": float(evidence.above_reward[row]),
            "negatives_above": [share for share in evidence.negatives_above[row].tolist() if share == share],
            "miss": float(evidence.miss[row]),
            "q": float(evidence.q[row]),
        },
        "rollouts": rollouts,
    }


def _titles(data: RunData) -> list[str]:
    """Return the title of each item: the beginning of its text, or its id where it has none."""
    items, longest = data.items, SHOWN["title"]
    names = [(text or str(name)).strip() or str(name) for text, name in items.select("text", "item_id").iter_rows()]
    return [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
