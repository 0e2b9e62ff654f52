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
BLENDS = ((7, 0.35), (211, 0.4), (501, 0.35), (1203, 0.4), (1607, 0.35))
"""How many places further on the other images in validation images are taken from, and their shares."""


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


def blended(images: Array) -> Array:
    """Each image blended with some others, one at a time, (blends × images, 3, 32, 32).

    The weights know the images by heart: a model that learns anew what it lost scores worse on them than the original
    for that alone. Blended with another, losses are close to those on images that the weights have not seen.
    """
    whole = images.astype(np.float32)
    mixed = [(1 - share) * whole + share * np.roll(whole, places, axis=0) for places, share in BLENDS]
    return np.concatenate(mixed).round().astype(np.uint8)


def baseline() -> nn.Module:
    """ResNet-20 with the weights of `cifar10/resnet20.pt`: 87.64 % on the test images."""
    network = CifarResNet()
    weights = torch.load(data_file("cifar10", "resnet20.pt"), map_location="cpu", weights_only=True)
    shortcuts = {name: value for name, value in network.state_dict().items() if ".shortcut." in name}  # never trained
    network.load_state_dict(weights | shortcuts)
    return network.eval()


def make_task() -> Task:
    """The task; the weights have been trained on the validation images too, so others are blended into these."""
    (images, classes), (test_images, test_classes) = load_images("train20k"), load_images("test5k")
    train = CroppedImages(images[:-VALIDATION], classes[:-VALIDATION], MEAN, DEVIATION)
    return Task(
        name="cifar10",
        model=baseline,
        train=train,
        calibration=(floats(images[:CALIBRATION]), classes[:CALIBRATION]),
        validation=(floats(blended(images[-VALIDATION:])), np.tile(classes[-VALIDATION:], len(BLENDS))),
        test=(floats(test_images), test_classes),
        students={"half_width": partial(CifarResNet, width=0.5), "two_blocks": partial(CifarResNet, blocks=2)},
        batch_size=128,
    )


task = make_task()

if __name__ == "__main__":
    print_accuracies(task)
