"""The worked example of CONTRIBUTING.md: a method in a package of its own, found by its entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METADATA = "Metadata-Version: 2.1\nName: powers-of-two\nVersion: 1.0\n"
SPACE = """
methods:
  powers_of_two: {}
  quantization: {layers: [head]}
recovery: {epochs: 1}
policies:
  - {powers_of_two/count: 3}
  - {powers_of_two/count: 7, quantization/precision: dynamic_int8}
"""


def code_block(language: str) -> str:
    """The first block of a language in CONTRIBUTING.md's section on methods from the outside."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("### A method, from the outside")[1]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, language
    return found[1]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds the package as pip would lay it out."""
    (tmp_path / "powers_of_two.py").write_text(code_block("python"))
    metadata = tmp_path / "powers_of_two-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    group, line = code_block("toml").strip().splitlines()
    name = re.search(r'"(.*)"', group)
    assert name
    (metadata / "entry_points.txt").write_text(f"[{name[1]}]\n{line.replace(chr(34), '')}\n")
    return tmp_path


def test_a_method_of_another_package_is_searched_like_one_of_our_own(installed: Path) -> None:
    (installed / "space.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "autocompress", "search", str(ROOT / "tests/tasks/stripes.py"), "--output", "run"]
    options = ["--space", "space.yaml", "--hardware", "fake", "--trials", "3", "--executor", "inline"]
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], cwd=installed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (installed / "run" / "records.jsonl").read_text().splitlines()]
    tried = [line for line in lines if line["kind"] == "trial" and line["trial"]["plan"]["steps"]]
    assert all(trial["status"] == "complete" for trial in tried), [trial["reason"] for trial in tried]
    assert {step["method"] for trial in tried for step in trial["trial"]["plan"]["steps"]} >= {"powers_of_two"}
    baseline = next(line for line in lines if not line["trial"]["plan"]["steps"])
    assert min(trial["values"]["size_bytes"] for trial in tried) < baseline["values"]["size_bytes"]
