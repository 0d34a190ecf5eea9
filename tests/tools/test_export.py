"""Networks exported by our command and by MONAI's give PyTorch's results; a failed export leaves no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from torch import Tensor, nn

from mim_components.networks import (
    HybridEncoder,
    MiMReconstructor,
    ViTEncoder,
    classification_network,
    for_training,
    segmentation_network,
)
from mim_components.tokens import _make_sincos
from mim_components.weights import InputContract, save_encoder
from mim_tools import export as command
from mim_tools.export import ExportError, export, main

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SEGMENTATION = BUNDLES / "mim_btcv_segmentation/configs/inference.json"
CLASSIFICATION = BUNDLES / "mim_ccccii_classification/configs/inference.json"
CONTRACT = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))

SIZES = {"hybrid_swin_unetr": (32, 32, 16), "unetr": (32, 32, 16), "swin_unetr": (64, 32, 32),
         "hybrid": (16, 16, 8), "swin_vit": (32, 32, 16), "encoder": (16, 16, 16), "vit": (16, 16, 16)}  # fmt: skip

Exported = Callable[[str, str], tuple[nn.Module, Path]]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    preset, size = "tiny" if "unetr" in name and name != "hybrid_swin_unetr" else "nano", SIZES[name]
    if name == "encoder":
        return HybridEncoder(1, preset, dense_only=True, input_size=size).eval()
    if name == "vit":
        return ViTEncoder(1, preset, size).eval()
    make = segmentation_network if "unetr" in name else classification_network
    return make(name, 1, 14 if "unetr" in name else 3, size, preset).eval()


def reader(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """Read the file as another program would."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda image: [
            torch.from_numpy(a) for a in session.run(None, {session.get_inputs()[0].name: image.numpy()})
        ]
    module = torch.jit.load(path) if path.suffix == ".ts" else torch.export.load(path).module()

    def run(image: Tensor) -> list[Tensor]:
        output = module(image)
        return [output] if isinstance(output, Tensor) else list(output)

    return run


def check(path: Path, net: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        expected = net(image)
        expected = [expected] if isinstance(expected, Tensor) else expected
        for found, wanted in zip(reader(path)(image), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
            first, second = wanted.topk(2, dim=1).values.unbind(1)
            clear = first - second > 2e-4  # elsewhere rounding decides the class
            assert clear.float().mean() > 0.98
            assert torch.equal(found.argmax(1)[clear], wanted.argmax(1)[clear])


def cases() -> Iterator[Any]:
    """Every network in every format; the exporter takes minutes for the graph of a Swin transformer.

    The graph of swin_vit is the encoder of swin_unetr, whose .pt2 is slow enough.
    """
    for name in SIZES:
        for ending in (".ts", ".pt2", ".onnx"):
            marks = [pytest.mark.slow] if "unetr" in name or "swin" in name or ending == ".onnx" else []
            long = (("swin_unetr", ".onnx"), ("swin_vit", ".onnx"), ("swin_vit", ".pt2"))
            marks += [pytest.mark.long] if (name, ending) in long else []
            yield pytest.param(name, ending, marks=marks)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A network, and its file in a format; exported on first use."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[Path, nn.Module] = {}

    def get(name: str, ending: str) -> tuple[nn.Module, Path]:
        path = folder / f"{name}{ending}"
        if path not in made:
            made[path] = network(name)
            assert export(made[path], (1, 1, *SIZES[name]), path) <= 1e-4
        return made[path], path

    return get


@pytest.mark.parametrize(("name", "ending"), list(cases()))
def test_every_network_in_every_format(name: str, ending: str, exported: Exported) -> None:
    net, path = exported(name, ending)
    check(path, net, torch.rand(3, 1, *SIZES[name]))  # a batch size other than the recorded one


@pytest.mark.slow
def test_the_onnx_graph_is_small_and_stock(exported: Exported) -> None:
    model = onnx.load(exported("hybrid_swin_unetr", ".onnx")[1])
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert len(model.graph.node) < 500


@pytest.mark.slow
def test_a_crop_of_a_real_scan(real_data: Path, exported: Exported) -> None:
    path = sorted(real_data.rglob("*.nii*"))[0]
    voxels = np.asarray(nib.load(path).dataobj[:64, :64, :16], dtype=np.float32)  # type: ignore[attr-defined]
    image = torch.from_numpy((voxels.clip(-175, 250) + 175) / 425)[None, None, 16:48, 16:48]
    for ending in (".ts", ".pt2", ".onnx"):
        net, file = exported("hybrid_swin_unetr", ending)
        check(file, net, image)


def test_blocks_that_are_recomputed_in_training_are_exported_plain(tmp_path: Path) -> None:
    net = for_training(network("hybrid"), "cpu", checkpoint_activations=True).eval()
    assert export(net, (1, 1, *SIZES["hybrid"]), tmp_path / "a.pt2") <= 1e-4
    names = [str(node.target) for node in torch.export.load(tmp_path / "a.pt2").graph.nodes]
    assert not [name for name in names if "checkpoint" in name]


def test_a_network_that_was_exported_before_it_ever_ran_still_runs(tmp_path: Path) -> None:
    _make_sincos.cache_clear()  # during the export tensors have no values
    net = network("encoder")
    assert export(net, (1, 1, 16, 16, 16), tmp_path / "a.pt2") <= 1e-4
    assert type(net(torch.rand(1, 1, 16, 16, 16))[-1].detach()) is Tensor


# --- from the files of a run ------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(network("hybrid_swin_unetr").state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_our_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.with_suffix(".ts")
    assert main([str(SEGMENTATION), str(path), "--checkpoint", str(checkpoint), "--preset", "nano", "--roi_size",
                 "[32,32,16]"]) == 0  # fmt: skip
    assert "input (any, 1, 32, 32, 16), off by" in capsys.readouterr().out
    check(path, network("hybrid_swin_unetr"), torch.rand(1, 1, 32, 32, 16))


def test_an_encoder_by_our_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_encoder(network("encoder"), tmp_path / "encoder.safetensors", CONTRACT)
    assert main([str(tmp_path / "encoder.safetensors"), str(tmp_path / "encoder.pt2")]) == 0
    check(tmp_path / "encoder.pt2", network("encoder"), torch.rand(1, 1, 16, 16, 16))
    assert main([str(tmp_path / "encoder.safetensors"), str(tmp_path / "a.pt2"), "--preset", "nano"]) == 1
    assert "an encoder takes no options, got preset" in capsys.readouterr().err


@pytest.mark.parametrize("use_trace", [True, False], ids=["trace", "script"])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_torchscript_by_monai(task: str, use_trace: bool, tmp_path: Path) -> None:
    config, name = (SEGMENTATION, "hybrid_swin_unetr") if task == "segmentation" else (CLASSIFICATION, "hybrid")
    net, size = network(name), list(SIZES[name])
    torch.save(net.state_dict(), tmp_path / "model.pt")
    options = {"preset": "nano", "roi_size" if task == "segmentation" else "input_size": size}
    ckpt_export(
        net_id="network_def", filepath=tmp_path / "model.ts", ckpt_file=str(tmp_path / "model.pt"),
        config_file=str(config), meta_file=str(config.parent / "metadata.json"), use_trace=use_trace,
        **({"input_shape": [1, 1, *size]} if use_trace else {}), **options,
    )  # fmt: skip
    check(tmp_path / "model.ts", net, torch.rand(2, 1, *size))


def test_scripting_leaves_a_network_as_it_was() -> None:
    net = network("hybrid_swin_unetr").train()
    made = torch.jit.script(net)
    assert net.training and not list(made.buffers()) and len(list(made.parameters())) == len(list(net.parameters()))


def test_the_reconstruction_of_a_window_is_scripted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MiMReconstructor(input_size=(32, 32, 32), preset="nano", projection_dim=8).eval()  # sparse, as when it trains
    torch.jit.script(net).save(tmp_path / "a.ts")
    image = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(torch.jit.load(tmp_path / "a.ts")(image), net(image))


@pytest.mark.slow
def test_onnx_by_monai(checkpoint: Path) -> None:
    path = checkpoint.with_suffix(".onnx")
    onnx_export(
        net_id="network_def", filepath=str(path), ckpt_file=str(checkpoint), config_file=str(SEGMENTATION),
        meta_file=str(SEGMENTATION.parent / "metadata.json"), use_trace=True, input_shape=[2, 1, 32, 32, 16],
        converter_kwargs={"dynamic_shapes": ({0: "batch"},), "external_data": False},
        preset="nano", roi_size=[32, 32, 16],
    )  # fmt: skip
    check(path, network("hybrid_swin_unetr"), torch.rand(3, 1, 32, 32, 16))


# --- failures ---------------------------------------------------------------------------------------------------------


class Draws(nn.Module):
    """Returns a different result every time."""

    def forward(self, image: Tensor) -> Tensor:
        return image + torch.rand_like(image)


class Branches(nn.Module):
    """Branches on its input, which a graph cannot."""

    def forward(self, image: Tensor) -> Tensor:
        return image if image.sum() > 0 else -image


@pytest.mark.parametrize(
    ("net", "error", "text"),
    [(Draws(), ExportError, r"differs from PyTorch by 0\.\d+, more than 0.0001; not written"),
     (Branches(), Exception, "data-dependent")],
)  # fmt: skip
def test_a_failed_export_leaves_no_file(net: nn.Module, error: type, text: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=text):
        export(net, (1, 1, 4, 4, 4), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=r"a\.pb: must end in \.ts, \.onnx, \.pt2, got '\.pb'"):
        export(Draws(), (1, 1, 4, 4, 4), tmp_path / "a.pb")
    monkeypatch.setattr(command, "has_onnx", False)
    with pytest.raises(ExportError, match=r'pip install -e "\.\[export\]"'):
        export(Draws(), (1, 1, 4, 4, 4), tmp_path / "a.onnx")
    assert main([str(SEGMENTATION), str(tmp_path / "a.ts"), "--presets", "nano"]) == 1
    assert "has no option presets" in capsys.readouterr().err
    pretraining = BUNDLES / "mim_pretrain/configs/inference.json"
    assert main([str(pretraining), str(tmp_path / "a.ts")]) == 1
    assert "an encoder is exported from its encoder.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(SEGMENTATION), str(tmp_path / "a.ts"), "--preset"])
    assert "options are pairs --key value, got --preset" in capsys.readouterr().err
