"""Class maps from sliding windows, against MONAI's own inferer."""

import json
import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, Invertd, Orientationd, SpatialPadd

from mim_components.inferers import ClassMapInferer

PEAK = """
import json, resource, torch
from mim_components.inferers import ClassMapInferer

network = torch.nn.Sequential(torch.nn.AvgPool3d(16), torch.nn.Conv3d(1, 16, 1), torch.nn.Upsample(scale_factor=16))
inferer = ClassMapInferer(({roi}, {roi}, {roi}), sw_batch_size=1, overlap=0.25)
volume = torch.rand(1, 1, *{size})
inferer(torch.rand(1, 1, {roi}, {roi}, {roi}), network)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = inferer(volume, network)
print(json.dumps([before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, list(result.shape)]))
"""


def network(channels: int, in_channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(channels)
    return torch.nn.Conv3d(in_channels, channels, 3, padding=1)


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "mode", "sw_batch_size"),
    [
        ((13, 9, 30), (8, 8, 8), 0.5, "gaussian", 4),  # advances along D
        ((31, 10, 12), (6, 8, 4), 0.5, "constant", 3),  # along H
        ((11, 37, 10), (8, 8, 8), 0.25, "gaussian", 5),  # along W
        ((10, 9, 11), (4, 4, 4), 0.75, "gaussian", 7),
        ((5, 20, 3), (8, 8, 8), 0.5, "gaussian", 2),  # thinner than a window
        ((3, 4, 5), (8, 6, 7), 0.5, "constant", 4),  # one window
        ((16, 8, 8), (8, 8, 8), 0.0, "gaussian", 1),  # windows touch
        ((17, 9, 9), (8, 8, 8), (0.5, 0.25, 0.0), "gaussian", 4),
    ],
)
def test_equals_argmax_of_monai(size, roi, overlap, mode, sw_batch_size):
    volume, net = torch.randn(1, 2, *size), network(5, in_channels=2)
    with torch.no_grad():
        logits = sliding_window_inference(volume, roi, 4, net, overlap=overlap, mode=mode)
    ours = ClassMapInferer(roi, sw_batch_size, overlap, mode=mode)(volume, net)
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    assert torch.equal(ours, logits.argmax(1, keepdim=True).to(torch.uint8))
    regions = ClassMapInferer(roi, sw_batch_size, overlap, mode=mode, regions=True)(volume, net)
    assert torch.equal(regions, (logits.sigmoid() > 0.5).to(torch.uint8))


def test_heads_are_as_many_networks():
    volume, nets = torch.randn(1, 1, 9, 10, 21), [network(3), network(3)]
    torch.nn.init.normal_(nets[1].weight)
    one = ClassMapInferer((8, 8, 8))
    both = ClassMapInferer((8, 8, 8), heads=2)(volume, lambda window: torch.cat([net(window) for net in nets], 1))
    assert not torch.equal(both[:, :1], both[:, 1:])
    assert torch.equal(both, torch.cat([one(volume, net) for net in nets], 1))
    with pytest.raises(ValueError, match="2 to 256 classes for each of 2 heads, got 3"):
        ClassMapInferer((8, 8, 8), heads=2)(volume, nets[0])
    with pytest.raises(ValueError, match=r"heads must be positive, got \(8, 8, 8\), 4, 0"):
        ClassMapInferer((8, 8, 8), heads=0)


def test_volumes_of_a_batch_do_not_mix():
    volumes, net = torch.randn(2, 1, 9, 10, 11), network(3)
    inferer = ClassMapInferer((8, 8, 8), sw_batch_size=3)
    assert torch.equal(inferer(volumes, net), torch.cat([inferer(volumes[:1], net), inferer(volumes[1:], net)]))


def test_bfloat16_logits_add_up_in_float32():
    first_window = iter([2.0, 0.0, 0.0, 0.0])  # windows begin at planes 0, 1, 2, 3

    def net(window):
        return torch.cat([256 + 0 * window, 256 + next(first_window) + 0 * window], 1).to(torch.bfloat16)

    volume = torch.arange(7.0).expand(1, 1, 4, 4, 7)
    result = ClassMapInferer((4, 4, 4), 1, overlap=0.75, mode="constant")(volume, net)
    # plane 3 lies in all four: 1024 against 1026, which bfloat16, with steps of 8 there, cannot distinguish
    assert result[0, 0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_arguments_reach_the_network_and_its_output_stays():
    given = torch.ones(1, 2, 4, 4, 4)
    given[:, 1] = 2

    ClassMapInferer((4, 4, 4))(torch.zeros(1, 1, 4, 4, 4), lambda window, logits: logits, given)
    assert given.unique().tolist() == [1, 2]  # MONAI's inferer multiplies it by the weights


def test_result_can_be_inverted():
    affine = torch.diag(torch.tensor([-1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.arange(5.0 * 6 * 7).reshape(1, 5, 6, 7), affine=affine, meta={"filename_or_obj": "x"})
    steps = Compose([Orientationd("image", "RAS", labels=None), SpatialPadd("image", (8, 8, 8))])
    prepared = steps({"image": image})
    batch = prepared["image"].unsqueeze(0)
    pred = ClassMapInferer((8, 8, 8))(batch, lambda window: torch.cat([0 * window + 99.5, window], 1))
    assert isinstance(pred, MetaTensor) and pred.meta["filename_or_obj"] == "x"
    assert torch.equal(pred.affine, prepared["image"].affine)
    back = Invertd("pred", steps, orig_keys="image")({**prepared, "pred": pred[0]})["pred"]
    assert torch.equal(back.as_tensor(), (image > 99.5).to(torch.uint8).as_tensor())
    torch.testing.assert_close(back.affine, affine)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_windows(terminal, capsys, monkeypatch):
    monkeypatch.setattr("mim_components.utils.text.on_terminal", lambda: terminal)
    ClassMapInferer((4, 4, 4), overlap=0, progress=True)(torch.zeros(1, 1, 4, 8, 12), network(2))
    assert ("6/6" in capsys.readouterr().err) == terminal  # a log file gets no bar that is shorter than a minute


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"sw_batch_size": 0}, "must be positive, got .*, 0"),
        ({"roi_size": (4, 0, 4)}, r"must be positive, got \(4, 0, 4\)"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassMapInferer(**{"roi_size": (4, 4, 4), **arguments})


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (network(257), "network with 2 to 256 classes, got 257"),
        (network(1), "network with 2 to 256 classes, got 1"),
        (lambda window: [window], "one tensor of logits, got list"),
        (lambda window: window[..., ::2], r"return logits \(1, K, 4, 4, 4\), got \(1, 1, 4, 4, 2\)"),
        (lambda window: torch.cat([window, window.log()], 1), "not finite in planes 0 to 3 of axis 0"),
    ],
)
def test_unfit_networks(net, message):
    with pytest.raises(ValueError, match=message):
        ClassMapInferer((4, 4, 4))(torch.zeros(1, 1, 4, 4, 4), net)


def test_volume_without_batch_axis():
    with pytest.raises(ValueError, match=r"needs a volume \(B, C, H, W, D\), got \(1, 4, 4, 4\)"):
        ClassMapInferer((4, 4, 4))(torch.zeros(1, 4, 4, 4), network(2))


@pytest.mark.slow
def test_memory_is_that_of_one_row_of_windows():
    size, roi = (128, 128, 512), 32
    code = PEAK.format(size=size, roi=roi)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, shape = json.loads(run.stdout)
    buffer, class_map = 4 * 16 * 128 * 128 * roi, 128 * 128 * 512
    assert shape == [1, 1, *size]
    # the class map is copied once; 20 MB for what the allocator keeps. All logits would take 537 MB
    assert after - before < buffer + 2 * class_map + 20e6
