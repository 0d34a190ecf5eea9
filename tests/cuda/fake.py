"""Steps of all networks on fake CUDA tensors, under CUDA's autocast rules; run by test_fake.py.

A fake tensor has a shape, a type and a device, but no memory: operators that mix devices or read a value fail even on
a machine without CUDA. `python fake.py EXTENSION RESULT`.
"""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.fake_cuda import begin

begin(sys.argv[1])  # before torch is imported, which queries CUDA's hooks only once

import monai.losses.dice  # noqa: E402
import monai.networks.nets.swin_unetr  # noqa: E402
import torch  # noqa: E402
from monai.inferers import SimpleInferer  # noqa: E402
from monai.losses import DiceCELoss, DiceLoss  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from benchmarks import step_cost  # noqa: E402
from benchmarks.cost_counter import Cost  # noqa: E402
from benchmarks.gpu import step_flops  # noqa: E402
from benchmarks.pretraining import Settings, Training  # noqa: E402
from mim_components import tokens  # noqa: E402
from mim_components.data.load.sampler import StepSampler  # noqa: E402
from mim_components.engines import FinetuneStep, NonFiniteGuard  # noqa: E402
from mim_components.networks import classification_network, segmentation_network  # noqa: E402
from mim_components.optimizers import finetune_groups  # noqa: E402

CUDA = torch.device("cuda:0")
# the one intended wait of a step, replaced since a fake tensor has no value
NonFiniteGuard.all_finite = staticmethod(lambda *values: all(value.device == CUDA for value in values))  # type: ignore[method-assign]


class Plain:
    """Plain PyTorch for two places where MONAI reads values of a CPU tensor, which a fake one does not have."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def arange(*limits: int) -> Any:
        return torch.arange(*limits) if len(limits) == 1 else SimpleNamespace(tolist=lambda: list(range(*limits)))

    @staticmethod
    def linspace(first: float, last: float, steps: int) -> Any:
        span = (last - first) / max(steps - 1, 1)
        return [SimpleNamespace(item=lambda value=first + i * span: value) for i in range(steps)]


monai.losses.dice.torch = monai.networks.nets.swin_unetr.torch = Plain()


def checked(network: nn.Module, out: dict[str, Any]) -> None:
    """Check that all results and gradients are on the device, and that every trained parameter has a gradient."""
    away = [name for name, value in out.items() if isinstance(value, Tensor) and value.device != CUDA]
    assert not away, f"numbers that are not on the device: {away}"
    trained = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    without = [name for name, grad in trained.items() if grad is None or grad.device != CUDA]
    assert not without, f"parameters without a gradient on the device: {without}"


def pretrain(**settings: Any) -> Callable[[], None]:
    def run() -> None:
        training = Training(Settings(**{"preset": "nano", "size": 32, "amp": True, "device": "cuda:0", **settings}))
        checked(training.network, training())

    return run


def segment(
    name: str, size: int = 32, regions: bool = False, channels: int = 1, amp: bool = True, preset: str = "nano"
) -> Callable[[], None]:
    def run() -> None:
        classes, roi = 3, (size,) * 3
        network = segmentation_network(name, channels, classes, roi, preset).to(CUDA)
        how: dict[str, Any] = {"squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
        loss = DiceLoss(sigmoid=True, **how) if regions else DiceCELoss(to_onehot_y=True, softmax=True, **how)
        label = torch.zeros(2, classes if regions else 1, *roi)
        finetune(network, loss, {"image": torch.rand(2, channels, *roi), "label": label, "name": ["a", "b"]}, amp)
        network.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            out = network(torch.rand(2, channels, *roi, device=CUDA))
        assert out.device == CUDA and out.shape == (2, classes, *roi)

    return run


def classify(name: str, size: tuple[int, int, int]) -> Callable[[], None]:
    def run() -> None:
        network = classification_network(name, 1, 3, size, "nano").to(CUDA)
        batch = {"image": torch.rand(1, 1, *size), "label": torch.zeros(1, dtype=torch.long), "name": ["a"]}
        finetune(network, nn.CrossEntropyLoss(), batch, True)

    return run


def loader_of() -> Any:
    return SimpleNamespace(sampler=StepSampler(1, 1, 1))


def finetune(network: nn.Module, loss: nn.Module, batch: dict[str, Any], amp: bool) -> None:
    optimizer = torch.optim.AdamW(finetune_groups(network, 1e-5, 1e-4), lr=1e-4, fused=True)
    state = SimpleNamespace(device=CUDA, iteration=1)
    engine: Any = SimpleNamespace(
        network=network, optimizer=optimizer, loss_function=loss, inferer=SimpleInferer(), state=state
    )
    checked(network, FinetuneStep(loader_of(), max_norm=5.0, amp=amp)(engine, [batch]))


def mixed() -> None:
    torch.add(torch.zeros(2, device=CUDA), torch.zeros(2))


def read() -> None:
    torch.zeros(2, device=CUDA).nonzero()


def cost() -> None:
    """Cost of a whole step from `benchmarks.step_cost`, compared with FLOPs counted on another device."""
    settings = Settings("nano", 32, levels=2, device="cuda:0", amp=True)
    now = sum(step_cost.count_pretraining(settings).values(), Cost())
    before = sum(step_cost.count_pretraining(settings, as_it_was=True).values(), Cost())
    assert now.waits == before.waits == 1, now
    assert abs(now.flops / step_flops(settings) - 1) < 0.1, (now, step_flops(settings))
    assert now.bytes < before.bytes and now.launches < before.launches, (now, before)


CASES: dict[str, Callable[[], None]] = {
    "devices mixed": mixed,
    "a value read": read,
    "cost of a step": cost,
    "pre-training, sparse": pretrain(),
    "pre-training, sparse, base": pretrain(preset="base", size=96, levels=2),
    "pre-training, sparse, fp32": pretrain(amp=False),
    "pre-training, sparse, two samples in passes, recomputed": pretrain(samples=2, limit=3, checkpoint=True),
    "pre-training, dense": pretrain(form="dense"),
    "pre-training, dense, one volume per pass, recomputed": pretrain(form="dense", limit=1, checkpoint=True),
    "pre-training, vit": pretrain(encoder="vit"),
    "pre-training, vit, in passes, recomputed": pretrain(encoder="vit", limit=8, checkpoint=True),
    "hybrid_swin_unetr": segment("hybrid_swin_unetr"),
    "hybrid_swin_unetr, fp32": segment("hybrid_swin_unetr", amp=False),
    "hybrid_swin_unetr, four channels, regions": segment("hybrid_swin_unetr", regions=True, channels=4),
    "unetr": segment("unetr", preset="tiny"),
    "swin_unetr": segment("swin_unetr", size=64),
    "classification, hybrid": classify("hybrid", (48, 48, 16)),
    "classification, swin_vit": classify("swin_vit", (64, 64, 32)),
}


def result(case: Callable[[], None]) -> str:
    tokens._make_sincos.cache_clear()
    with FakeTensorMode():
        try:
            case()
        except Exception:
            return traceback.format_exc(limit=-6)
    return ""


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps({name: result(case) for name, case in CASES.items()}))
