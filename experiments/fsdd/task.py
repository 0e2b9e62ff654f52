"""Spoken digits: log-mel images (32 bands, 63 frames) of the free spoken digit dataset and a plain network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.task import Task
from experiments.networks import plain_network
from experiments.training import Recipe, data_file, print_accuracies, stratified, trained

RECIPE = Recipe(epochs=16, shift=(1.0, 6.0))
SEED = 0
MEAN, DEVIATION = -10.0, 5.0  # of all values


def load_clips() -> dict[str, Array]:
    """The arrays of `fsdd/fsdd_logmel32.npz` in the data folder: x, y, speaker and is_test.

    Raises:
        InvalidInput: If no data folder is given, or it does not hold the file.
    """
    with np.load(data_file("fsdd", "fsdd_logmel32.npz")) as file:
        return dict(file)


def make_splits() -> dict[str, tuple[Array, Array]]:
    """Train, calibration (a part of train), validation and test data.

    The test clips are those of the dataset's own split; all parts have the same share of each digit by each speaker.
    """
    clips = load_clips()
    images, classes = (
        ((clips["x"].astype(np.float32) - MEAN) / DEVIATION)[:, None],
        clips["y"].astype(np.int64),
    )
    groups, known = classes * 10 + clips["speaker"], np.flatnonzero(~clips["is_test"])
    validation, train = (known[rows] for rows in stratified(groups[known], sizes=(450,), seed=SEED))
    calibration = train[stratified(groups[train], sizes=(256,), seed=SEED)[0]]
    test = np.flatnonzero(clips["is_test"])
    rows = {"train": train, "calibration": calibration, "validation": validation, "test": test}
    return {name: (images[part], classes[part]) for name, part in rows.items()}


def network() -> nn.Module:
    """Five convolutions without shortcuts; images (samples, 1, 32, 63) to scores (samples, 10)."""
    return plain_network((16, 1), (32, 2), (32, 1), (64, 2), (64, 1))


def baseline() -> nn.Module:
    """The trained network; trained on first use, in about 30 seconds on two cores."""
    return trained("fsdd", network, SPLITS["train"], RECIPE)


SPLITS = make_splits()

task = Task(
    name="fsdd",
    model=baseline,
    train=SPLITS["train"],
    calibration=SPLITS["calibration"],
    validation=SPLITS["validation"],
    test=SPLITS["test"],
)

if __name__ == "__main__":
    print_accuracies(task)
