"""Handwritten digits: scikit-learn's 8×8 images at 32×32 and a residual network; the default example."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.serialization import write_atomically
from autocompress.task import Task
from experiments.networks import ResidualNetwork
from experiments.training import Recipe, cache_folder, print_accuracies, stratified, trained

RECIPE = Recipe(epochs=12, shift=(2.0, 2.0), turn=0.15)
SEED = 0
MEAN, DEVIATION = 4.9, 6.0  # of the 8×8 images, whose values go from 0 to 16


def load_images() -> tuple[Array, Array]:
    """All images (1797, 1, 32, 32), normalized, and their classes.

    scikit-learn takes two seconds to import, so its images are kept beside the trained weights.
    """
    path = cache_folder() / "digits-8x8.npz"
    if not path.is_file():
        _keep_images(path)
    with np.load(path) as file:
        small, classes = file["images"], file["classes"]
    images = functional.interpolate(torch.from_numpy(small)[:, None].float(), size=(32, 32), mode="bilinear")
    return ((images - MEAN) / DEVIATION).numpy(), classes


def _keep_images(path: Path) -> None:
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    content = io.BytesIO()
    np.savez_compressed(content, images=images.reshape(-1, 8, 8).astype(np.uint8), classes=classes.astype(np.int64))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def make_splits() -> dict[str, tuple[Array, Array]]:
    """Train, calibration (a part of train), validation and test data, with the same share of each digit."""
    images, classes = load_images()
    test, validation, train = stratified(classes, sizes=(400, 400), seed=SEED)
    calibration = train[stratified(classes[train], sizes=(256,), seed=SEED)[0]]
    rows = {"train": train, "calibration": calibration, "validation": validation, "test": test}
    return {name: (images[part], classes[part]) for name, part in rows.items()}


def baseline() -> nn.Module:
    """The trained residual network; trained on first use, in about 25 seconds on two cores."""
    return trained("digits", ResidualNetwork, SPLITS["train"], RECIPE)


SPLITS = make_splits()

task = Task(
    name="digits",
    model=baseline,
    train=SPLITS["train"],
    calibration=SPLITS["calibration"],
    validation=SPLITS["validation"],
    test=SPLITS["test"],
)

if __name__ == "__main__":
    print_accuracies(task)
