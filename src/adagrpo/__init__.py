"""Post-training of generative recommenders with rewards that cannot be trusted everywhere."""

__version__ = "0.1.0"
