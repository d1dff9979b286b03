"""Thresholds of the paper's gate by the share of samples that they should admit.

The paper reports an admission of 11 to 13 % and no thresholds. Of the pairs (τ, ρ) that admit about the share that is
asked for, the one is taken whose admission is the largest multiple of what it would admit by shuffled rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.objective.gates import GATES, Evidence

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))  # of τ and of ρ
WITHIN = 0.25  # of the admission that is asked for; a pair further away does not reach it
OFF = {"tau": 0.0, "tau_reward": 1.0, "rho": 0.0}  # each leaves out its test
TESTS = {"hard": "tau", "known": "tau_reward", "suppressed": "rho"}


class Admission(NamedTuple):
    """Shares of the samples that the gate admits at a pair of thresholds."""

    tau: float
    rho: float
    admitted: float
    shuffled: float  # by rewards that are permuted within each group


def admitted_share(evidence: Evidence, options: Mapping[str, Any]) -> float:
    """Return the share of `B` samples that the paper's gate admits by `options`, its keyword arguments."""
    gate = GATES["adagrpo"]
    defaults = {name: default for name, (_, default) in gate.options.items()}
    return float(gate.decide(evidence._asdict(), {**defaults, **options}).admitted.float().mean())


def admission_grid(
    own: Evidence,  # of B samples, by the rewards
    shuffled: Evidence,  # of the same, by shuffled rewards
    *,
    tau: Sequence[float] = GRID,
    rho: Sequence[float] = GRID,
    **options: Any,  # others of the gate, such as `rho_from`
) -> list[Admission]:
    """Return what every pair of thresholds admits, `tau` before `rho`."""
    rows = []
    for one, other in product(tau, rho):
        given = {**options, "tau": one, "rho": other}
        rows.append(Admission(one, other, admitted_share(own, given), admitted_share(shuffled, given)))
    return rows


def admission_by_test(own: Evidence, shuffled: Evidence, **options: Any) -> dict[str, tuple[float, float]]:
    """Return the shares that each test admits alone, by rewards and by shuffled ones.

    Names are `hard`, `known` and `suppressed`; `options` are those of the gate, with `tau` and `rho`.
    """
    at = {**options, "tau_reward": options["tau"] if options.get("tau_reward") is None else options["tau_reward"]}
    alone = {test: {**at, **OFF, key: at[key]} for test, key in TESTS.items()}
    return {test: (admitted_share(own, one), admitted_share(shuffled, one)) for test, one in alone.items()}


def choose_thresholds(grid: Sequence[Admission], admit: float, samples: int) -> Admission:
    """Return the pair that admits about `admit` and the largest multiple of its shuffled admission.

    Shares of `samples` become counts plus one, so that 0 has a ratio. Of equals, the lower `tau`, then `rho`.

    Raises:
        UserError: no pair admits `admit`, give or take a quarter.

    >>> grid = [Admission(0.2, 0.2, 0.3, 0.1), Admission(0.2, 0.3, 0.11, 0.04), Admission(0.3, 0.2, 0.13, 0.1)]
    >>> choose_thresholds(grid, 0.12, 1000).rho
    0.3
    """
    near = [row for row in grid if abs(row.admitted - admit) <= WITHIN * admit]
    if not near:
        closest = min(grid, key=lambda row: (abs(row.admitted - admit), row.tau, row.rho))
        raise UserError(
            f"objective.adagrpo.admit {admit:g}: no pair of tau and rho admits that share of {samples:,} samples"
            f" at the starting policy; the nearest, tau {closest.tau:g} and rho {closest.rho:g}, admits"
            f" {closest.admitted:.3g}: ask for that, or give tau and rho and admit: null"
        )

    def key(row: Admission) -> tuple[float, float, float]:
        return (1 + samples * row.admitted) / (1 + samples * row.shuffled), -row.tau, -row.rho

    return max(near, key=key)


def thresholds_sentence(found: Mapping[str, Any]) -> str:
    """Describe `thresholds.json`, see `adagrpo.trainer.thresholds`.

    >>> tests = {"hard": (0.5, 0.5), "known": (0.4, 0.3), "suppressed": (0.6, 0.2), "gate": (0.12, 0.04)}
    >>> thresholds_sentence({"admit": 0.12, "tau": 0.3, "rho": 0.5, "groups": 2048, "tests": tests})[:60]
    'admit 0.12 is tau 0.3 and rho 0.5: of 2,048 training samples'
    """
    each = [f"{name} {100 * own:.1f} % ({100 * chance:.1f} %)" for name, (own, chance) in found["tests"].items()]
    return (
        f"admit {found['admit']:g} is tau {found['tau']:g} and rho {found['rho']:g}: of {found['groups']:,} training"
        f" samples at the starting policy these pass, with shuffled rewards in brackets: {', '.join(each)}"
    )
