"""What `monai.data` lacks, in the order in which a scan passes: find, read, check, cache, prepare, load."""

from mim_components.data.checked_reader import CheckedReader
from mim_components.data.crop_place import CropPlace
from mim_components.data.dataset import KeyedDataset, OpenPreparedd, StepLoader, volume_items
from mim_components.data.distributed import prepare_on_nodes
from mim_components.data.prepare import find_sources, open_cached, prepare_volumes
from mim_components.data.sampler import StepSampler, accumulation_steps
from mim_components.data.transform_cache import TransformCache
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
from mim_components.data.workers import SteadyDataLoader, init_worker

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
