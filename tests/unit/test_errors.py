"""The error tree: what users see, and that errors survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from autocompress import errors
from autocompress.errors import (
    AutocompressError,
    InvalidInput,
    RunDirectoryError,
    TaskFailed,
    UnknownName,
    did_you_mean,
)

RAISABLE = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_every_error_has_one_root() -> None:
    assert all(issubclass(error, AutocompressError) for error in RAISABLE)
    assert issubclass(UnknownName, InvalidInput)
    assert issubclass(RunDirectoryError, InvalidInput)


def test_every_error_is_drawn_in_the_tree_and_explained() -> None:
    assert errors.__doc__ is not None
    for error in RAISABLE:
        assert error.__name__ in errors.__doc__
        assert error.__doc__


def test_an_unknown_name_offers_the_nearest_and_lists_all() -> None:
    error = UnknownName("compression method", "low_rnk", ["quantization", "low_rank"])
    assert str(error) == (
        "unknown compression method 'low_rnk'; did you mean 'low_rank'? Known: low_rank, quantization"
    )


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    assert did_you_mean("xyz", ["low_rank", "quantization"]) == "Known: low_rank, quantization"
    assert did_you_mean("xyz", []) == "none is known"


def test_an_unknown_name_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnknownName("metric", "acuracy", ["mse", "accuracy"])))
    assert isinstance(error, UnknownName)
    assert (error.kind, error.name, error.known) == ("metric", "acuracy", ("accuracy", "mse"))
    assert "did you mean 'accuracy'?" in str(error)


def test_a_failed_task_keeps_its_traceback_through_pickling() -> None:
    error = pickle.loads(pickle.dumps(TaskFailed("importing task.py raised KeyError: 'x'", "Traceback …")))
    assert isinstance(error, TaskFailed)
    assert str(error) == "importing task.py raised KeyError: 'x'"
    assert error.traceback == "Traceback …"


@pytest.mark.parametrize("error", [error for error in RAISABLE if error is not UnknownName])
def test_errors_with_a_message_survive_pickling(error: type[AutocompressError]) -> None:
    copy = pickle.loads(pickle.dumps(error("given, expected, next step")))
    assert type(copy) is error
    assert str(copy) == "given, expected, next step"
