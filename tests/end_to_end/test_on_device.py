"""A search whose front is scored on the device, which is an agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import autocompress
from autocompress.devices.agent.messages import Limits
from autocompress.profile import HardwareProfile, Protocol
from autocompress.space import MethodSpace, RecoverySpace, SearchSpace
from tests.agents import running_agent
from tests.tasks.stripes import task

QUICK = Protocol(warmup_runs=1, block_ms=1.0, min_cpu_s=0.02, max_cpu_s=0.05, interval=0.5)
SPACE = SearchSpace(
    "int8",
    methods={"quantization": MethodSpace({"precision": ("fp32", "int8")})},
    widths=(),
    recovery=RecoverySpace(epochs=1, student_epochs=1),
    policies=({"quantization/precision": "int8"},),
)


def test_a_front_is_scored_by_what_the_agent_computes_once_that_is_asked_for(tmp_path: Path) -> None:
    with running_agent(tmp_path / "agent", limits=Limits()) as agent:
        board = HardwareProfile("board", device="remote", addresses=(agent.address,), protocol=QUICK)
        run = autocompress.search(
            replace(task, test=None),
            trials=1,
            space=SPACE,
            hardware=replace(board, kernels={"conv": ("int8",), "linear": ("int8",)}),
            strategy="random",
            executor="inline",
            output=tmp_path / "run",
        )
        assert agent.said.count(", run ") == 0
        run = autocompress.resume(run.path, task=replace(task, test=None), executor="inline", score_on_device=True)
        assert run.baseline is not None
        scored = {point.name: point for point in (run.baseline, *run.points)}
        assert set(scored) == {"000-baseline", "001-int8"}
        for point in scored.values():
            assert point.device_score == pytest.approx(point.validation["accuracy"], abs=0.02)
        assert agent.said.count(", run ") == len(scored)
        resumed = autocompress.resume(run.path, task=replace(task, test=None), trials=1, executor="inline")
        assert resumed.points == run.points
        assert agent.said.count(", run ") == len(scored)
    assert '<section id="device_scores">' in (run.path / "report.html").read_text(encoding="utf-8")
