"""The studies' gates by hand, and what the package answers where they are not registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adagrpo.config.objective import PLUGIN
from adagrpo.objective import GateDecision
from adagrpo.objective.gates import by_control
from adagrpo.objective.terms import TERMS
from research.gates import bernoulli_gate, inverted_gate, oracle_gate, rollout_miss_gate

NAN = float("nan")


def outcomes(decision: GateDecision) -> list[str]:
    table = torch.stack(list(decision))  # (5, B)
    assert table.dtype == torch.bool and (table.sum(dim=0) == 1).all()
    return [GateDecision._fields[index] for index in table.long().argmax(dim=0).tolist()]


def test_rollout_miss_gate_by_hand() -> None:
    difficulty = torch.tensor([0.5, 0.49, 0.9, 0.1, 0.9, 0.1, NAN, 0.9])
    q = torch.tensor([0.95, 1.0, 0.9, 0.1, 1.0, 0.0, 1.0, NAN])
    degenerate = torch.tensor([False, False, False, False, True, True, False, False])
    decision = rollout_miss_gate(difficulty, q, degenerate, miss_min=0.5, q_min=0.95)
    assert outcomes(decision) == [
        "admitted",
        "easy",
        "undiscriminated",
        "easy",
        "degenerate",
        "degenerate",
        "easy",
        "undiscriminated",
    ]


def test_inverted_gate_by_hand() -> None:
    shadow = by_control(torch.tensor([True, True, False, False, False, False]), torch.zeros(6, dtype=torch.bool))
    degenerate = torch.tensor([False, False, False, True, False, False])
    uniforms = torch.tensor([0.0, 0.0, 0.2, 0.0, 0.5, 0.1])
    actual = outcomes(inverted_gate(shadow, degenerate, uniforms))
    assert actual == ["closed", "closed", "admitted", "degenerate", "closed", "admitted"]


def test_inverted_matches_the_count_of_the_shadow_among_what_that_rejects() -> None:
    generator = torch.Generator().manual_seed(0)
    for batch in (0, 1, 2, 9, 40):
        for _ in range(20):
            admitted = torch.rand(batch, generator=generator) < torch.rand(1, generator=generator)
            degenerate = torch.rand(batch, generator=generator) < 0.3
            shadow, left = by_control(admitted, torch.zeros_like(admitted)), ~degenerate & ~admitted
            inverted = inverted_gate(shadow, degenerate, torch.rand(batch, generator=generator))
            outcomes(inverted)
            assert inverted.admitted.sum() == min(int(admitted.sum()), int(left.sum()))
            assert not (inverted.admitted & ~left).any()


def test_a_fixed_rate_by_hand() -> None:
    degenerate = torch.tensor([False, True, False, False])
    uniforms = torch.tensor([0.29, 0.0, 0.3, 0.9])
    assert outcomes(bernoulli_gate(degenerate, uniforms, admission_rate=0.3)) == [
        "admitted",
        "degenerate",
        "closed",
        "closed",
    ]
    assert outcomes(bernoulli_gate(degenerate, uniforms, admission_rate=1.0)).count("admitted") == 3
    with pytest.raises(ValueError, match=r"^uniforms: "):
        bernoulli_gate(degenerate, torch.zeros(3), admission_rate=0.3)


def test_wrong_arguments_are_named() -> None:
    quiet = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^q: "):
        rollout_miss_gate(torch.zeros(3), torch.zeros(2), quiet, miss_min=0.5, q_min=0.5)
    with pytest.raises(ValueError, match=r"^degenerate: "):
        inverted_gate(by_control(quiet, quiet), torch.zeros(2, dtype=torch.bool), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^agreement: "):
        oracle_gate(torch.zeros(3, 1), quiet)


# ---------------------------------------------------------------- the package alone

ANSWERS = """
import sys
from adagrpo.config import resolve_config
from adagrpo.config.objective import without_unregistered
from adagrpo.errors import UserError
from adagrpo.objective import GATES

print(", ".join(GATES))
print(without_unregistered({"q_min": 0.3, "tau": 0.4}))  # as a run of long ago has them
for text in sys.argv[1:]:
    try:
        resolve_config({"data": {"logs": ["a.csv"]}}, [text], "recipe.yaml")
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_gate_that_is_not_registered_is_answered_with_those_that_are() -> None:
    given = [
        "train.arms=[adagrpo-rollout_miss]",
        "train.arms=[{objective: adagrpo, gate: oracle}]",
        "objective.control_of=rollout_miss",
        "objective.q_min=0.3",
        "objective.oracle={}",
        "train.arms=[{objective: adagrpo, name: own, options: {bernoulli: {admission_rate: 0.3}}}]",
    ]
    done = subprocess.run([sys.executable, "-c", ANSWERS, *given], capture_output=True, text=True, check=True)
    known, old, *answers = done.stdout.splitlines()
    assert not {"rollout_miss", "inverted", "bernoulli", "oracle"} & set(known.split(", "))
    assert old == "({'adagrpo': {'tau': 0.4}}, ['rollout_miss'])"
    quoted = ", ".join(f"'{name}'" for name in known.split(", "))
    of_section = f"is the section of no registered reward term or gate; known: {', '.join(TERMS)}, {known}{PLUGIN}"
    assert answers == [
        "recipe.yaml: train.arms.0: objective 'adagrpo-rollout_miss': there is no gate 'rollout_miss'; known:"
        f" {known}{PLUGIN}",
        f"recipe.yaml: train.arms.0.gate: Input should be {' or '.join(quoted.rsplit(', ', 1))} (found 'oracle')",
        "recipe.yaml: objective.control_of: Input should be 'adagrpo' (found 'rollout_miss')",
        f"recipe.yaml: objective: 'rollout_miss' (q_min) {of_section}",
        f"recipe.yaml: objective: 'oracle' {of_section}",
        f"recipe.yaml: train.arms.0.options: 'bernoulli' (admission_rate) {of_section}",
    ]


@pytest.mark.slow
def test_the_command_line_of_the_studies_has_their_gates(data: Path, tmp_path: Path) -> None:
    arm = ["--set", "train.arms=[adagrpo-rollout_miss, adagrpo-inverted]"]
    given = ["run", str(data / "recipe.yaml"), "--data", str(data), "--out", str(tmp_path / "run"), *arm, "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "research", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "train/adagrpo-inverted" in done.stdout + done.stderr, done.stderr
