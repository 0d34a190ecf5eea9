"""A pre-training step with one level against one of MONAI's `MaskedAutoEncoderViT`; part of `benchmarks.step`.

Both have the same volumes, patch size, widths, depths, mask ratio, optimizer and clipping. MONAI's predicts all tokens
and computes attention without PyTorch's fused kernel. Its loss is that of the masked autoencoder: mean squared error
over masked tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets import MaskedAutoEncoderViT
from torch import nn

from benchmarks.pretraining import Settings, Training, make_optimizer
from benchmarks.report import measure
from mim_components.networks import get_preset
from mim_components.tokens import patchify


def monai_autoencoder(settings: Settings) -> MaskedAutoEncoderViT:
    """MONAI's class with the sizes of a preset."""
    sizes = get_preset(settings.preset)
    vit, decoder = sizes.vit, sizes.decoder
    torch.manual_seed(0)
    return MaskedAutoEncoderViT(
        1, (settings.size,) * 3, sizes.patch_size,
        hidden_size=vit.hidden_size, mlp_dim=4 * vit.hidden_size, num_layers=vit.depth, num_heads=vit.num_heads,
        masking_ratio=settings.mask_ratio,
        decoder_hidden_size=decoder.hidden_size, decoder_mlp_dim=4 * decoder.hidden_size,
        decoder_num_layers=decoder.depth, decoder_num_heads=decoder.num_heads,
    )  # fmt: skip


def monai_step(network: MaskedAutoEncoderViT, image: torch.Tensor) -> Callable[[], None]:
    """A training step on `(B, 1, H, W, D)`."""
    optimizer = make_optimizer(network)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prediction, masked = network(image)  # (B, N, P), (B, N), 1 = masked
        error = (prediction - patchify(image, network.patch_size[0])).square().mean(-1)
        ((error * masked).sum() / masked.sum()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def mae_table(preset: str, size: int, batch: int, repetitions: int) -> list[dict[str, Any]]:
    """One row per network, for `batch` volumes of `size`^3 voxels."""
    settings = Settings(preset, size, levels=1, samples=batch)
    trainings = {
        f"MiM, one level, {encoder} encoder": Training(Settings(preset, size, 1, batch, encoder=encoder))
        for encoder in ("vit", "hybrid")
    }
    monai, name = monai_autoencoder(settings), "MONAI MaskedAutoEncoderViT"
    step = monai_step(monai, torch.rand(batch, 1, *(size,) * 3))
    networks: dict[str, nn.Module] = {name: monai, **{each: trainings[each].network for each in trainings}}
    times = measure({name: step, **trainings}, repetitions)
    return [
        {
            "network": each, "volumes": batch, "parameters (M)": _millions(networks[each]),
            **timing.milliseconds(), "times faster": times[name].median / timing.median,
            "CPU ms": timing.cpu_median * 1e3, "CPU times faster": times[name].cpu_median / timing.cpu_median,
        }
        for each, timing in times.items()
    ]  # fmt: skip


def _millions(network: nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1e6
