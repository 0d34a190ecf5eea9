"""Cache of prepared volumes: one memory-mappable int16 file and one small JSON beside it per volume.

A volume counts as cached only if its JSON exists, is undamaged and matches both the source and the voxel file. The JSON
is written last and files appear by renaming, so a killed run leaves nothing that looks complete.

A cache file that is damaged during a run is regenerated from its volume. One that is truncated while a crop is being
read from it cannot be caught: the system ends the process (SIGBUS). The next start detects the file by its size.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mim_components.data.cache.records import FORMAT, read_record, record_writer, recorded_digest, signs_of
from mim_components.data.names import hide, names_of_source
from mim_components.data.read.headers import VolumeHeader
from mim_components.data.read.volume import DecodedVolume, cause_of, decode_volume, inspect_source
from mim_components.data.resample import Spacing
from mim_components.data.state import SourceState
from mim_components.data.volumes import CacheError, PreparedVolume, VolumeSource
from mim_components.utils.files import PARTIAL, as_size, sha256, text_digest, write_safely

logger = logging.getLogger(__name__)

VERIFY = ("auto", "full", "quick")
_DTYPE = np.dtype("<i2")
_CHUNK = 2**22
_LEFTOVER_AGE = 24 * 3600


class VolumeCache:
    """Folder of prepared volumes; several processes may use it at once.

    Args:
        folder: folder of the cache; created if missing.
        spacing: spacing that its volumes were resampled to, mm; None = native voxels.
        modality: "ct" or "mr". Caches of any spacing and modality may share a folder.
    """

    def __init__(self, folder: str | Path, spacing: Spacing | None = None, modality: str = "ct") -> None:
        self.folder = Path(folder)
        self.spacing = spacing
        self.modality = modality

    def check_usable(self) -> None:
        """Create the folder, try to write to it, and remove what killed runs left there more than a day ago.

        Raises:
            CacheError: the folder cannot be created or written to.
        """
        probe = self.folder / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
            for path in self.folder.glob(f"**/.*{PARTIAL}"):
                if time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # another process cleaned up at the same time
        except OSError as error:
            raise CacheError(
                f"{self.folder}: the cache folder cannot be written to: {error.strerror}. Set --cache_dir; if the "
                "bundle's folder is read-only, --cache_dir and --output_dir."
            ) from error

    def check_space(self, needed: int) -> None:
        """Compare the bytes still to be written with the free space.

        Raises:
            CacheError: the disk is too small.
        """
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"{self.folder}: the cache needs {as_size(needed)}, {as_size(free)} are free there, "
                f"{as_size(needed - free)} are missing. Set another --cache_dir, or make room."
            )

    def voxel_file(self, source: VolumeSource) -> Path:
        """Cache file of a source; the same source at the same spacing and modality always has the same file."""
        identity = f"{FORMAT}\n{os.path.abspath(source.path)}\n{source.series_uid or ''}"
        if self.spacing is not None:
            identity += f"\n{self.spacing}"
        if self.modality != "ct":
            identity += f"\n{self.modality}"
        key = text_digest(identity)[:32]
        return self.folder / key[:2] / f"{key}.npy"

    def read(self, source: VolumeSource, header: VolumeHeader, verify: str) -> PreparedVolume | None:
        """Look a volume up.

        Args:
            source: the volume.
            header: its header.
            verify: "full" compares the checksum of the voxels, and records that; "quick" compares only sizes.

        Returns:
            The volume, or None if it must be prepared: it is missing or damaged, or its source has changed.
        """
        path = self.voxel_file(source)
        record, signs = read_record(path.with_suffix(".json")), signs_of(path)
        if record is None or not _is_whole(path, record, verify):
            return None
        state = SourceState.of(header.files)
        if changed := record["state"] != vars(state):
            if record["state"]["size"] != state.size or record["digest"] != sha256(*header.files):
                return None
            record["state"] = vars(state)
        if verify == "full" and record.get("verified") != signs:
            record["verified"], changed = signs, True
        if changed:
            with suppress(CacheError):  # the next start hashes or verifies it again
                self._write(path.with_suffix(".json"), record_writer(record))
        return _as_volume(source, path, record)

    def was_verified(self, source: VolumeSource) -> bool:
        """Whether `read` has compared the checksum of a source's file, and it has not been touched since."""
        path = self.voxel_file(source)
        record = read_record(path.with_suffix(".json"))
        return record is not None and record.get("verified", "never") == signs_of(path)

    def write(
        self, source: VolumeSource, header: VolumeHeader, state: SourceState, decoded: DecodedVolume
    ) -> PreparedVolume:
        """Store a volume.

        Args:
            source: the volume.
            header: its header.
            state: state of the source before it was read, so that a change during reading is noticed later.
            decoded: the voxels, at the spacing of this cache.

        Raises:
            CacheError: the disk is full or not writable.
        """
        path = self.voxel_file(source)
        voxels = decoded.voxels
        steps = np.linalg.norm(decoded.affine[:3, :3], axis=0)
        record = {
            "source": str(source),
            "state": vars(state),
            "digest": decoded.digest,
            "shape": list(voxels.shape),
            "spacing": [float(step) for step in steps],
            "affine": decoded.affine.tolist(),
            "orientation": decoded.orientation,
            "intensity_range": [int(voxels.min()), int(voxels.max())],
            "crc32": zlib.crc32(_bytes_of(voxels)),
            "notes": list(decoded.notes),
            "num_values": decoded.num_values,
            **({} if self.spacing is None else {"resampled_to": self.spacing}),
            **({} if decoded.window is None else {"modality": self.modality, "window": decoded.window}),
        }
        # voxels of a changed source must never lie beside the JSON of the old one; that of the same one may be in use
        if recorded_digest(path) not in (None, decoded.digest):
            path.with_suffix(".json").unlink(missing_ok=True)
        self._write(path, lambda file: _write_voxels(file, voxels))
        self._write(path.with_suffix(".json"), record_writer(record))
        return _as_volume(source, path, record)

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        def write_to(partial: Path) -> None:
            with partial.open("wb") as file:
                write(file)

        try:
            write_safely(path, write_to)
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise CacheError(f"{path}: the cache cannot be written: {cause.strerror or cause}") from error


def cache_bytes(shape: Sequence[int]) -> int:
    """Bytes that a volume takes in the cache: two per voxel and one block for each of its two files."""
    return int(np.prod(shape, dtype=object)) * _DTYPE.itemsize + 2 * 4096


def _is_whole(path: Path, record: dict[str, Any], verify: str) -> bool:
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + int(np.prod(shape, dtype=object)) * _DTYPE.itemsize
            if (list(shape), fortran, dtype, path.stat().st_size) != (record["shape"], False, _DTYPE, size):
                return False
            return verify == "quick" or _crc_to_end(file) == record["crc32"]
    except (OSError, ValueError):
        return False


def _crc_to_end(file: BinaryIO) -> int:
    crc = 0
    while chunk := file.read(_CHUNK):
        crc = zlib.crc32(chunk, crc)
    return crc


def _bytes_of(voxels: np.ndarray) -> memoryview:
    return np.ascontiguousarray(voxels, dtype=_DTYPE).data.cast("B")


def content_of(voxels: np.ndarray) -> str:
    """`PreparedVolume.content` of prepared voxels, int16 `(H, W, D)`."""
    return _content(zlib.crc32(_bytes_of(voxels)), (voxels.min(), voxels.max()), voxels.shape)


def _content(crc: int, ends: Sequence[int], shape: Sequence[int]) -> str:
    return f"{crc:08x} {ends[0]} {ends[1]} {'x'.join(map(str, shape))}"


def _write_voxels(file: BinaryIO, voxels: np.ndarray) -> None:
    # numpy.save writes through tofile, which hides the reason when a disk is full
    header = {"descr": _DTYPE.str, "fortran_order": False, "shape": voxels.shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(_bytes_of(voxels))


def _as_volume(source: VolumeSource, path: Path, record: dict[str, Any]) -> PreparedVolume:
    return PreparedVolume(
        name=source.name,
        source=str(source),
        cache_file=path,
        shape=tuple(record["shape"]),
        spacing=tuple(record["spacing"]),
        affine=np.array(record["affine"], dtype=np.float64),
        digest=record["digest"],
        source_bytes=record["state"]["size"],
        intensity_range=tuple(record["intensity_range"]),
        notes=tuple(record["notes"]),
        content=_content(record["crc32"], record["intensity_range"], record["shape"]),
        resampled_to=tuple(record["resampled_to"]) if "resampled_to" in record else None,
        num_values=record.get("num_values", 0),
        modality=record.get("modality", "ct"),
    )


def open_cached(volume: PreparedVolume) -> np.memmap:
    """Memory-map the voxels of a prepared volume; only what is indexed is read.

    Args:
        volume: the volume.

    Returns:
        int16 `(H, W, D)`, copy-on-write: writing to it affects neither the file nor other processes.

    Raises:
        CacheError: the cache file is missing or damaged, or another run has prepared it from a changed source.
    """
    try:
        voxels = np.load(volume.cache_file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{volume.cache_file}: the cache file of {volume.source} cannot be read: {error}") from error
    if voxels.shape != volume.shape or voxels.dtype != np.int16:
        raise CacheError(
            f"{volume.cache_file}: expected int16 {volume.shape} of {volume.source}, "
            f"found {voxels.dtype} {voxels.shape}"
        )
    # the record after the voxels: it is removed before they are replaced by those of a changed source
    if volume.digest and (found := recorded_digest(volume.cache_file)) != volume.digest:
        raise CacheError(
            f"{volume.cache_file}: expected the voxels of {volume.source} with sha256 {volume.digest[:12]}, "
            f"found {'no valid record beside it' if found is None else f'those of a file with {found[:12]}'}"
        )
    return voxels


def open_or_remake(volume: PreparedVolume) -> np.memmap:
    """`open_cached`; if that fails, the cache file is regenerated as long as the source is unchanged.

    Several processes may do so at once: each writes a file of its own and renames it, and all have the same content.

    Args:
        volume: the volume.

    Returns:
        int16 (H, W, D), copy-on-write.

    Raises:
        CacheError: the cache file can be neither read nor regenerated: the source is missing, unreadable or has
            changed, or the disk is full. Names both files.
    """
    try:
        return open_cached(volume)
    except CacheError as error:
        if volume.origin is None:
            raise
        logger.warning("%s; it is regenerated.", error)
        _remake(volume, volume.origin, error)
    return open_cached(volume)


def _remake(volume: PreparedVolume, source: VolumeSource, found: CacheError) -> None:
    names = names_of_source(source)
    try:
        voxels, spacing = math.prod(volume.shape), volume.resampled_to
        header = inspect_source(source, voxels if spacing is None else sys.maxsize)  # native voxels may be many more
        state = SourceState.of(header.files)
        decoded: DecodedVolume = decode_volume(source, header, volume.modality)
        resampled = decoded.at(spacing, voxels)
    except Exception as error:  # readers raise many kinds
        cause = hide(cause_of(error), names)
        raise CacheError(f"{found}; and {source}, from which it would be regenerated: {cause}") from (
            None if names else error
        )
    if decoded.digest != volume.digest:
        raise CacheError(
            f"{found}; and {source}, from which it would be regenerated, has changed since the run was prepared; "
            "restore it, or start a new run."
        )
    VolumeCache(volume.cache_file.parents[1], spacing, volume.modality).write(source, header, state, resampled)
