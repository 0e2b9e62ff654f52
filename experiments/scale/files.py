"""How fast the files of a run come and go where nodes don't see its folder: through one actor beside the search.

python experiments/scale/files.py [--tasks 8] [--megabytes 1] [--count 30]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.executors._ray.site import RaySite
from autocompress.executors.ray import RayExecutor


def main() -> None:
    """Copy files both ways by several tasks at a time, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=1.0, help="of a file; 0.01 shows the calls alone")
    parser.add_argument("--count", type=int, default=30, help="files of each task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        (run / "artifacts").mkdir(parents=True)
        executor = RayExecutor(options.tasks, 1)
        try:
            executor.begin(run)
            elsewhere = replace(executor.site, run=str(run / "not there"))  # so no node sees the folder of the run
            for function in (_shared, _fetched):  # the first also starts the processes
                for future in [executor.submit(_shared, elsewhere, 0.001, 1, f"w{i}") for i in range(options.tasks)]:
                    future.result()
                began = time.monotonic()
                futures = [
                    executor.submit(function, elsewhere, options.megabytes, options.count, f"t{index}")
                    for index in range(options.tasks)
                ]
                busy_s = sum(future.result() for future in futures)
                _tell(function.__name__.strip("_"), options, time.monotonic() - began, busy_s)
        finally:
            executor.shutdown()


def _tell(way: str, options: argparse.Namespace, took_s: float, busy_s: float) -> None:
    files = options.tasks * options.count
    print(
        f"{way}: {files} files of {options.megabytes:g} MB by {options.tasks} tasks in {took_s:.1f} s: "
        f"{files / took_s:.0f} a second, {files * options.megabytes / took_s:.0f} MB a second, "
        f"{1000 * busy_s / files:.1f} ms each"
    )


def _shared(site: RaySite, megabytes: float, count: int, name: str) -> float:
    folder = site.directory(Path(site.run)) / "artifacts"
    content, began = os.urandom(int(1e6 * megabytes)), time.monotonic()
    for index in range(count):
        file = folder / f"{name}-{index}.bin"
        file.write_bytes(content)
        site.share(file)
        file.unlink()
    return time.monotonic() - began


def _fetched(site: RaySite, megabytes: float, count: int, name: str) -> float:
    del megabytes
    folder, began = site.directory(Path(site.run)) / "artifacts", time.monotonic()
    for index in range(count):
        file = folder / f"{name}-{index}.bin"
        assert site.has(file), "shared before"
        file.unlink()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
