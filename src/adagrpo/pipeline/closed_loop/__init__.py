"""The loop closed on a simulated market: a policy is served, and the next one learns from what it showed."""
