"""Baselines of the example tasks: trained on first use, then read from a cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from autocompress.data import Array, Batch, as_split
from autocompress.errors import InvalidInput
from autocompress.serialization import digest, write_atomically
from autocompress.task import Task

Pair = tuple[Array, Array]
"""Inputs (samples, …) and targets (samples,)."""


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained: AdamW, one-cycle schedule, cross-entropy.

    Args:
        epochs: Passes over the training data.
        learning_rate: Peak of the schedule.
        batch_size: Samples a step.
        weight_decay: Of AdamW.
        shift: Largest random shift of an image along its rows and its columns, in pixels.
        turn: Largest random rotation in radians.
        label_smoothing: Share of each target that is spread over all classes, in [0, 1).
        seed: Of the first weights, the order and the augmentation.
    """

    epochs: int
    learning_rate: float = 0.004
    batch_size: int = 64
    weight_decay: float = 0.05
    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0


def trained(name: str, build: Callable[[], nn.Module], data: Pair, recipe: Recipe) -> nn.Module:
    """The trained baseline of a task; several processes may ask at once, one of them trains.

    Args:
        name: Of the task, for the cache and the progress bar.
        build: Makes the untrained network.
        data: Training inputs (samples, …), images (samples, channels, rows, columns) if the recipe moves them, and
            classes.
        recipe: How to train.

    Returns:
        The network in evaluation mode.
    """
    with _seeded(recipe.seed):
        network = build()
        path = cache_folder() / f"{name}-{_digest(network, data, recipe)}" / "model.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.is_file():
                    fit(network, data, recipe, title=f"Training the {name} baseline")
                    write_atomically(path, save(network.state_dict()))
    network.load_state_dict(load_file(path))
    return network.eval()


def cache_folder() -> Path:
    """Where trained baselines are kept: `$XDG_CACHE_HOME/autocompress`, by default `~/.cache/autocompress`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress"


def fit(network: nn.Module, data: Pair, recipe: Recipe, title: str) -> None:
    """Train the network in place, with a progress bar on standard error."""
    inputs, targets = (torch.from_numpy(array) for array in data)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = len(targets) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)
    network.train()
    with _progress() as progress:
        bar = progress.add_task(title, total=recipe.epochs * steps)
        for _ in range(recipe.epochs):
            order = torch.randperm(len(targets))[: steps * recipe.batch_size]
            for rows in order.reshape(steps, recipe.batch_size):
                outputs = network(_augment(inputs[rows], recipe))
                loss = functional.cross_entropy(outputs, targets[rows], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                progress.advance(bar)


def stratified(classes: Array, sizes: tuple[int, ...], seed: int) -> tuple[Array, ...]:
    """Rows of disjoint parts in which every class has the same share, and of the rest.

    Args:
        classes: Class of each sample (samples,).
        sizes: Samples of each part; a part may hold a few fewer or more, as shares are rounded.
        seed: Of the draw.

    Returns:
        Sorted row numbers of each part, then of the rest.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum(sizes) / len(classes)
    parts: list[list[Array]] = [[] for _ in range(len(sizes) + 1)]
    for value in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == value))
        for part, chunk in zip(parts, np.split(rows, np.round(ends * len(rows)).astype(int)), strict=True):
            part.append(chunk)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


@dataclass(frozen=True)
class CroppedImages:
    """Training images of whole numbers, shifted, mirrored and normalized anew in every epoch.

    Args:
        images: Bytes (samples, channels, rows, columns).
        classes: Class of each image (samples,).
        mean, deviation: Of each channel, for values in [0, 1].
        border: Black pixels around each image, from which it is cut out again at a random place.
    """

    images: Array
    classes: Array
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    border: int = 4

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Batches of up to `size` images; shuffled and moved if a seed is given, else in order and as they are."""
        if seed is None:
            for start in range(0, len(self.classes), size):
                chunk = slice(start, start + size)
                yield Batch((normalized(self.images[chunk], self.mean, self.deviation),), self.classes[chunk])
            return
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self.classes))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            moved = self._moved(self.images[rows], generator)
            yield Batch((normalized(moved, self.mean, self.deviation),), self.classes[rows])

    def fingerprint(self) -> str:
        """Digest of the images as they are."""
        return as_split((self.images, self.classes), "train").fingerprint()

    def _moved(self, images: Array, generator: np.random.Generator) -> Array:
        count, _, height, width = images.shape
        edge = (self.border, self.border)
        padded = np.pad(images, ((0, 0), (0, 0), edge, edge))
        down, right = generator.integers(0, 2 * self.border + 1, (2, count, 1))
        columns = right + np.arange(width)
        mirrored = generator.random(count) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
        samples = np.arange(count)[:, None, None, None]
        channels = np.arange(images.shape[1])[:, None, None]
        moved: Array = padded[
            samples, channels, (down + np.arange(height))[:, None, :, None], columns[:, None, None, :]
        ]
        return moved


def normalized(images: Array, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Array:
    """Bytes (samples, channels, rows, columns) as floats, of which each channel has mean 0 and deviation 1."""
    shift, scale = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, deviation))
    floats: Array = (images.astype(np.float32) / 255 - shift) / scale
    return floats


def data_file(task: str, name: str) -> Path:
    """A file of the data folder, which `--data DIR` or AUTOCOMPRESS_DATA gives.

    Raises:
        InvalidInput: If no data folder is given, or it does not hold the file.
    """
    folder = os.environ.get("AUTOCOMPRESS_DATA", "")
    if not folder:
        raise InvalidInput(
            f"the {task} task has no data: give the folder that holds {task}/ by --data DIR or AUTOCOMPRESS_DATA"
        )
    path = Path(folder).expanduser() / task / name
    if not path.is_file():
        raise InvalidInput(f"the {task} task found no file {path}; give the folder that holds {task}/{name}")
    return path


def print_accuracies(task: Task) -> None:
    """Train the baseline of a task if needed and print how good it is."""
    model = task.build_model()

    def predict(inputs: tuple[Array, ...]) -> Array:
        with torch.inference_mode():
            outputs: Array = model(torch.from_numpy(inputs[0])).numpy()
        return outputs

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{task.name}: {parameters:,} parameters")
    for split in ("validation", "test"):
        print(f"{split} accuracy: {task.score(predict, split, batch_size=256):.2%}")


def _augment(images: Tensor, recipe: Recipe) -> Tensor:
    """Shift and turn every image by random amounts; what comes in from outside repeats the border."""
    if not any((*recipe.shift, recipe.turn)):
        return images
    count, _, height, width = images.shape
    angle, down, right = (2 * torch.rand(3, count) - 1) * torch.tensor(
        [[recipe.turn], *_columns(recipe, height, width)]
    )
    cosine, sine = angle.cos(), angle.sin()
    rows = (torch.stack((cosine, -sine, right), 1), torch.stack((sine, cosine, down), 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _columns(recipe: Recipe, height: int, width: int) -> tuple[list[float], list[float]]:
    """The largest shifts in the unit of a sampling grid, whose sides are 2 long."""
    return [2 * recipe.shift[0] / height], [2 * recipe.shift[1] / width]


def _digest(network: nn.Module, data: Pair, recipe: Recipe) -> str:
    return digest({"network": repr(network), "data": as_split(data, "train").fingerprint(), "recipe": asdict(recipe)})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch and put its random state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr))
