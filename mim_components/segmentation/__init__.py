"""Segment whole volumes: sliding windows, regions, saved label maps, scores."""

from mim_components.segmentation.case_scores import CaseScores
from mim_components.segmentation.handler import EvaluationReport
from mim_components.segmentation.inferer import ClassMapInferer
from mim_components.segmentation.space import is_original
from mim_components.segmentation.transforms import LabelToRegions, LabelToRegionsd, RegionsToLabel, RegionsToLabeld

__all__ = [
    "CaseScores",
    "ClassMapInferer",
    "EvaluationReport",
    "LabelToRegions",
    "LabelToRegionsd",
    "RegionsToLabel",
    "RegionsToLabeld",
    "is_original",
]
