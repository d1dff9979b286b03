"""The whole diagnosis of a reward on validation cases, from arrays to one JSON-able result.

orders     the beam ordered by policy, ranker and mix                              `adagrpo.diagnosis.orders`
strata     the same by difficulty, popularity, exposure, serving-time quantities   `adagrpo.diagnosis.strata`
gate       what sampled and beam groups admit; a grid of thresholds                `adagrpo.diagnosis.admission`
verdict    `use`, `rerank_only`, `do_not_use`                                      `adagrpo.diagnosis.verdict`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo import metrics
from adagrpo.config import ObjectiveConfig
from adagrpo.diagnosis.admission import cohens_kappa, evidence_of, pairwise_accuracy, pull
from adagrpo.diagnosis.orders import (
    Floats,
    Ints,
    Lists,
    Mix,
    RepeatedMix,
    cross_fitted_mix,
    permuted,
    repeated_mix,
    serving_quantities,
    target_ranks,
)
from adagrpo.diagnosis.sentences import sentences
from adagrpo.diagnosis.strata import (
    Cell,
    Gains,
    bounded_interval,
    circular_table,
    discriminability_cells,
    gains,
    measure,
    popularity_cells,
    thirds,
)
from adagrpo.diagnosis.verdict import CellTest, ThresholdTest, Verdict, decide, strength_of
from adagrpo.evaluation.statistics import Interval
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import adagrpo_gate, target_nll

__all__ = ["Observations", "diagnose", "serving_tests"]

RESAMPLES = 2000
LEVEL = 0.05
SHARES, Q_MINS = (0.0, 0.5, 0.75, 1.0), (0.8, 0.9, 0.95, 1.0)
ALL_CASES = "all cases"

Utility = Callable[[Ints], Floats]  # (N, G) items, -1 where none, to (N, G) true utility


@dataclass(frozen=True)
class Observations:
    """What the diagnosis is made from: `N` validation cases, in one order."""

    lists: Lists
    history_lengths: Ints  # (N,)
    training_counts: Ints  # (V,) training interactions of each item
    sampled: ScoredGroups
    beam: ScoredGroups
    exposures: Ints | None = None  # (V,) how often each item was shown, where that is known
    second_q: Floats | None = None  # (N,) share of the beam that a second ranker puts below the logged item
    utility: Utility | None = None  # where the world is simulated


def diagnose(
    observed: Observations, objective: ObjectiveConfig, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Say whether a reward should be used.

    Args:
        observed: lists and groups of the cases.
        objective: the gate's configuration.
        seed: of the halvings, of the bootstrap that the tables' intervals are from, and of the controls.
        resamples: of the bootstrap; the verdict reads none of it.

    Returns:
        JSON-able: `verdict` with its `evidence`, `settings`, the tables, and what the gate does. The verdict reads no
        true utility. Rates are fractions, log-probabilities
        nats; an interval has `mean`, `low`, `high` (95 %) and `p_value`.
    """
    lists = observed.lists
    ranks, mix, repeated = _ranks(lists, seed)
    width = lists.items.shape[1]
    orders = {name: gains(order_ranks) for name, order_ranks in ranks.items()}
    mixed = _measured_mix(repeated, width)
    orders["mix"] = {name: mixed[name] for name in orders["policy"]}
    options = {"resamples": resamples, "seed": seed}
    less = {name: orders[name]["ndcg@10"] - orders["policy"]["ndcg@10"] for name in ("mix", "ranker")}
    cells, tests = serving_tests(lists, observed.history_lengths, less["mix"])
    leads = bounded_interval(less["ranker"])
    grid, thresholds = _grid(observed, objective)
    verdict = decide(tests, leads, thresholds, (objective.tau, objective.q_min), level=LEVEL)
    serving = measure(cells[1:], orders, ranks["policy"] > 0, **options)
    result: dict[str, Any] = {
        "verdict": _as_json(verdict, _evidence(verdict, tests[0].difference, leads), _draws(repeated, less["mix"])),
        "settings": _settings(lists, objective, mix, resamples),
        "orders": {
            name: metrics.measure(metrics.RankedLists(order_ranks, width)) for name, order_ranks in ranks.items()
        }
        | {"mix": {name: float(values.mean()) for name, values in mixed.items()}},
        "serving": [row | {"adjusted_p": p} for row, p in zip(serving, verdict.cell_p[1:], strict=True)],
        **_strata(observed, orders | {"shuffled ranker": _chance(lists, seed)}, ranks["policy"] > 0, **options),
        "gate": _gate(observed, objective),
        "grid": grid,
    }
    result["verdict"]["sentences"] = sentences(result)
    return result


def serving_tests(
    lists: Lists,
    history_lengths: Ints,  # (N,)
    difference: Floats,  # (N,)
) -> tuple[list[Cell], list[CellTest]]:
    """The family that says whether the ranker adds to the policy: all cases, and cells known at serving time.

    Args:
        lists: `N` lists.
        history_lengths: (N,)
        difference: (N,) NDCG@10 of the mix less that of the policy.

    Returns:
        The cells, all cases first, and the test of each.
    """
    cells = [Cell(ALL_CASES, np.ones(len(lists.targets), dtype=np.bool_))]
    for name, values in serving_quantities(lists, history_lengths).items():
        cells += thirds(name, values)
    return cells, [CellTest(cell.name, bounded_interval(difference[cell.rows])) for cell in cells]


def _ranks(lists: Lists, seed: int) -> tuple[dict[str, Ints], Mix, RepeatedMix]:
    half = np.random.default_rng(seed).permutation(len(lists.targets)) % 2 == 0
    keys = {"policy": lists.log_probs, "ranker": lists.rewards}
    ranks = {name: target_ranks(lists, values) for name, values in keys.items()}
    return ranks, cross_fitted_mix(lists, half), repeated_mix(lists, seed=seed)


def _measured_mix(repeated: RepeatedMix, width: int) -> dict[str, Floats]:
    """(N,) every metric of each case under the mix, a mean over the halvings."""
    by_weight = [metrics.measure_users(metrics.RankedLists(ranks, width)) for ranks in repeated.ranks]
    return {name: repeated.mean(np.stack([values[name] for values in by_weight])) for name in by_weight[0]}


def _draws(repeated: RepeatedMix, difference: Floats) -> dict[str, Any]:
    """How many draws the verdict is a mean of, and how far another set of them would move it.

    `error_of_the_draws` is the standard error of the mix's gain over the halvings; `share_of_the_error` that over the
    standard error over the users, which says by how much of its own uncertainty a verdict hangs on the seed.
    """
    halvings = len(repeated.ndcg)
    error = float(repeated.ndcg.std(ddof=1)) / np.sqrt(halvings)
    of_users = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    share = float(error / of_users) if of_users > 0 else 0.0
    return {"halvings": halvings, "error_of_the_draws": float(error), "share_of_the_error": share}


def _evidence(verdict: Verdict, adds: Interval, leads: Interval) -> dict[str, Any]:
    """Each question over all cases: estimate, interval, adjusted p-value, and a word for the strength of its answer."""
    questions = {"adds": (adds, verdict.cell_p[0]), "leads": (leads, leads.p_value)}
    return {
        name: interval._asdict() | {"adjusted_p": p, "strength": strength_of(interval.mean, p, level=LEVEL)}
        for name, (interval, p) in questions.items()
    }


def _chance(lists: Lists, seed: int, draws: int = 5) -> dict[str, Floats]:
    """What the order of a shuffled ranker gets in each case, a mean over draws."""
    generator = np.random.default_rng(seed)
    drawn = [gains(target_ranks(lists, permuted(lists.rewards, lists.usable, generator))) for _ in range(draws)]
    return {metric: np.mean([values[metric] for values in drawn], axis=0) for metric in drawn[0]}


def _settings(lists: Lists, objective: ObjectiveConfig, mix: Mix, resamples: int) -> dict[str, Any]:
    return {
        "cases": len(lists.targets),
        "beam_width": lists.items.shape[1],
        "level": LEVEL,
        "resamples": resamples,
        "mix_weights": list(mix.weights),
        "reward_scale": mix.scale,
        "difficulty": "rollout_miss",
        **objective.model_dump(include={"tau", "q_min", "num_generations", "negatives"}),
    }


def _strata(
    observed: Observations,
    orders: Mapping[str, Gains],
    in_beam: NDArray[np.bool_],  # (N,)
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The tables of all cases and of the cells that read the logged item; none of them enters the verdict."""
    lists = observed.lists
    log_probs = observed.sampled.target_log_probs
    assert log_probs is not None, "cases are drawn with the scores of their logged items"
    nll = target_nll(log_probs).double().numpy()
    everyone, difficulty = [Cell(ALL_CASES, np.ones(len(nll), dtype=np.bool_))], thirds("target NLL", nll)
    tables = {
        "all": everyone,
        "popularity": popularity_cells(lists.targets, observed.training_counts),
        "difficulty": difficulty,
    }
    if observed.exposures is not None:
        tables["exposure"] = thirds("times shown", observed.exposures[lists.targets].astype(np.float64), digits=0)
    if observed.second_q is not None:
        tables["second_ranker"] = _crossed([*everyone, *difficulty], discriminability_cells(observed.second_q))
    measured: dict[str, Any] = {
        name: measure(cells, orders, in_beam, resamples=resamples, seed=seed) for name, cells in tables.items()
    }
    own = observed.sampled.rewards.target.double().numpy()
    circular = circular_table(lists, own, [*everyone, *difficulty], seed)
    return measured | {"all": measured["all"][0], "circular": circular}


def _crossed(first: list[Cell], second: list[Cell]) -> list[Cell]:
    crossed = [Cell(f"{a.name}, {b.name}", a.rows & b.rows) for a in first for b in second]
    return [cell for cell in crossed if cell.rows.any()]


def _gate(observed: Observations, objective: ObjectiveConfig) -> dict[str, Any]:
    """Sampled and beam groups at the configured thresholds, and how far they agree."""
    content: dict[str, Any] = {}
    admitted: dict[str, NDArray[np.bool_]] = {}
    for name, groups in (("sample", observed.sampled), ("beam", observed.beam)):
        true, fake = evidence_of(groups, objective), evidence_of(groups, objective, shuffled=True)
        decision = adagrpo_gate(*true, tau=objective.tau, q_min=objective.q_min)
        mask = admitted[name] = decision.admitted.numpy()
        by_chance = adagrpo_gate(*fake, tau=objective.tau, q_min=objective.q_min).admitted.numpy()
        excess = bounded_interval(mask.astype(np.float64) - by_chance)
        contains = (groups.rollouts.items == groups.targets.unsqueeze(1)).any(1).numpy()
        content[name] = {
            "admission": float(mask.mean()),
            "shuffled_admission": float(by_chance.mean()),
            "excess": excess._asdict(),
            "rejected_easy": float(decision.easy.float().mean()),
            "rejected_undiscriminated": float(decision.undiscriminated.float().mean()),
            "rejected_degenerate": float(decision.degenerate.float().mean()),
            "mean_difficulty": float(true.difficulty.float().mean()),
            "mean_q": float(true.q.float().mean()),
            "invalid_share": float((~groups.sampled.valid).float().mean()),
            "contains_target": float(contains.mean()),
            "admitted_contains_target": float(contains[mask].mean()) if mask.any() else None,
        }
    a, b = admitted["sample"], admitted["beam"]
    content["agreement"] = {
        "equal": float((a == b).mean()),
        "kappa": cohens_kappa(a, b),
        "both": float((a & b).mean()),
        "sample_only": float((a & ~b).mean()),
        "beam_only": float((~a & b).mean()),
    }
    return content


def _grid(observed: Observations, objective: ObjectiveConfig) -> tuple[list[dict[str, Any]], list[ThresholdTest]]:
    """The gate over a grid of thresholds, on sampled groups."""
    groups = observed.sampled
    true, fake = evidence_of(groups, objective), evidence_of(groups, objective, shuffled=True)
    beyond, plain = pull(groups), pull(groups, beyond_policy=False)
    truth = _accuracies(observed)
    rows, tests = [], []
    for tau in sorted({*SHARES, objective.tau}):
        hard = ((true.difficulty >= tau) & ~true.degenerate).numpy()
        pulls = bounded_interval(beyond[hard])
        for q_min in sorted({*Q_MINS, objective.q_min}):
            mask, chance = (adagrpo_gate(*one, tau=tau, q_min=q_min).admitted.numpy() for one in (true, fake))
            excess = bounded_interval(mask.astype(np.float64) - chance)
            row: dict[str, Any] = {
                "tau": tau,
                "q_min": q_min,
                "admitted": int(mask.sum()),
                "admission": float(mask.mean()),
                "shuffled_admission": float(chance.mean()),
                "excess": excess._asdict(),
                "pull_on_hard": pulls._asdict(),
                "whole_pull_on_hard": float(plain[hard].mean()) if hard.any() else None,
            }
            if truth is not None:  # said beside the rest and never tested: a user's data has none
                right = {name: values[mask & ~np.isnan(values)] for name, values in truth.items()}
                row["accuracy"] = {name: float(v.mean()) if len(v) else None for name, v in right.items()}
                row["accuracy_above_half"] = bounded_interval(right["ranker"] - 0.5)._asdict()
            rows.append(row)
            tests.append(ThresholdTest(tau, q_min, int(mask.sum()), (excess, pulls)))
    return rows, tests


def _accuracies(observed: Observations) -> dict[str, Floats] | None:
    """(N,) pairwise accuracy of the ranker and of the policy among sampled rollouts; None where no truth is known."""
    if observed.utility is None:
        return None
    groups = observed.sampled
    utility = observed.utility(groups.rollouts.items.numpy())
    scores = {"ranker": groups.rewards.rollouts, "policy": groups.rollouts.log_probs.sum(-1)}
    return {name: pairwise_accuracy(groups, values, utility) for name, values in scores.items()}


def _as_json(verdict: Verdict, evidence: dict[str, Any], draws: dict[str, Any]) -> dict[str, Any]:
    return {
        "decision": verdict.decision,
        "strength": verdict.strength,
        "reached": verdict.strength != "none",
        "evidence": evidence,
        "draws": draws,
        "tau": verdict.tau,
        "q_min": verdict.q_min,
        "where": list(verdict.where),
        "all_cases_adjusted_p": verdict.cell_p[0],
        "thresholds_adjusted_p": list(verdict.threshold_p),
    }
