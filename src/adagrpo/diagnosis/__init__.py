"""Does re-ranking by this reward help, and is its sign right? A fixed policy and a ranker on validation cases."""

from adagrpo.diagnosis.assessment import Observations, diagnose
from adagrpo.diagnosis.orders import Lists, cross_fitted_mix
from adagrpo.diagnosis.verdict import CellTest, decide

__all__ = ["CellTest", "Lists", "Observations", "cross_fitted_mix", "decide", "diagnose"]
