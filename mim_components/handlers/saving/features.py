"""Write the results of an inference: feature files and NIfTI volumes, each complete or absent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import SaveImage
from torch import Tensor

from mim_components import __version__
from mim_components.handlers.saving.results import Results
from mim_components.networks.features import feature_affine
from mim_components.utils.files import write_safely, write_tensors_safely
from mim_components.weights.contract import InputContract
from mim_components.weights.trained import TrainedNetwork

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class SaveResults:
    """Write the files of each volume as soon as it is done.

    `<name>_features.safetensors` holds `features` `(E, h, w, d)` and `mean` `(E,)`; its metadata are JSON strings, see
    `feature_metadata`. `<name>_masked.nii.gz` and `<name>_reconstruction.nii.gz` hold int16, HU or per mille of an MR,
    on the voxels that the network saw: the volume's own with axes reoriented to RAS, or those it was resampled to, at
    the same position.

    Args:
        output_dir: folder for the files; created if missing.
        trained: network with its weights.
        expected: input contract of the configuration, for weights without one.
        feature_level: index of the map in the encoder's pyramid.
        feature_dtype: "float32" or "float16".
        on_bad: "stop" raises for a volume whose results cannot be written; "report" raises at the end.

    Attributes:
        results: results of all volumes so far.

    Raises:
        ValueError: unknown `feature_dtype`; when called, features that are too large for float16.
        BadVolumesError: at the end, with `on_bad="report"`: lists all bad volumes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))
        >>> trained = TrainedNetwork(torch.nn.Identity(), Path("model.pt"))
        >>> volume = {"name": "ct", "source": "ct.nii.gz", "cause": "", "affine": np.eye(4), "shape": (16, 16, 16)}
        >>> inference = Engine(lambda engine, features: {**volume, "features": features, "stride": 8})
        >>> with TemporaryDirectory() as folder:
        ...     SaveResults(folder, trained, contract).attach(inference)
        ...     _ = inference.run([torch.ones(32, 2, 2, 2)])
        ...     print(Path(folder, "results.csv").read_text(), end="")
        name,source,files,cause
        ct,ct.nii.gz,ct_features.safetensors,
    """

    def __init__(
        self,
        output_dir: str | Path,
        trained: TrainedNetwork,
        expected: InputContract,
        feature_level: int = -1,
        feature_dtype: str = "float32",
        on_bad: str = "stop",
    ) -> None:
        if feature_dtype not in DTYPES:
            raise ValueError(f"feature_dtype must be one of {', '.join(DTYPES)}, got {feature_dtype!r}.")
        self.output_dir = Path(output_dir)
        self.trained = trained
        self.expected = expected
        self.feature_level = feature_level
        self.feature_dtype = feature_dtype
        self.results = Results(self.output_dir, on_bad)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.summarize)

    def __call__(self, engine: Engine) -> list[Path]:
        """Write the files of the volume that is done, and return them."""
        output = engine.state.output
        assert isinstance(output, dict)
        if output["cause"]:
            self.results.add(output["name"], output["source"], cause=output["cause"])
            return []
        try:
            files = [self._save_features(output)] if "features" in output else []
        except ValueError as error:
            if self.results.on_bad == "stop":
                raise
            self.results.add(output["name"], output["source"], cause=str(error))
            return []
        files += [self._save_volume(output, name) for name in ("masked", "reconstruction") if name in output]
        self.results.add(output["name"], output["source"], files)
        total = engine.state.epoch_length
        names = ", ".join(path.name for path in files)
        logger.info("%d/%s %s: %s", engine.state.iteration, total, output["source"], names)
        return files

    def summarize(self, engine: Engine) -> None:
        """Log how many volumes were done, and what was left out."""
        self.results.finish("volumes done")

    def _save_features(self, output: Mapping[str, Any]) -> Path:
        features: Tensor = output["features"]
        tensors = {"features": features, "mean": features.mean((1, 2, 3), dtype=torch.float64)}
        tensors = {name: value.to(DTYPES[self.feature_dtype]).contiguous() for name, value in tensors.items()}
        if not bool(torch.isfinite(tensors["features"]).all()):
            raise ValueError(
                f"features are not finite in {self.feature_dtype} "
                f"(largest {features.abs().max():g})"
                + ("; set --feature_dtype float32." if self.feature_dtype == "float16" else ".")
            )
        metadata = self.feature_metadata(output)
        path = self.output_dir / f"{output['name']}_features.safetensors"
        return write_tensors_safely(path, tensors, metadata)

    def feature_metadata(self, output: Mapping[str, Any]) -> dict[str, str]:
        """Metadata of the features, each value as JSON.

        `source`; `affine`, 4x4 from feature index (of the centre of its block) to RAS world in mm; `spacing` of
        features and `image_spacing` of voxels, mm; `image_shape` and `image_affine` of the volume in RAS, as the
        network saw it; `stride`, voxels per feature; `feature_level`; `weights`; the other entries of the input
        contract, with `step` null if unknown.
        """
        affine = feature_affine(output["affine"], output["stride"])
        contract = self.trained.contract or self.expected
        values = {
            "source": output["source"],
            "affine": affine.tolist(),
            "spacing": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
            "image_spacing": np.linalg.norm(output["affine"][:3, :3], axis=0).tolist(),
            "image_shape": list(output["shape"]),
            "image_affine": output["affine"].tolist(),
            "stride": output["stride"],
            "feature_level": self.feature_level,
            "weights": str(self.trained.path),
            "written_by": __version__,
        }
        known = contract.to_metadata() if self.trained.contract else {**contract.to_metadata(), "step": "null"}
        return {**known, **{name: json.dumps(value) for name, value in values.items()}}

    def _save_volume(self, output: Mapping[str, Any], name: str) -> Path:
        image = MetaTensor(output[name].unsqueeze(0), affine=torch.as_tensor(output["affine"]))
        saver = SaveImage(output_ext=".nii.gz", output_dtype=np.int16, resample=False, print_log=False)

        def write(partial: Path) -> None:
            saver(image, filename=partial)  # appends its extension
            Path(f"{partial}.nii.gz").replace(partial)

        return write_safely(self.output_dir / f"{output['name']}_{name}.nii.gz", write)
