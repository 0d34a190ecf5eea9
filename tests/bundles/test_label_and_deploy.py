"""MONAI Label and MONAI Deploy run the inference of a bundle from its unchanged `inference.json`.

Both are large (MONAI Deploy needs a CUDA library), so stand-ins repeat here what they do with the file; their own
classes are tested if they are installed. `docs/serve.md` describes how to serve a bundle.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from tests.small import SMALL

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["mim_msd_spleen_segmentation", "mim_btcv_segmentation"]
# a scan whose axes point to L, P and I, in voxels of 3 x 2 x 4 mm
AFFINE = np.array([[-3.0, 0, 0, 40], [0, -2.0, 0, 30], [0, 0, -4.0, 20], [0, 0, 0, 1]])
SHAPE = (24, 40, 20)


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the bundle with small windows, and weights that assign bright voxels to class 1."""
    folder = tmp_path / request.param
    shutil.copytree(ROOT / "bundles" / request.param, folder, ignore=shutil.ignore_patterns("cache", "*.pt"))
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text()) | SMALL | {"roi_size": [32, 32, 32], "device": "cpu", "overlap": 0.25}
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    network = parser_of(folder).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(60, 80, SHAPE).astype(np.int16)
    voxels[8:16, 10:30, 5:15] = 400
    path = tmp_path / "scans" / "p1.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def parser_of(folder: Path) -> ConfigParser:
    """Parse the configuration as MONAI Label does: without metadata, with the bundle's folder as `bundle_root`."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser["bundle_root"] = str(folder)
    return parser


def own_result(folder: Path, scan: Path) -> np.ndarray:
    """The label map written by the bundle's own inference."""
    from monai.bundle import ConfigWorkflow

    out = folder / "own"
    workflow = ConfigWorkflow(
        config_file=str(folder / "configs" / "inference.json"), workflow_type="inference", logging_file=False,
        dataset_dir=str(scan), output_dir=str(out), bundle_root=str(folder),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    (path,) = (out / "inference").glob("*_seg.nii.gz")
    image: Any = nib.load(path)  # type: ignore[attr-defined]
    assert np.allclose(image.affine, AFFINE)
    return np.asarray(image.dataobj)


def weights_into(network: torch.nn.Module, folder: Path) -> torch.nn.Module:
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True), strict=True)
    return network.eval()


def test_what_monai_label_does(bundle: Path, scan: Path) -> None:
    """A stand-in for `BundleInferTask` of MONAI Label 0.8: a path goes in, no evaluator, no metadata."""
    parser = parser_of(bundle)
    network = weights_into(parser.get_parsed_content("network_def"), bundle)
    before = parser.get_parsed_content("preprocessing")
    assert isinstance(before, Compose) and isinstance(before.transforms[0], LoadImaged)
    data: dict[str, Any] = {"image": str(scan), "device": "cpu", "model": bundle.name}
    for transform in before.transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    data = parser.get_parsed_content("postprocessing")(data)
    found = data["pred"]
    assert found.shape == (1, *data["image"].meta["spatial_shape"]) == (1, *SHAPE)
    assert np.allclose(data["image"].meta["original_affine"], AFFINE)
    assert np.array_equal(found[0].numpy(), own_result(bundle, scan)) and found.max() > 0


def test_what_monai_deploy_does(bundle: Path, scan: Path) -> None:
    """A stand-in for the bundle operator of MONAI Deploy 4.0: an image in memory, no loader, the key `network`."""
    parser = parser_of(bundle)
    parser.read_meta(json.loads((bundle / "configs" / "metadata.json").read_text()))
    network = weights_into(parser.get_parsed_content("network"), bundle)
    transforms = parser.get_parsed_content("preprocessing").transforms
    kept = [each for each in transforms if "LoadImage" not in type(each).__name__]
    assert len(kept) == len(transforms) - 1
    after = parser.get_parsed_content("postprocessing")
    voxels = np.asarray(nib.load(scan).dataobj)  # type: ignore[attr-defined]
    meta = {"affine": torch.from_numpy(AFFINE), "original_affine": AFFINE, "spatial_shape": np.array(SHAPE),
            "original_channel_dim": "no_channel"}  # fmt: skip
    data = Compose(kept)({"image": MetaTensor.ensure_torch_and_prune_meta(voxels, meta)})
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=data["image"][None], network=network)
    found = after({"pred": pred[0], **data})["pred"]
    assert np.array_equal(found[0].numpy(), own_result(bundle, scan))


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "bundles").glob("mim_*"))])
def test_inference_asks_nothing_of_the_metadata(name: str) -> None:
    text = (ROOT / "bundles" / name / "configs" / "inference.json").read_text()
    assert "_meta_" not in text and {"network_def", "network", "preprocessing", "inferer"} <= json.loads(text).keys()


@pytest.mark.slow
def test_monai_label_itself(bundle: Path, scan: Path) -> None:
    tasks = pytest.importorskip("monailabel.tasks.infer.bundle", reason="pip install monailabel")
    task = tasks.BundleInferTask(str(bundle), {})
    assert task.is_valid() and task.labels["spleen"] == 1
    file, _ = task({"image": str(scan), "device": "cpu", "result_extension": ".nii.gz"})
    image: Any = nib.load(file)  # type: ignore[attr-defined]
    assert np.allclose(image.affine, AFFINE)
    assert np.array_equal(np.asarray(image.dataobj).squeeze(), own_result(bundle, scan))
