"""A real task in a second: which of four directions the stripes in an image run in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import autocompress

Pair = tuple[np.ndarray, np.ndarray]


def make_images(count: int, seed: int) -> Pair:
    """Noisy stripes (count, 1, 12, 12) and their direction 0-3."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, count)
    rows, columns = np.mgrid[0:12, 0:12]
    angles = classes[:, None, None] * np.pi / 4
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    waves = np.sin(1.3 * (rows * np.cos(angles) + columns * np.sin(angles)) + phase)
    noisy = waves + rng.normal(0, 1.2, waves.shape)
    return noisy[:, None].astype(np.float32), classes


class Net(nn.Module):
    """Three convolutions, one of them residual, and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        hidden = torch.relu(hidden + self.outer(torch.relu(self.inner(hidden))))
        return self.head(hidden.mean((2, 3)))


def trained() -> nn.Module:
    """The network after four epochs."""
    torch.manual_seed(0)
    net = Net()
    images, classes = (torch.from_numpy(array) for array in make_images(512, 0))
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(4):
        for part in torch.randperm(512, generator=torch.Generator().manual_seed(1)).split(64):
            loss = nn.functional.cross_entropy(net(images[part]), classes[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


task = autocompress.Task(
    name="stripes",
    model=trained(),
    train=make_images(512, 0),
    validation=make_images(200, 1),
    test=make_images(200, 2),
    students={"small": lambda: Net(8)},
)
