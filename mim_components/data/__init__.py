"""What `monai.data` lacks. Each room imports only those before it: read, find, check, cache, prepare, load.

Finding comes after reading, because the headers of DICOM files say which of them are one scan.
"""

from mim_components.data.cache.transforms import TransformCache
from mim_components.data.cache.volumes import open_cached
from mim_components.data.cases import Case, CaseChecker, CheckResult, FoundCases
from mim_components.data.check.segmentation import SegmentationChecker
from mim_components.data.check.slices import SliceFolderChecker
from mim_components.data.checked_reader import CheckedReader
from mim_components.data.find.sources import find_cases, find_scans, find_sources, find_validation
from mim_components.data.inputs import ScanDataset, scan_items
from mim_components.data.load.dataset import EvaluationCrops, KeyedDataset, OpenPreparedd
from mim_components.data.load.loader import SteadyDataLoader, StepLoader, init_worker
from mim_components.data.load.native import NativeScans
from mim_components.data.load.sampler import StepSampler, accumulation_steps
from mim_components.data.load.scans import CheckedLoadImaged, CTScans, MRScans, SliceScans, scans_of
from mim_components.data.names import unique_names
from mim_components.data.prepare.cases import PreparedCases, prepare_cases
from mim_components.data.prepare.nodes import prepare_on_nodes
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.read.headers import resampled_shapes
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    CacheError,
    DataError,
    FoundVolumes,
    NoVolumesError,
    PreparedDataset,
    PreparedVolume,
    VolumeError,
    VolumeSource,
)

__all__ = [
    "BadVolume",
    "BadVolumesError",
    "CTScans",
    "CacheError",
    "Case",
    "CaseChecker",
    "CheckResult",
    "CheckedReader",
    "DataError",
    "EvaluationCrops",
    "FoundCases",
    "FoundVolumes",
    "KeyedDataset",
    "CheckedLoadImaged",
    "MRScans",
    "NativeScans",
    "NoVolumesError",
    "OpenPreparedd",
    "PreparedCases",
    "PreparedDataset",
    "PreparedVolume",
    "ScanDataset",
    "SegmentationChecker",
    "SliceFolderChecker",
    "SliceScans",
    "SteadyDataLoader",
    "StepLoader",
    "StepSampler",
    "TransformCache",
    "VolumeError",
    "VolumeSource",
    "accumulation_steps",
    "find_cases",
    "find_scans",
    "find_sources",
    "find_validation",
    "init_worker",
    "open_cached",
    "prepare_cases",
    "prepare_on_nodes",
    "prepare_volumes",
    "resampled_shapes",
    "scan_items",
    "scans_of",
    "unique_names",
]
