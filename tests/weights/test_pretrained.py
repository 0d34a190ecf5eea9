"""Loading a pre-trained encoder: from every file of a run, into every network, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, ViT, ViTAutoEnc
from monai.transforms import ScaleIntensityRanged
from safetensors.torch import save_file
from torch import nn

from mim_components.networks import HybridEncoder, MiM, ViTEncoder
from mim_components.tokens import sincos_positions
from mim_components.weights.contract import InputContract, find_contract, read_contract
from mim_components.weights.pretrained import (
    POSITIONS,
    LoadReport,
    PretrainedError,
    encoder_of,
    load_pretrained,
    save_encoder,
)
from mim_components.weights.transfer import start_from

CONTRACT = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((32, 32, 32),))

WINDOW = ScaleIntensityRanged("image", a_min=-1000.0, a_max=1000.0, b_min=0.0, b_max=1.0, clip=True)


def unetr(**changes: Any) -> UNETR:
    """MONAI's own class at the size of the preset `tiny`."""
    sizes = {"img_size": 32, "feature_size": 4, "hidden_size": 96, "mlp_dim": 384, "num_heads": 4}
    return UNETR(in_channels=1, out_channels=2, **{**sizes, **changes})


def differing(first: nn.Module, second: nn.Module) -> list[str]:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def network() -> MiM:
    torch.manual_seed(0)
    return MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)


@pytest.fixture(scope="module")
def files(network: MiM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three files of a pre-training that contain an encoder."""
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in ("encoder.safetensors", "model.pt", "step_00000004.pt")}
    save_encoder(network.encoder, paths["encoder.safetensors"], CONTRACT)
    torch.save(network.state_dict(), paths["model.pt"])
    state = {"step": 4, "network": network.state_dict(), "optimizer": {"state": {}, "param_groups": []}}
    torch.save(state, paths["step_00000004.pt"])
    return paths


@pytest.mark.parametrize("name", ["encoder.safetensors", "model.pt", "step_00000004.pt"])
def test_every_product_gives_the_same_encoder(name: str, files: dict[str, Path], network: MiM) -> None:
    torch.manual_seed(1)
    encoder = HybridEncoder(preset="nano")
    assert differing(encoder, network.encoder)
    report = load_pretrained(encoder, files[name])
    assert differing(encoder, network.encoder) == []
    assert set(report.loaded) == network.encoder.state_dict().keys()
    assert (report.new, report.adapted, report.share) == ((), (), 1.0)
    rest = len(network.state_dict()) - len(network.encoder.state_dict())
    assert len(report.ignored) == (0 if name.endswith("safetensors") else rest)
    assert all(why == "not part of the encoder" for _, why in report.ignored)


def test_a_whole_network_as_safetensors_is_loaded_as_its_pickle(
    files: dict[str, Path], network: MiM, tmp_path: Path
) -> None:
    """`model.safetensors` of a release holds the same as `model.pt`; its contract is in the encoder beside it."""
    path = tmp_path / "model.safetensors"
    save_file({name: value.clone().contiguous() for name, value in network.state_dict().items()}, path)
    encoder = HybridEncoder(preset="nano")
    report = load_pretrained(encoder, path)
    assert differing(encoder, network.encoder) == []
    pickled = load_pretrained(HybridEncoder(preset="nano"), files["model.pt"])
    assert report.share == pickled.share == 1.0 and {*report.ignored} == {*pickled.ignored}
    assert find_contract(path) is None
    beside = save_encoder(network.encoder, tmp_path / "encoder.safetensors", CONTRACT)
    assert find_contract(path) == find_contract(tmp_path / "model.pt") == (CONTRACT, beside)


def test_encoder_inside_a_network_is_found(files: dict[str, Path], network: MiM) -> None:
    torch.manual_seed(2)
    other = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=8)
    head = other.prediction_head.weight.clone()
    assert encoder_of(other) is other.encoder
    load_pretrained(other, files["encoder.safetensors"])
    assert differing(other.encoder, network.encoder) == [] and torch.equal(other.prediction_head.weight, head)


def test_saved_encoder_has_its_contract_and_detached_weights(files: dict[str, Path], tmp_path: Path) -> None:
    assert read_contract(files["encoder.safetensors"]) == CONTRACT
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.arange(6.0).view(3, 2).t())  # not contiguous
    path = save_encoder(layer, str(tmp_path / "new" / "e.safetensors"), replace(CONTRACT, step=3))
    loaded = nn.Linear(3, 2)
    load_pretrained(loaded, path)
    assert loaded.weight.tolist() == [[0, 2, 4], [1, 3, 5]] and read_contract(path).step == 3


def test_four_channels_keep_the_scale_of_activations(files: dict[str, Path], network: MiM) -> None:
    encoder = HybridEncoder(in_channels=4, preset="nano")
    report = load_pretrained(encoder, files["encoder.safetensors"])
    assert report.adapted == (("embeddings.0.conv.weight", "1 input channel repeated 4 times and divided by 4"),)
    assert report.share == 1.0
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        one, four = network.encoder(image), encoder(image.expand(-1, 4, -1, -1, -1))
    for a, b in zip(one, four, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the loaded weight is not a view shared by all channels
        encoder.embeddings[0].conv.weight[:, 0] += 1
        assert not torch.equal(encoder.embeddings[0].conv.weight[:, 0], encoder.embeddings[0].conv.weight[:, 1])


def test_vit_with_four_channels(tmp_path: Path) -> None:
    vit = ViTEncoder(preset="nano", input_size=(16, 16, 16))
    contract = replace(CONTRACT, encoder="vit", input_size=(16, 16, 16))
    path = save_encoder(vit, tmp_path / "vit.safetensors", contract)
    four = ViTEncoder(in_channels=4, preset="nano", input_size=(16, 16, 16))
    load_pretrained(four, path)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(vit(image)[-1], four(image.expand(-1, 4, -1, -1, -1))[-1], rtol=1e-4, atol=1e-5)


def test_several_channels_into_another_number_is_refused(tmp_path: Path) -> None:
    path = save_encoder(HybridEncoder(in_channels=2, preset="nano"), tmp_path / "two.safetensors", CONTRACT)
    text = (
        r"two.safetensors: embeddings.0.conv.weight has shape \(8, 2, 2, 2, 2\).* 2 input channels cannot be used for 4"
    )
    with pytest.raises(PretrainedError, match=text):
        load_pretrained(HybridEncoder(in_channels=4, preset="nano"), path)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViTEncoder, Path]:
    torch.manual_seed(0)
    vit = ViTEncoder(preset="tiny", input_size=(32, 32, 32))
    contract = replace(CONTRACT, encoder="vit", preset="tiny", patch_size=16)
    return vit, save_encoder(vit, tmp_path_factory.mktemp("vit") / "vit.safetensors", contract)


def test_vit_into_stock_unetr_gives_the_same_features(vit_file: tuple[ViTEncoder, Path]) -> None:
    vit, path = vit_file
    stock = unetr()
    report = load_pretrained(stock, path)
    assert report.share == 1.0 and report.new == report.ignored == report.adapted == ()
    assert len(report.loaded) == len(stock.vit.state_dict())
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        output, states = stock.vit.eval()(image)
        maps = vit.eval()(image)
    for tokens, features in zip([states[3], states[6], states[9], output], maps, strict=True):
        torch.testing.assert_close(tokens, features.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_vit_into_unetr_of_another_grid_gets_positions_of_that_grid(vit_file: tuple[ViTEncoder, Path]) -> None:
    vit, path = vit_file
    stock = unetr(img_size=(48, 32, 16))
    report = load_pretrained(stock, path)
    name = "patch_embedding.position_embeddings"
    assert report.adapted == ((name, "fixed positions computed for the grid (3, 2, 1), rescaled to (2, 2, 2)"),)
    assert name in report.loaded
    positions = stock.vit.state_dict()[name]
    assert torch.equal(positions, sincos_positions((3, 2, 1), 96, positions, trained=(2, 2, 2)))
    image = torch.rand(1, 1, 48, 32, 16)
    with torch.no_grad():
        tokens = stock.vit.eval()(image)[0]
        torch.testing.assert_close(tokens, vit(image)[-1].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_vit_into_unetr_of_another_grid_with_as_many_tokens(vit_file: tuple[ViTEncoder, Path]) -> None:
    stock = unetr(img_size=(64, 32, 16))  # grid (4, 2, 1): 8 tokens, as (2, 2, 2)
    load_pretrained(stock, vit_file[1])
    positions = stock.vit.state_dict()["patch_embedding.position_embeddings"]
    assert torch.equal(positions, sincos_positions((4, 2, 1), 96, positions, trained=(2, 2, 2)))


def test_vit_positions_are_numbered_where_asked_or_where_no_contract_names_the_grid(
    vit_file: tuple[ViTEncoder, Path], tmp_path: Path
) -> None:
    name = "patch_embedding.position_embeddings"
    torch.save(vit_file[0].state_dict(), tmp_path / "alone.pt")
    for path, positions in ((vit_file[1], "index"), (tmp_path / "alone.pt", "rescaled")):
        stock = unetr(img_size=(64, 32, 16))
        report = load_pretrained(stock, path, positions)
        assert report.adapted == ((name, "fixed positions computed for the grid (4, 2, 1)"),)
        found = stock.vit.state_dict()[name]
        assert torch.equal(found, sincos_positions((4, 2, 1), 96, found))


def stock_vit(kind: type[nn.Module] = ViT, **sizes: Any) -> nn.Module:
    """MONAI's own classes at the size of the preset `tiny`."""
    return kind(in_channels=1, patch_size=16, hidden_size=96, mlp_dim=384, num_heads=4, **sizes)


def test_stock_vit_of_another_number_of_tokens_is_refused(vit_file: tuple[ViTEncoder, Path]) -> None:
    network = stock_vit(img_size=(48, 32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(PretrainedError, match=r"positions for 8 tokens, the network has 12 tokens .* img_size of the"):
        load_pretrained(network, vit_file[1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_stock_vit_with_as_many_tokens_is_told_of_its_positions(vit_file: tuple[ViTEncoder, Path]) -> None:
    network = stock_vit(img_size=(64, 32, 16))  # grid (4, 2, 1): 8 tokens, as (2, 2, 2)
    report = load_pretrained(network, vit_file[1])
    assert report.share == 1.0 and report.adapted == ()
    assert "positions: those of the grid (2, 2, 2), unchanged: ViT does not keep its img_size" in str(report)
    started = start_from(stock_vit(img_size=32), vit_file[1], "RAS", WINDOW)
    assert started is not None and started.notes[1:] == report.notes
    assert load_pretrained(unetr(img_size=(64, 32, 16)), vit_file[1]).notes == ()


def test_stock_autoencoder_keeps_its_grid(vit_file: tuple[ViTEncoder, Path]) -> None:
    network = stock_vit(ViTAutoEnc, img_size=(64, 32, 16))
    report = load_pretrained(network, vit_file[1])
    how = "fixed positions computed for the grid (4, 2, 1), rescaled to (2, 2, 2)"
    assert report.adapted == ((POSITIONS, how),) and report.notes == ()


@pytest.mark.parametrize("positions", ["rescaled", "index"])
def test_contract_of_another_vit_is_refused(
    positions: str, vit_file: tuple[ViTEncoder, Path], tmp_path: Path
) -> None:  # fmt: skip
    """Positions would be rescaled to a grid on which these weights were not trained."""
    torch.save(vit_file[0].state_dict(), tmp_path / "model.pt")  # 2 x 2 x 2 tokens
    contract = replace(CONTRACT, encoder="vit", preset="tiny", patch_size=16, input_size=(48, 48, 48))
    save_encoder(ViTEncoder(preset="tiny", input_size=(48, 48, 48)), tmp_path / "encoder.safetensors", contract)
    text = r"model.pt: has positions for 8 tokens, .*encoder.safetensors names a grid of 3 x 3 x 3 = 27 tokens"
    with pytest.raises(PretrainedError, match=text):
        load_pretrained(unetr(img_size=(64, 32, 16)), tmp_path / "model.pt", positions)


def test_unknown_kind_of_positions(vit_file: tuple[ViTEncoder, Path]) -> None:
    with pytest.raises(ValueError, match="positions must be one of rescaled, index, got 'numbers'"):
        load_pretrained(unetr(), vit_file[1], "numbers")


def test_wrong_preset_names_file_tensor_and_shapes(files: dict[str, Path]) -> None:
    # nano begins with 8 channels, tiny with 12
    text = r"embeddings.0.conv.weight has shape \(8, 1, 2, 2, 2\), the network needs \(12, 1, 2, 2, 2\); another preset"
    with pytest.raises(PretrainedError, match=f"{files['model.pt']}: {text}"):
        load_pretrained(HybridEncoder(preset="tiny"), files["model.pt"])


def test_refused_weights_leave_the_network_as_it_was(files: dict[str, Path]) -> None:
    torch.manual_seed(3)
    encoder, same = HybridEncoder(preset="tiny"), HybridEncoder(preset="tiny")
    same.load_state_dict(encoder.state_dict())
    with pytest.raises(PretrainedError):
        load_pretrained(encoder, files["encoder.safetensors"])
    assert differing(encoder, same) == []


def test_other_kind_of_encoder_is_refused(vit_file: tuple[ViTEncoder, Path]) -> None:
    with pytest.raises(PretrainedError, match="vit.safetensors"):
        load_pretrained(HybridEncoder(preset="tiny"), vit_file[1])


def test_wrong_prefix_is_0_of_n(tmp_path: Path, network: MiM) -> None:
    path = tmp_path / "model.pt"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, path)
    text = rf"model.pt: 0 of {len(state)} tensors fit.*such as \['module.*such as \['_extra_state', 'blocks"
    with pytest.raises(PretrainedError, match=text):
        load_pretrained(network, path)


class Small(nn.Module):
    """A network whose encoder has a 2 x 3 weight and a bias of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)


def test_report_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.pt"
    weights = {"encoder.weight": torch.ones(2, 3), "encoder.scale": torch.ones(1), "head.weight": torch.ones(1, 2)}
    torch.save(weights, path)
    network = Small()
    bias = network.encoder.bias.clone()
    with caplog.at_level("INFO", "mim_components"):
        report = load_pretrained(network, path)
    assert report.loaded == ("weight",) and report.new == ("bias",) and report.adapted == ()
    assert report.ignored == (("head.weight", "not part of the encoder"), ("scale", "the network has no such tensor"))
    assert report.share == 6 / 8  # 6 weights of 6 weights and 2 biases
    assert torch.equal(network.encoder.weight, torch.ones(2, 3)) and torch.equal(network.encoder.bias, bias)
    assert str(report).splitlines() == [
        "1 tensors loaded, 75.0% of the encoder's parameters",
        "  new: bias (in the encoder)",
        "  new: head: 2 tensors",
        "  ignored: head.weight (not part of the encoder)",
        "  ignored: scale (the network has no such tensor)",
    ]
    assert str(path) in caplog.text


def test_many_names_of_one_part_become_a_count() -> None:
    decoder = tuple((f"decoder.{number}", "not part of the encoder") for number in range(4))
    report = LoadReport(("a",), ("norm.weight",), (*decoder, ("head.bias", "x")), (), 0.5, (("out", 2),), ("a note",))
    assert str(report).splitlines() == [
        "1 tensors loaded, 50.0% of the encoder's parameters",
        "  a note",
        "  new: norm.weight (in the encoder)",
        "  new: out: 2 tensors",
        "  ignored: decoder: 4 tensors (not part of the encoder)",
        "  ignored: head.bias (x)",
    ]


def test_what_only_masked_input_uses_is_named(files: dict[str, Path], network: MiM) -> None:
    encoder = HybridEncoder(preset="nano", dense_only=True)
    report = load_pretrained(encoder, files["encoder.safetensors"])
    assert report.share == 1.0 and report.new == ()
    # two convolutional stages with a kernel and a bias each, and the last norm
    names = {"stage_outputs.0.weight", "stage_outputs.0.bias", "stage_outputs.1.weight", "stage_outputs.1.bias"}
    assert {name for name, _ in report.ignored} == names | {"norm.weight", "norm.bias"}
    assert {why for _, why in report.ignored} == {"only used with masked input"}
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        for ours, theirs in zip(encoder(image), network.encoder(image), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["encoder.safetensors", "model.pt"])
@pytest.mark.parametrize("text", ["", "<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1\n"])
def test_text_instead_of_weights_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path / name}: not a readable"):
        load_pretrained(Small(), tmp_path / name)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.full((2, 3), torch.nan)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: weights are not finite: encoder.weight"):
        load_pretrained(Small(), tmp_path / "model.pt")


def test_safetensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.full((2, 3), torch.nan)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="encoder.safetensors: weights are not finite: weight"):
        load_pretrained(Small(), tmp_path / "encoder.safetensors")


def test_safetensors_that_were_altered_are_refused_where_a_digest_stands_beside(network: MiM, tmp_path: Path) -> None:
    path = save_encoder(network.encoder, tmp_path / "encoder.safetensors", CONTRACT)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # the last weight, still finite: safetensors has no checksum
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match=f"{path}: not the file that was written: its sha256 is"):
        load_pretrained(HybridEncoder(preset="nano"), path)
    path.with_name("encoder.safetensors.sha256").unlink()
    assert load_pretrained(HybridEncoder(preset="nano"), path).share == 1.0
