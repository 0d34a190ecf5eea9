"""Segment whole volumes: sliding windows, regions, saved label maps, scores."""

from mim_components.segmentation.inferer import ClassMapInferer
from mim_components.segmentation.transforms import LabelToRegions, LabelToRegionsd, RegionsToLabel, RegionsToLabeld

__all__ = ["ClassMapInferer", "LabelToRegions", "LabelToRegionsd", "RegionsToLabel", "RegionsToLabeld"]
