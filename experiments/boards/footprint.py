"""What an agent takes of its machine, whether it measures what the local device does, and how often files travel.

sudo python experiments/boards/footprint.py --python BOARD/bin/python   # Linux; five minutes
python experiments/boards/footprint.py --show                           # tables of the records

BOARD is a virtual environment of `autocompress/devices/agent/requirements.txt` and autocompress itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.artifact import Artifact
from autocompress.devices import open_device, resolve_profile
from autocompress.pipeline import Workbench
from autocompress.profile import HardwareProfile, Protocol
from autocompress.serialization import from_json, to_json, write_atomically
from experiments.boards.board import TOKEN, Board, networks
from experiments.latency.measure import artifacts, random_task
from experiments.networks import CifarResNet
from experiments.provenance import commit, machine, versions
from experiments.repeatability.run import VARIANTS

RECORDS = Path(__file__).parent / "footprint.json"
ABSENT = ("torch", "onnx", "optuna", "pandas", "httpx", "scipy", "sklearn", "plotly")
"""What the agent has no use for."""

STARTS, REPETITIONS, MEASUREMENTS = 9, 3, 50
IDLE_S = 3.0
OWN = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils")
"""What a virtual environment holds from the beginning."""

QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)


@dataclass(frozen=True)
class Pair:
    """A ratio of latencies as the local device and an agent on the same machine measure it.

    Args:
        variant, repetition: Which.
        local, remote: Low end of the 95 % interval, ratio, high end.
    """

    variant: str
    repetition: int
    local: tuple[float, float, float]
    remote: tuple[float, float, float]

    @property
    def overlap(self) -> bool:
        """True if the intervals have a point in common."""
        return self.local[0] <= self.remote[2] and self.remote[0] <= self.local[2]


@dataclass(frozen=True)
class Study:
    """All that was found.

    Args:
        installed: Package to version, in the agent's environment.
        absent: Packages that can't be imported there.
        sizes_bytes: Entry of its site-packages to bytes on disk, without pip and setuptools.
        starts_s: From the start of the process to the first answer.
        idle_bytes: Resident memory of the agent's process some seconds later, once a start.
        idle_own_bytes: The part of it that is shared with no other process.
        pairs: Local and remote ratios.
        file_bytes: Size of a model that was measured many times.
        measurements: How often.
        received: Times that the agent took in the file, as its log tells.
        network_bytes: What came in over the agent's network in all these measurements.
    """

    commit: str
    machine: str
    versions: Mapping[str, str]
    installed: Mapping[str, str]
    absent: tuple[str, ...]
    sizes_bytes: Mapping[str, int]
    starts_s: tuple[float, ...]
    idle_bytes: tuple[int, ...]
    idle_own_bytes: tuple[int, ...]
    pairs: tuple[Pair, ...]
    file_bytes: int
    measurements: int
    received: int
    network_bytes: int


def main() -> None:
    """Measure and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of the board's environment")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.show:
        if options.python is None:
            parser.error("--python is missing; expected the interpreter of an environment without torch")
        os.environ["AUTOCOMPRESS_TOKEN"] = TOKEN
        with tempfile.TemporaryDirectory() as folder, networks(1) as addresses:
            ((name, host),) = addresses.items()
            study = study_of(options.python, Path(folder), name, host)
        write_atomically(options.records, to_json(study, indent=1) + "\n")
    show(from_json(Study, options.records.read_text()))


def study_of(python: str, folder: Path, network: str, host: str) -> Study:
    """All of it, with one agent."""
    state, profile = commit(), resolve_profile("local")
    starts, idle, own = [], [], []
    board = Board(folder / "board", python=python, network=network, host=host, installed=True)
    for _ in range(STARTS):
        starts.append(round(board.start(), 3))
        time.sleep(IDLE_S)
        idle.append(board.memory_bytes)
        own.append(_own_bytes(board.pid))
        board.kill()
    with board:
        remote = HardwareProfile("board", device="remote", addresses=(board.address,), protocol=profile.protocol)
        pairs = tuple(measure_pairs(profile, replace(profile, device="remote", addresses=remote.addresses), folder))
        large = _large(folder / "large.onnx")
        before, device = _received_bytes(network), open_device(remote)
        examples = (np.ones((1, 1024), np.float32),)
        for _ in range(MEASUREMENTS):
            device.measure([large], large, examples=examples, protocol=QUICK)
        arrived = _received_bytes(network) - before
        received = board.log.read_text().count(f"file {large.sha256}")
    return Study(
        commit=state,
        machine=machine(profile),
        versions=versions(),
        installed=_asked(python, _LIST),
        absent=tuple(_asked(python, _ABSENT)),
        sizes_bytes=_sizes(Path(_asked(python, _PLACE)["place"])),
        starts_s=tuple(starts),
        idle_bytes=tuple(idle),
        idle_own_bytes=tuple(own),
        pairs=pairs,
        file_bytes=Path(large.path).stat().st_size,
        measurements=MEASUREMENTS,
        received=received,
        network_bytes=arrived,
    )


# -- the environment -------------------------------------------------------------------------------------------------

_LIST = "{one.metadata['Name']: one.version for one in importlib.metadata.distributions()}"
_ABSENT = f"{{name: '' for name in {ABSENT!r} if importlib.util.find_spec(name) is None}}"
_PLACE = "{'place': sysconfig.get_paths()['purelib']}"


def _asked(python: str, expression: str) -> dict[str, str]:
    """The value of an expression in an environment."""
    code = f"import importlib.metadata, importlib.util, json, sysconfig; print(json.dumps({expression}))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _sizes(place: Path) -> dict[str, int]:
    """Bytes on disk of each entry, the largest first; a package's libraries and metadata go with it."""
    sizes: dict[str, int] = {}
    for path in place.iterdir():
        name = path.name.partition("-")[0].partition(".")[0]
        if not name.startswith(OWN):
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            sizes[name] = sizes.get(name, 0) + sum(512 * file.stat().st_blocks for file in files)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _own_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


# -- measurements ----------------------------------------------------------------------------------------------------


def measure_pairs(local: HardwareProfile, remote: HardwareProfile, folder: Path) -> Iterator[Pair]:
    """Each variant by the local device and by the agent, in turn."""
    bench = Workbench(random_task("resnet20", CifarResNet, (3, 32, 32)), (local,), folder)
    made = {name: artifact for name, artifact in artifacts(bench, VARIANTS) if name in VARIANTS}
    elsewhere = open_device(remote)
    for repetition in range(REPETITIONS):
        for variant, artifact in made.items():
            (here,) = bench.devices[0].measure([artifact], bench.reference, examples=bench.task.examples)
            (there,) = elsewhere.measure([artifact], bench.reference, examples=bench.task.examples)
            found = [(one.latency_ratio_interval, one.latency_ratio) for one in (here, there)]
            pair = Pair(variant, repetition, *((low, ratio, high) for (low, high), ratio in found))
            print(pair, file=sys.stderr)
            yield pair


def _large(path: Path) -> Artifact:
    """A matrix product of 8 MiB of weights."""
    weight = numpy_helper.from_array(np.ones((1024, 2048), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2048])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Artifact.of(path)


def _received_bytes(network: str) -> int:
    """What has come in over the cable of a network so far."""
    command = ["ip", "netns", "exec", network, "cat", "/proc/net/dev"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return int(next(line for line in lines if line.strip().startswith("eth0:")).split()[1])


# -- showing ---------------------------------------------------------------------------------------------------------


def show(study: Study) -> None:
    """The tables."""
    mib = 2**20
    total = sum(study.sizes_bytes.values())
    print(f"commit {study.commit}, {study.machine}\n\n| package | MiB |\n| --- | --: |")
    for name, size in list(study.sizes_bytes.items())[:8]:
        print(f"| {name} {study.installed.get(name, '')} | {size / mib:.1f} |")
    print(f"| all {len(study.sizes_bytes)} | {total / mib:.1f} |\n\nnot importable: {', '.join(study.absent)}")
    print(f"start: median {statistics.median(study.starts_s):.2f} s of {sorted(study.starts_s)}")
    print(f"idle: {statistics.median(study.idle_bytes) / mib:.1f} MiB resident", end="")
    print(f", {statistics.median(study.idle_own_bytes) / mib:.1f} MiB of its own\n")
    print("| variant | local | remote | difference | overlap |\n| --- | --- | --- | --: | --- |")
    for one in study.pairs:
        here, there = (f"{ratio:.3f} ({low:.3f} to {high:.3f})" for low, ratio, high in (one.local, one.remote))
        difference = one.remote[1] / one.local[1] - 1
        print(f"| {one.variant} | {here} | {there} | {difference:+.1%} | {'yes' if one.overlap else 'no'} |")
    print(f"\noverlap: {sum(one.overlap for one in study.pairs)} of {len(study.pairs)}")
    print(f"a file of {study.file_bytes} bytes, measured {study.measurements} times: received {study.received} times; ")
    print(f"{study.network_bytes} bytes came in over the network in all")


if __name__ == "__main__":
    main()
