"""Diagnosis of a reward: does re-ranking by it help, and is its sign right?"""

from adagrpo.diagnosis.assessment import Observations, diagnose
from adagrpo.diagnosis.orders import Lists, cross_fitted_mix
from adagrpo.diagnosis.verdict import CellTest, decide

__all__ = ["CellTest", "Lists", "Observations", "cross_fitted_mix", "decide", "diagnose"]
