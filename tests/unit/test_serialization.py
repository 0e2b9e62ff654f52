"""Files are written whole or not at all, whoever else writes them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from torch import nn

from autocompress.executors._ray.shelf import whole_files
from autocompress.pipeline.models import save_weights
from autocompress.serialization import replacing, write_atomically


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        assert whole_files(tmp_path) == {"a.txt"}, "those who list the folder don't see it"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    with suppress(ValueError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_processes_of_one_number_on_several_machines_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, model = tmp_path / "a.safetensors", nn.Linear(64, 64)
    with ThreadPoolExecutor(8) as pool:
        for saved in [pool.submit(save_weights, model, path, {"by": str(each)}) for each in range(32)]:
            saved.result()
    assert list(tmp_path.iterdir()) == [path]
