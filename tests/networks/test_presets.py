"""The presets are consistent, and `base` is the paper's table."""

import pytest

from mim_components.networks.presets import PRESETS, get_patch_size, get_preset


def test_names():
    assert list(PRESETS) == ["nano", "tiny", "small", "base"]


def test_base_is_the_design():
    base = get_preset("base")
    assert base.hybrid.channels == (48, 96, 192, 384)
    assert base.hybrid.depths == (2, 2, 2, 11)
    assert base.hybrid.num_heads == 12
    assert (base.vit.hidden_size, base.vit.depth, base.vit.num_heads) == (768, 12, 12)
    assert (base.decoder.hidden_size, base.decoder.depth, base.decoder.num_heads) == (576, 8, 16)
    assert base.feature_size == 48


@pytest.mark.parametrize(("name", "patch_size"), [("nano", 8), ("tiny", 16), ("small", 16), ("base", 16)])
def test_patch_size_is_the_product_of_the_strides(name, patch_size):
    assert get_preset(name).patch_size == patch_size == 2 ** len(get_preset(name).hybrid.channels)


@pytest.mark.parametrize("name", PRESETS)
def test_widths_divide(name):
    preset = get_preset(name)
    stacks = [(preset.hybrid.channels[-1], preset.hybrid.num_heads)]
    stacks += [(sizes.hidden_size, sizes.num_heads) for sizes in (preset.vit, preset.decoder)]
    for width, heads in stacks:
        assert width % 6 == 0, "three axes, sine and cosine each"
        assert width % heads == 0
    assert preset.feature_size % 12 == 0, "MONAI's Swin UNETR"
    assert len(preset.hybrid.channels) == len(preset.hybrid.depths)
    assert preset.vit.depth % 4 == 0, "hidden states at a quarter, a half and three quarters of the depth"


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match="preset must be one of nano, tiny, small, base, got 'huge'"):
        get_preset("huge")


def test_patch_size_by_name():
    assert get_patch_size("nano") == 8
    with pytest.raises(ValueError, match="preset must be one of"):
        get_patch_size("huge")
