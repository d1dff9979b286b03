"""Groups of rollouts: drawing, scoring, diagnostics and gating, shared by training, diagnosis and reports."""
