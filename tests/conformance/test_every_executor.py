"""Laws that every executor keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, wait

import pytest

from autocompress.errors import TaskFailed, UnknownName
from autocompress.executors import EXECUTORS, TrialExecutor


def fail(error: Exception) -> None:
    raise error


@pytest.fixture(params=list(EXECUTORS), scope="module")
def executor(request: pytest.FixtureRequest) -> Iterator[TrialExecutor]:
    made = EXECUTORS[request.param](2, 1)
    yield made
    made.shutdown(cancel_futures=True)


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


def test_a_process_that_dies_takes_only_its_own_call_with_it() -> None:
    executor = EXECUTORS["processes"](2, 1)
    try:
        doomed, sound = executor.submit(os._exit, 9), executor.submit(pow, 2, 3)
        with pytest.raises(BrokenExecutor):
            doomed.result(60)
        assert sound.result(60) == 8
        assert [executor.submit(pow, 2, 4).result(60) for _ in range(3)] == [16, 16, 16]
    finally:
        executor.shutdown(cancel_futures=True)


def test_workers_run_side_by_side() -> None:
    executor = EXECUTORS["processes"](2, 1)
    try:
        wait([executor.submit(os.getpid) for _ in range(2)])
        busy = executor.submit(time.sleep, 30)
        assert executor.submit(pow, 2, 5).result(20) == 32
        assert not busy.done()
        executor.kill()
    finally:
        executor.shutdown(cancel_futures=True)


def test_workers_use_the_threads_they_are_given() -> None:
    executor = EXECUTORS["processes"](1, 1)
    try:
        assert executor.submit(_threads).result(60) == 1
    finally:
        executor.shutdown(cancel_futures=True)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
