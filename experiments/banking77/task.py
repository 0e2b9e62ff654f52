"""Questions to a bank and their intents: BANKING77 as words and a small transformer."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.data import Array
from autocompress.task import Task
from experiments.networks import TextTransformer
from experiments.training import Recipe, data_file, print_accuracies, stratified, trained

RECIPE = Recipe(epochs=40, learning_rate=0.002, weight_decay=0.1, label_smoothing=0.1)
SEED = 0
LENGTH = 32
"""Words of a question that are read; one in 25 is longer."""

FILL, UNKNOWN = 0, 1
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]|[?!$€£%]")


def read(part: str) -> tuple[list[str], list[str]]:
    """Questions and the names of their intents, of `banking77/train.csv` or `test.csv` in the data folder.

    Raises:
        InvalidInput: If no data folder is given, or it does not hold the file.
    """
    with data_file("banking77", f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def tokens(text: str) -> list[str]:
    """Lower-case words, single digits and some marks.

    >>> tokens("What's the fee for 20 EUR?")
    ["what's", 'the', 'fee', 'for', '2', '0', 'eur', '?']
    """
    return _TOKEN.findall(text.lower().replace("’", "'"))


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """An id from 2 on for each token that occurs in the texts, the most frequent first."""
    counts = Counter(token for text in texts for token in tokens(text))
    return {token: number for number, (token, _) in enumerate(sorted(counts.items(), key=lambda i: (-i[1], i[0])), 2)}


def encode(texts: Iterable[str], words: dict[str, int]) -> Array:
    """The first words of each text as ids (texts, LENGTH), filled up with zeros."""
    rows = [[words.get(token, UNKNOWN) for token in tokens(text)[:LENGTH]] for text in texts]
    return np.array([row + [FILL] * (LENGTH - len(row)) for row in rows], np.int64)


def make_splits() -> tuple[dict[str, tuple[Array, Array]], int]:
    """Train, calibration (a part of train), validation and test data, and the size of the vocabulary.

    The vocabulary is that of the training part; all parts of it have the same share of each intent.
    """
    (texts, names), (test_texts, test_names) = read("train"), read("test")
    intents = {
        name: number for number, name in enumerate(json.loads(data_file("banking77", "categories.json").read_text()))
    }
    classes, test_classes = (np.array([intents[name] for name in part]) for part in (names, test_names))
    validation, train = stratified(classes, sizes=(1000,), seed=SEED)
    calibration = train[stratified(classes[train], sizes=(256,), seed=SEED)[0]]
    words = vocabulary(texts[row] for row in train)
    ids = encode(texts, words)
    rows = {"train": train, "calibration": calibration, "validation": validation}
    splits = {name: (ids[part], classes[part]) for name, part in rows.items()}
    return splits | {"test": (encode(test_texts, words), test_classes)}, len(words) + 2


def network(width: int = 128, layers: int = 2) -> nn.Module:
    """Two encoder blocks of width 128; ids (samples, 32) to scores (samples, 77)."""
    return TextTransformer(WORDS, 77, length=LENGTH, width=width, layers=layers, hidden=2 * width)


def baseline() -> nn.Module:
    """The trained transformer; trained on first use, in a few minutes."""
    return trained("banking77", network, SPLITS["train"], RECIPE)


SPLITS, WORDS = make_splits()

task = Task(
    name="banking77",
    model=baseline,
    train=SPLITS["train"],
    calibration=SPLITS["calibration"],
    validation=SPLITS["validation"],
    test=SPLITS["test"],
    students={"half_width": partial(network, width=64), "one_layer": partial(network, layers=1)},
)

if __name__ == "__main__":
    print_accuracies(task)
