"""From the folder of a labelled dataset to checked cases, divided into training and validation."""

from .cases import Case, CaseChecker, CaseFacts, FoundCases
from .checks import SegmentationChecker
from .finding import find_cases
from .labels import LabelSet, label_conversion, select_labels
from .prepare import PreparedCases, prepare_cases

__all__ = [
    "Case",
    "CaseChecker",
    "CaseFacts",
    "FoundCases",
    "LabelSet",
    "PreparedCases",
    "SegmentationChecker",
    "find_cases",
    "label_conversion",
    "prepare_cases",
    "select_labels",
]
