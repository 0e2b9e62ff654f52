"""Small real models, data for them, and a machine: what tests of methods, graphs and exports share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from autocompress.data import Array, as_split
from autocompress.devices.detection import detect_profile
from autocompress.methods import Context
from autocompress.profile import HardwareProfile

CLASSES = 4

PROFILE = HardwareProfile(
    "test",
    device="fake",
    channel_multiple=4,
    kernels={"conv": ("int8",), "linear": ("int8", "dynamic_int8")},
    reduce_range=detect_profile().reduce_range,
)
"""A machine with all 8-bit kernels that likes channels in fours; its products saturate if those of this one do."""

settings.register_profile("project", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("project")

torch.set_num_threads(1)  # small tensors gain nothing from more, and tests beside other work lose much


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, value: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(value)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.short(value))


class ResidualNet(nn.Module):
    """A small ResNet; images (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.layers = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2))
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        hidden: Tensor = self.layers(torch.relu(self.stem(image)))
        return self.fc(hidden.mean((2, 3)))


class AttentionNet(nn.Module):
    """A transformer encoder; sequences (batch, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(sequence)).mean(1))


class RecurrentNet(nn.Module):
    """An LSTM between linear layers; sequences (batch, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.hidden = nn.Linear(16, 32)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(sequence))
        return self.fc(torch.relu(self.hidden(states[:, -1])))


def depthwise_net() -> nn.Module:
    """Depthwise and pointwise convolutions with BatchNorm; images (batch, 3, 8, 8)."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def mlp() -> nn.Module:
    """Three linear layers; features (batch, 8)."""
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def conv1d_net() -> nn.Module:
    """Convolutions over a signal; signals (batch, 2, 16)."""
    return nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7, CLASSES),
    )


@dataclass(frozen=True)
class Specimen:
    """A model for tests: how it is built, and the shape of one sample."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def model(self) -> nn.Module:
        """The model with fixed random weights and lived-in batch norms, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
                    nn.init.normal_(module.running_mean, 0, 0.2)
                    nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    def samples(self, count: int) -> Array:
        """Random inputs (count, …)."""
        return np.random.default_rng(0).standard_normal((count, *self.shape)).astype(np.float32)

    @property
    def examples(self) -> tuple[Array, ...]:
        """The inputs of one inference."""
        return (self.samples(1),)


SPECIMENS = {
    "residual": Specimen(ResidualNet, (3, 8, 8)),
    "depthwise": Specimen(depthwise_net, (3, 8, 8)),
    "attention": Specimen(AttentionNet, (6, 8)),
    "recurrent": Specimen(RecurrentNet, (6, 8)),
    "mlp": Specimen(mlp, (8,)),
    "conv1d": Specimen(conv1d_net, (2, 16)),
}


def context_of(specimen: Specimen, profile: HardwareProfile, *, seed: int = 0) -> Context:
    """What a method sees beside a test model."""
    samples = specimen.samples(32)
    return Context(
        specimen.examples, as_split((samples, np.zeros(len(samples), np.int64)), "calibration"), profile, seed
    )


@pytest.fixture(params=sorted(SPECIMENS))
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """Each of the test models in turn."""
    return SPECIMENS[request.param]


@pytest.fixture
def profile() -> HardwareProfile:
    """The machine of the tests."""
    return PROFILE
