"""Where more of a reward stops to help: KL from the policy along re-ranking weights, and that of trained arms."""
