"""CIFAR-10 images and the ResNet-20 of He et al., with weights trained before."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.task import Task
from experiments.networks import CifarResNet
from experiments.training import CroppedImages, data_file, normalized, print_accuracies

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALIDATION, CALIBRATION = 2000, 256
HIDDEN, GREY = 12, 115
"""Side of the square that is hidden in validation images, in pixels, and its value."""


def load_images(part: str) -> tuple[Array, Array]:
    """Images as bytes (images, 3, 32, 32) and their classes, of `cifar10/train20k.npz` or `test5k.npz`.

    Raises:
        InvalidInput: If no data folder is given, or it does not hold the file.
    """
    with np.load(data_file("cifar10", f"{part}.npz")) as file:
        return np.ascontiguousarray(file["x"].transpose(0, 3, 1, 2)), file["y"].astype(np.int64)


def floats(images: Array) -> Array:
    """Images as the network takes them."""
    return normalized(images, MEAN, DEVIATION)


def with_hidden_squares(images: Array, *, copies: int = 2, seed: int = 0) -> Array:
    """Each image some times over with a square hidden at random, (copies × images, 3, 32, 32).

    The weights know the images by heart: a model that learns anew what it lost scores worse on them than the original
    for that alone. With a part of them hidden, losses are close to those on images that the weights have not seen.
    """
    hidden = np.tile(images, (copies, 1, 1, 1))
    places = np.random.default_rng(seed).integers(0, images.shape[2] - HIDDEN + 1, (len(hidden), 2))
    for image, (row, column) in zip(hidden, places, strict=True):
        image[:, row : row + HIDDEN, column : column + HIDDEN] = GREY
    return hidden


def baseline() -> nn.Module:
    """ResNet-20 with the weights of `cifar10/resnet20.pt`: 87.64 % on the test images."""
    network = CifarResNet()
    weights = torch.load(data_file("cifar10", "resnet20.pt"), map_location="cpu", weights_only=True)
    shortcuts = {name: value for name, value in network.state_dict().items() if ".shortcut." in name}  # never trained
    network.load_state_dict(weights | shortcuts)
    return network.eval()


def make_task() -> Task:
    """The task; the weights have been trained on the validation images too, so parts of these are hidden."""
    (images, classes), (test_images, test_classes) = load_images("train20k"), load_images("test5k")
    train = CroppedImages(images[:-VALIDATION], classes[:-VALIDATION], MEAN, DEVIATION)
    return Task(
        name="cifar10",
        model=baseline,
        train=train,
        calibration=(floats(images[:CALIBRATION]), classes[:CALIBRATION]),
        validation=(floats(with_hidden_squares(images[-VALIDATION:])), np.tile(classes[-VALIDATION:], 2)),
        test=(floats(test_images), test_classes),
        students={"half_width": partial(CifarResNet, width=0.5), "two_blocks": partial(CifarResNet, blocks=2)},
        batch_size=128,
    )


task = make_task()

if __name__ == "__main__":
    print_accuracies(task)
