"""Inference: masks, windows and positions of features, and the bundle from scans to feature files and NIfTI."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from safetensors import safe_open

from mim_components.data import (
    BadVolumesError,
    CheckedLoadImaged,
    CTScans,
    DataError,
    NoVolumesError,
    ScanDataset,
    VolumeSource,
    scan_items,
    unique_names,
)
from mim_components.engines import InferenceStep, ScanStep
from mim_components.handlers import SaveResults
from mim_components.networks import HybridEncoder, MiM
from mim_components.networks.features import FeatureMap, feature_affine, pad_to_windows, window_overlap
from mim_components.networks.mim import MiMReconstructor
from mim_components.transforms.intensity import MASKED_HU, IntensityScale
from mim_components.utils.text import root_cause
from mim_components.weights import TrainedNetwork
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder
from tests.small import SMALL_PRETRAIN

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain" / "configs"
WINDOW = (32, 32, 32)
CPU = torch.device("cpu")
# axes R, A and S are the file's -y, z and -x, tilted by 0.2 rad, with three different spacings
TILT = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TILT @ np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]]) @ np.diag([3.0, 1.5, 2.0])
AFFINE[:3, 3] = (10.0, -20.0, 30.0)


def write_scan(path: Path, shape: tuple[int, int, int] = (36, 50, 40), seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.RandomState(seed).randint(-1000, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return voxels


def write_weights(
    models: Path, preset: str = "nano", input_size: tuple[int, ...] = WINDOW, dim: int = 16, **contents: Any
) -> None:
    models.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MiM(input_size=input_size, preset=preset, projection_dim=dim)
    torch.save(network.state_dict(), models / "model.pt")
    sizes = tuple(tuple(size) for size in SMALL_PRETRAIN["level_sizes"])
    contract = InputContract("hybrid", preset, 1, network.patch_size, input_size, sizes, step=7, **contents)
    save_encoder(network.encoder, models / "encoder.safetensors", contract)


def infer(output: Path, dataset_dir: Path | None, overlay: str | None = None, **options: Any) -> Path:
    """Run the bundle in this process; returns its results folder."""
    files = [str(CONFIGS / "inference.json"), *([str(CONFIGS / overlay)] if overlay else [])]
    settings = {} if overlay else SMALL_PRETRAIN
    given = {} if dataset_dir is None else {"dataset_dir": str(dataset_dir)}
    monai.bundle.run(
        config_file=files, logging_file=False, **{**settings, "output_dir": str(output), **given, **options}
    )
    return output / "inference"


def refusal(output: Path, dataset_dir: Path | None, **options: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011, the cause is checked by the caller
        infer(output, dataset_dir, **options)
    return str(root_cause(caught.value))


@pytest.fixture(scope="module")
def network() -> MiMReconstructor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MiMReconstructor(input_size=WINDOW, preset="nano", projection_dim=16).eval()


# network


def test_reconstructor_has_the_keys_of_the_pretraining(network: MiMReconstructor) -> None:
    trained = MiM(input_size=WINDOW, preset="nano", projection_dim=16)
    MiMReconstructor(input_size=WINDOW, preset="nano", projection_dim=16).load_state_dict(trained.state_dict())
    assert trained.state_dict().keys() == network.state_dict().keys()


def test_forward_keeps_what_is_visible(network: MiMReconstructor) -> None:
    image = torch.rand(2, 1, *WINDOW, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        filled = network(image)
    assert filled.shape == image.shape and filled.dtype == torch.float32
    changed = (filled != image).view(2, 4, 8, 4, 8, 4, 8).any(-1).any(4).any(2)  # (2, 4, 4, 4) tokens
    # floor(64 * 0.4) = 25 of 64 tokens are visible, 39 are filled in
    assert changed.flatten(1).sum(1).tolist() == [39, 39]
    assert not torch.equal(changed[0], changed[1])
    with torch.no_grad():
        assert torch.equal(network(image), filled)


def test_masks_follow_from_the_place_of_a_window(network: MiMReconstructor) -> None:
    starts = [(0, 0, 0), (32, 0, 0), (0, 32, 0)]
    together = network.draw_masks(starts)
    assert torch.equal(together, torch.cat([network.draw_masks([start]) for start in starts]))
    assert together.sum(1).tolist() == [39, 39, 39]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(together, 2))
    other = MiMReconstructor(input_size=WINDOW, preset="nano", projection_dim=16, seed=1)
    assert not torch.equal(other.draw_masks(starts), together)


@pytest.mark.parametrize("ratio", [0.0, 0.999])
def test_mask_ratio_must_hide_some_and_leave_some(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"got {ratio} of 64 tokens"):
        MiMReconstructor(input_size=WINDOW, preset="nano", mask_ratio=ratio)


# windows


@pytest.mark.parametrize("size, patch", [((96, 96, 96), 16), ((48, 48, 48), 16), ((32, 32, 32), 8), ((80, 96, 16), 16)])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_windows_begin_at_token_edges(size: tuple[int, ...], patch: int, overlap: float) -> None:
    for side, share in zip(size, window_overlap(size, patch, overlap), strict=True):
        step = int(side * (1 - share))  # as MONAI computes it
        assert step % patch == 0 and patch <= step <= side
        assert step >= side * (1 - overlap)


def test_window_overlap_is_checked() -> None:
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\), got 1"):
        window_overlap(WINDOW, 8, 1.0)


def test_padding_goes_behind_the_last_voxel() -> None:
    image = torch.ones(1, 1, 20, 32, 41)
    padded = pad_to_windows(image, WINDOW, (8, 8, 8))
    assert padded.shape[2:] == (32, 32, 48)
    assert torch.equal(padded[:, :, :20, :, :41], image) and padded.sum() == image.sum()
    assert pad_to_windows(image, WINDOW, WINDOW).shape[2:] == (32, 32, 64)


def test_feature_levels() -> None:
    encoder = HybridEncoder(preset="nano")
    image = torch.zeros(1, 1, *WINDOW)
    assert [FeatureMap(encoder, level)(image).shape[1:] for level in (0, 1, -1)] == [
        (8, 16, 16, 16),
        (16, 8, 8, 8),
        (48, 4, 4, 4),
    ]
    with pytest.raises(ValueError, match="feature_level must be between -3 and 2, got 3"):
        FeatureMap(encoder, 3)


def test_a_feature_lies_at_the_mean_of_its_voxels() -> None:
    affine = feature_affine(AFFINE, 8)
    block = np.stack(np.meshgrid(*(np.arange(8 * n, 8 * n + 8) for n in (1, 0, 3)), indexing="ij"), -1).reshape(-1, 3)
    world = block @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(affine @ [1, 0, 3, 1], [*world.mean(0), 1])


# one volume


def run_step(step: InferenceStep, hu: np.ndarray, affine: np.ndarray, windows: int = 4) -> dict[str, Any]:
    inferer = SlidingWindowInferer(WINDOW, windows, overlap=0.0, with_coord=True)
    voxels = MetaTensor(torch.from_numpy(hu)[None, None], affine=torch.from_numpy(affine))
    image = ((voxels.float() + 1000) / 2000).clamp(0, 1)
    batch = {"image": image, "voxels": voxels, "name": ["scan"], "source": ["scan.nii"], "cause": [""]}
    return step(SimpleNamespace(state=SimpleNamespace(device=CPU), inferer=inferer), batch)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_stitched_features_lie_where_the_affine_says(network: MiMReconstructor, overlap: float) -> None:
    shape = (70, 33, 48)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    step = InferenceStep(network, WINDOW, overlap=overlap, reconstruction=False)
    # in place of the network, the mean of every 8x8x8 block, so that each feature gives the position of its voxels
    step.feature_map = torch.nn.AvgPool3d(8)  # type: ignore[assignment]
    coordinates = []
    for axis in range(3):
        output = run_step(step, world[..., axis].round().astype(np.int16), AFFINE)
        assert output["features"].shape == (1, 9, 5, 6)  # ceil(70 / 8), ceil(33 / 8), 48 / 8
        assert output["stride"] == 8
        coordinates.append(output["features"][0].numpy() * 2000 - 1000)
    affine = feature_affine(output["affine"], output["stride"])
    inside = np.stack(np.meshgrid(*(np.arange(n) for n in (8, 4, 6)), indexing="ij"), -1)  # blocks without padding
    expected = inside @ affine[:3, :3].T + affine[:3, 3]
    found = np.stack([each[:8, :4, :6] for each in coordinates], -1)
    np.testing.assert_allclose(found, expected, atol=0.5)  # mm; intensities are rounded


def test_features_of_one_window_are_the_encoders(network: MiMReconstructor) -> None:
    hu = np.random.RandomState(0).randint(-1000, 1000, WINDOW).astype(np.int16)
    step = InferenceStep(network, WINDOW, reconstruction=False)
    output = run_step(step, hu, np.eye(4))
    with torch.no_grad():
        expected = network.encoder((torch.from_numpy(hu)[None, None].float() + 1000) / 2000)[-1][0]
    torch.testing.assert_close(output["features"], expected)
    assert "reconstruction" not in output


def test_mr_is_written_in_per_mille(network: MiMReconstructor) -> None:
    scan = np.random.RandomState(0).randint(0, 1001, WINDOW).astype(np.int16)
    output = run_step(InferenceStep(network, WINDOW, IntensityScale("mr"), features=False), scan, np.eye(4))
    hu = run_step(InferenceStep(network, WINDOW, features=False), scan, np.eye(4))
    hidden = output["masked"].numpy() == -500
    assert hidden.mean() == 39 / 64 and np.array_equal(output["masked"][~hidden], scan[~hidden])
    # one prediction p: 1000 p in per mille, 2000 p - 1000 in HU, both rounded
    found, expected = (each["reconstruction"].numpy()[hidden] for each in (output, hu))
    assert np.abs(2.0 * found - 1000 - expected).max() <= 1.5


def test_reconstruction_and_mask(network: MiMReconstructor) -> None:
    hu = np.random.RandomState(0).randint(-1200, 1400, (64, 40, 32)).astype(np.int16)
    step = InferenceStep(network, WINDOW, features=False)
    output = run_step(step, hu, np.eye(4))
    masked, filled = output["masked"].numpy(), output["reconstruction"].numpy()
    hidden = masked == MASKED_HU
    assert masked.dtype == filled.dtype == np.int16 and "features" not in output
    # the first two windows are whole and have masks of their own
    tokens = [hidden[x : x + 32, :32].reshape(4, 8, 4, 8, 4, 8) for x in (0, 32)]
    assert all((part.any((1, 3, 5)) == part.all((1, 3, 5))).all() for part in tokens)  # whole tokens
    assert [int(part.all((1, 3, 5)).sum()) for part in tokens] == [39, 39]
    assert (tokens[0] != tokens[1]).any()
    # visible voxels are those of the scan, also beyond the window of the network
    np.testing.assert_array_equal(masked[~hidden], hu[~hidden])
    np.testing.assert_array_equal(filled[~hidden], hu[~hidden])
    # the network by hand, on the second window
    image = ((torch.from_numpy(hu[32:, :32]).float()[None, None] + 1000) / 2000).clamp(0, 1)
    with torch.no_grad():
        expected = network.reconstruct(image, network.draw_masks([(32, 0, 0)]))[0, 0] * 2000 - 1000
    inside = tokens[1].reshape(WINDOW)
    np.testing.assert_allclose(filled[32:, :32][inside], expected.numpy()[inside], atol=0.51)
    # running several windows together does not change the result
    alone = run_step(step, hu, np.eye(4), windows=1)
    assert torch.equal(alone["masked"], output["masked"])
    assert (alone["reconstruction"] - output["reconstruction"]).abs().max() <= 1


# files


def test_names_are_unique() -> None:
    paths = [Path("in", *each.split("/")) for each in ("a/ct.nii", "a/CT.nii.gz", "b/ct.nii", "b_ct.nii", "c/lung.mha")]
    names = unique_names([VolumeSource(path, (path,)) for path in paths], Path("in"))
    assert names == ["a_ct", "a_CT_2", "b_ct_2", "b_ct", "lung"]


def test_names_stay_inside_the_folder() -> None:
    series = [VolumeSource(Path("in", folder), (Path("in", folder, "0.dcm"),), "../../1.2.3") for folder in "ab"]
    assert unique_names(series, Path("in")) == ["a__.._1.2.3", "b__.._1.2.3"]
    assert unique_names(series[:1], Path("in")) == ["_.._1.2.3"]


def test_items_need_volumes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="--dataset_dir"):
        scan_items(None, CTScans(), out)
    with pytest.raises(NoVolumesError, match="the folder is empty"):
        scan_items(tmp_path, CTScans(), out)
    with pytest.raises(BadVolumesError, match="missing.nii.gz: no such file"):
        scan_items(tmp_path / "missing.nii.gz", CTScans(), out)
    with pytest.raises(DataError, match="on_bad must be one of report, stop, exclude, got 'skip'"):
        scan_items(tmp_path, CTScans(), out, on_bad="skip")
    write_scan(out / "scan_masked.nii.gz")
    with pytest.raises(NoVolumesError, match="no volumes except the results"):
        scan_items(tmp_path, CTScans(), out)


def test_bad_headers_are_listed_together(tmp_path: Path) -> None:
    write_scan(tmp_path / "good.nii.gz")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "page.nii.gz").write_text("<!doctype html>")
    with pytest.raises(BadVolumesError, match=r"2 of 3 .*\n.*empty.nii: .*0 bytes.*\n.*page.nii.gz: .*web page"):
        scan_items(tmp_path, CTScans(), tmp_path / "out")
    assert [item["name"] for item in scan_items(tmp_path, CTScans(), tmp_path / "out", on_bad="exclude")] == ["good"]


def test_volume_that_breaks_while_it_is_read(tmp_path: Path) -> None:
    write_scan(tmp_path / "cut.nii.gz")
    whole = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    item = {"image": tmp_path / "cut.nii.gz"}
    with pytest.raises(BadVolumesError, match="cut.nii.gz: truncated"):
        CheckedLoadImaged("image", CTScans())(item)
    found = ScanDataset(scan_items(tmp_path, CTScans()), CheckedLoadImaged("image", CTScans()))[0]
    assert found["cause"].startswith("truncated") and found["image"].shape == (1, 1, 1, 1)


def saver(folder: Path, network: MiMReconstructor, **options: Any) -> SaveResults:
    contract = InputContract("hybrid", "nano", 1, 8, WINDOW, ((32, 32, 32),))
    return SaveResults(folder, TrainedNetwork(network, Path("model.pt"), None), contract, **options)


def test_features_must_fit_their_type(tmp_path: Path, network: MiMReconstructor) -> None:
    features = torch.full((2, 1, 1, 1), 1e5)  # float16 ends at 65504
    output = {"name": "x", "source": "x.nii", "cause": "", "affine": np.eye(4), "shape": (8, 8, 8), "stride": 8}
    state = SimpleNamespace(output={**output, "features": features}, iteration=1, epoch_length=1)
    engine = SimpleNamespace(state=state)
    with pytest.raises(ValueError, match=r"features are not finite in float16 \(largest 100000\).*float32"):
        saver(tmp_path, network, feature_dtype="float16")(engine)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    reporting = saver(tmp_path / "out", network, feature_dtype="float16", on_bad="report")
    assert reporting(engine) == []  # type: ignore[arg-type]
    with pytest.raises(BadVolumesError, match=r"1 of 1 volumes cannot be used:\n  x.nii: features are not finite"):
        reporting.summarize(engine)  # type: ignore[arg-type]
    (path,) = saver(tmp_path, network)(engine)  # type: ignore[arg-type]
    with safe_open(path, "pt") as file:
        assert file.get_tensor("mean").tolist() == [1e5, 1e5]
        assert json.loads(file.metadata()["step"]) is None  # weights without a contract
    with pytest.raises(ValueError, match="feature_dtype must be one of float32, float16, got 'int8'"):
        saver(tmp_path, network, feature_dtype="int8")


# the bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of the same name, one format each, weights, and the results of the bundle."""
    folder = tmp_path_factory.mktemp("inference")
    write_scan(folder / "scans" / "a" / "ct.nii.gz", seed=1)
    write_scan(folder / "scans" / "b" / "ct.nii", (20, 34, 45), seed=2)
    write_weights(folder / "run" / "models")
    infer(folder / "run", folder / "scans")
    return folder


def test_files_of_every_volume(run: Path) -> None:
    names = sorted(path.name for path in (run / "run" / "inference").iterdir())
    kinds = ("features.safetensors", "masked.nii.gz", "reconstruction.nii.gz")
    assert names == [*(f"{volume}_ct_{kind}" for volume in "ab" for kind in kinds), "results.csv"]
    results = (run / "run" / "inference" / "results.csv").read_text().splitlines()
    files = " ".join(f"a_ct_{kind}" for kind in kinds)
    assert results[:2] == ["name,source,files,cause", f"a_ct,{run / 'scans' / 'a' / 'ct.nii.gz'},{files},"]


@pytest.mark.parametrize("name, file", [("a_ct", "a/ct.nii.gz"), ("b_ct", "b/ct.nii")])
def test_volumes_overlay_the_scan(run: Path, name: str, file: str) -> None:
    scan = nib.load(run / "scans" / file)
    voxels = np.asanyarray(scan.dataobj)
    for kind in ("masked", "reconstruction"):
        image = nib.load(run / "run" / "inference" / f"{name}_{kind}.nii.gz")
        data = np.asanyarray(image.dataobj)
        assert data.dtype == np.int16 and "".join(nib.aff2axcodes(image.affine)) == "RAS"
        assert int(image.header["sform_code"]) > 0 and data.size == voxels.size
        # the position in mm of every voxel of the scan, looked up in the result
        index = np.stack(np.meshgrid(*(np.arange(n) for n in voxels.shape), indexing="ij"), -1).reshape(-1, 3)
        there = nib.affines.apply_affine(np.linalg.inv(image.affine) @ scan.affine, index)
        np.testing.assert_allclose(there, there.round(), atol=1e-3)
        found = data[tuple(there.round().astype(int).T)].reshape(voxels.shape)
        same = (found == voxels).mean()
        assert 0.25 < same < 0.6  # 25 of 64 tokens of a whole window are visible; windows at the border are cut
        if kind == "masked":
            assert set(np.unique(found[found != voxels])) == {MASKED_HU}
            hidden = found == MASKED_HU
        else:
            assert ((found == voxels) | hidden).all()


def test_feature_file(run: Path) -> None:
    scan = nib.as_closest_canonical(nib.load(run / "scans" / "a" / "ct.nii.gz"))
    with safe_open(run / "run" / "inference" / "a_ct_features.safetensors", "pt") as file:
        features, mean = file.get_tensor("features"), file.get_tensor("mean")
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    assert features.shape == (48, *(int(np.ceil(n / 8)) for n in scan.shape)) and features.dtype == torch.float32
    torch.testing.assert_close(mean, features.mean((1, 2, 3)))
    np.testing.assert_allclose(metadata["affine"], feature_affine(scan.affine, 8), atol=1e-4)
    spacing = nib.affines.voxel_sizes(scan.affine)
    np.testing.assert_allclose(metadata["image_spacing"], spacing, rtol=1e-5)
    np.testing.assert_allclose(metadata["spacing"], 8 * spacing, rtol=1e-5)
    assert metadata["source"] == str(run / "scans" / "a" / "ct.nii.gz")
    expected = {"step": 7, "preset": "nano", "patch_size": 8, "stride": 8, "feature_level": -1, "orientation": "RAS"}
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["image_shape"] == list(scan.shape)


def test_weights_of_a_spacing_get_volumes_of_that_spacing(run: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "models", spacing=(4.0, 3.0, 1.0))
    folder = infer(tmp_path, run / "scans" / "a" / "ct.nii.gz")
    scan = nib.as_closest_canonical(nib.load(run / "scans" / "a" / "ct.nii.gz"))
    # 50 x 40 x 36 voxels of 1.5 x 2 x 3 mm
    shape = (19, 27, 108)  # 18.75, 26.67, 108
    affine = scan.affine @ np.diag([50 / 19, 40 / 27, 36 / 108, 1.0])
    affine[:3, 3] += affine[:3, :3] @ [0.5, 0.5, 0.5] - scan.affine[:3, :3] @ [0.5, 0.5, 0.5]  # edges stay
    for kind in ("masked", "reconstruction"):
        image = nib.load(folder / f"ct_{kind}.nii.gz")
        assert image.shape == shape
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    with safe_open(folder / "ct_features.safetensors", "pt") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
        assert file.get_tensor("features").shape == (48, 3, 4, 14)  # blocks of 8 voxels
    np.testing.assert_allclose(metadata["affine"], feature_affine(affine, 8), atol=1e-4)
    np.testing.assert_allclose(metadata["image_spacing"], [75 / 19, 80 / 27, 1.0], rtol=1e-5)
    np.testing.assert_allclose(metadata["spacing"], [8 * 75 / 19, 8 * 80 / 27, 8.0], rtol=1e-5)
    assert metadata["image_shape"] == list(shape)
    refused = refusal(tmp_path, run / "scans", spacing=[1, 1, 1])
    assert "spacing: [4.0, 3.0, 1.0] in the file, [1, 1, 1] here" in refused


def test_resampled_voxels_lie_on_the_scan(tmp_path: Path) -> None:
    """Intensities are coordinates: every new voxel contains the position given by its affine."""
    shape = (36, 50, 40)
    world = nib.affines.apply_affine(AFFINE, np.stack(np.indices(shape), -1))
    for axis in range(3):
        path = tmp_path / f"{axis}.nii.gz"
        nib.save(nib.Nifti1Image((world[..., axis] * 5).round().astype(np.int16), AFFINE), path)
        image = CheckedLoadImaged("image", CTScans(spacing=(3.0, 1.0, 3.0)))({"image": path})["image"]
        assert image.shape == (1, 25, 80, 36)  # R, A, S: 50 * 1.5 / 3, 40 * 2 / 1, 36 * 3 / 3
        where = nib.affines.apply_affine(image.affine.numpy(), np.stack(np.indices(image.shape[1:]), -1))
        inside = slice(1, -1)  # along A the volume grows: beyond the outer centres there is nothing to interpolate
        np.testing.assert_allclose(image[0, :, inside].numpy() / 5, where[:, inside, :, axis], atol=0.21)
    with pytest.raises(BadVolumesError, match="0.nii.gz: 50 x 40 x 36 voxels of 1.5 x 2 x 3 mm, .*more than max_vox"):
        CheckedLoadImaged("image", CTScans(10**6, (0.1, 0.1, 0.1)))({"image": tmp_path / "0.nii.gz"})
    with pytest.raises(DataError, match="spacing must be three positive numbers"):
        CTScans(spacing=(0.1, 0.1))


def test_results_are_reproducible_and_options_work(run: Path, tmp_path: Path) -> None:
    scan, weights = run / "scans" / "a" / "ct.nii.gz", str(run / "run" / "models" / "model.pt")
    options = {"checkpoint": weights, "feature_level": 0, "feature_dtype": "float16", "sw_batch_size": 1}
    folder = infer(tmp_path, scan, **options)  # one file
    with safe_open(folder / "ct_features.safetensors", "pt") as file:
        features = file.get_tensor("features")
    assert features.dtype == torch.float16 and features.shape == (8, 25, 20, 18)  # RAS is (50, 40, 36)
    first, again = (nib.load(f / n).get_fdata() for f, n in (
        (run / "run" / "inference", "a_ct_masked.nii.gz"), (folder, "ct_masked.nii.gz")
    ))  # fmt: skip
    np.testing.assert_array_equal(first, again)
    other = infer(tmp_path / "other", scan, checkpoint=weights, seed=1, features=False)
    assert sorted(path.name for path in other.iterdir()) == [
        "ct_masked.nii.gz",
        "ct_reconstruction.nii.gz",
        "results.csv",
    ]
    assert (nib.load(other / "ct_masked.nii.gz").get_fdata() != first).any()
    only = infer(tmp_path / "only", scan, checkpoint=weights, reconstruction=False)
    assert sorted(path.name for path in only.iterdir()) == ["ct_features.safetensors", "results.csv"]


def test_own_results_are_not_read_again(run: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "ct.nii.gz", (20, 20, 20))
    weights = str(run / "run" / "models" / "model.pt")
    for _ in range(2):
        folder = infer(tmp_path, tmp_path, checkpoint=weights)
        assert len(list(folder.iterdir())) == 4


def test_bad_volumes_end_no_batch(run: Path, tmp_path: Path) -> None:
    weights = str(run / "run" / "models" / "model.pt")
    for name in ("cut", "good", "x" * 212, "肖" * 81):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", (20, 20, 20), seed=len(name))
    cut = tmp_path / "in" / "cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-8])
    (tmp_path / "in" / "empty.nii").touch()
    reported = refusal(tmp_path / "report", tmp_path / "in", checkpoint=weights)
    assert "2 of 5 volumes cannot be used" in reported
    assert "cut.nii.gz: truncated" in reported and "empty.nii: the file is empty (0 bytes)" in reported
    folder = tmp_path / "report" / "inference"
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(file)}
    for name in ("good", "x" * 212, "肖" * 81):
        files = rows[f"{name}.nii.gz"]["files"].split()
        assert len(files) == 3 and all((folder / each).exists() for each in files)
    assert not rows["cut.nii.gz"]["files"] and rows["cut.nii.gz"]["cause"].startswith("truncated")
    assert len(list(folder.iterdir())) == 3 * 3 + 1
    assert "empty.nii: the file is empty" in refusal(
        tmp_path / "stop", tmp_path / "in", checkpoint=weights, on_bad="stop"
    )
    folder = infer(tmp_path / "go", tmp_path / "in", checkpoint=weights, on_bad="exclude")
    assert len(list(folder.glob("*.nii.gz"))) == 6


def test_volume_that_fails_on_the_way_is_its_own_cause(tmp_path: Path, network: MiMReconstructor) -> None:
    def fail(data: Any) -> Any:
        if not data["cause"]:
            raise MemoryError("Unable to allocate 1 PiB")
        return data

    item = {"image": "x.nii", "source": "x.nii", "name": "x", "cause": ""}
    assert ScanDataset([item], fail)[0]["cause"] == "Unable to allocate 1 PiB"
    with pytest.raises(RuntimeError, match="applying transform"):  # MONAI's error, with ours as its cause
        ScanDataset([item], fail, on_bad="stop")[0]
    batch = {"name": ["x"], "source": ["x.nii"], "cause": [""], "voxels": torch.zeros(1, 1, 8, 8)}
    step = InferenceStep(network, WINDOW, on_bad="report")
    engine: Any = SimpleNamespace(state=SimpleNamespace(device=torch.device("cpu")))
    engine._iteration = lambda engine, batch: (_ for _ in ()).throw(RuntimeError("can't allocate memory"))
    assert ScanStep()(engine, batch) == [{"cause": "can't allocate memory"}]
    assert engine.state.batch == [{"name": "x", "source": "x.nii"}]
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        ScanStep("stop")(engine, batch)
    step._results = lambda engine, batch: (_ for _ in ()).throw(RuntimeError("out of memory"))  # type: ignore
    assert step(engine, batch)["cause"] == "out of memory"
    step.on_bad = "stop"
    with pytest.raises(RuntimeError, match="out of memory"):
        step(engine, batch)


def test_refusals(run: Path, tmp_path: Path) -> None:
    scan = run / "scans" / "b" / "ct.nii"
    assert "--dataset_dir" in refusal(run / "run", None)
    assert "no such file" in refusal(run / "run", tmp_path / "missing.nii.gz")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "the folder is empty" in refusal(run / "run", empty)
    missing = refusal(tmp_path, scan, bundle_root=str(empty))
    assert f"{tmp_path / 'models' / 'model.pt'} or {empty / 'models' / 'model.pt'}: there is no such file" in missing
    assert "configs/train.json" in missing
    conflict = refusal(run / "run", scan, preset="tiny", input_size=[48, 48, 48])
    assert "preset: 'nano' in the file, 'tiny' here" in conflict and "demo.json" in conflict
    assert 'set --preset nano --input_size "[32,32,32]"' in conflict
    assert "feature_level must be between -3 and 2" in refusal(run / "run", scan, feature_level=5)


def test_demo_overlay(tmp_path: Path) -> None:
    scan = tmp_path / "scans" / "scan.nii.gz"
    write_scan(scan, (40, 40, 30))
    write_weights(tmp_path / "demo" / "models", "tiny", (48, 48, 48), 128)
    device = {"device": "$torch.device('cpu')", "num_workers": 0}
    folder = infer(tmp_path / "demo", scan.parent, overlay="demo.json", **device)
    assert len(list(folder.iterdir())) == 4
    with safe_open(folder / "scan_features.safetensors", "pt") as file:
        assert file.get_tensor("features").shape[0] == 96
