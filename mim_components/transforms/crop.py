"""The multi-level crop and mask: nested volumes from masked tokens of one image (docs/method.md, 2).

Axes: image (C, H, W, D); V_l = num_children ** (l - 1) volumes at level l; N tokens, row-major over (h, w, d).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from mim_components.tokens import num_visible_tokens, token_grid
from mim_components.transforms.geometry import CHILD_CONTENT, CHILD_SOURCES, LevelGeometry, draw_geometry
from mim_components.transforms.resize import RESIZE_MODES, resize_volumes

# A token has content if its range exceeds content_range by this share of it. Devices round differently, by less
# than 1e-6 of the window: 0.004 HU in a range. Means of q = 1, 2, 4 ... 64 integers are multiples of 1 / q: the ranges
# that are possible next to 50 + 50 / 6400 = 50 + 1 / 128 HU are 50 and at least 50 + 1 / 64, each 0.008 HU away.
CONTENT_MARGIN = 1 / 6400


class MultiLevelCropMask(Randomizable, Transform):
    """Crop nested volumes around masked tokens of one image.

    Level 1 is a random crop. Every volume gets a random mask; from its masked tokens `num_children` are drawn without
    replacement, and a child of the next level is cut around each, at native resolution, then resized. Where a child is
    larger than its token it is centred on it and shifted to lie inside the parent. Children are cut from the image, not
    from the resized parent; intensities are clipped before and scaled after the resize.

    A token has content where the voxels of any channel inside it span more than `content_range` in the resized parent.
    With `child_content="prefer"` children come from tokens with content as long as the parent has candidates with it,
    in random order, and only then from the others, also in random order.

    Works on NumPy arrays, tensors on any device and MetaTensors; the draws are the same for all. Randomness comes from
    `self.R`, and neither the image nor `child_content` changes how many numbers are drawn.

    Args:
        level_sizes: native size of a volume of each level, in voxels of the input, outermost first.
        input_size: size every volume is resized to, voxels.
        patch_size: edge of a token, voxels of the resized volume; divides `input_size`.
        mask_ratio: share of the N tokens to mask, in (0, 1); floor(N * (1 - mask_ratio)) stay visible.
        num_children: volumes cut from each volume of the level above.
        child_source: "masked", or "visible" for the paper's Table 11.
        resize: "area" or "trilinear", see `mim_components.transforms.resize`.
        window: intensities that become 0 and 1; others are clipped. Images smaller than level 1 are then padded with
            the lower end, with every split between both sides equally likely. None = unscaled. Integer
            voxels and bounds are fastest.
        child_content: "prefer", or "any" for the paper's text, which ignores the content.
        content_range: range of intensities that a token with content exceeds, in the units of the input image.
            None = 50 with a window, which is then in HU; 0.025 without, which is 50 HU in an
            image whose 2000 HU were scaled to [0, 1].

    Returns:
        A dictionary with, for every level l, `image_level{l}` float32 `(V_l, C, *input_size)`, `masked_level{l}` bool
        `(V_l, N)` (True = hidden) and `start_level{l}` int64 `(V_l, 3)` (first voxel in the input, negative in
        padding); and for l >= 2 `parent_token_level{l}` int64 `(V_l,)`, the token of parent `i // num_children` that
        child i was drawn for, `parent_overlap_level{l}` bool `(V_l, N)`, that parent's tokens which the child's box
        overlaps, and `content_level{l}` bool `(V_l,)`, whether that token has content.

    Raises:
        ValueError: a level does not fit in the one above, `patch_size` does not divide `input_size`, fewer tokens are
            masked than children wanted, no token is visible, the window is empty, or `content_range` is negative; when
            called, an image smaller than level 1 without a window, or one whose size differs from that of the draw that
            `randomize=False` repeats.

    Example:
        >>> crop = MultiLevelCropMask([(32, 32, 32), (16, 16, 16)], (16, 16, 16), patch_size=8, num_children=2)
        >>> out = crop.set_random_state(0)(torch.rand(1, 40, 40, 40))
        >>> out["image_level2"].shape, out["masked_level2"].sum(-1).tolist(), out["parent_token_level2"].shape
        (torch.Size([2, 1, 16, 16, 16]), [5, 5], torch.Size([2]))
    """

    def __init__(
        self,
        level_sizes: Sequence[Sequence[int]] = ((384, 384, 192), (96, 96, 96), (16, 16, 16)),
        input_size: Sequence[int] = (96, 96, 96),
        patch_size: int = 16,
        mask_ratio: float = 0.6,
        num_children: int = 4,
        child_source: str = "masked",
        resize: str = "area",
        window: Sequence[float] | None = None,
        child_content: str = "prefer",
        content_range: float | None = None,
    ) -> None:
        super().__init__()
        self.level_sizes = [tuple(size) for size in level_sizes]
        self.input_size = tuple(input_size)
        self.grid = token_grid(input_size, patch_size)
        self.num_children = num_children
        self.child_source = child_source
        self.resize = resize
        self.window = window
        self.child_content = child_content
        self.content_range = (50.0 if window else 0.025) if content_range is None else content_range
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {mask_ratio}.")
        self.num_visible = num_visible_tokens(int(np.prod(self.grid)), mask_ratio)
        self._check()
        self.geometry: list[LevelGeometry] = []
        self._drawn_for: tuple[int, ...] | None = None

    def _check(self) -> None:
        num_tokens = int(np.prod(self.grid))
        if not self.level_sizes or any(len(size) != 3 or min(size) < 1 for size in self.level_sizes):
            raise ValueError(f"level_sizes must hold one size (H, W, D) per level, got {self.level_sizes}.")
        for outer, inner in zip(self.level_sizes, self.level_sizes[1:], strict=False):
            if any(i > o for i, o in zip(inner, outer, strict=True)):
                raise ValueError(f"every level must fit in the one above, got {inner} inside {outer}.")
        if self.child_source not in CHILD_SOURCES:
            raise ValueError(f"child_source must be one of {CHILD_SOURCES}, got {self.child_source!r}.")
        if self.child_content not in CHILD_CONTENT:
            raise ValueError(f"child_content must be one of {CHILD_CONTENT}, got {self.child_content!r}.")
        if not self.content_range >= 0:
            raise ValueError(f"content_range must be 0 or more, got {self.content_range}.")
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {RESIZE_MODES}, got {self.resize!r}.")
        if self.window is not None and (len(self.window) != 2 or not self.window[0] < self.window[1]):
            raise ValueError(f"window must be (low, high) with low < high, got {tuple(self.window)}.")
        if self.num_visible < 1:
            raise ValueError(f"mask_ratio leaves none of the {num_tokens} tokens visible.")
        candidates = num_tokens - self.num_visible if self.child_source == "masked" else self.num_visible
        if len(self.level_sizes) > 1 and not 1 <= self.num_children <= candidates:
            raise ValueError(
                f"num_children must be between 1 and the number of {self.child_source} tokens, got "
                f"num_children={self.num_children}, {self.child_source} tokens: {candidates}."
            )

    @property
    def num_volumes(self) -> int:
        """Number of volumes of all levels cut from one image."""
        return sum(self.num_children**level for level in range(len(self.level_sizes)))

    def randomize(self, data: Tensor) -> None:
        """Draw masks and boxes for an image `(C, H, W, D)`; its voxels determine which tokens have content."""
        self._draw(data)

    def _draw(self, image: Tensor) -> list[Tensor]:
        """Draw for an image; returns the volumes of the levels that were resized to determine content."""
        resized: list[Tensor] = []

        def find_content(start: np.ndarray) -> np.ndarray:
            resized.append(self._volumes(image, start, self.level_sizes[len(resized)]))
            return self._token_content(resized[-1])

        self._drawn_for = tuple(image.shape[1:])
        self.geometry = draw_geometry(
            self.R,
            self._drawn_for,
            self.level_sizes,
            self.grid,
            self.num_visible,
            self.num_children,
            self.child_source,
            find_content,
            self.child_content,
        )
        return resized

    def _token_content(self, volumes: Tensor) -> np.ndarray:
        """Which tokens of resized volumes `(V, C, *input_size)` have content, bool `(V, N)`."""
        high = low = volumes
        for axis, count in enumerate(self.grid, start=2):  # axis by axis: 20 times faster than all at once
            high = high.unflatten(axis, (count, -1)).amax(axis + 1)
            low = low.unflatten(axis, (count, -1)).amin(axis + 1)
        unit = self.window[1] - self.window[0] if self.window else 1
        filled = (high - low > self.content_range * (1 + CONTENT_MARGIN) / unit).any(1)  # (V, h, w, d)
        return filled.flatten(1).cpu().numpy()

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> dict[str, Tensor]:
        """Cut and mask one image `(C, H, W, D)`; `randomize=False` repeats the last draw."""
        image = convert_to_tensor(img, track_meta=False)
        if image.ndim != 4:
            raise ValueError(f"the image must be (C, H, W, D), got shape {tuple(image.shape)}.")
        size = tuple(image.shape[1:])
        if self.window is None and any(have < want for have, want in zip(size, self.level_sizes[0], strict=True)):
            raise ValueError(f"the image must be at least level 1, {self.level_sizes[0]} voxels, got {size}; pad it.")
        resized: list[Tensor] = []
        if randomize:
            resized = self._draw(image)
        elif size != self._drawn_for:
            raise ValueError(f"randomize=False repeats a draw for an image of size {self._drawn_for}, got {size}.")
        out: dict[str, Tensor] = {}
        for level, geometry in enumerate(self.geometry, start=1):
            if level > len(resized):
                resized.append(self._volumes(image, geometry.start, self.level_sizes[level - 1]))
            out[f"image_level{level}"] = resized[level - 1]
            out[f"start_level{level}"] = torch.from_numpy(geometry.start)
            names = ("masked", "parent_token", "parent_overlap", "content") if level > 1 else ("masked",)
            for name in names:
                values = torch.from_numpy(getattr(geometry, name))
                out[f"{name}_level{level}"] = values.to(image.device, non_blocking=True)
        return out

    def _volumes(self, image: Tensor, starts: np.ndarray, size: Sequence[int]) -> Tensor:
        """Boxes of an image, resized: `(V, C, *input_size)`."""
        volumes, padding = self._cut(image, starts, size)
        return resize_volumes(volumes, self.input_size, self.resize, self.window, padding)

    def _cut(self, image: Tensor, starts: np.ndarray, size: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Boxes `(V, C, ...)` of an image, and the padding that they still need; a single box is a view."""
        cuts = [_inside(image, start, size) for start in starts]
        if len(cuts) == 1:
            return cuts[0][0][None], cuts[0][1]
        air = self.window[0] // 1 if self.window else 0  # an integer at or below the window's lower end
        if image.dtype in (torch.uint8, torch.int8, torch.int16) and air < torch.iinfo(image.dtype).min:
            cuts = [(crop.to(torch.int32), padding) for crop, padding in cuts]
        padded = [F.pad(crop, padding, value=air) if any(padding) else crop for crop, padding in cuts]
        return torch.stack(padded), (0,) * 6


def _inside(image: Tensor, start: np.ndarray, size: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The part of a box inside the image, and how much is missing around it, in the form of PyTorch's `pad`."""
    first, last = (np.clip(end, 0, image.shape[1:]) for end in (start, start + size))
    before = np.clip(-start, 0, size)
    after = size - before - (last - first)
    crop = image[(slice(None), *map(slice, first, last))]
    return crop, [int(n) for axis in (2, 1, 0) for n in (before[axis], after[axis])]


class MultiLevelCropMaskd(Randomizable, MapTransform):
    """Dictionary version of `MultiLevelCropMask`; keys share boxes and masks.

    It writes the volumes of each key under `{key}_level{l}`, and once the masks, starts, parents and content; under
    `affine_level1`, float64 `(4, 4)`, the voxel-to-world matrix of the first key's level-1 volume before the resize
    (the identity if the image has none). The image itself is dropped from the dictionary.

    Args:
        keys: images `(C, H, W, D)` of equal spatial shape.
        level_sizes: this and the following: see `MultiLevelCropMask`.
        input_size: size every volume is resized to, voxels.
        patch_size: edge of a token, voxels of the resized volume.
        mask_ratio: share of tokens to mask.
        num_children: volumes cut from each volume of the level above.
        child_source: "masked" or "visible".
        resize: "area" or "trilinear".
        window: intensities that become 0 and 1; required where images are smaller than level 1.
        child_content: "prefer" or "any". The first key decides on content.
        content_range: range of intensities that a token with content exceeds.
        allow_missing_keys: do not raise when a key is missing.

    Attributes:
        num_visible: number of visible tokens in every volume.
        num_volumes: number of volumes of all levels cut from one image.

    Raises:
        ValueError: as `MultiLevelCropMask`; or keys differ in spatial shape.

    Example:
        >>> sizes = dict(level_sizes=[(32, 32, 32), (16, 16, 16)], input_size=(16, 16, 16), patch_size=8)
        >>> crop = MultiLevelCropMaskd("image", **sizes, num_children=2).set_random_state(0)
        >>> out = crop({"image": torch.rand(1, 40, 40, 40)})
        >>> [tuple(out[f"image_level{level}"].shape) for level in (1, 2)]
        [(1, 1, 16, 16, 16), (2, 1, 16, 16, 16)]
    """

    def __init__(
        self,
        keys: KeysCollection,
        level_sizes: Sequence[Sequence[int]] = ((384, 384, 192), (96, 96, 96), (16, 16, 16)),
        input_size: Sequence[int] = (96, 96, 96),
        patch_size: int = 16,
        mask_ratio: float = 0.6,
        num_children: int = 4,
        child_source: str = "masked",
        resize: str = "area",
        window: Sequence[float] | None = None,
        child_content: str = "prefer",
        content_range: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.crop = MultiLevelCropMask(
            level_sizes,
            input_size,
            patch_size,
            mask_ratio,
            num_children,
            child_source,
            resize,
            window,
            child_content,
            content_range,
        )
        self.num_visible = self.crop.num_visible
        self.num_volumes = self.crop.num_volumes

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> MultiLevelCropMaskd:
        """Seed the draws; returns self."""
        super().set_random_state(seed, state)
        self.crop.set_random_state(seed, state)
        return self

    def randomize(self, data: Tensor) -> None:
        """Draw masks and boxes for an image `(C, H, W, D)`."""
        self.crop.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace every image by its levels."""
        out = dict(data)
        shape: tuple[int, ...] | None = None
        for key in self.key_iterator(out):
            image = out.pop(key)
            if shape is not None and tuple(image.shape[1:]) != shape:
                raise ValueError(f"keys must have equal spatial shape, got {shape} and {key!r} {image.shape[1:]}.")
            levels = self.crop(image, randomize=shape is None)
            if shape is None:
                out["affine_level1"] = _affine_at(image, self.crop.geometry[0].start[0])
            shape = tuple(image.shape[1:])
            out.update({f"{key}{name[5:]}" if name.startswith("image_") else name: v for name, v in levels.items()})
        return out


def _affine_at(image: NdarrayOrTensor, start: np.ndarray) -> Tensor:
    """Voxel-to-world matrix of the box that begins at voxel `start`."""
    affine = image.affine.to("cpu", torch.float64) if isinstance(image, MetaTensor) else torch.eye(4).double()
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.from_numpy(start)
    return affine @ shift
