"""What a search does when the machines that it measures on fail: two agents, each in a network of its own.

sudo python experiments/boards/faults.py [--python BOARD/bin/python] [--fault NAME]   # Linux; three minutes a fault
python experiments/boards/faults.py --show                                            # tables of the records
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, wherever this file is started from

from autocompress.devices import resolve_profile
from autocompress.serialization import from_json, to_json
from experiments.boards.board import ROOT, TOKEN, Board, networks, wait_for
from experiments.provenance import commit, machine, versions

HERE = Path(__file__).parent
RECORDS = HERE / "faults.jsonl"
TASK = ROOT / "experiments" / "digits" / "task.py"
TRIALS, WORKERS = 12, 2

BEFORE = 3
"""Trials that have ended when the fault comes."""

WAIT_S, SHORT_WAIT_S = 300.0, 8.0
"""How long the search waits for a machine; the latter where there will be none."""

LONGEST_S = 900.0
"""After which a search counts as hanging."""


@dataclass(frozen=True)
class Search:
    """One search, or one process of it.

    Args:
        fault: What happened in the middle.
        seconds: It took.
        exit_code: Of the command.
        error: The last line on its standard error, where the exit code is not 0.
        states: Status to trials.
        repeated: Trials whose number or plan was in the records before, and measurements whose raw times were.
        measurements: In the records.
        done: Jobs that each board has done.
        twice: Jobs that were done on one board under one name more than once.
        otherwise: How other jobs ended there.
        told: What the run's log says of machines.
        commit, machine, versions: What ran, and where.
    """

    fault: str
    seconds: float
    exit_code: int
    error: str
    states: Mapping[str, int]
    repeated: int
    measurements: int
    done: tuple[int, ...]
    twice: int
    otherwise: Mapping[str, int]
    told: tuple[str, ...]
    commit: str
    machine: str
    versions: Mapping[str, str]


Boards = Sequence[Board]


def cut_off(boards: Boards, is_running: Callable[[], bool]) -> None:
    """A cable is pulled, and plugged in again 40 seconds later."""
    boards[0].cut()
    wait_for(lambda: not is_running(), limit_s=40)
    boards[0].join()


def killed(boards: Boards, is_running: Callable[[], bool]) -> None:
    """The power of one board fails for good."""
    boards[0].kill()


def frozen(boards: Boards, is_running: Callable[[], bool]) -> None:
    """One agent stops, its connections stay open; it goes on when the search has ended."""
    boards[0].freeze()
    wait_for(lambda: not is_running(), limit_s=LONGEST_S)
    boards[0].thaw()


def restarted(boards: Boards, is_running: Callable[[], bool]) -> None:
    """The power of one board fails; its agent is back three seconds later."""
    boards[0].kill()
    time.sleep(3)
    boards[0].start()


def nothing(boards: Boards, is_running: Callable[[], bool]) -> None:
    """All goes well, to compare with."""


def all_killed(boards: Boards, is_running: Callable[[], bool]) -> None:
    """The power of all boards fails."""
    for board in boards:
        board.kill()


FAULTS: Mapping[str, Callable[[Boards, Callable[[], bool]], None]] = {
    "none": nothing,
    "cut off for 40 s": cut_off,
    "killed": killed,
    "frozen": frozen,
    "restarted": restarted,
}
NO_DEVICE, RESUMED, FROM_THE_START = "both killed", "resumed with one board", "no board from the start"


def main() -> None:
    """Search and record, or show what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the boards' environment")
    parser.add_argument("--fault", choices=[*FAULTS, NO_DEVICE], help="only this one")
    parser.add_argument("--show", action="store_true", help="search nothing")
    options = parser.parse_args()
    if not options.show:
        for search in search_all(options.python, options.fault):
            with RECORDS.open("a", encoding="utf-8") as records:
                records.write(to_json(search) + "\n")
    lines = RECORDS.read_text(encoding="utf-8").splitlines()
    latest = {search.fault: search for search in (from_json(Search, line) for line in lines)}
    order = (*FAULTS, NO_DEVICE, RESUMED, FROM_THE_START)
    show([latest[fault] for fault in order if fault in latest])


# -- searching -------------------------------------------------------------------------------------------------------


def search_all(python: str, only: str | None) -> Iterator[Search]:
    """A search for each fault, with agents of its own; then those that have no device for a while."""
    for fault, happen in FAULTS.items():
        if only in (None, fault):
            with tempfile.TemporaryDirectory() as folder, networks(2) as addresses:
                yield one_search(fault, happen, _boards(Path(folder), addresses, python), Path(folder))
    if only in (None, NO_DEVICE):
        with tempfile.TemporaryDirectory() as folder, networks(2) as addresses:
            yield from without_device(_boards(Path(folder), addresses, python), Path(folder))


def _boards(folder: Path, addresses: Mapping[str, str], python: str) -> list[Board]:
    return [Board(folder / name, python=python, network=name, host=host) for name, host in addresses.items()]


def one_search(
    fault: str, happen: Callable[[Boards, Callable[[], bool]], None], boards: Boards, folder: Path
) -> Search:
    """A search during which something happens to the boards."""
    state, started = _provenance(), time.monotonic()
    profile = _profile(folder, boards, WAIT_S)
    with _all_serving(boards):
        process = _start(folder, _new(profile, folder / "run"))
        _let_happen(happen, boards, process, folder / "run")
        code = process.wait(LONGEST_S)
        seconds = time.monotonic() - started
        time.sleep(2)  # what a thawed agent has to say
        return _told(fault, folder, boards, code, seconds=seconds, state=state)


def without_device(boards: Boards, folder: Path) -> Iterator[Search]:
    """A search that loses all boards, one that goes on with a board, and one that has none from the start."""
    state, run, started = _provenance(), folder / "run", time.monotonic()
    profile = _profile(folder, boards, SHORT_WAIT_S)
    with _all_serving(boards):
        process = _start(folder, _new(profile, run))
        _let_happen(all_killed, boards, process, run)
        code = process.wait(LONGEST_S)
        yield _told(NO_DEVICE, folder, boards, code, seconds=time.monotonic() - started, state=state)
        started = time.monotonic()
        boards[1].start()
        code = _start(folder, ["--resume", str(run)]).wait(LONGEST_S)
        yield _told(RESUMED, folder, boards, code, seconds=time.monotonic() - started, state=state)
    started = time.monotonic()
    other = folder / "other"
    code = _start(folder, _new(profile, other)).wait(LONGEST_S)
    left = {"run directories left": int(other.exists())}
    seconds = round(time.monotonic() - started, 1)
    yield Search(FROM_THE_START, seconds, code, _error(folder), {}, 0, 0, (0, 0), 0, left, (), **state)


@contextmanager
def _all_serving(boards: Boards) -> Iterator[None]:
    """All boards with their agents, which are gone afterwards."""
    with ExitStack() as stack:
        for board in boards:
            stack.enter_context(board)
        yield


def _new(profile: Path, run: Path) -> list[str]:
    """The words of a new search."""
    limits = ["--space", str(HERE / "short.yaml"), "--trials", str(TRIALS), "--workers", str(WORKERS), "--seed", "0"]
    return [str(TASK), "--hardware", str(profile), "--output", str(run), *limits]


def _profile(folder: Path, boards: Boards, wait_s: float) -> Path:
    """The hardware profile of the boards."""
    path = folder / "boards.yaml"
    addresses = ", ".join(f"'{board.address}'" for board in boards)
    path.write_text(
        f"device: remote\naddresses: [{addresses}]\nwait_s: {wait_s}\n"
        "kernels: {conv: [int8], linear: [int8, dynamic_int8]}\n"
    )
    return path


def _start(folder: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """`autocompress search` with some words."""
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "autocompress", "search", *words],
            env=os.environ | {"AUTOCOMPRESS_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=stdout,
            stderr=stderr,
        )


def _let_happen(
    happen: Callable[[Boards, Callable[[], bool]], None], boards: Boards, process: subprocess.Popen[bytes], run: Path
) -> None:
    """Wait until some trials have ended and the first board is in the middle of a job, and let something happen."""
    if not wait_for(lambda: len(_trials(run)) >= BEFORE or process.poll() is not None, limit_s=LONGEST_S):
        raise RuntimeError("the search does not get anywhere")
    wait_for(lambda: boards[0].is_busy or process.poll() is not None, limit_s=LONGEST_S)
    if process.poll() is not None:
        raise RuntimeError("the search ended before anything could happen")
    happen(boards, lambda: process.poll() is None)


# -- what came of it -------------------------------------------------------------------------------------------------

Line = Mapping[str, Any]


def _lines(run: Path) -> list[Line]:
    path = run / "records.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if (path.exists())
        else []
    )


def _trials(run: Path) -> list[Line]:
    return [line for line in _lines(run) if "trial" in line and line["trial"]["number"] > 0]


def _measurements(lines: Sequence[Line]) -> int:
    """Measurements that the records hold: of trials before and after training, of changes, of the front together."""
    trials = sum(("screen" in line["seconds"]) + ("measure" in line["seconds"]) for line in lines if "trial" in line)
    changes = sum(bool(line["values"]) for line in lines if line.get("kind") == "sensitivity")
    together = [one for line in lines if line.get("kind") == "confirmation" for one in line["measurements"].values()]
    return trials + changes + len({json.dumps(one["reference_samples"]) for one in together})


def _repeated(lines: Sequence[Line]) -> int:
    """How often a number, a plan or raw times come again."""
    trials = [line for line in lines if "trial" in line]
    confirmations = [line for line in lines if line.get("kind") == "confirmation"]
    times = [one["samples"] for line in (*trials, *confirmations) for one in line["measurements"].values()]
    groups: list[list[Any]] = [
        [one["trial"]["number"] for one in trials],
        [json.dumps(one["trial"]["plan"], sort_keys=True) for one in trials],
        [json.dumps(one) for one in times],
    ]
    return sum(len(group) - len(set(group)) for group in groups)


Provenance = Mapping[str, Any]
"""What ran, and where; asked for before a search, since commits may go by."""


def _provenance() -> Provenance:
    return {"commit": commit(), "machine": machine(resolve_profile("local")), "versions": versions()}


def _told(fault: str, folder: Path, boards: Boards, code: int, *, seconds: float, state: Provenance) -> Search:
    run = folder / "run"
    lines = _lines(run)
    endings = [list(board.endings()) for board in boards]
    done = [[name for name, how in found if how == "done"] for found in endings]
    log = (run / "log.txt").read_text().splitlines()
    search = Search(
        fault=fault,
        seconds=round(seconds, 1),
        exit_code=code,
        error=_error(folder) if code else "",
        states=Counter(line["status"] for line in _trials(run)),
        repeated=_repeated(lines),
        measurements=_measurements(lines),
        done=tuple(map(len, done)),
        twice=sum(len(names) - len(set(names)) for names in done),
        otherwise=Counter(how for found in endings for _, how in found if how != "done"),
        told=tuple(line.partition(" ")[2] for line in log if "machine http" in line),
        **state,
    )
    print(search, file=sys.stderr)
    return search


def _error(folder: Path) -> str:
    lines = (folder / "stderr").read_text().strip().splitlines()
    return lines[-1].replace(str(folder), "FOLDER") if lines else ""


def show(searches: Sequence[Search]) -> None:
    """What the latest search with each fault came to."""
    print("| what happens to one of two boards | time | trials | repeated | measured | jobs done | for nobody | exit |")
    print("| --- | --: | --- | --: | --: | --: | --: | --: |")
    for one in searches:
        states = ", ".join(f"{count} {status}" for status, count in sorted(one.states.items())) or "none"
        jobs, spare = " + ".join(map(str, one.done)), sum(one.done) - one.measurements
        print(
            f"| {one.fault} | {one.seconds:.0f} s | {states} | {one.repeated + one.twice} | {one.measurements} | "
            f"{jobs} | {spare} | {one.exit_code} |"
        )
    for one in searches:
        print(f"\n{one.fault}")
        for line in (*one.told, *(f"{count} x {how}" for how, count in one.otherwise.items()), one.error):
            if line:
                print(f"    {line}")


if __name__ == "__main__":
    main()
