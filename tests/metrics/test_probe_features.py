"""Features of voxels, and the classifier over windows, against a straightforward computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_components.metrics.probe.features import RawFeatures, WindowFeatures, add_position
from mim_components.metrics.probe.heads import LinearClassifier


class Pyramid(nn.Module):
    """Maps of 1/2 and 1/4 of the image, 1 and 2 channels."""

    def forward(self, image: Tensor) -> list[Tensor]:
        half = F.avg_pool3d(image, 2)
        quarter = F.avg_pool3d(image, 4)
        return [half, torch.cat([quarter, quarter.square()], 1)]


def every_voxel(shape: tuple[int, ...]) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(side) for side in shape))


def up_sampled(image: Tensor) -> Tensor:
    maps = Pyramid()(image[None])
    return torch.cat([F.interpolate(each, image.shape[1:], mode="trilinear") for each in maps], 1)[0]


def test_features_are_the_up_sampled_maps() -> None:
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    features = WindowFeatures(Pyramid(), (16, 16, 16), 4).at(image, every_voxel((16, 16, 16)))
    torch.testing.assert_close(features, up_sampled(image).flatten(1).T)


def test_classes_are_those_of_the_up_sampled_maps() -> None:
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0, -2.0, 0.9], [-1.0, 2.0, -0.8], [5.0, 0.1, 0.3]])
    classifier = LinearClassifier(weight, torch.tensor([0.1, 0.0, -2.65]))
    expected = torch.einsum("kf,fhwd->khwd", weight, up_sampled(image)) + classifier.bias.view(-1, 1, 1, 1)
    found = WindowFeatures(Pyramid(), (16, 16, 16), 4).classify(image, [classifier])[0]
    assert found.dtype == torch.uint8
    assert len(found.unique()) > 1 and torch.equal(found.long(), expected.argmax(0))


def test_each_voxel_comes_from_the_window_whose_middle_is_nearest() -> None:
    class Corner(nn.Module):
        """Sees only the first voxel of its window."""

        def forward(self, image: Tensor) -> list[Tensor]:
            return [image[..., :1, :1, :1].expand(-1, -1, 2, 2, 2)]

    image = torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 8, 8)  # its value is the position along H
    windows = WindowFeatures(Corner(), (8, 8, 8), 4)
    # windows begin at 0, 4 and 8, their middles are 3.5, 7.5 and 11.5
    features = windows.at(image, torch.tensor([[0, 0, 0], [5, 7, 7], [6, 0, 0], [9, 0, 0], [10, 0, 0], [15, 7, 7]]))
    assert features.flatten().tolist() == [0, 0, 4, 4, 8, 8]


def test_scan_smaller_than_a_window() -> None:
    image = torch.rand(1, 5, 6, 7)
    classifier = LinearClassifier(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))
    assert WindowFeatures(Pyramid(), (16, 16, 16), 4).classify(image, [classifier] * 2).shape == (2, 5, 6, 7)


def test_positions_end_at_one() -> None:
    placed = add_position(torch.zeros(1, 3, 5, 2))
    assert placed.shape == (4, 3, 5, 2)
    assert placed[1:, 2, 2, 1].tolist() == [1.0, 0.5, 1.0]


def test_far_faces_have_their_own_intensity_and_position() -> None:
    image = add_position(torch.full((1, 20, 20, 45), 0.7))  # padded to 32 x 32 x 48
    windows = WindowFeatures(RawFeatures(), (16, 16, 16), 16, padding="replicate")
    # voxel 10 of 20 lies at 10 / 19; the last cell along D holds voxel 44 alone, at 1, its neighbour 42 and 43 of 44
    expected = torch.tensor([[0.7, 10 / 19, 10 / 19, 0.75 + 0.25 * 42.5 / 44]])
    torch.testing.assert_close(windows.at(image, torch.tensor([[10, 10, 44]])), expected)
    nothing = LinearClassifier(torch.tensor([[0.0] * 4, [1.0, 0.0, 0.0, 0.0]]), torch.tensor([0.0, -0.69]))
    assert windows.classify(image, [nothing]).unique().tolist() == [1]  # above 0.69 up to every face
