"""The networks of the example tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shortcut = Callable[[int, int, int], nn.Module]
"""From channels in, channels out and stride to what brings the input of a block to the shape of its output."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, by default a convolution with BatchNorm where the width changes.

    References:
        He et al., "Deep residual learning for image recognition", 2015.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else (shortcut or _projection)(inputs, outputs, stride)

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


class PaddedShortcut(nn.Conv2d):
    """The shortcut without parameters of He et al. (their option A) between two widths, as an equal 1×1 convolution.

    Every other pixel is taken and zero channels are put before and behind: products with ones and zeros, so the result
    is the same to the last bit, and whoever removes channels finds a layer to remove them from.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)
        before = (outputs - inputs) // 2
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.weight[before : before + inputs, :, 0, 0] = torch.eye(inputs)


class CifarResNet(nn.Module):
    """The residual networks for CIFAR-10: three stages of 16, 32 and 64 channels; 6 × blocks + 2 layers.

    Args:
        width: Share of the channels.
        blocks: Residual blocks of each stage; 3 for ResNet-20.
        classes: Number of outputs.

    References:
        He et al., "Deep residual learning for image recognition", 2015, section 4.2.
    """

    def __init__(self, width: float = 1.0, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        first, second, third = (round(width * channels) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2, shortcut=PaddedShortcut)
        self.layer3 = _stage(second, third, blocks, stride=2, shortcut=PaddedShortcut)
        self.linear = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (samples, 3, 32, 32) to scores (samples, classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(x.mean(dim=(2, 3)))
        return scores


class EncoderBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside the stream.

    References:
        Vaswani et al., "Attention is all you need", 2017; Xiong et al., "On layer normalization in the transformer
        architecture", 2020.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (samples, tokens, width) to sequences of the same shape."""
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, y, need_weights=False)[0])
        hidden = self.dropout(nn.functional.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.dropout(self.fc2(hidden))
        return out


class Encoder(nn.Module):
    """A transformer encoder over vectors, for questions of latency: by default 4 layers of width 256, for 128 tokens.

    Args:
        width: Of the stream and of the inputs.
        layers: Encoder blocks.
        heads: Of each attention.
        hidden: Width of each MLP.
    """

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, hidden: int = 1024) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden, 0.0) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (samples, tokens, width) to sequences of the same shape."""
        y: Tensor = self.norm(self.blocks(x))
        return y


class TextTransformer(nn.Module):
    """Words to a class: embeddings, encoder blocks, the mean over the words, a linear layer.

    Args:
        vocabulary: Number of ids; 0 fills up short texts, 1 is any unknown word.
        classes: Number of outputs.
        length: Ids of a text.
        width: Of the embeddings and the stream.
        layers: Encoder blocks.
        heads: Of each attention.
        hidden: Width of each MLP.
        dropout: Of the blocks and the embeddings; half as many words are made unknown, so that those are learned too.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        length: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Texts as ids (samples, length), filled up with zeros, to scores (samples, classes)."""
        known = (ids > 0).unsqueeze(2).to(self.places.dtype)
        if self.training:
            unknown = (torch.rand(ids.shape) < self.dropout.p / 2) & (ids > 0)
            ids = ids.masked_fill(unknown, 1)
        x = self.norm(self.blocks(self.dropout((self.words(ids) + self.places) * known)))
        scores: Tensor = self.fc((x * known).sum(1) / known.sum(1).clamp_min(1))
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


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: Shortcut | None = None) -> nn.Sequential:
    """Residual blocks of one width, the first of which changes the resolution."""
    first = ResidualBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A shortcut between two widths."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
