"""The grid that a hybrid encoder was trained on stays with its weights when they are saved or copied."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_model
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim_components.networks import HybridEncoder, ViTEncoder


def encoder(side: int | None = 32) -> HybridEncoder:
    torch.manual_seed(0)
    return HybridEncoder(1, "nano", input_size=None if side is None else (side,) * 3)


def test_safetensors_own_functions(tmp_path: Path) -> None:
    save_model(encoder(), str(tmp_path / "a.safetensors"))
    assert load_file(tmp_path / "a.safetensors")["_extra_state"].tolist() == [4, 4, 4]
    other = encoder(None)
    load_model(other, tmp_path / "a.safetensors")
    assert other.trained_grid == (4, 4, 4)


def test_average_of_weights() -> None:
    first = encoder()
    average = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(first)
    assert average.module.trained_grid == (4, 4, 4)
    other = AveragedModel(encoder(None))
    other.load_state_dict(average.state_dict())
    assert other.module.trained_grid == (4, 4, 4)


def test_several_devices_and_plain_copies(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(encoder())
        state = wrapped.state_dict()
        other = DistributedDataParallel(encoder(None))
        other.load_state_dict(state)
    finally:
        torch.distributed.destroy_process_group()
    assert state["module._extra_state"].tolist() == [4, 4, 4] and other.module.trained_grid == (4, 4, 4)
    torch.save(encoder().state_dict(), tmp_path / "a.pt")
    last = encoder(None)
    last.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert last.trained_grid == copy.deepcopy(last).trained_grid == (4, 4, 4)


def test_feature_info_says_what_the_maps_are() -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    for net in (encoder(), ViTEncoder(1, "nano", (16, 16, 16))):
        maps = net(image)
        assert len(net.feature_info) == len(maps)
        for info, each in zip(net.feature_info, maps, strict=True):
            assert each.shape == (1, info["num_chs"], *[16 // info["reduction"]] * 3)
            net.get_submodule(info["module"])
        assert torch.equal(net.forward_features(image), maps[-1])
    assert encoder().feature_info[0] == {"num_chs": 8, "reduction": 2, "module": "stages.0"}
