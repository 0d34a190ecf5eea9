"""From the folder of a labelled dataset to checked cases, divided into training and validation."""

from mim_components.datasets.cases import Case, CaseChecker, CaseFacts, FoundCases
from mim_components.datasets.checks import SegmentationChecker
from mim_components.datasets.finding import find_cases
from mim_components.datasets.prepare import PreparedCases, prepare_cases

__all__ = [
    "Case",
    "CaseChecker",
    "CaseFacts",
    "FoundCases",
    "PreparedCases",
    "SegmentationChecker",
    "find_cases",
    "prepare_cases",
]
