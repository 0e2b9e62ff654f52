"""Calling the user's code, whose errors are shown as theirs."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from autocompress.errors import AutocompressError, TaskFailed, one_line

T = TypeVar("T")


def user_code(function: Callable[[], T], doing: str) -> T:
    """Call the user's code; its errors become TaskFailed with their traceback, ours pass.

    Raises:
        TaskFailed: If it raises or calls `sys.exit`.
    """
    try:
        return function()
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(doing, error) from error


def failed(doing: str, error: BaseException) -> TaskFailed:
    """What becomes of an error of the user's code.

    Args:
        doing: What was done when it was raised.
    """
    text = "".join(traceback.format_exception(type(error), error, _theirs(error.__traceback__)))
    return TaskFailed(f"{doing} raised {type(error).__name__}: {one_line(error)}", text)


def _theirs(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is neither ours nor the import system's."""
    ours = f"{Path(__file__).parent}{os.sep}"
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((ours, "<frozen ")):
        frames = frames.tb_next
    return frames
