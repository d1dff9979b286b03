"""The loop closed on a simulated market: a policy is served, what it shows is logged, and the next one learns from it."""
