"""The whole diagnosis of a reward on validation cases, from arrays to one JSON-able result.

orders     the beam ordered by policy, ranker and mix                              `adagrpo.diagnosis.orders`
strata     the same by difficulty, popularity, exposure, serving-time quantities   `adagrpo.diagnosis.strata`
gate       what sampled and beam groups admit; a grid of thresholds                `adagrpo.diagnosis.admission`
drawn      a curve of weights, the order by exposure                               `adagrpo.diagnosis.curves`
leak       signs that the reward has seen the held-out items                       `adagrpo.diagnosis.leaks`
verdict    `use`, `rerank_only`, `do_not_use`                                      `adagrpo.diagnosis.judgement`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.config import ObjectiveConfig
from adagrpo.diagnosis.admission import evidence_of, pull
from adagrpo.diagnosis.curves import DRAWS, order_by_exposure, weight_curve
from adagrpo.diagnosis.judgement import ALL_CASES, judge
from adagrpo.diagnosis.orders import (
    Floats,
    Ints,
    Lists,
    Mix,
    cross_fitted_mix,
    permuted,
    target_ranks,
)
from adagrpo.diagnosis.sentences import gate_sentences, sentences
from adagrpo.diagnosis.strata import (
    Cell,
    Gains,
    bounded_interval,
    gains,
    measure,
    popularity_cells,
    thirds,
)
from adagrpo.diagnosis.verdict import ThresholdTest
from adagrpo.evaluation.exposure_weights import case_weights
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import Evidence, GateDecision, GroupSummary, rollout_miss_gate, target_nll

RESAMPLES = 2000
LEVEL = 0.05
SHARES, Q_MINS = (0.0, 0.5, 0.75, 1.0), (0.8, 0.9, 0.95, 1.0)

Utility = Callable[[Ints], Floats]  # (N, G) items, -1 where none, to (N, G) true utility


@dataclass(frozen=True)
class Observations:
    """Measurements behind a diagnosis: `N` validation cases, in one order."""

    lists: Lists
    history_lengths: Ints  # (N,)
    training_counts: Ints  # (V,) training interactions of each item
    sampled: ScoredGroups
    beam: ScoredGroups
    exposures: Ints | None = None  # (V,) how often each item was shown, where that is known
    utility: Utility | None = None  # where the world is simulated

    @property
    def counts(self) -> Ints:
        """(V,) `exposures`, or what stands for them."""
        return self.training_counts if self.exposures is None else self.exposures

    @property
    def counted(self) -> str:
        """What `counts` are."""
        return "training interactions" if self.exposures is None else "times shown"


def diagnose(
    observed: Observations,
    objective: ObjectiveConfig,
    leak: dict[str, Any] | None = None,
    *,
    exposure_power: float = 0.5,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Say whether a reward should be used.

    Args:
        observed: lists and groups of the cases.
        objective: the gate's configuration.
        leak: of `adagrpo.diagnosis.leaks.leak_signs`; a sign makes the verdict `do_not_use`. None: not looked for.
        exposure_power: of `adagrpo.evaluation.exposure_weights.case_weights`, in the advised weight.
        seed: of the halvings, of the bootstrap that the tables' intervals are from, and of the controls.
        resamples: of the bootstrap; the verdict reads none of it.

    Returns:
        JSON-able: `verdict` with its `evidence`, `settings`, the tables, and what the gate does. Rates are fractions,
        log-probabilities nats; an interval has `mean`, `low`, `high` (95 %) and `p_value`.
    """
    lists, options = observed.lists, {"resamples": resamples, "seed": seed}
    grid, thresholds = _grid(observed, objective)
    shown, preferred = observed.counts[lists.targets], _limits(objective)
    weights = None if observed.exposures is None else case_weights(shown, exposure_power)
    judged = judge(
        lists, observed.history_lengths, shown, thresholds, preferred, case_weights=weights, seed=seed, level=LEVEL
    )
    in_beam = judged.ranks["policy"] > 0
    serving = measure(judged.cells[1:], judged.orders, in_beam, **options)
    mix = cross_fitted_mix(lists, np.random.default_rng(seed).permutation(len(lists.targets)) % 2 == 0)
    result: dict[str, Any] = {
        "verdict": judged.as_json() | {"counted": observed.counted},
        "leak": leak,
        "settings": _settings(lists, objective, mix, resamples),
        "reranking": judged.advice,
        "orders": judged.metrics(lists.items.shape[1]),
        "serving": [row | {"adjusted_p": p} for row, p in zip(serving, judged.verdict.cell_p[1:], strict=True)],
        **_strata(observed, judged.orders | {"shuffled ranker": _chance(lists, seed)}, in_beam, **options),
        "gate": _gate(observed, objective),
        "grid": grid,
        "weights": weight_curve(lists, mix, **options),
        "by_exposure": order_by_exposure(lists, observed.counts, observed.counted, utility=observed.utility, **options),
    }
    if leak is not None and leak["signs"]:
        result["verdict"] |= {
            "decision": "do_not_use",
            "strength": "strong",
            "reached": True,
            "tau": None,
            "q_min": None,
        }
    result["verdict"] |= {"sentences": sentences(result), "gate_sentences": gate_sentences(result)}
    return result


def _chance(lists: Lists, seed: int) -> dict[str, Floats]:
    """Score the order of a shuffled ranker in each case, a mean over draws."""
    generator = np.random.default_rng(seed)
    drawn = [gains(target_ranks(lists, permuted(lists.rewards, lists.usable, generator))) for _ in range(DRAWS)]
    return {metric: np.mean([values[metric] for values in drawn], axis=0) for metric in drawn[0]}


def _settings(lists: Lists, objective: ObjectiveConfig, mix: Mix, resamples: int) -> dict[str, Any]:
    return {
        "cases": len(lists.targets),
        "beam_width": lists.items.shape[1],
        "level": LEVEL,
        "resamples": resamples,
        "mix_weights": list(mix.weights),
        "reward_spread": mix.spread,
        "difficulty": "rollout_miss",
        **dict(zip(("tau", "q_min"), _limits(objective), strict=True)),
        **objective.model_dump(include={"num_generations", "negatives"}),
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
    nll = _nll(observed)
    everyone, difficulty = [Cell(ALL_CASES, np.ones(len(nll), dtype=np.bool_))], thirds("target NLL", nll)
    tables = {
        "all": everyone,
        "popularity": popularity_cells(lists.targets, observed.training_counts),
        "difficulty": difficulty,
    }
    if observed.exposures is not None:
        tables["exposure"] = thirds("times shown", observed.exposures[lists.targets].astype(np.float64), digits=0)
    measured: dict[str, Any] = {
        name: measure(cells, orders, in_beam, resamples=resamples, seed=seed) for name, cells in tables.items()
    }
    return measured | {"all": measured["all"][0]}


def _nll(observed: Observations) -> Floats:
    """(N,) the policy's NLL of each logged item."""
    log_probs = observed.sampled.target_log_probs
    assert log_probs is not None, "cases are drawn with the scores of their logged items"
    return np.asarray(target_nll(log_probs).double().numpy())


def _gate(observed: Observations, objective: ObjectiveConfig) -> dict[str, Any]:
    """Sampled and beam groups at the configured thresholds."""
    content: dict[str, Any] = {}
    for name, groups in (("sample", observed.sampled), ("beam", observed.beam)):
        true, fake = evidence_of(groups, objective), evidence_of(groups, objective, shuffled=True)
        decision = _admit(true, *_limits(objective))
        mask = decision.admitted.numpy()
        by_chance = _admit(fake, *_limits(objective)).admitted.numpy()
        excess = bounded_interval(mask.astype(np.float64) - by_chance)
        contains = (groups.rollouts.items == groups.targets.unsqueeze(1)).any(1).numpy()
        summary = GroupSummary(
            admission=float(mask.mean()),
            shuffled_admission=float(by_chance.mean()),
            rejected_easy=float(decision.easy.float().mean()),
            rejected_undiscriminated=float(decision.undiscriminated.float().mean()),
            rejected_degenerate=float(decision.degenerate.float().mean()),
            invalid_share=float((~groups.sampled.valid).float().mean()),
            contains_target=float(contains.mean()),
            admitted_contains_target=float(contains[mask].mean()) if mask.any() else None,
        )
        content[name] = summary.to_json() | {
            "admitted_contains_target": summary.admitted_contains_target,
            "excess": excess._asdict(),
            "mean_difficulty": float(true.miss.float().mean()),
            "mean_q": float(true.q.float().mean()),
        }
    return content


def _limits(objective: ObjectiveConfig) -> tuple[float, float]:
    """The thresholds of the gate `rollout_miss`, which the verdict is about."""
    options = objective.of_gate("rollout_miss")
    return options["miss_min"], options["q_min"]


def _admit(evidence: Evidence, miss_min: float, q_min: float) -> GateDecision:
    return rollout_miss_gate(evidence.miss, evidence.q, evidence.degenerate, miss_min=miss_min, q_min=q_min)


def _grid(observed: Observations, objective: ObjectiveConfig) -> tuple[list[dict[str, Any]], list[ThresholdTest]]:
    """The gate over a grid of thresholds, on sampled groups."""
    groups = observed.sampled
    true, fake = evidence_of(groups, objective), evidence_of(groups, objective, shuffled=True)
    beyond = pull(groups)
    rows, tests = [], []
    miss_min, least_q = _limits(objective)
    for tau in sorted({*SHARES, miss_min}):
        hard = ((true.miss >= tau) & ~true.degenerate).numpy()
        pulls = bounded_interval(beyond[hard])
        for q_min in sorted({*Q_MINS, least_q}):
            mask, chance = (_admit(one, tau, q_min).admitted.numpy() for one in (true, fake))
            excess = bounded_interval(mask.astype(np.float64) - chance)
            row: dict[str, Any] = {
                "tau": tau,
                "q_min": q_min,
                "admitted": int(mask.sum()),
                "admission": float(mask.mean()),
                "shuffled_admission": float(chance.mean()),
                "excess": excess._asdict(),
                "pull_on_hard": pulls._asdict(),
            }
            rows.append(row)
            tests.append(ThresholdTest(tau, q_min, int(mask.sum()), (excess, pulls)))
    return rows, tests
