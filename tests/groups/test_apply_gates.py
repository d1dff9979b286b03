"""Every gate from the same evidence: each by the rule that its name says."""

from __future__ import annotations

import pytest
import torch

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.gated import gate_by_evidence
from adagrpo.objective import Evidence

HARD = torch.tensor([0.9, 0.9, 0.1, 0.1, 0.9])
KNOWN = torch.tensor([1.0, 0.2, 1.0, 0.2, 1.0])
FLAT = torch.tensor([False, False, False, False, True])
NAN = torch.full((5,), torch.nan)
STD = torch.tensor([0.1, 0.2, 0.5, 0.4, 0.9])
EVIDENCE = {
    "adagrpo": Evidence(HARD, 1 - KNOWN, torch.ones(5, 2), NAN, NAN, FLAT, STD),
    "rollout_miss": Evidence(NAN, NAN, NAN.unsqueeze(1), HARD, KNOWN, FLAT, STD),
}
DRAWS = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.0])
ADMITTED = {
    "itself": [0],
    "shuffled": [0],  # by the evidence that it is given
    "all": [0, 1, 2, 3],
    "none": [],
    "difficulty": [0, 1],
    "discriminability": [0, 2],
    "random": [1],  # one, as the gate; the least draw among the groups with an order
    "bernoulli": [1, 2, 3],  # whose draws are below the rate
    "inverted": [1],
    "variance": [2],  # one, as the gate; the widest group with an order
}


@pytest.mark.parametrize("of", list(EVIDENCE))
@pytest.mark.parametrize("gate", list(ADMITTED))
def test_a_gate_admits_by_its_rule(gate, of):
    options = ObjectiveConfig(tau=0.5, miss_min=0.5, q_min=0.95, admission_rate=0.85, control_of=of)
    decision = gate_by_evidence(of if gate == "itself" else gate, EVIDENCE[of], options, uniforms=DRAWS)
    assert decision.admitted.nonzero().squeeze(1).tolist() == ADMITTED[gate]
    assert torch.equal(torch.stack(decision).sum(0), torch.ones(5, dtype=torch.int64))  # one outcome a group


@pytest.mark.parametrize(
    ("gate", "what"),
    [("random", "uniforms"), ("bernoulli", "uniforms"), ("inverted", "uniforms"), ("oracle", "agreement")],
)
def test_what_evidence_does_not_decide_is_refused(gate, what):
    with pytest.raises(ValueError, match=f"gate '{gate}' is not decided without {what}"):
        gate_by_evidence(gate, EVIDENCE["adagrpo"], ObjectiveConfig())
