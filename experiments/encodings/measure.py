"""Size, load time and latency of the forms in which weights are stored.

python experiments/encodings/measure.py [--folder DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.artifact import Artifact
from autocompress.data import Array, as_split
from autocompress.devices import open_device
from autocompress.devices.detection import detect_profile
from autocompress.formats.compact import compact
from autocompress.formats.encodings import encode_weights
from autocompress.formats.onnx_export import export
from autocompress.formats.onnx_runtime import predictor, save
from autocompress.graph.inspect import used_layers
from autocompress.methods import METHODS, Context
from experiments.networks import CifarResNet

if TYPE_CHECKING:
    from onnx import ModelProto

Change = Callable[[Array], Array]
MIN_VALUES = 256
"""Weights with fewer values keep them all."""


def half(weight: Array) -> Array:
    """Values of half precision."""
    return weight.astype(np.float16).astype(np.float32)


def codebook(values: int) -> Change:
    """Few values, evenly spaced."""

    def rounded(weight: Array) -> Array:
        highest = np.abs(weight).max()
        places = np.rint((weight / highest + 1) / 2 * (values - 1)).astype(int)
        book = np.linspace(-highest, highest, values, dtype=np.float32)
        return np.asarray(book[places])

    return rounded


def sparse(share: float) -> Change:
    """The smallest weights zero, the others of half precision."""

    def pruned(weight: Array) -> Array:
        return half(np.where(np.abs(weight) < np.quantile(np.abs(weight), share), 0, weight))

    return pruned


def sparse_integers(share: float) -> Change:
    """The smallest weights zero, the others of 255 values."""
    return lambda weight: codebook(255)(sparse(share)(weight))


FLOATS: dict[str, Change] = {
    "fp32": lambda weight: weight,
    "fp16 values": half,
    "256-entry codebook": codebook(256),
    "16-entry codebook": codebook(16),
    "8-entry codebook": codebook(8),
    "4-entry codebook": codebook(4),
    "50 % sparse, fp16": sparse(0.5),
    "80 % sparse, fp16": sparse(0.8),
    "90 % sparse, fp16": sparse(0.9),
    "90 % sparse, 8-bit": sparse_integers(0.9),
}
BITS = {f"int8 activations, {bits}-bit weights": bits for bits in (8, 6, 4, 3, 2)}


@dataclass(frozen=True)
class Network:
    """A network with random weights and what it takes."""

    name: str
    model: nn.Module
    shape: tuple[int, ...]

    def samples(self, count: int) -> tuple[Array]:
        """Random inputs (count, …)."""
        return (np.random.default_rng(0).standard_normal((count, *self.shape)).astype(np.float32),)


def networks() -> tuple[Network, ...]:
    """ResNet-20 and an MLP of 1.9 million weights."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return Network("ResNet-20", CifarResNet().eval(), (3, 32, 32)), Network("MLP", mlp.eval(), (784,))


def with_values(graph: ModelProto, change: Change) -> ModelProto:
    """A copy of a graph with other values in its float weights."""
    from onnx import ModelProto, TensorProto, numpy_helper

    changed = ModelProto()
    changed.CopyFrom(graph)
    for tensor in changed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_VALUES:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return changed


def variants(network: Network) -> dict[str, ModelProto]:
    """The network in every form, before its weights are encoded."""
    examples = network.samples(1)
    plain = export(network.model, examples)
    graphs = {name: with_values(plain, change) for name, change in FLOATS.items()}
    calibration = as_split((network.samples(32)[0], np.zeros(32, np.int64)), "calibration")
    context = Context(examples, calibration, detect_profile())
    layers = [layer.name for layer in used_layers(network.model, examples)]
    for name, bits in BITS.items():
        settings = {layer: {"precision": "int8", "bits": bits} for layer in layers}
        graphs[name] = lowered(network.model, settings, context)
    return graphs


def lowered(model: nn.Module, settings: dict[str, dict[str, object]], context: Context) -> ModelProto:
    """A quantized model as the pipeline gives it, before its weights are encoded."""
    method = METHODS["quantization"]()
    ready = method.finalize(method(model, settings, context))  # type: ignore[arg-type]
    return method.lower(export(ready, context.examples), settings, context)  # type: ignore[arg-type]


def load_ms(path: Path) -> float:
    """Median milliseconds of five loads."""
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        predictor(path)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent))


def measure(network: Network, folder: Path) -> None:
    """Print a table with a line for each form, and its latency beside the same form stored plainly."""
    device, rows = open_device(detect_profile()), []
    for name, graph in variants(network).items():
        plain, encoded = folder / "plain.onnx", folder / "encoded.onnx"
        save(graph, plain)
        save(compact(encode_weights(graph)), encoded)
        inputs = network.samples(4)
        same = np.array_equal(predictor(plain)(inputs), predictor(encoded)(inputs))
        examples = network.samples(1)
        files = [Artifact.of(plain), Artifact.of(encoded)]
        before, result = device.measure(files, files[0], examples=examples)
        low, high = result.latency_ratio_interval
        ratio = f"{result.latency_ratio:.2f} ({low:.2f}-{high:.2f})"
        sizes = [f"{path.stat().st_size / 1024:.0f}" for path in (plain, encoded)]
        loads = [f"{load_ms(path):.0f}" for path in (plain, encoded)]
        peaks = [f"{one.peak_memory_bytes / 2**20:.1f}" for one in (before, result)]
        rows.append((name, *sizes, *loads, *peaks, ratio, result.integer_nodes, "yes" if same else "no"))
    pairs = [(f"{what}, plain", "encoded") for what in ("KiB", "load ms", "peak MiB")]
    heads = ("weights", *(head for pair in pairs for head in pair), "latency / plain", "integer nodes", "equal bits")
    print(f"\n{network.name}\n")
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def main() -> None:
    """Measure every form of both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where model files go; by default a temporary folder")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        for network in networks():
            measure(network, given or Path(temporary))


if __name__ == "__main__":
    main()
