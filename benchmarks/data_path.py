"""From .nii.gz to a sample, as tables: `python -m benchmarks.data_path [--data CT.nii.gz ...]`.

1. Decoding: a file read, checked and reoriented to RAS, with every installed decoder.
2. Caches: time to open a volume (an item of MONAI's dataset), to copy a level-1 crop, and to make a level-1 volume
   (resized, scaled) and a whole sample of 1 + 4 + 16 volumes; bytes read for the last two; disk space. Files are in the
   page cache, as in every epoch after the first if the data fit in memory; "cold" is a level-1 volume after the kernel
   was asked to drop the files.
3. Parts of a sample, and the time the same takes with MONAI and PyTorch alone.

Everything runs in one process with `--threads` threads, as in a worker of the loader; compared cases run in turn.
Caches are compared by CPU time, which includes reading from the page cache but not the machine's other
work; decoders and "cold" by wall-clock time.
Packages: isal, deflate (libdeflate, whole files in memory, for comparison only) and blosc2 are used if installed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import ScaleIntensityRange
from torch import Tensor

from benchmarks.data_stores import WINDOW, Store, blosc_store, map_store, monai_store, noisy_ct
from benchmarks.report import add_report_options, measure, report, size_option
from mim_components.data import find_sources, open_cached, prepare_volumes
from mim_components.data.load.scans import load_volume
from mim_components.data.read import stream
from mim_components.transforms.crop import MultiLevelCropMask
from mim_components.transforms.geometry import LevelGeometry, draw_geometry
from mim_components.transforms.resize import resize_volumes

LEVELS = ((384, 384, 192), (96, 96, 96), (16, 16, 16))
INPUT = (96, 96, 96)
MIB = 2**20


def cut(array: Any, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box `(H, W, D)`, shorter where the array ends; a view if the array is in memory or mapped."""
    return torch.from_numpy(
        np.asarray(array[tuple(slice(int(s), int(s) + n) for s, n in zip(start, size, strict=True))])
    )


def padded(volume: Tensor, size: Sequence[int], window: Sequence[float] | None) -> Tensor:
    """`(H, W, D)` padded with air to `size`."""
    missing = [want - have for want, have in zip(size, volume.shape, strict=True)]
    air = window[0] if window else 0.0
    return F.pad(volume, (0, missing[2], 0, missing[1], 0, missing[0]), value=air) if any(missing) else volume


def factor(levels: Sequence[Sequence[int]], input_size: Sequence[int]) -> tuple[int, ...]:
    """Factor by which level 1 is downsampled, per axis."""
    return tuple(max(n // m, 1) for n, m in zip(levels[0], input_size, strict=True))


class Sampler:
    """Samples of one volume, with the geometry of the crop transform; every call draws new boxes.

    Args:
        shape: shape of the volume.
        levels: native sizes of the levels.
        input_size: size of a network input.
    """

    def __init__(self, shape: Sequence[int], levels: Sequence[Sequence[int]], input_size: Sequence[int]) -> None:
        self.levels, self.input_size = levels, tuple(input_size)
        self.size = tuple(max(n, m) for n, m in zip(shape, levels[0], strict=True))
        # stores with other voxels are compared: all get the same boxes
        self.crop = MultiLevelCropMask(levels, input_size, child_content="any").set_random_state(0)
        self.geometry: list[LevelGeometry] = []
        self.factor = factor(levels, input_size)

    def draw(self) -> np.ndarray:
        crop = self.crop
        self.geometry = draw_geometry(crop.R, self.size, self.levels, crop.grid, crop.num_visible, crop.num_children)
        return self.geometry[0].start[0]

    def native(self, store: Store) -> Tensor:
        """A copy of a level-1 crop as stored."""
        return cut(store.open()[0], self.draw(), self.levels[0]).clone(memory_format=torch.contiguous_format)

    def level1(self, store: Store) -> Tensor:
        """A level-1 volume."""
        start = self.draw()
        full, low = store.open()
        return self._low(store, low, start) if store.has_low else self._levels(store, full, start, 1)[0]

    def sample(self, store: Store) -> list[Tensor]:
        """The volumes of all levels."""
        start = self.draw()
        full, low = store.open()
        if not store.has_low:
            return self._levels(store, full, start, len(self.levels))
        size = self.levels[1]
        parents = [padded(cut(full, s, size), size, store.window) for s in self.geometry[1].start]
        inner = []
        for number, s in enumerate(self.geometry[2].start):
            parent = number // self.crop.num_children
            inner.append(cut(parents[parent], s - self.geometry[1].start[parent], self.levels[2]))
        return [self._low(store, low, start), self._volumes(store, parents), self._volumes(store, inner)]

    def _levels(self, store: Store, full: Any, start: np.ndarray, count: int) -> list[Tensor]:
        image = cut(full, start, self.levels[0])
        image = image if store.window else padded(image, self.levels[0], None)  # scaled voxels must be padded first
        crop = MultiLevelCropMask(self.levels[:count], self.input_size, window=store.window, child_content="any")
        out = crop.set_random_state(state=self.crop.R)(image[None])
        return [out[f"image_level{level}"] for level in range(1, count + 1)]

    def _low(self, store: Store, low: Any, start: np.ndarray) -> Tensor:
        volume = padded(cut(low, start // self.factor, self.input_size), self.input_size, store.window)
        return self._volumes(store, [volume])

    def _volumes(self, store: Store, crops: Sequence[Tensor]) -> Tensor:
        return resize_volumes(torch.stack(list(crops))[:, None], self.input_size, window=store.window)

    def bytes_read(self, store: Store, shape: Sequence[int]) -> tuple[int, int]:
        """Bytes read for a level-1 volume and for a sample, for one draw."""
        start = self.draw()

        def touched(which: str, first: Sequence[int], size: Sequence[int], limit: Sequence[int]) -> int:
            first = [min(int(f), n - 1) for f, n in zip(first, limit, strict=True)]
            return store.touched(which, first, [min(s, n - f) for s, n, f in zip(size, limit, first, strict=True)])

        if "Persistent" in store.name:
            return store.disk, store.disk
        if not store.has_low:
            crop = touched("full", start, self.levels[0], shape)
            return crop, crop
        small = [n // f for n, f in zip(shape, self.factor, strict=True)]
        level1 = touched("low", start // self.factor, self.input_size, small)
        return level1, level1 + sum(touched("full", s, self.levels[1], shape) for s in self.geometry[1].start)


def drop_files(folder: Path) -> Callable[[], None]:
    """A function that asks the kernel to drop the files of a folder from the page cache."""

    def drop() -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return drop


def cache_table(
    path: Path, repetitions: int, levels: Sequence[Sequence[int]], input_size: Sequence[int]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows of the caches of one file, and its voxels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / path.name).symlink_to(path.resolve())
        sources = find_sources(dataset_dir=folder / "in")
        volume = prepare_volumes(sources, folder / "cache", progress=False).volumes[0]
        stores = [
            make(source, folder, factor(levels, input_size), low)
            for make, source in _makers(path, volume)
            for low in (False, True)
        ]
        os.sync()  # only written pages can be dropped
        sampler = Sampler(volume.shape, levels, input_size)
        warm = [
            measure({store.name: (lambda f=f, s=store: f(s)) for store in stores}, repetitions)
            for f in (lambda store: store.open(), sampler.native, sampler.level1, sampler.sample)
        ]
        cold = measure(
            {store.name: (lambda s=store: sampler.level1(s)) for store in stores}, max(repetitions // 2, 1), 0,
            drop_files(folder),
        )  # fmt: skip
        opened, crops, level1s, samples = ({name: case.cpu_median for name, case in timing.items()} for timing in warm)
        rows, first = [], stores[0].name
        for store in stores:
            name, read = store.name, sampler.bytes_read(store, volume.shape)
            rows.append({
                "cache": name, "open ms": opened[name] * 1e3, "crop ms": crops[name] * 1e3,
                "level-1 ms": level1s[name] * 1e3, "level-1 times faster": level1s[first] / level1s[name],
                "than an item": opened[first] / level1s[name], "MiM sample ms": samples[name] * 1e3,
                "sample times faster": samples[first] / samples[name], "level-1 cold ms": cold[name].median * 1e3,
                "level-1 MiB read": read[0] / MIB, "MiM MiB read": read[1] / MIB, "disk MiB": store.disk / MIB,
                "needs": store.needs,
            })  # fmt: skip
        return rows, np.array(open_cached(volume))


def _makers(path: Path, volume: Any) -> list[tuple[Callable[..., Store], Any]]:
    makers: list[tuple[Callable[..., Store], Any]] = [(monai_store, path), (map_store, volume)]
    try:
        import blosc2  # noqa: F401
    except ImportError:
        print("blosc2 is not installed: rows left out.")
        return makers
    return [*makers, (blosc_store, volume)]


def decoding_table(path: Path, repetitions: int) -> list[dict[str, Any]]:
    """Rows of the decoders: the deflated stream alone, and the whole first read of a volume."""
    content = path.read_bytes()
    size = len(gzip.decompress(content))
    payload = stream.Payload(path, 0, 0, size, compressed=True)
    decoders = {decoder.name: decoder for decoder in stream.installed_decoders()[::-1]}

    def use(name: str, function: Callable[[], object]) -> Callable[[], object]:
        def case() -> object:
            stream.DECODER = decoders[name]
            return function()

        return case

    alone = {name: use(name, lambda: stream.read_payload(payload, hashlib.sha256())) for name in decoders}
    whole = {name: use(name, lambda: load_volume(path)) for name in decoders}
    try:
        import deflate

        alone["libdeflate, in memory, no sha256"] = lambda: deflate.gzip_decompress(path.read_bytes(), size)
    except ImportError:
        print("deflate is not installed: libdeflate row left out.")
    streams, volumes = measure(alone, repetitions), measure(whole, repetitions)
    stream.DECODER = stream.installed_decoders()[0]
    return [
        {
            "decoder": name, "stream ms": timing.median * 1e3,
            "times faster": streams["zlib"].median / timing.median,
            "whole volume ms": volumes[name].median * 1e3 if name in volumes else None,
            "whole times faster": volumes["zlib"].median / volumes[name].median if name in volumes else None,
            "MiB": size / MIB, "packed MiB": len(content) / MIB,
        }
        for name, timing in streams.items()
    ]  # fmt: skip


def parts_table(
    voxels: np.ndarray, repetitions: int, levels: Sequence[Sequence[int]], input_size: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of the steps between a cached volume and a sample."""
    crop = cut(voxels, (0, 0, 0), levels[0])
    level1 = padded(crop, levels[0], WINDOW)[None, None]
    level2 = torch.stack([cut(level1[0, 0], (0, 0, 0), levels[1])] * 4)[:, None]
    level3 = torch.stack([cut(level1[0, 0], (0, 0, 0), levels[2])] * 16)[:, None]
    monai = ScaleIntensityRange(*WINDOW, 0.0, 1.0, clip=True)
    mim = MultiLevelCropMask(levels, input_size, window=WINDOW).set_random_state(0)

    def resized(volumes: Tensor, mode: str = "area") -> Callable[[], Tensor]:
        return lambda: resize_volumes(volumes, input_size, mode, WINDOW)

    timings = measure(
        {
            "copy of the int16 crop": lambda: crop.clone(memory_format=torch.contiguous_format),
            "level 1: clip, area average, scale": resized(level1),
            "the same with MONAI and PyTorch": lambda: F.interpolate(monai(level1), input_size, mode="area"),
            "level 1, trilinear (aliases)": resized(level1, "trilinear"),
            "4 volumes of level 2: scale": resized(level2),
            "16 volumes of level 3: scale, trilinear": resized(level3),
            "the same with MONAI and PyTorch, 16 volumes": lambda: F.interpolate(
                monai(level3), input_size, mode="trilinear"
            ),
            "MultiLevelCropMask": lambda: mim(level1[0]),
        },
        repetitions,
    )
    return [
        {"part": name, "CPU ms": timing.cpu_median * 1e3, **timing.milliseconds()} for name, timing in timings.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="From .nii.gz to a sample: decoders, caches, parts.")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="CT files, besides the synthetic one")
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), help="size of the synthetic CT, voxels")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--levels", type=size_option, nargs="+", default=LEVELS, help="native sizes, voxels: 96,96,96")
    parser.add_argument("--input_size", type=size_option, default=INPUT, help="network input, voxels: 96,96,96")
    add_report_options(parser)
    options = parser.parse_args(arguments)
    levels, input_size = options.levels, options.input_size
    torch.set_num_threads(options.threads)
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = noisy_ct(Path(folder) / "noisy.nii.gz", options.size)
        names = {made: f"noisy synthetic CT {'x'.join(map(str, options.size))}", **{p: p.name for p in options.data}}
        for path, name in names.items():
            tables[f"First decode, {name}"] = decoding_table(path, options.repetitions)
            rows, voxels = cache_table(path, options.repetitions, levels, input_size)
            tables[f"Caches, {name}"] = rows
            if path == made:
                tables[f"Parts of a sample, {name}"] = parts_table(voxels, options.repetitions, levels, input_size)
    settings = {"levels": levels, "input_size": input_size, "repetitions": options.repetitions}
    report(tables, options.json, ("blosc2", "isal", "deflate"), settings)


if __name__ == "__main__":
    main()
