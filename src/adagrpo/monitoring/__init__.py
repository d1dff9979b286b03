"""Signs, in what a service logs, that a reward is being followed where it is wrong."""
