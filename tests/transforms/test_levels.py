"""Batches of levels: child i belongs to parent i // num_children, in a sample and in a batch."""

import pytest
import torch
from monai.data import list_data_collate

from mim_components.transforms.crop import MultiLevelCropMaskd
from mim_components.transforms.levels import level_batch, split_levels


def sample(seed, value=0.0, key="image"):
    crop = MultiLevelCropMaskd(key, [(32, 32, 32), (16, 16, 16), (8, 8, 8)], (16, 16, 16), 4, 0.6, 2)
    return crop.set_random_state(seed)({key: torch.full((1, 34, 34, 34), value)})


def test_shapes_and_order_of_a_batch():
    samples = [sample(0, 1.0), sample(1, 2.0), sample(2, 3.0)]
    levels = level_batch(list_data_collate(samples), 3)
    assert [tuple(image.shape) for image in levels.images] == [(v * 3, 1, 16, 16, 16) for v in (1, 2, 4)]
    assert [tuple(masked.shape) for masked in levels.masked] == [(v * 3, 64) for v in (1, 2, 4)]
    assert [tuple(token.shape) for token in levels.parent_token] == [(6,), (12,)]
    assert [tuple(overlap.shape) for overlap in levels.parent_overlap] == [(6, 64), (12, 64)]
    # the volumes of a sample stay together: intensities 1, 2, 3 name the samples
    for image, volumes in zip(levels.images, (1, 2, 4), strict=True):
        assert torch.equal(image[:, 0, 0, 0, 0], torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(volumes))


def test_parents_of_a_batch_are_i_over_num_children():
    levels = level_batch(list_data_collate([sample(seed) for seed in range(4)]), 3)
    for pair in range(2):
        tokens, masked = levels.parent_token[pair], levels.masked[pair]
        parent = torch.arange(len(tokens)) // 2
        assert masked[parent, tokens].all(), "drawn from a masked token of that parent"
        assert levels.parent_overlap[pair][torch.arange(len(tokens)), tokens].all()


def test_fewer_levels_than_the_batch_has():
    levels = level_batch(list_data_collate([sample(0)]), 1)
    assert len(levels.images) == len(levels.masked) == 1
    assert levels.parent_token == levels.parent_overlap == ()


def test_values_types_and_device():
    batch = list_data_collate([sample(0)])
    levels = level_batch(batch, 3, "cpu")
    assert torch.equal(levels.masked[2], batch["masked_level3"][0])
    assert levels.masked[0].dtype == torch.bool and levels.parent_overlap[0].dtype == torch.bool
    assert levels.parent_token[0].dtype == torch.int64 and levels.images[0].dtype == torch.float32


def test_content_of_a_batch():
    batch = list_data_collate([sample(seed) for seed in range(2)])
    batch["content_level2"] = torch.tensor([[True, False], [False, False]])
    batch["content_level3"] = torch.tensor([[True, False, True, False], [True, True, True, True]])
    levels = level_batch(batch, 3)
    assert levels.content_weight[0].tolist() == [0.5, 0, 0, 0]  # of two samples
    assert levels.content_weight[1].tolist() == [0.25, 0, 0.25, 0, 0.125, 0.125, 0.125, 0.125]
    assert [content.tolist() for content in levels.content] == [
        [True, False, False, False], [True, False, True, False, True, True, True, True]
    ]  # fmt: skip
    shares = {name: share.item() for name, share in levels.empty_children().items()}
    assert shares == {"empty_children_level2": 3 / 4, "empty_children_level3": 2 / 8}
    parts = [levels.take(part).empty_children(levels.sizes) for part in split_levels(levels.sizes, 2)]
    assert {name: sum(part[name].item() for part in parts) for name in shares} == shares


def test_another_key():
    assert level_batch(list_data_collate([sample(0, key="ct")]), 3, key="ct").images[0].shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize(
    "missing", ["image_level2", "masked_level3", "parent_token_level2", "parent_overlap_level3", "content_level3"]
)
def test_missing_key_is_named(missing):
    batch = list_data_collate([sample(0)])
    del batch[missing]
    with pytest.raises(KeyError, match=f"the batch has no '{missing}'; keys: .*affine_level1"):
        level_batch(batch, 3)
