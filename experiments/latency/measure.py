"""Latency and size of networks that each method has changed, all measured in one run beside fp32.

python experiments/latency/measure.py [--hardware NAME] [--records FILE]
python experiments/latency/measure.py --show                                # the table of the records
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.artifact import Artifact
from autocompress.devices import resolve_profile
from autocompress.formats import onnx_runtime
from autocompress.graph.inspect import layer_view
from autocompress.pipeline import Workbench, build, build_architecture, finish, lower, settle
from autocompress.serialization import from_json, to_json, write_atomically
from autocompress.task import Task
from experiments.methods.settings import (
    CODEBOOK,
    DYNAMIC,
    EDGES_W8,
    INT8,
    SPATIAL,
    W4A8,
    Setting,
    plan_of,
    space,
)
from experiments.networks import CifarResNet, Encoder

W2A8 = ("quantization", space(exclude=("conv1", "linear"), precision=("fp32", "int8"), bits=(2,)))
SPARSE_90 = ("sparsity", space(exclude=("*shortcut*",), sparsity=(0.0, 0.9)))
HALVES = ("quantization", space(precision=("fp32", "fp16")))
WEIGHTS_W8 = ("quantization", space(precision=("fp32", "weight_only"), bits=(8,)))

RESNET: Mapping[str, Setting] = {
    "int8": Setting("", (INT8,)),
    "4-bit weights, int8": Setting("", (W4A8,)),
    "4-bit weights, 8-bit edges, int8": Setting("", (W4A8, EDGES_W8)),
    "2-bit weights, 8-bit edges, int8": Setting("", (W2A8, EDGES_W8)),
    "16-entry codebooks": Setting("", (CODEBOOK,)),
    "16-entry codebooks, int8": Setting("", (CODEBOOK, INT8)),
    "90 % sparse, fp16": Setting("", (SPARSE_90, HALVES)),
    "90 % sparse, 8-bit weights": Setting("", (SPARSE_90, WEIGHTS_W8)),
    "90 % sparse, int8": Setting("", (SPARSE_90, INT8)),
    "half width": Setting("", architecture="width_0.5"),
    "half width, int8": Setting("", (INT8,), architecture="width_0.5"),
    "spatial half rank": Setting("", (SPATIAL,)),
    "spatial half rank, int8": Setting("", (SPATIAL, INT8)),
}
ENCODER: Mapping[str, Setting] = {
    "dynamic int8": Setting("", (DYNAMIC,)),
    "int8": Setting("", (INT8,)),
}


def random_task(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...]) -> Task:
    """A task of random weights and inputs: neither latency nor size depends on what they say."""

    def built() -> nn.Module:
        torch.manual_seed(0)
        return model().eval()

    inputs = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    with torch.no_grad():
        targets = built()(torch.from_numpy(inputs)).numpy()
    return Task(name=name, model=built, train=(inputs, targets), validation=(inputs, targets), metric="mse")


def artifacts(bench: Workbench, settings: Mapping[str, Setting]) -> Iterator[tuple[str, Artifact]]:
    """The file of every setting, made as a trial without training makes it; fp32 first."""
    for name, setting in {"fp32": Setting(""), **settings}.items():
        model = build_architecture(bench, setting.architecture)
        view = layer_view(model, bench.task.examples, setting.architecture)
        plan = plan_of(setting, view, bench.target).without_recovery()
        finished = finish(settle(bench, build(bench, plan, 0), plan, 0), plan)
        _, graph = lower(finished, plan, replace(bench.context, seed=0))
        path = bench.artifact_path(plan)
        onnx_runtime.save(graph, path)
        yield name, Artifact.of(path)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        network, setting: Which.
        size_bytes: Of the file.
        latency_ratio, latency_ratio_interval: To fp32, with the 95 % interval.
        integer_nodes: That ran on integer kernels.
        machine: Processor and runtime.
        versions: Of the packages.
    """

    network: str
    setting: str
    size_bytes: int
    latency_ratio: float
    latency_ratio_interval: tuple[float, float]
    integer_nodes: int
    machine: str
    versions: Mapping[str, str]


def measure(network: str, bench: Workbench, settings: Mapping[str, Setting]) -> Iterator[Row]:
    """Every setting, all measured interleaved in one process."""
    made = dict(artifacts(bench, settings))
    found = bench.devices[0].measure(list(made.values()), bench.reference, examples=bench.task.examples)
    versions = {package: version(package) for package in ("autocompress", "torch", "onnx", "onnxruntime")}
    for (name, artifact), one in zip(made.items(), found, strict=True):
        size = Path(artifact.path).stat().st_size
        ratio, interval = one.latency_ratio, one.latency_ratio_interval
        yield Row(network, name, size, ratio, interval, one.integer_nodes, one.machine, versions)


def measure_all(hardware: str) -> tuple[Row, ...]:
    """Both networks."""
    profile = resolve_profile(hardware)
    with tempfile.TemporaryDirectory() as folder:
        resnet = random_task("resnet20", CifarResNet, (3, 32, 32))
        encoder = random_task("encoder", Encoder, (128, 256))
        return (
            *measure("ResNet-20", Workbench(resnet, (profile,), Path(folder) / "resnet20"), RESNET),
            *measure("encoder", Workbench(encoder, (profile,), Path(folder) / "encoder"), ENCODER),
        )


def show(rows: Sequence[Row]) -> None:
    """Print the rows as markdown."""
    print("| network | setting | KiB | latency / fp32 | integer nodes |\n| --- | --- | --: | --: | --: |")
    for row in rows:
        low, high = row.latency_ratio_interval
        latency = f"{row.latency_ratio:.2f} ({low:.2f}-{high:.2f})"
        print(f"| {row.network} | {row.setting} | {row.size_bytes / 1024:.0f} | {latency} | {row.integer_nodes} |")


def main() -> None:
    """Measure and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="local", help="a hardware profile")
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records.json")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.show:
        write_atomically(options.records, to_json(measure_all(options.hardware), indent=1).encode())
    show(from_json(tuple[Row, ...], options.records.read_text()))


if __name__ == "__main__":
    main()
