"""Gates: every sample has exactly one outcome, and the controls match the counts of what they control for."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from adagrpo.objective import (
    GateDecision,
    adagrpo_gate,
    all_gate,
    difficulty_gate,
    none_gate,
    random_gate,
    variance_gate,
)
from adagrpo.objective.gates import by_control, by_first_cause

NAN = float("nan")


def outcomes(decision: GateDecision) -> list[str]:
    table = torch.stack(list(decision))  # (5, B)
    assert table.dtype == torch.bool
    assert (table.sum(dim=0) == 1).all()
    return [GateDecision._fields[index] for index in table.long().argmax(dim=0).tolist()]


def shadow_of(admitted: Tensor) -> GateDecision:
    return by_control(admitted, torch.zeros_like(admitted))


def gate_slowly(
    above_policy: list[float],
    above_reward: list[float],
    negatives_above: list[list[float]],
    degenerate: list[bool],
    tau: float,
    rho: float,
    tau_reward: float,
    rho_from: str,
) -> list[str]:
    """The three tests of one sample after another, as the paper's summary words them."""
    found = []
    for hard, known, negatives, flat in zip(above_policy, above_reward, negatives_above, degenerate, strict=True):
        real = [share for share in negatives if share == share]
        far = [share >= rho if rho_from == "top" else 1 - share >= rho for share in real]
        if flat:
            found.append("degenerate")
        elif not hard >= tau:
            found.append("easy")
        elif (known < tau_reward or tau_reward == 1) and real and all(far):
            found.append("admitted")
        else:
            found.append("undiscriminated")
    return found


@pytest.mark.parametrize("rho_from", ["top", "bottom"])
@pytest.mark.parametrize(("tau", "tau_reward", "rho"), [(0.5, None, 0.25), (0.25, 0.75, 0.5), (0.0, 1.0, 0.0)])
def test_the_paper_s_gate_is_its_slow_twin(tau: float, tau_reward: float | None, rho: float, rho_from: Any) -> None:
    generator = torch.Generator().manual_seed(4)

    def shares(*shape: int) -> Tensor:  # of eight rollouts, ties of halves; exact in binary
        return torch.randint(0, 17, shape, generator=generator) / 16

    policy, reward, negatives = shares(400), shares(400), shares(400, 3)
    negatives[torch.rand(400, 3, generator=generator) < 0.2] = NAN
    negatives[:5] = NAN
    degenerate = torch.rand(400, generator=generator) < 0.1
    options = {"tau": tau, "rho": rho, "tau_reward": tau_reward, "rho_from": rho_from}
    actual = adagrpo_gate(policy, reward, negatives, degenerate, **options)
    within = tau if tau_reward is None else tau_reward
    lists = (policy.tolist(), reward.tolist(), negatives.tolist(), degenerate.tolist())
    assert outcomes(actual) == gate_slowly(*lists, tau, rho, within, rho_from)
    assert actual.admitted.any() and actual.undiscriminated.any()


def test_the_paper_s_gate_without_anything_to_read() -> None:
    nothing, quiet = torch.full((2,), NAN), torch.zeros(2, dtype=torch.bool)
    assert outcomes(adagrpo_gate(nothing, nothing, torch.zeros(2, 1), quiet, tau=0.0, rho=0.0)) == ["easy"] * 2
    one = torch.ones(2)
    empty = adagrpo_gate(one, torch.zeros(2), torch.zeros(2, 0), quiet, tau=0.5, rho=0.0)
    assert outcomes(empty) == ["undiscriminated"] * 2  # no item of another sample says that the reward knows anything
    assert outcomes(adagrpo_gate(one, nothing, one.unsqueeze(1), quiet, tau=1.0, rho=0.5)) == ["undiscriminated"] * 2


def test_single_tests_and_constant_gates() -> None:
    degenerate = torch.tensor([False, False, True])
    both = by_first_cause(
        degenerate, hard=torch.tensor([True, False, True]), discriminated=torch.tensor([False, True, True])
    )
    assert outcomes(difficulty_gate(both)) == ["admitted", "easy", "degenerate"]
    assert outcomes(all_gate(degenerate)) == ["admitted", "admitted", "degenerate"]
    assert outcomes(none_gate(degenerate)) == ["closed", "closed", "degenerate"]


def test_random_gate_by_hand() -> None:
    shadow = shadow_of(torch.tensor([True, True, False, False, False]))
    degenerate = torch.tensor([False, False, False, True, False])
    uniforms = torch.tensor([0.9, 0.3, 0.2, 0.0, 0.5])
    assert outcomes(random_gate(shadow, degenerate, uniforms)) == [
        "closed",
        "admitted",
        "admitted",
        "degenerate",
        "closed",
    ]


def test_controls_match_the_count_of_the_shadow() -> None:
    generator = torch.Generator().manual_seed(0)
    for batch in (0, 1, 2, 9, 40):
        for _ in range(20):
            admitted = torch.rand(batch, generator=generator) < torch.rand(1, generator=generator)
            degenerate = torch.rand(batch, generator=generator) < 0.3
            uniforms = torch.rand(batch, generator=generator)
            shadow = shadow_of(admitted)
            chosen = random_gate(shadow, degenerate, uniforms)
            outcomes(chosen)
            assert chosen.admitted.sum() == min(int(admitted.sum()), int((~degenerate).sum()))


def test_random_gate_is_blind_to_what_the_shadow_chose() -> None:
    generator = torch.Generator().manual_seed(1)
    shadow = shadow_of(torch.arange(10) < 3)
    degenerate = torch.arange(10) >= 8
    draws = 4000
    counts = torch.zeros(10)
    for _ in range(draws):
        counts += random_gate(shadow, degenerate, torch.rand(10, generator=generator)).admitted
    # each of the 8 is admitted with probability 3/8; five standard errors of a share over the draws
    bound = 5 * (3 / 8 * 5 / 8 / draws) ** 0.5
    assert ((counts[:8] / draws - 3 / 8).abs() < bound).all()
    assert (counts[8:] == 0).all()


def test_nothing_to_admit() -> None:
    nobody, everybody = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    uniforms = torch.rand(4)
    assert outcomes(random_gate(shadow_of(nobody), nobody, uniforms)) == ["closed"] * 4
    assert outcomes(random_gate(shadow_of(everybody), everybody, uniforms)) == ["degenerate"] * 4
    assert outcomes(all_gate(everybody)) == ["degenerate"] * 4


def test_equal_uniforms_are_decided_by_place() -> None:
    shadow = shadow_of(torch.tensor([False, False, True]))
    quiet = torch.zeros(3, dtype=torch.bool)
    assert random_gate(shadow, quiet, torch.full((3,), 0.5)).admitted.tolist() == [True, False, False]


def test_wrong_arguments_are_named() -> None:
    quiet = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^negatives_above: "):
        adagrpo_gate(torch.zeros(3), torch.zeros(3), torch.zeros(3), quiet, tau=0.5, rho=0.5)
    with pytest.raises(ValueError, match=r"^degenerate: a mask"):
        all_gate(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^degenerate: "):
        none_gate(torch.zeros(3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^uniforms: "):
        random_gate(shadow_of(quiet), quiet, torch.zeros(4))
    with pytest.raises(ValueError, match=r"^degenerate: "):
        random_gate(shadow_of(quiet), torch.zeros(2, dtype=torch.bool), torch.zeros(3))


def test_the_variance_gate_admits_the_widest_groups_that_are_not_degenerate() -> None:
    quiet = torch.tensor([False, False, True, False])
    decision = variance_gate(
        shadow_of(torch.tensor([True, True, False, False])), quiet, torch.tensor([0.2, 0.9, 2.0, 0.9])
    )
    assert outcomes(decision) == ["closed", "admitted", "degenerate", "admitted"]
    with pytest.raises(ValueError, match=r"^reward_std: "):
        variance_gate(shadow_of(quiet), quiet, torch.zeros(3))


REGISTERED = """
import torch
from adagrpo.objective.gates import Evidence, Gate, GateDecision, by_first_cause
from adagrpo.objective.gates import register
from adagrpo.types import Share

def sure_gate(above_policy: torch.Tensor, degenerate: torch.Tensor, *, tau: Share = 0.9) -> GateDecision:
    return by_first_cause(degenerate, hard=above_policy >= tau, discriminated=~degenerate)

register(Gate("sure", sure_gate))
try:
    register(Gate("sure", sure_gate))
except ValueError as error:
    print(error)
from adagrpo.config import ArmConfig, ObjectiveConfig
from adagrpo.groups.gated import gate_by_evidence
common = ObjectiveConfig()
print(common.adagrpo.tau, common.sure.tau, ObjectiveConfig(tau=0.7).sure.tau)
print({arm: ArmConfig.parse(arm).settings(common).get("sure") for arm in ("adagrpo-sure", "adagrpo", "mixture")})
own = ArmConfig(objective="adagrpo", gate="sure", name="own", options={"sure": {"tau": 0.4}})
print(own.settings(common, defaults=False))
shares, quiet, of = torch.tensor([0.3, 0.7, 0.95]), torch.zeros(3, dtype=torch.bool), ObjectiveConfig(control_of="sure")
evidence = Evidence(shares, shares, shares.unsqueeze(1), shares, shares, quiet, shares)
for options in (common, own.resolved_objective(common)):
    print(gate_by_evidence("sure", evidence, options).admitted.tolist())
print(gate_by_evidence("difficulty", evidence, of).admitted.tolist())
try:
    register(Gate("late", sure_gate))
except ValueError as error:
    print(error)
"""


def test_a_registered_gate_has_a_section_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", REGISTERED], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "gate 'sure': another has that name",
        "0.5 0.9 0.9",
        "{'adagrpo-sure': {'tau': 0.9}, 'adagrpo': None, 'mixture': None}",
        "{'objective': 'adagrpo', 'gate': 'sure', 'lambda': 1.0, 'sure': {'tau': 0.4}}",
        "[False, False, True]",
        "[False, True, True]",
        "[False, False, True]",
        "gate 'late': register it before adagrpo.config is imported",
    ], done.stderr


@pytest.mark.slow
def test_a_gate_s_section_takes_no_key_of_the_objective() -> None:
    script = REGISTERED.partition("register(Gate")[0] + "register(Gate('negatives', sure_gate))\nimport adagrpo.config"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last == "ValueError: 'negatives': a key of objective has that name; take another for the gate or term"
