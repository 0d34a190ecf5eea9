"""Steps of an inference, in the form that MONAI's evaluator calls.

Axes: volume (1, C, H, W, D); feature map (E, h, w, d), one feature per block of `stride`^3 voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from mim_components.data.read.volume import cause_of
from mim_components.engines.precision import autocast_dtype
from mim_components.networks.features import FeatureMap, pad_to_windows, window_overlap
from mim_components.networks.mim import MiMReconstructor
from mim_components.transforms.intensity import CT, IntensityScale
from mim_components.utils.text import root_cause


class ScanStep:
    """`iteration_update` of MONAI's `SupervisedEvaluator`: MONAI's own, with a way past bad scans.

    A scan with a `cause` is skipped, and one on which the network or the postprocessing fails gets one; the output is
    then `[{"cause": ...}]`. For batches of one scan.

    Args:
        on_bad: "stop" raises instead.

    Example:
        >>> from types import SimpleNamespace
        >>> evaluator = SimpleNamespace(state=SimpleNamespace(), _iteration=lambda engine, batch: ["segmented"])
        >>> scan = {"name": ["ct"], "source": ["ct.nii.gz"], "cause": [""]}
        >>> ScanStep()(evaluator, scan), ScanStep()(evaluator, {**scan, "cause": ["no such file"]})
        (['segmented'], [{'cause': 'no such file'}])
    """

    def __init__(self, on_bad: str = "report") -> None:
        self.on_bad = on_bad

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> Any:
        """Process one scan."""
        cause = batch["cause"][0]
        if not cause:
            try:
                return engine._iteration(engine, batch)
            except (RuntimeError, MemoryError, ValueError) as error:
                if self.on_bad == "stop":
                    raise
                cause = cause_of(root_cause(error))
        engine.state.batch = [{key: batch[key][0] for key in ("name", "source")}]
        return [{"cause": cause}]


class InferenceStep:
    """`iteration_update` of MONAI's `SupervisedEvaluator`, for batches of one volume.

    The evaluator's inferer slides over the volume without overlap for the reconstruction. The encoder's windows
    overlap and begin at token edges. Volumes are padded with air after their last voxel, and results are cropped back.

    Args:
        network: trained network.
        input_size: size of a window, voxels.
        scale: meaning of the voxels, and the window that was scaled to 0 and 1.
        features: return features.
        reconstruction: return the masked and the reconstructed volume.
        feature_level: index in the encoder's pyramid: 0 is the finest, -1 the last.
        overlap: overlap of the encoder's windows, in [0, 1); reduced so that they begin at token edges.
        sw_batch_size: windows that go through the encoder together.
        amp: run the network in autocast.
        on_bad: "stop" raises if a volume fails; else the error becomes its `cause`.
        amp_dtype: data type of autocast, see `autocast_dtype`.

    Returns:
        When called: `name`, `source`, `cause` and, unless there is a cause, `affine` `(4, 4)` float64 and `shape`; with
        `features`, `features` float32 `(E, h, w, d)` on the CPU and `stride`; with `reconstruction`, `masked` and
        `reconstruction` int16 `(H, W, D)` in the unit of the scale.

    Example:
        >>> from types import SimpleNamespace
        >>> from monai.data import MetaTensor
        >>> network = MiMReconstructor(input_size=(16, 16, 16), preset="nano", num_levels=1)
        >>> step = InferenceStep(network, (16, 16, 16), reconstruction=False)
        >>> engine = SimpleNamespace(state=SimpleNamespace(device=torch.device("cpu")))
        >>> scan = {"name": ["ct"], "source": ["ct.nii.gz"], "cause": [""]}
        >>> voxels = MetaTensor(torch.zeros(1, 1, 20, 16, 16))
        >>> scan |= {"voxels": voxels, "image": voxels / 1000}
        >>> output = step(engine, scan)
        >>> output["features"].shape, output["stride"]  # 20 voxels are 3 blocks of 8, the last one cut
        (torch.Size([48, 3, 2, 2]), 8)
    """

    def __init__(
        self,
        network: MiMReconstructor,
        input_size: Sequence[int],
        scale: IntensityScale = CT,
        features: bool = True,
        reconstruction: bool = True,
        feature_level: int = -1,
        overlap: float = 0.25,
        sw_batch_size: int = 4,
        amp: bool = False,
        on_bad: str = "stop",
        amp_dtype: str = "auto",
    ) -> None:
        self.on_bad = on_bad
        self.dtype = autocast_dtype(amp_dtype)
        self.network = network
        self.input_size = tuple(input_size)
        self.scale = scale
        self.features = features
        self.reconstruction = reconstruction
        self.amp = amp
        self.feature_map = FeatureMap(network.encoder, feature_level)
        overlaps = window_overlap(input_size, network.patch_size, overlap)
        self.feature_inferer = SlidingWindowInferer(self.input_size, sw_batch_size, overlaps)

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Process one volume."""
        done = {"name": batch["name"][0], "source": batch["source"][0], "cause": batch["cause"][0]}
        if done["cause"]:
            return done
        try:
            return {**done, **self._results(engine, batch)}
        except (RuntimeError, MemoryError, ValueError) as error:
            if self.on_bad == "stop":
                raise
            return {**done, "cause": cause_of(root_cause(error))}

    def _results(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        voxels = batch["voxels"][0, 0]
        affine = np.asarray(voxels.affine, dtype=np.float64)
        image = batch["image"].as_tensor()
        device = engine.state.device
        self.network.eval()
        with torch.no_grad(), torch.autocast(device.type, dtype=self.dtype, enabled=self.amp):
            encoded = self._encode(image, device) if self.features else {}
            filled = self._reconstruct(engine.inferer, image, voxels.as_tensor(), device) if self.reconstruction else {}
        return {"affine": affine, "shape": tuple(voxels.shape), **encoded, **filled}

    def _encode(self, image: Tensor, device: torch.device) -> dict[str, Any]:
        padded = pad_to_windows(image, self.input_size, [self.network.patch_size] * 3)
        # only windows go to the device; the volume and the stitched map stay on the CPU
        stitched = self.feature_inferer(padded, lambda window: self.feature_map(window.to(device)).cpu())
        assert isinstance(stitched, Tensor)
        stride = padded.shape[2] // stitched.shape[2]
        h, w, d = (math.ceil(side / stride) for side in image.shape[2:])
        return {"features": stitched[0, :, :h, :w, :d].contiguous(), "stride": stride}

    def _reconstruct(self, inferer: Inferer, image: Tensor, voxels: Tensor, device: torch.device) -> dict[str, Any]:
        padded = pad_to_windows(image, self.input_size, self.input_size)

        def predict(window: Tensor, where: Sequence[Sequence[slice]]) -> tuple[Tensor, Tensor]:
            filled, masked = self.network.reconstruct_windows(window.to(device), where)
            return filled.cpu(), masked.cpu()

        filled, masked = inferer(padded, predict)
        h, w, d = voxels.shape
        patch = self.network.patch_size
        hidden = masked[0, 0].bool()
        for axis in range(3):
            hidden = hidden.repeat_interleave(patch, axis)
        hidden = hidden[:h, :w, :d]
        low, high = self.scale.window
        predicted = filled[0, 0, :h, :w, :d] * (high - low) + low
        limits = torch.iinfo(torch.int16)
        predicted = predicted.round().clamp(limits.min, limits.max).to(torch.int16)
        return {
            "masked": torch.where(hidden, torch.full_like(voxels, self.scale.marker), voxels),
            "reconstruction": torch.where(hidden, predicted, voxels),
        }
