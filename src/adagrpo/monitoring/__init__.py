"""Signs of reward hacking in the logs of a service."""
