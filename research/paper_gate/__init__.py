"""The paper's own gate, by rank among the rollouts, against its controls."""
