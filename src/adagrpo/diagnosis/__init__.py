"""Should this reward be used here? A stratified analysis of a fixed policy and a ranker on validation cases."""

from adagrpo.diagnosis.admission import evidence_of
from adagrpo.diagnosis.assessment import Observations, diagnose
from adagrpo.diagnosis.cases import case_groups
from adagrpo.diagnosis.orders import Lists, cross_fitted_mix
from adagrpo.diagnosis.verdict import CellTest, ThresholdTest, decide

__all__ = [
    "CellTest",
    "Lists",
    "Observations",
    "ThresholdTest",
    "case_groups",
    "cross_fitted_mix",
    "decide",
    "diagnose",
    "evidence_of",
]
