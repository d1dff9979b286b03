"""Should this reward be used here? A stratified analysis of a fixed policy and a ranker on validation cases."""

from adagrpo.analysis.diagnosis import Evidence, diagnose
from adagrpo.analysis.gates import judge
from adagrpo.analysis.groups import Groups, draw_groups
from adagrpo.analysis.orders import Lists, cross_fitted_mix
from adagrpo.analysis.verdict import CellTest, ThresholdTest, Verdict, decide

__all__ = [
    "CellTest",
    "Evidence",
    "Groups",
    "Lists",
    "ThresholdTest",
    "Verdict",
    "cross_fitted_mix",
    "decide",
    "diagnose",
    "draw_groups",
    "judge",
]
