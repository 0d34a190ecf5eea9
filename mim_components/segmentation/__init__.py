"""Segment whole volumes: sliding windows, regions, saved label maps, scores."""

from mim_components.segmentation.case_scores import CaseScores
from mim_components.segmentation.handler import EvaluationReport
from mim_components.segmentation.label_files import write_label_files
from mim_components.segmentation.space import is_original

__all__ = ["CaseScores", "EvaluationReport", "is_original", "write_label_files"]
