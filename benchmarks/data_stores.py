"""Ways to store a prepared CT on disk, for `benchmarks.data_path`: what is opened for one sample, and its cost.

Arrays are (H, W, D). A low-resolution level is the volume clipped to the window and averaged by the factor by which
level 1 is downsampled, so that level 1 is read from it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged, Orientationd, ScaleIntensityRanged

from mim_components.data import open_cached
from mim_components.data.volumes import PreparedVolume
from mim_components.transforms.resize import resize_volumes

WINDOW = (-1000.0, 1000.0)
PAGE = 4096
CHUNK = (64, 64, 64)


class Store(NamedTuple):
    """One way to store a volume.

    Attributes:
        name: name in the table.
        open: returns the volume and its low-resolution level (None if there is none); called for every sample.
        window: HU that become 0 and 1; None = already scaled.
        disk: bytes of its files.
        touched: bytes that a box reads of the file of the volume ("full") or of the level ("low").
        needs: packages not needed otherwise.
    """

    name: str
    open: Callable[[], tuple[Any, Any]]
    window: tuple[float, float] | None
    disk: int
    touched: Callable[[str, Sequence[int], Sequence[int]], int]
    needs: str

    @property
    def has_low(self) -> bool:
        return self.name.endswith("low level")


def low_level(voxels: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """int16 mean of clipped voxels over blocks of `factor`; incomplete blocks at the ends are left out."""
    size = [n // f for n, f in zip(voxels.shape, factor, strict=True)]
    whole = voxels[tuple(slice(n * f) for n, f in zip(size, factor, strict=True))]
    mean = resize_volumes(torch.from_numpy(np.clip(whole, *map(int, WINDOW)))[None, None], size)
    return mean[0, 0].round().to(torch.int16).numpy()


def pages(shape: Sequence[int], itemsize: int) -> Callable[[Sequence[int], Sequence[int]], int]:
    """Bytes of the pages that a box touches in an array in C order."""

    def touched(start: Sequence[int], size: Sequence[int]) -> int:
        rows = np.arange(start[0], start[0] + size[0])[:, None] * shape[1] + np.arange(start[1], start[1] + size[1])
        first = (rows * shape[2] + start[2]) * itemsize
        last = first + size[2] * itemsize - 1
        spans = [first // PAGE + i for i in range(int((last // PAGE - first // PAGE).max()) + 1)]
        return len(np.unique(np.stack([np.minimum(span, last // PAGE) for span in spans]))) * PAGE

    return touched


def monai_store(path: Path, folder: Path, factor: Sequence[int], low: bool) -> Store:
    """MONAI's `PersistentDataset`: the whole volume, scaled, float32, in one file that every item loads."""
    keys = ["image", "low"] if low else ["image"]
    chain: list[Any] = [LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, "RAS", labels=None)]
    if low:
        chain.append(Lambdad("low", lambda image: torch.from_numpy(low_level(image[0].numpy(), factor))[None]))
    chain.append(ScaleIntensityRanged(keys, *WINDOW, 0.0, 1.0, clip=True))
    cache = folder / f"monai{low}"
    dataset = PersistentDataset([dict.fromkeys(keys, str(path))], Compose(chain), cache_dir=cache)
    dataset[0]

    def opened() -> tuple[Any, Any]:
        item = dataset[0]
        return item["image"][0].numpy(), item["low"][0].numpy() if low else None

    disk = sum(each.stat().st_size for each in cache.iterdir())

    def touched(_: str, __: Sequence[int], ___: Sequence[int]) -> int:
        return disk

    return Store(_name("PersistentDataset, float32", low), opened, None, disk, touched, "")


def map_store(volume: PreparedVolume, folder: Path, factor: Sequence[int], low: bool) -> Store:
    """The project's cache: int16 `.npy`, memory-mapped."""
    small = low_level(open_cached(volume), factor)
    np.save(folder / "low.npy", small)

    def opened() -> tuple[Any, Any]:
        return open_cached(volume), np.load(folder / "low.npy", mmap_mode="c") if low else None

    counts = {"full": pages(volume.shape, 2), "low": pages(small.shape, 2)}
    disk = volume.cache_file.stat().st_size + (small.nbytes if low else 0)
    return Store(_name("memory map, int16", low), opened, WINDOW, disk, lambda w, a, b: counts[w](a, b), "")


def blosc_store(volume: PreparedVolume, folder: Path, factor: Sequence[int], low: bool) -> Store:
    """Blosc2 chunks of 64^3 int16, LZ4 with shuffled bytes, one thread."""
    import blosc2

    blosc2.set_nthreads(1)
    voxels = np.asarray(open_cached(volume))
    arrays = {"full": voxels, "low": low_level(voxels, factor)} if low else {"full": voxels}
    parameters = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE]}
    paths = {which: folder / f"{which}{low}.b2nd" for which in arrays}
    for which, array in arrays.items():
        chunks = tuple(min(c, n) for c, n in zip(CHUNK, array.shape, strict=True))
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(paths[which]), mode="w", chunks=chunks,
                       cparams=parameters)  # fmt: skip

    def opened() -> tuple[Any, Any]:
        return blosc2.open(str(paths["full"]), mode="r"), blosc2.open(str(paths["low"]), mode="r") if low else None

    def touched(which: str, start: Sequence[int], size: Sequence[int]) -> int:
        array = blosc2.open(str(paths[which]), mode="r")
        grid = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        ranges = [range(s // c, (s + n - 1) // c + 1) for s, n, c in zip(start, size, array.chunks, strict=True)]
        numbers = [np.ravel_multi_index((i, j, k), grid) for i in ranges[0] for j in ranges[1] for k in ranges[2]]
        return sum(len(array.schunk.get_chunk(int(number))) for number in numbers)

    disk = sum(path.stat().st_size for path in paths.values())
    return Store(_name("blosc2 LZ4, int16", low), opened, WINDOW, disk, touched, "blosc2")


def _name(name: str, low: bool) -> str:
    return f"{name} + low level" if low else name


def noisy_ct(path: Path, size: Sequence[int], seed: int = 0) -> Path:
    """Write a synthetic CT of any size with noise of 12 HU: smooth anatomy at a quarter of the size, upsampled."""
    from mim_tools.synthetic import write_synthetic_dataset

    small = [max(n // 4, 16) for n in size]
    source = write_synthetic_dataset(path.parent / "synthetic", 1, seed, small, (3.2, 3.2, 4.8), with_labels=False)[0]
    voxels = torch.from_numpy(np.asarray(nib.load(source).dataobj, dtype=np.float32))[None, None]
    smooth = resize_volumes(voxels, size, "trilinear")[0, 0]
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(seed)) * 12
    hu = (smooth + noise).round().clamp(-1024, 3071).to(torch.int16).numpy()
    nib.save(nib.Nifti1Image(hu, np.diag([-0.8, -0.8, 1.2, 1.0])), path)
    return path
