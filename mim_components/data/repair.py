"""A cache file that goes bad in the middle of a run is made again from the volume it was made of.

A file that is cut short while a crop is being read from it cannot be caught: the system ends the process (SIGBUS). The
next start finds the file by its size.
"""

from __future__ import annotations

import logging
import math
import sys

import numpy as np

from mim_components.data.cache.volumes import SourceState, VolumeCache
from mim_components.data.names import hide, names_of_source
from mim_components.data.prepare.volumes import open_cached
from mim_components.data.read.volume import DecodedVolume, cause_of, decode_volume, inspect_source
from mim_components.data.volumes import CacheError, PreparedVolume, VolumeSource

logger = logging.getLogger(__name__)


def open_or_remake(volume: PreparedVolume) -> np.memmap:
    """`open_cached`; where that fails, the volume is prepared again, as long as its source is what it was.

    Several processes may do so at once: each writes a file of its own and renames it, and all have the same content.

    Args:
        volume: the volume.

    Returns:
        int16 (H, W, D), copy-on-write.

    Raises:
        CacheError: the cache file cannot be read, and not be made either: the source is gone, cannot be read or has
            changed, or there is no room. Names both files.
    """
    try:
        return open_cached(volume)
    except CacheError as error:
        if volume.origin is None:
            raise
        logger.warning("%s; it is made again.", error)
        _remake(volume, volume.origin, error)
    return open_cached(volume)


def _remake(volume: PreparedVolume, source: VolumeSource, found: CacheError) -> None:
    names = names_of_source(source)
    try:
        voxels, spacing = math.prod(volume.shape), volume.resampled_to
        header = inspect_source(source, voxels if spacing is None else sys.maxsize)  # native voxels may be many more
        state = SourceState.of(header.files)
        decoded: DecodedVolume = decode_volume(source, header)
        resampled = decoded.at(spacing, voxels)
    except Exception as error:  # readers raise many kinds
        cause = hide(cause_of(error), names)
        raise CacheError(f"{found}; and {source}, from which it would be made again: {cause}") from (
            None if names else error
        )
    if decoded.digest != volume.digest:
        raise CacheError(
            f"{found}; and {source}, from which it would be made again, has changed since the run was prepared; "
            "restore it, or start a new run."
        )
    VolumeCache(volume.cache_file.parents[1], spacing).write(source, header, state, resampled)
