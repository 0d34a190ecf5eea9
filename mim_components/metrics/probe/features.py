"""Features of single voxels, and a linear classifier over whole scans that never holds a scan's feature maps.

A voxel's features are the maps of an encoder, up-sampled to the voxels (trilinear) and concatenated. Up-
sampling and the classifier are both linear, so the latter is applied to every map at its own size, and K logits are up-
sampled instead of F features, with the same result.

Axes: image (C, H, W, D); window (B, C, h, w, d); maps (B, F_l, h_l, w_l, d_l); features (n, F), F = sum of all F_l.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn

from mim_components.inferers import ClassMapInferer
from mim_components.metrics.probe.heads import LinearClassifier, stacked
from mim_components.networks.features import pad_to_windows, window_overlap

RAW_STRIDE = 2  # of the finest map of the hybrid encoder


class RawFeatures(nn.Module):
    """Features that need no network: the mean intensity of a cell of 2^3 voxels, and its position in the scan.

    The image's channels are the intensity and those that `add_position` appends.
    """

    def forward(self, image: Tensor) -> list[Tensor]:
        """`(B, 4, H, W, D)` to one map `(B, 4, H / 2, W / 2, D / 2)`."""
        return [F.avg_pool3d(image, RAW_STRIDE)]


def add_position(image: Tensor) -> Tensor:
    """Append three channels to `(C, H, W, D)`: the position along each axis, 0 at the first voxel and 1 at the last.

    Example:
        >>> add_position(torch.zeros(1, 3, 1, 1)).flatten(1).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    axes = [torch.linspace(0, 1, side, device=image.device) for side in image.shape[1:]]
    return torch.cat([image, torch.stack(torch.meshgrid(*axes, indexing="ij")).to(image)])


class WindowFeatures:
    """Applies an encoder to windows of the size that it was trained on, since its positions depend on the grid.

    Args:
        encoder: network that returns a list of maps.
        input_size: size of a window, voxels.
        patch_size: windows begin at multiples of it, voxels.
        overlap: overlap of the windows, in [0, 1); reduced so that they begin at token edges.
        sw_batch_size: windows that go through the encoder together.
        padding: what a scan is padded with at its far faces: "constant" = zeros (air), as in the training of the
            encoder; "replicate" = its last voxels, for features that are averaged over cells.
    """

    def __init__(
        self,
        encoder: nn.Module,
        input_size: Sequence[int],
        patch_size: int,
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        padding: str = "constant",
    ) -> None:
        self.encoder = encoder
        self.input_size = tuple(input_size)
        self.patch_size = patch_size
        self.overlap = window_overlap(input_size, patch_size, overlap)
        self.sw_batch_size = sw_batch_size
        self.padding = padding
        self.device = next((each.device for each in encoder.parameters()), torch.device("cpu"))

    def at(self, image: Tensor, voxels: Tensor, classifier: LinearClassifier | None = None) -> Tensor:
        """Features of some voxels, each from the window whose centre is nearest.

        Args:
            image: `(C, H, W, D)`.
            voxels: voxel indices, int64 `(n, 3)`.
            classifier: classifier whose logits are wanted instead of the features.

        Returns:
            float32 `(n, F)` or `(n, K)`, on the CPU.
        """
        padded = self._padded(image)
        windows = self._windows(padded.shape[2:], voxels)
        features: Tensor | None = None
        for first in range(0, len(windows), self.sw_batch_size):
            batch = windows[first : first + self.sw_batch_size]
            images = torch.cat([_cut(padded, start, self.input_size) for start, _ in batch])
            with torch.no_grad():
                maps = self.encoder(images.to(self.device))
            for number, (start, rows) in enumerate(batch):
                inside = voxels[rows] - torch.tensor(start)
                found = torch.cat([_interpolated(each[number].float(), inside, self.input_size) for each in maps], 1)
                found = found.cpu() if classifier is None else F.linear(found.cpu(), *classifier)
                if features is None:
                    features = torch.empty(len(voxels), found.shape[1])
                features[rows] = found
        assert features is not None
        return features

    def classify(self, image: Tensor, classifiers: Sequence[LinearClassifier]) -> Tensor:
        """The class of every voxel by each classifier, uint8 `(classifiers, H, W, D)`, from one pass of the encoder.

        Logits of overlapping windows are averaged.
        """
        inferer = ClassMapInferer(
            self.input_size,
            self.sw_batch_size,
            self.overlap,
            heads=len(classifiers),
            sw_device=self.device,
            device="cpu",
        )
        head = _Logits(self.encoder, stacked(classifiers)).to(self.device).eval()
        h, w, d = image.shape[1:]
        return inferer(self._padded(image), head)[0, :, :h, :w, :d]

    def _padded(self, image: Tensor) -> Tensor:
        return pad_to_windows(image.unsqueeze(0), self.input_size, [self.patch_size] * 3, self.padding)

    def _windows(self, shape: Sequence[int], voxels: Tensor) -> list[tuple[list[int], Tensor]]:
        """Starts of the windows that own a voxel, each with the row numbers of its voxels."""
        steps = [int(side * (1 - share)) for side, share in zip(self.input_size, self.overlap, strict=True)]
        slices = dense_patch_slices(shape, self.input_size, steps)
        nearest = []
        for axis, side in enumerate(self.input_size):
            starts = torch.tensor(sorted({window[axis].start for window in slices}))
            away = (voxels[:, axis, None] - (starts + (side - 1) / 2)).abs()
            nearest.append(starts[away.argmin(1)])
        owners, owner = torch.stack(nearest, 1).unique(dim=0, return_inverse=True)
        return [(start.tolist(), (owner == number).nonzero()[:, 0]) for number, start in enumerate(owners)]


class _Logits(nn.Module):
    """Logits `(B, K, h, w, d)` of a window `(B, C, h, w, d)`.

    They are up-sampled axis by axis, as products of matrices, and along the last one all maps at once: with the many
    logits of several classifiers `interpolate` would take longer than the encoder.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: nn.Module, classifier: LinearClassifier) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("weight", classifier.weight)
        self.register_buffer("bias", classifier.bias)

    def forward(self, window: Tensor) -> Tensor:
        height, width, depth = window.shape[2:]
        parts, matrices, first = [], [], 0
        for each in self.encoder(window):
            weight = self.weight[:, first : first + each.shape[1], None, None, None]
            first += each.shape[1]
            part = F.conv3d(each.float(), weight)  # (B, K, h_l, w_l, d_l)
            b, k, h, w, d = part.shape
            part = (_linear(h, height, part).T @ part.flatten(3)).view(b, k, height, w, d)
            parts.append(_linear(w, width, part).T @ part)
            matrices.append(_linear(d, depth, part))
        return torch.cat(parts, -1) @ torch.cat(matrices) + self.bias.view(1, -1, 1, 1, 1)


def _linear(have: int, wanted: int, like: Tensor) -> Tensor:
    """Matrix `(have, wanted)` by which a row is multiplied to interpolate it."""
    rows = torch.eye(have, device=like.device)[None]
    return F.interpolate(rows, wanted, mode="linear", align_corners=False)[0]


def _cut(image: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    (i, j, k), (h, w, d) = start, size
    return image[..., i : i + h, j : j + w, k : k + d]


def _interpolated(features: Tensor, voxels: Tensor, size: Sequence[int]) -> Tensor:
    """Sample a map `(F, h, w, d)` of a window of `size` voxels at voxels `(n, 3)`: `(n, F)`, equal to `interpolate`."""
    places = (2 * voxels.to(features) + 1) / torch.tensor(size).to(features) - 1
    grid = places.flip(1).view(1, 1, 1, -1, 3)  # grid_sample names the last axis first
    found = F.grid_sample(features[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0, 0].T
