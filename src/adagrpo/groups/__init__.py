"""Groups of rollouts: drawn, scored, examined and admitted by a gate, the same for training, diagnosis and reports."""
