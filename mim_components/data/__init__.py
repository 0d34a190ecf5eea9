"""From folders of CT to a checked, memory-mapped cache: find, check, prepare."""

from .checked_reader import CheckedReader
from .crop_place import CropPlace
from .dataset import KeyedDataset, OpenPreparedd, StepLoader, volume_items
from .distributed import prepare_on_nodes
from .prepare import find_sources, open_cached, prepare_volumes
from .sampler import StepSampler, accumulation_steps
from .transform_cache import TransformCache
from .volumes import (
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
from .workers import SteadyDataLoader, init_worker

__all__ = [
    "BadVolume",
    "BadVolumesError",
    "CacheError",
    "CheckedReader",
    "CropPlace",
    "DataError",
    "FoundVolumes",
    "KeyedDataset",
    "NoVolumesError",
    "OpenPreparedd",
    "PreparedDataset",
    "PreparedVolume",
    "SteadyDataLoader",
    "StepLoader",
    "StepSampler",
    "TransformCache",
    "VolumeError",
    "VolumeSource",
    "accumulation_steps",
    "find_sources",
    "init_worker",
    "open_cached",
    "prepare_on_nodes",
    "prepare_volumes",
    "volume_items",
]
