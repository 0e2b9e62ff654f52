"""Energy by the processor's counters, here files that a test writes as Linux does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autocompress.devices import _measuring
from autocompress.devices._energy import Counter, find_counters, read, spent_uj
from autocompress.devices._measuring import Subject
from autocompress.devices._session import Request
from autocompress.profile import Protocol
from tests.agents import artifact, examples, relu

PROTOCOL = Protocol(warmup_runs=2, block_ms=1.0, min_cpu_s=0.01, max_cpu_s=0.02, interval=0.5)
RANGE_UJ = 262_143_328_850


def zone(folder: Path, name: str, kind: str, energy_uj: object) -> Path:
    """A zone of counters, as `/sys/class/powercap` has it; the file with its energy."""
    path = folder / name
    path.mkdir()
    (path / "name").write_text(f"{kind}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_packages_alone_count_and_each_once(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    zone(tmp_path, "intel-rapl:0:0", "core", 3)
    zone(tmp_path, "intel-rapl:0:1", "dram", 2)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 20)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    counters = find_counters(tmp_path)
    assert counters == (Counter(first, RANGE_UJ), Counter(second, RANGE_UJ))
    assert read(counters) == (5, 7)


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert find_counters(tmp_path) == find_counters(tmp_path / "nowhere") == ()


@pytest.mark.parametrize("content", ["", "none", None])
def test_where_one_package_can_not_be_read_nothing_is_known(content: str | None, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    other = zone(tmp_path, "intel-rapl:1", "package-1", content)
    if content is None:
        other.unlink()
    assert find_counters(tmp_path) == ()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_counters_that_are_for_root_alone_are_none(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).chmod(0)
    assert find_counters(tmp_path) == ()


def test_a_counter_that_went_round_is_no_negative_energy(tmp_path: Path) -> None:
    counters = (Counter(tmp_path, RANGE_UJ), Counter(tmp_path, 1000))
    assert spent_uj(counters, (10, 990), (30, 15)) == 20 + 25
    assert spent_uj(counters, (RANGE_UJ - 1, 0), (4, 0)) == 5
    assert spent_uj((), (), ()) == 0


class Spending:
    """A session each of whose runs takes 500 microjoules of one package and 100 of another."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def run(self, *_: Any) -> None:
        for path, energy_uj in zip(self.files, (500, 100), strict=True):
            path.write_text(f"{(int(path.read_text()) + energy_uj) % RANGE_UJ}\n")


def test_blocks_are_charged_with_what_all_packages_took_and_warming_up_is_not(tmp_path: Path) -> None:
    files = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", RANGE_UJ - 1200) for n in range(2)]
    session: Any = Spending(*files)
    subject = Subject("model.onnx", session, {}, "cpu_ms", 1.0, find_counters(tmp_path))
    subject.warm_up(PROTOCOL)
    assert subject.energy_uj == 0
    for length in (3, 5):
        subject.run_block(length)
    assert subject.energy_uj == 8 * 600
    assert subject.energy_mj == 0.6


@pytest.mark.parametrize("has_counters", [True, False])
def test_the_measuring_process_tells_of_energy_where_the_machine_does(
    has_counters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_counters:
        zone(tmp_path, "intel-rapl:0", "package-0", 5)
    monkeypatch.setattr(_measuring, "POWERCAP", tmp_path)
    model = artifact(tmp_path / "model.onnx", relu())
    (tmp_path / "examples.npz").write_bytes(examples())
    answer = _measuring.measure(
        Request(0, (model.path,), (), str(tmp_path / "examples.npz"), "", "CPUExecutionProvider", 1, PROTOCOL)
    )
    assert answer.energy_mj == ((0.0,) if has_counters else (None,)), "nothing moves these counters"
