"""The networks of the example tasks."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut.

    References:
        He et al., "Deep residual learning for image recognition", 2015.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Images (samples, inputs, rows, columns) to (samples, outputs, rows / stride, columns / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Three stages of residual blocks at full, half and quarter resolution.

    Args:
        widths: Channels of each stage.
        blocks: Residual blocks of each stage.
        classes: Number of outputs.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (samples, 1, rows, columns) to scores (samples, classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.fc(x.mean(dim=(2, 3)))
        return scores


def plain_network(*layers: tuple[int, int], classes: int = 10) -> nn.Sequential:
    """3×3 convolutions one after the other, without shortcuts, then the mean over the image and a linear layer.

    Args:
        layers: Channels and stride of each convolution.
        classes: Number of outputs.

    Returns:
        A network from images (samples, 1, rows, columns) to scores (samples, classes).
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    for number, (outputs, stride) in enumerate(layers, start=1):
        parts[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        parts[f"bn{number}"] = nn.BatchNorm2d(outputs)
        parts[f"relu{number}"] = nn.ReLU()
        inputs = outputs
    return nn.Sequential(
        parts | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, classes)}
    )


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks of one width, the first of which changes the resolution."""
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A shortcut between two widths."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
