"""Diagnosis of a reward: does re-ranking by it help, and is its sign right?"""

from adagrpo.diagnosis.assessment import Observations, diagnose
from adagrpo.diagnosis.orders import Lists
from adagrpo.diagnosis.verdict import CellTest, decide

__all__ = ["CellTest", "Lists", "Observations", "decide", "diagnose"]
