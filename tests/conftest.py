"""Small real models, data for them, and a machine: what tests of methods, graphs and exports share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from autocompress.data import Array, as_split
from autocompress.devices.detection import detect_profile
from autocompress.graph.running import output_shapes
from autocompress.methods import Context
from autocompress.pipeline import Workbench
from autocompress.profile import HardwareProfile
from autocompress.task import Task

CLASSES = 4

PROFILE = HardwareProfile(
    "test",
    device="fake",
    channel_multiple=4,
    kernels={"conv": ("int8",), "linear": ("int8", "dynamic_int8")},
    reduce_range=detect_profile().reduce_range,
)
"""A machine with all 8-bit kernels that likes channels in fours; its products saturate if those of this one do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many random plans `test_plans.py` carries out."""
    parser.addoption("--plans", type=int, default=200, help="random plans of three or more methods (default: 200)")


STARTS_RAY = {"test_every_executor", "test_ray", "test_ray_client", "test_tune"}
"""Files whose tests start clusters of Ray, each of which takes itself to be alone on the machine."""


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the tests, one has those of a file, and one all that start Ray."""
    for item in items:
        group = "ray" if item.path.stem in STARTS_RAY else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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


class Attention(nn.Module):
    """Self-attention as many write it: one product for queries, keys and values, cut into heads by a reshape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        parts = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, -1))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.fc2(nn.functional.gelu(self.fc1(self.norm2(tokens))))


class HandwrittenNet(nn.Module):
    """A transformer written out; sequences (batch, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.blocks = nn.Sequential(EncoderBlock(16, 4), EncoderBlock(16, 4))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.fc(self.blocks(self.embed(sequence)).mean(1))


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


class SqueezeExcite(nn.Module):
    """Channels weighted by a small network of their means."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        means = image.mean((2, 3), keepdim=True)
        return image * torch.sigmoid(self.expand(torch.relu(self.squeeze(means))))


def depthwise_net() -> nn.Module:
    """Depthwise and pointwise convolutions with BatchNorm and squeeze-excite; images (batch, 3, 8, 8)."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), SqueezeExcite(16, 8)
        ),
        nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


class DenseNet(nn.Module):
    """Every layer reads the outputs of all before it, side by side; images (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16 + 8 * index) for index in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(16 + 8 * index, 8, 3, 1, 1, bias=False) for index in range(3)])
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features = torch.cat((features, conv(torch.relu(norm(features)))), 1)
        return self.fc(torch.relu(features).mean((2, 3)))


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution with BatchNorm and activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Down to quarter resolution and up again beside skips; images (batch, 3, 8, 8), a class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_block(3, 8), conv_block(8, 16, 2), conv_block(16, 32, 2)
        self.up2, self.merge2 = nn.ConvTranspose2d(32, 16, 2, 2), conv_block(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, 2), conv_block(16, 8)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down1(image)
        coarse = self.down2(fine)
        coarse = self.merge2(torch.cat((self.up2(self.bottom(coarse)), coarse), 1))
        return self.head(self.merge1(torch.cat((self.up1(coarse), fine), 1)))


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


class TwoInputs(nn.Module):
    """An image beside a question about it; images (batch, 3, 8, 8) and ids of words (batch, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(24, 16)
        self.question = nn.Linear(16, 16)
        self.image1, self.image2 = conv_block(3, 16, 2), conv_block(16, 16)
        self.hidden = nn.Linear(32, 32)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        asked = torch.relu(self.question(self.words(ids).mean(1)))
        seen = self.image2(self.image1(image)).mean((2, 3))
        return self.fc(torch.relu(self.hidden(torch.cat((seen, asked), 1))))


class TiedNet(nn.Module):
    """A table of words whose rows are also the classes; vectors (batch, 8) and ids (batch, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(24, 32)
        self.mix = nn.Linear(8, 32)
        self.inner = nn.Linear(32, 32)
        self.head = nn.Linear(32, 24)
        self.head.weight = self.words.weight

    def forward(self, vector: Tensor, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.inner(self.words(ids).mean(1) + self.mix(vector)))
        return self.head(hidden)


def normed_net() -> nn.Sequential:
    """Convolutions with weights that torch computes from others, and ReLU6; images (batch, 3, 8, 8)."""
    return nn.Sequential(
        *(parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1)), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        *(parametrizations.weight_norm(nn.Conv2d(16, 32, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, CLASSES),
    )


@dataclass(frozen=True)
class Ids:
    """An input of whole numbers, such as words: how many in a sample, and below what they are."""

    length: int
    entries: int


@dataclass(frozen=True)
class Specimen:
    """A model for tests: how it is built, the shape of one sample, and the ids that go with it if it reads any."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: Ids | None = None

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

    def samples(self, count: int) -> tuple[Array, ...]:
        """Random inputs, each (count, …)."""
        rng = np.random.default_rng(0)
        floats = rng.standard_normal((count, *self.shape)).astype(np.float32)
        if self.ids is None:
            return (floats,)
        return floats, rng.integers(0, self.ids.entries, (count, self.ids.length))

    def targets(self, count: int) -> Array:
        """Random classes (count, …), one for each pixel where the model gives as many."""
        shape = output_shapes(self.model(), self.examples)[0][2:]
        return np.random.default_rng(1).integers(0, CLASSES, (count, *shape))

    @property
    def examples(self) -> tuple[Array, ...]:
        """The inputs of one inference."""
        return self.samples(1)

    def outputs(self, model: nn.Module, count: int) -> Tensor:
        """What a model gives for the first samples, with gradients."""
        result: Tensor = model(*(torch.from_numpy(array) for array in self.samples(count)))
        return result


SPECIMENS = {
    "residual": Specimen(ResidualNet, (3, 8, 8)),
    "depthwise": Specimen(depthwise_net, (3, 8, 8)),
    "dense": Specimen(DenseNet, (3, 8, 8)),
    "unet": Specimen(UNet, (3, 8, 8)),
    "conv1d": Specimen(conv1d_net, (2, 16)),
    "mlp": Specimen(mlp, (8,)),
    "attention": Specimen(AttentionNet, (6, 8)),
    "handwritten": Specimen(HandwrittenNet, (6, 8)),
    "recurrent": Specimen(RecurrentNet, (6, 8)),
    "two_inputs": Specimen(TwoInputs, (3, 8, 8), Ids(6, 24)),
    "tied": Specimen(TiedNet, (8,), Ids(6, 24)),
    "normed": Specimen(normed_net, (3, 8, 8)),
}


def context_of(specimen: Specimen, profile: HardwareProfile, *, seed: int = 0) -> Context:
    """What a method sees beside a test model."""
    calibration = as_split((specimen.samples(32), specimen.targets(32)), "calibration")
    return Context(specimen.examples, calibration, profile, seed, torch.nn.functional.cross_entropy)


def bench_of(specimen: Specimen, folder: Path) -> Workbench:
    """A test model as the task of a search, with a folder for its files."""
    data = (specimen.samples(32), specimen.targets(32))
    task = Task(
        name="specimen",
        model=specimen.model,
        train=data,
        validation=data,
        calibration=data,
        loss=torch.nn.functional.cross_entropy,
    )
    return Workbench(task, (PROFILE,), folder)


@pytest.fixture(params=sorted(SPECIMENS))
def specimen(request: pytest.FixtureRequest) -> Specimen:
    """Each of the test models in turn."""
    return SPECIMENS[request.param]


@pytest.fixture
def profile() -> HardwareProfile:
    """The machine of the tests."""
    return PROFILE
