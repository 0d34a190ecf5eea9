"""A probe of frozen features: a linear classifier and retrieval on an encoder's features of labelled voxels."""

from mim_components.metrics.probe.probe import FeatureProbe
from mim_components.metrics.probe.result import ProbeResult

__all__ = ["FeatureProbe", "ProbeResult"]
