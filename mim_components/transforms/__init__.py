"""What `monai.transforms` lacks: multi-level crop and mask, regions, scales of intensities."""

from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd
from mim_components.transforms.intensity import IntensityScale, hu_to_unit, unit_to_hu, window_to_grey
from mim_components.transforms.levels import LevelBatch, level_batch, split_levels
from mim_components.transforms.regions import LabelToRegions, LabelToRegionsd, RegionsToLabel
from mim_components.transforms.resize import resize_volumes
from mim_components.transforms.slices import UniformSlices, UniformSlicesd, in_plane_size

__all__ = [
    "IntensityScale",
    "LabelToRegions",
    "LabelToRegionsd",
    "LevelBatch",
    "MultiLevelCropMask",
    "MultiLevelCropMaskd",
    "RegionsToLabel",
    "UniformSlices",
    "UniformSlicesd",
    "hu_to_unit",
    "in_plane_size",
    "level_batch",
    "resize_volumes",
    "split_levels",
    "unit_to_hu",
    "window_to_grey",
]
