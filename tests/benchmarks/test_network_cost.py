"""The cost table: counts by hand, and the figures of the network in the paper's size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.network_cost import count_macs, main, measure, table
from mim_components.networks import MiM


def macs(operation, *inputs):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        operation(*inputs)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_counter_counts(device):
    def empty(*shape):
        return torch.empty(shape, device=device)

    # a grouped convolution: every one of 6 * 4^3 outputs reads 5^3 voxels of its own group's one channel
    grouped = nn.Conv3d(6, 6, 5, padding=2, groups=6, device=device)
    assert macs(grouped, empty(2, 6, 4, 4, 4)) == 2 * 6 * 64 * 125
    assert macs(nn.Conv3d(3, 8, 2, stride=2, device=device), empty(1, 3, 4, 4, 4)) == 8 * 8 * 3 * 8
    assert macs(nn.Linear(6, 7, device=device), empty(2, 5, 6)) == 2 * 5 * 6 * 7
    # attention of 2 volumes, 4 heads, 10 tokens of width 8: q k^T and its product with v
    assert macs(F.scaled_dot_product_attention, *[empty(2, 4, 10, 8)] * 3) == 2 * (2 * 4 * 10 * 10 * 8)


def vit_macs_by_hand(tokens, visible, width, depth, decoder, decoder_depth, voxels):
    """MACs of a plain ViT, decoder and head: a block of n tokens of width e takes 12 n e^2 + 2 n^2 e."""

    def block(n, e):
        return n * (3 + 1 + 4 + 4) * e**2 + 2 * n**2 * e

    embedding = tokens * voxels * width
    return (
        embedding
        + depth * block(visible, width)
        + visible * width * decoder
        + decoder_depth * block(tokens, decoder)
        + (tokens - visible) * decoder * voxels
    )


def test_cost_of_a_vit_by_hand():
    net = MiM(1, (32, 32, 32), "nano", "vit", num_levels=1).to("meta")
    expected = vit_macs_by_hand(tokens=64, visible=25, width=48, depth=4, decoder=48, decoder_depth=1, voxels=512)
    assert count_macs(net, [1], (32, 32, 32), 0.6) == expected
    assert count_macs(net, [3], (32, 32, 32), 0.6) == 3 * expected


def test_a_sample_is_its_volumes_and_the_alignment_heads():
    cost = measure("nano", "hybrid", (32, 32, 32))
    # heads 48 -> 32 -> 2048: for 1 + 4 parents at 64 tokens each, for 4 + 16 children once
    head = 48 * 32 + 32 * 2048
    assert cost.sample_macs == 21 * cost.volume_macs + (5 * 64 + 20) * head
    assert cost.alignment_parameters == 4 * (head + 32 + 2048)


def test_parameters_add_up():
    cost = measure("tiny", "hybrid", (32, 32, 32), num_levels=2)
    net = MiM(1, (32, 32, 32), "tiny", "hybrid", num_levels=2)
    assert cost.parameters == sum(p.numel() for p in net.parameters())
    assert cost.stage_output_parameters == (12 * 8**3 + 24 * 4**3 + 48 * 2**3) * 96 + 3 * 96


def test_base_costs_what_the_design_says():
    cost = measure("base", "hybrid")
    assert 2 * cost.volume_macs == pytest.approx(47.8e9, rel=0.03)
    assert cost.parameters == pytest.approx(71e6, rel=0.01)
    assert cost.encoder_parameters == pytest.approx(21.5e6, rel=0.02)
    assert cost.stage_output_parameters == pytest.approx(12.4e6, rel=0.01)
    assert cost.decoder_parameters == pytest.approx(32.1e6, rel=0.01)
    assert cost.prediction_parameters == 576 * 4096 + 4096


def test_table():
    lines = table(["nano"], ["hybrid", "vit"]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "GMACs" in lines[0] and "GFLOPs" in lines[0]
    assert lines[3].startswith("| nano | vit | ")


def test_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["network_cost", "--preset", "nano", "--encoder", "vit"])
    main()
    out = capsys.readouterr().out
    assert "1 MAC = 2 FLOPs" in out and "| nano | vit |" in out and "hybrid" not in out
