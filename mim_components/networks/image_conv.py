"""Convolution of an image of one or two channels, in the memory layout in which the rest is fastest on CPU.

Axes: image (B, C, H, W, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 3
SLOW_ROWS = 20480  # batch * C * H * W up to which PyTorch 2.13 does not use oneDNN for one image


class ImageConv(nn.Conv3d):
    """PyTorch's convolution without dilation or groups; channels-last maps on CPU.

    With one channel PyTorch gives maps in the default layout, which must be copied both ways, and sends a single image
    of less than 143 x 143 rows to a slower convolution. So channels of zeros, with weights of zeros, fill an image up
    to three. A single one that is too small for the faster convolution even so goes as it is.
    """

    def forward(self, input: Tensor) -> Tensor:  # PyTorch's name
        """Maps `(B, C', H', W', D')` of an image `(B, C, H, W, D)`."""
        missing = LEAST_CHANNELS - self.in_channels
        fast = len(input) > 1 or LEAST_CHANNELS * input.shape[2] * input.shape[3] > SLOW_ROWS
        if input.device.type != "cpu" or missing <= 0 or not fast:
            return super().forward(input)
        image, weight = (F.pad(each, (0, 0, 0, 0, 0, 0, 0, missing)) for each in (input, self.weight))
        image = image.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(image, weight, self.bias, self.stride, self.padding)


def replace_image_convs(module: nn.Module, in_channels: int) -> None:
    """Put `ImageConv`, with the same parameters, in the place of the convolutions that take `in_channels` channels."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv3d and child.in_channels == in_channels:
                conv = ImageConv(in_channels, child.out_channels, child.kernel_size, device="meta")  # type: ignore[arg-type]
                conv.stride, conv.padding = child.stride, child.padding
                conv.weight, conv.bias = child.weight, child.bias
                setattr(parent, name, conv)
