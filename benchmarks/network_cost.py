"""Parameters and forward cost of every preset, as Markdown: `python -m benchmarks.network_cost`.

The cost is what `torch.utils.flop_counter.FlopCounterMode` counts: the multiply-accumulates of convolutions, linear
layers and attention, 1 MAC = 2 FLOPs. It leaves out biases, norms, softmax, GELU, positions and the loss. A convolution
counts its padding; a grouped one only its own group. Attention is counted by its two matrix products, for
which it runs in PyTorch's plain form: the counter does not know the fused CPU kernel. Everything runs on the
"meta" device, which has shapes but no values, so that `base` takes seconds.

Two costs are given: one 96^3 volume at mask ratio 0.6 (encoder, decoder and prediction head), and one whole
sample of 1 + 4 + 16 = 21 volumes, which adds the alignment heads. The convolutional stages of the hybrid encoder are
counted on the whole grid, where their cost does not depend on the mask ratio; with `--sparse` on visible tokens only,
as training computes them by default.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mim_components.networks import PRESETS, HybridEncoder, MiM
from mim_components.networks.mim import ENCODERS
from mim_components.tokens import num_visible_tokens

INPUT_SIZE = (96, 96, 96)
MASK_RATIO = 0.6
NUM_CHILDREN = 4
FLOPS_PER_MAC = 2


class NetworkCost(NamedTuple):
    """One row of the table; parameters as counts, costs as multiply-accumulates of a forward pass.

    Attributes:
        encoder_parameters: encoder without its stage outputs.
        stage_output_parameters: convolutions from the stages to the token grid; 0 for the ViT.
        decoder_parameters: decoder with its mask token.
        prediction_parameters: prediction head.
        alignment_parameters: alignment heads of all pairs of levels.
        volume_macs: one volume.
        sample_macs: one volume of level 1 and all volumes cut from it.
    """

    encoder_parameters: int
    stage_output_parameters: int
    decoder_parameters: int
    prediction_parameters: int
    alignment_parameters: int
    volume_macs: int
    sample_macs: int

    @property
    def parameters(self) -> int:
        """All parameters of the pre-training network."""
        return sum(self[:5])


def count_macs(network: MiM, volumes: Sequence[int], input_size: Sequence[int], mask_ratio: float) -> int:
    """Multiply-accumulates of one forward pass of a network on the "meta" device.

    Args:
        network: the network, on the "meta" device.
        volumes: number of volumes of each level.
        input_size: size of every volume, voxels.
        mask_ratio: share of masked tokens.
    """
    num_tokens = math.prod(network.grid)
    images = [torch.empty(v, network.encoder.in_channels, *input_size, device="meta") for v in volumes]
    masked = [torch.empty(v, num_tokens, dtype=torch.bool, device="meta") for v in volumes]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(images, masked, num_visible=num_visible_tokens(num_tokens, mask_ratio))
    return counter.get_total_flops() // FLOPS_PER_MAC


def measure(
    preset: str, encoder: str, input_size: Sequence[int] = INPUT_SIZE, mask_ratio: float = MASK_RATIO,
    num_levels: int = 3, sparse: bool = False,
) -> NetworkCost:  # fmt: skip
    """Count parameters and multiply-accumulates of one preset.

    Args:
        preset: name of the preset.
        encoder: "hybrid" or "vit".
        input_size: size of every volume, voxels.
        mask_ratio: share of masked tokens.
        num_levels: levels of a sample, with 4 volumes cut from each volume of the level above.
        sparse: form of the hybrid encoder.
    """
    network = MiM(1, input_size, preset, encoder, num_levels, sparse=sparse).to("meta")
    single = MiM(1, input_size, preset, encoder, num_levels=1, sparse=sparse).to("meta")
    stage_outputs = _parameters(network.encoder.stage_outputs) if isinstance(network.encoder, HybridEncoder) else 0
    return NetworkCost(
        _parameters(network.encoder) - stage_outputs,
        stage_outputs,
        _parameters(network.decoder),
        _parameters(network.prediction_head),
        _parameters(network.alignment_heads),
        count_macs(single, [1], input_size, mask_ratio),
        count_macs(network, [NUM_CHILDREN**level for level in range(num_levels)], input_size, mask_ratio),
    )


def table(presets: Sequence[str], encoders: Sequence[str], sparse: bool = False) -> str:
    """Markdown table with one row per preset and encoder."""
    head = (
        "preset", "encoder", "encoder (M)", "stage outputs (M)", "decoder (M)", "prediction head (M)",
        "alignment heads (M)", "total (M)", "volume (GMACs)", "volume (GFLOPs)", "sample (GMACs)", "sample (GFLOPs)",
    )  # fmt: skip
    rows = [head, ("---",) * 2 + ("---:",) * (len(head) - 2)]
    for preset in presets:
        for encoder in encoders:
            cost = measure(preset, encoder, sparse=sparse)
            millions = [f"{count / 1e6:.2f}" for count in (*cost[:5], cost.parameters)]
            costs = [f"{f * m / 1e9:.1f}" for m in (cost.volume_macs, cost.sample_macs) for f in (1, FLOPS_PER_MAC)]
            rows.append((preset, encoder, *millions, *costs))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Parameters and forward cost of the presets, as Markdown.")
    parser.add_argument("--preset", choices=list(PRESETS), nargs="+", default=list(PRESETS), dest="presets")
    parser.add_argument("--encoder", choices=ENCODERS, nargs="+", default=list(ENCODERS), dest="encoders")
    parser.add_argument("--sparse", action="store_true", help="convolutional stages on visible tokens only")
    arguments = parser.parse_args()
    size = "x".join(map(str, INPUT_SIZE))
    print(f"Forward of {size} volumes, mask ratio {MASK_RATIO}; 1 MAC = {FLOPS_PER_MAC} FLOPs.\n")
    print(table(arguments.presets, arguments.encoders, arguments.sparse))


if __name__ == "__main__":
    main()
