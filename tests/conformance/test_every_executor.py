"""Laws that every executor keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, wait

import pytest

from autocompress.cluster import Cluster
from autocompress.errors import InvalidInput, TaskFailed, UnknownName
from autocompress.executors import EXECUTORS, TrialExecutor
from tests.calls import count_threads, fail


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, TrialExecutor]]:
    """The executors that tests have asked for, two workers of one thread each."""
    known: dict[str, TrialExecutor] = {}
    yield known
    for executor in known.values():
        executor.shutdown(cancel_futures=True)


def once(name: str, made: dict[str, TrialExecutor]) -> TrialExecutor:
    if name not in made:
        made[name] = EXECUTORS[name](2, 1)
    return made[name]


@pytest.fixture(params=list(EXECUTORS))
def executor(request: pytest.FixtureRequest, made: dict[str, TrialExecutor]) -> TrialExecutor:
    """Every executor."""
    return once(request.param, made)


@pytest.fixture(params=[name for name in EXECUTORS if name != "inline"])
def apart(request: pytest.FixtureRequest, made: dict[str, TrialExecutor]) -> TrialExecutor:
    """Those whose work is done by processes of their own."""
    return once(request.param, made)


def test_calls_give_their_results(executor: TrialExecutor) -> None:
    futures = [executor.submit(pow, 2, exponent) for exponent in range(6)]
    assert [future.result(60) for future in futures] == [1, 2, 4, 8, 16, 32]


def test_errors_come_back_whole(executor: TrialExecutor) -> None:
    with pytest.raises(TaskFailed) as caught:
        executor.submit(fail, TaskFailed("the model raised", "Traceback …")).result(60)
    assert caught.value.traceback == "Traceback …"
    with pytest.raises(UnknownName, match="did you mean 'low_rank'"):
        executor.submit(fail, UnknownName("method", "low_rnk", ["low_rank"])).result(60)


def test_work_goes_on_after_a_kill(executor: TrialExecutor) -> None:
    executor.kill()
    assert executor.submit(pow, 3, 2).result(60) == 9


def test_a_process_that_dies_takes_only_its_own_call_with_it(apart: TrialExecutor) -> None:
    doomed, sound = apart.submit(os._exit, 9), apart.submit(pow, 2, 3)
    with pytest.raises(BrokenExecutor):
        doomed.result(60)
    assert sound.result(60) == 8
    assert [apart.submit(pow, 2, 4).result(60) for _ in range(3)] == [16, 16, 16]


def test_workers_run_side_by_side(apart: TrialExecutor) -> None:
    wait([apart.submit(os.getpid) for _ in range(2)])
    busy = apart.submit(time.sleep, 60)
    assert apart.submit(pow, 2, 5).result(50) == 32
    assert not busy.done()
    apart.kill()
    assert busy.exception(60) is not None


def test_workers_use_the_threads_they_are_given(apart: TrialExecutor) -> None:
    assert apart.submit(count_threads).result(60) == 1


def test_only_executors_of_clusters_take_one() -> None:
    for name in EXECUTORS:
        kind = EXECUTORS[name]
        if not kind.has_cluster:
            for asked in (Cluster(address="auto"), Cluster(gpus_per_trial=1), Cluster(trainers_per_trial=2)):
                with pytest.raises(InvalidInput, match=f"executor '{name}': runs on this machine alone"):
                    kind(1, 1, asked)
