"""The phase before pre-training: check every volume, list all bad ones together, and fill the cache.

The result depends only on the files, not on the number of workers or the process, so every rank of a
distributed run has the same volumes, whichever of them prepared one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import ignite.distributed as idist

from mim_components.data.cache.volumes import VERIFY, VolumeCache, cache_bytes
from mim_components.data.names import names_of_source
from mim_components.data.prepare.label_maps import set_apart, settle_passed, summary_of
from mim_components.data.prepare.memory import CheckMemory, bad_volume
from mim_components.data.prepare.phase import check_options, note_copies, run_each
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION, settle_bad
from mim_components.data.prepare.team import Team
from mim_components.data.read.headers import VolumeHeader
from mim_components.data.read.limits import MAX_VOXELS, check_placed
from mim_components.data.read.volume import decode_volume, inspect_source
from mim_components.data.resample import Spacing, as_spacing, resampled_shape
from mim_components.data.state import SourceState
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    CacheError,
    DataError,
    FoundVolumes,
    PassedOver,
    PreparedDataset,
    PreparedVolume,
    VolumeError,
    VolumeSource,
)
from mim_components.utils.text import counted, shorten

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _How:
    cache_dir: Path
    verify: str
    spacing: Spacing | None = None
    max_voxels: int = MAX_VOXELS
    modality: str = "ct"

    def cache(self) -> VolumeCache:
        return VolumeCache(self.cache_dir, self.spacing, self.modality)

    def memory(self) -> CheckMemory:
        return CheckMemory(self.cache_dir, "volumes" if self.modality == "ct" else f"{self.modality} volumes")


@dataclass(frozen=True)
class _Task:
    """A volume to read: in full from the cache, or from its source.

    Attributes:
        missing: bytes that it will take in the cache; 0 = it is cached.
    """

    source: VolumeSource
    header: VolumeHeader
    how: _How
    missing: int


def prepare_volumes(
    found: FoundVolumes | Iterable[VolumeSource],
    cache_dir: str | Path,
    *,
    on_bad: str = "stop",
    max_bad_fraction: float = MAX_BAD_FRACTION,
    num_workers: int = 0,
    progress: bool = True,
    max_voxels: int = MAX_VOXELS,
    verify: str = "auto",
    output_dir: str | Path | None = None,
    spacing: Sequence[float] | None = None,
    team: Team | None = None,
    modality: str = "ct",
) -> PreparedDataset:
    """Check every volume and write it to the cache, unless it is cached or known to be bad.

    Args:
        found: the volumes.
        cache_dir: folder of the cache.
        on_bad: "stop" raises if a volume is bad, after all were checked; "exclude" leaves it out.
        max_bad_fraction: largest share of the volumes that "exclude" may leave out.
        num_workers: number of decoding processes; 0 = this one.
        progress: show a progress bar.
        max_voxels: headers that claim more are refused, as are volumes with more after resampling.
        verify: "full" compares the checksum of cached voxels, "quick" only the sizes of cached files; "auto" compares
            the checksum once, and again only for files touched since.
        output_dir: folder for `quarantine.jsonl` and `passed_over.jsonl`, see `write_quarantine`; None = not written.
        spacing: spacing that volumes are resampled to, mm along R, A and S; None = native voxels.
        team: processes that divide the work; None = only this one.
        modality: "ct": volumes must be in HU; "mr": any intensities, stored in per mille, see `to_per_mille`.

    Returns:
        The volumes in the order of `found`; label maps are passed over if a folder was searched, see `set_apart`.

    Raises:
        BadVolumesError: volumes are bad and `on_bad` is "stop", more than may be left out, or none is left.
        CacheError: the cache cannot be written, or the disk is too small for it.
        DataError: a setting is wrong, or there are label maps only.
    """
    check_options(on_bad, max_bad_fraction, num_workers)
    if verify not in VERIFY:
        raise DataError(f"verify must be one of {VERIFY}, got {verify=}.")
    found = found if isinstance(found, FoundVolumes) else FoundVolumes(list(found))
    sources = found.sources
    how = _How(Path(cache_dir), verify, as_spacing(spacing), max_voxels, modality)
    cache, team = how.cache(), team or Team()
    outcomes: list[PreparedVolume | BadVolume | _Task] = []  # of this process's share
    start = perf_counter()

    def inspect() -> Counter[str]:
        cache.check_usable()
        memory = how.memory()
        outcomes.extend(_inspect(source, memory, how) for source in team.share(sources))
        return _count(outcomes)

    total = sum(team.exchange(inspect), Counter())
    team.exchange(lambda: cache.check_space(total["bytes"]))
    _log_plan(len(sources), total, perf_counter() - start)
    results = team.divide(lambda _: _finish(outcomes, how, num_workers, progress), sources)
    logger.info("preparation took %.1f s", perf_counter() - start)
    kept, label_maps, remarks = set_apart(found, results)
    bad = [item for item in kept if isinstance(item, BadVolume)]
    pairs = zip(sources, kept, strict=True)
    volumes = [replace(item, origin=source) for source, item in pairs if isinstance(item, PreparedVolume)]
    passed = settle_passed([*found.passed, *label_maps], output_dir)
    settle_bad(bad, len(bad) + len(volumes), on_bad, max_bad_fraction, output_dir)
    if bad and not volumes:
        raise BadVolumesError(bad, len(bad))
    if not volumes:
        raise DataError(_why_none(found, passed))
    notes = [*found.notes, *remarks, *(f"{volume.source}: {note}" for volume in volumes for note in volume.notes)]
    notes += note_copies(((volume.source, volume.content) for volume in volumes), "voxels")
    for line in [*(f"left out: {item}" for item in bad), *notes] if idist.get_rank() == 0 else []:
        logger.warning("%s", line)
    return PreparedDataset(volumes, bad, notes, passed)


def _why_none(found: FoundVolumes, passed: Sequence[PassedOver]) -> str:
    if not passed:
        return "no volumes were given, expected at least one."
    return f"{found.root}: no scan is left; {summary_of(passed)}: {shorten(passed)}"


def _inspect(source: VolumeSource, memory: CheckMemory, how: _How) -> PreparedVolume | BadVolume | _Task:
    """The task for a volume, unless its header is bad, it is known to be bad, or it is fully cached."""
    try:
        header = _header_of(source, how)
        shape = _cached_shape(header, how)
    except Exception as error:
        before = memory.recall("header", str(source), source.files)
        bad = _bad(source, source.files if before is None else (), error)
        # headers are cheap to read again and depend on settings, so only the digest is reused
        if isinstance(before, BadVolume):
            return replace(before, cause=bad.cause)
        memory.keep("header", str(source), source.files, bad.state, bad)
        return bad
    known = memory.recall("voxels", str(source), header.files)
    if isinstance(known, BadVolume):
        return known
    cache = how.cache()
    cached = cache.read(source, header, "quick")
    if cached is None:
        return _Task(source, header, how, cache_bytes(shape))
    done = how.verify == "quick" or (how.verify == "auto" and cache.was_verified(source))
    return cached if done else _Task(source, header, how, 0)


def _count(outcomes: Iterable[PreparedVolume | BadVolume | _Task]) -> Counter[str]:
    """Number of volumes to prepare and their bytes, of cached volumes, and of those to verify."""
    count: Counter[str] = Counter()
    for item in outcomes:
        if isinstance(item, _Task) and item.missing:
            count += Counter(prepare=1, bytes=item.missing)
        elif not isinstance(item, BadVolume):
            count += Counter(cached=1, verify=int(isinstance(item, _Task)))
    return count


def _log_plan(number: int, total: Counter[str], seconds: float) -> None:
    verified = f", {total['verify']} of them to read in full (verify)" if total["verify"] else ""
    plan = f"{counted(number, 'volume')}: {total['prepare']} to prepare, {total['cached']} cached{verified}"
    logger.info("%s; headers took %.1f s", plan, seconds)


def _finish(
    outcomes: Sequence[PreparedVolume | BadVolume | _Task], how: _How, num_workers: int, progress: bool
) -> list[PreparedVolume | BadVolume]:
    """Replace the tasks among the outcomes by their results."""
    tasks = [item for item in outcomes if isinstance(item, _Task)]
    memory = how.memory()
    done = iter([*_prepare_each(tasks, memory, num_workers, progress)])
    return [next(done) if isinstance(item, _Task) else item for item in outcomes]


def _header_of(source: VolumeSource, how: _How) -> VolumeHeader:
    header = inspect_source(source, how.max_voxels)
    check_placed(header)
    return header


def _cached_shape(header: VolumeHeader, how: _How) -> tuple[int, ...]:
    """Shape in the cache; the native one if the spacing is only known once ITK reads the volume."""
    if how.spacing is None or header.affine is None:
        return header.shape
    return resampled_shape(header.shape, header.affine, how.spacing, how.max_voxels)


def _prepare_each(
    tasks: Sequence[_Task], memory: CheckMemory, num_workers: int, progress: bool
) -> Iterator[PreparedVolume | BadVolume]:
    results = run_each(_prepare_one, tasks, num_workers, "prepare", "volume", progress)
    for task, result in zip(tasks, results, strict=True):
        if isinstance(result, BadVolume):
            memory.keep("voxels", str(task.source), task.header.files, result.state, result)
        yield result


def _bad(source: VolumeSource, files: Sequence[Path], error: Exception) -> BadVolume:
    return bad_volume(str(source), error, files, names_of_source(source))


def _prepare_one(task: _Task) -> PreparedVolume | BadVolume:
    cache, source, how = task.how.cache(), task.source, task.how
    try:
        cached = cache.read(source, task.header, "full")
        if cached is not None:
            return cached
        # the file may have been replaced while the task waited: state first, then the header that belongs to the voxels
        state = SourceState.of(task.header.files)
        try:
            header = _header_of(source, how)
        except VolumeError as error:  # the next start reads the header again, maybe with other settings
            return replace(_bad(source, task.header.files, error), permanent=False)
        if header.files != task.header.files:
            return _prepare_one(replace(task, header=header))
        decoded = decode_volume(source, header, how.modality)
        return cache.write(source, header, state, decoded.at(how.spacing, how.max_voxels))
    except CacheError:
        raise
    except Exception as error:
        return _bad(source, task.header.files, error)
