"""Should this reward be used here? A stratified analysis of a fixed policy and a ranker on validation cases."""

from adagrpo.analysis.cases import case_groups
from adagrpo.analysis.diagnosis import Observations, diagnose
from adagrpo.analysis.gates import evidence_of
from adagrpo.analysis.orders import Lists, cross_fitted_mix
from adagrpo.analysis.verdict import CellTest, ThresholdTest, Verdict, decide

__all__ = [
    "CellTest",
    "Lists",
    "Observations",
    "ThresholdTest",
    "Verdict",
    "case_groups",
    "cross_fitted_mix",
    "decide",
    "diagnose",
    "evidence_of",
]
