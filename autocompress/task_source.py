"""How a task travels to a worker: by reference, or by a file for one that was made in a notebook or script."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from autocompress.errors import InvalidInput, one_line
from autocompress.task import Task, load_task


@dataclass(frozen=True)
class TaskSource:
    """Where a task comes from; small, hashable and picklable.

    Args:
        reference: What `load_task` takes; empty for an object.
        folder: Working directory in which the reference was given.
        file: The task as a file written by cloudpickle; empty for a reference.
    """

    reference: str = ""
    folder: str = ""
    file: str = ""

    def load(self) -> Task:
        """The task; built once a process and kept.

        Raises:
            InvalidInput: If the reference leads to no task.
            TaskFailed: If the user's code raises.
        """
        return _load(self)


@contextmanager
def sent(task: Task | str) -> Iterator[TaskSource]:
    """The source of a task, usable by processes of this machine while it is entered.

    An object is written to a file of the temporary folder that only this user can read; a task with large arrays then
    travels to each worker once, not with every call.
    """
    if isinstance(task, str):
        yield referred(task)
        return
    import cloudpickle

    with tempfile.TemporaryDirectory(prefix="autocompress-task-") as folder:
        path = Path(folder) / "task.pickle"
        try:
            path.write_bytes(cloudpickle.dumps(task))
        except Exception as error:  # whatever the user's objects raise when they are pickled
            raise InvalidInput(
                f"task {task.name!r} can't be sent to worker processes: {one_line(error)}; load files before "
                "(dict(np.load(...))), put the task into a file of its own and give its path, or use executor='inline'"
            ) from error
        yield TaskSource(file=str(path))


def referred(reference: str) -> TaskSource:
    """The source of a task that is given by reference, as seen from the working directory."""
    return TaskSource(reference=_absolute(reference), folder=os.getcwd())


def _absolute(reference: str) -> str:
    """The reference with the path of its file made absolute, so that it leads there from any folder."""
    place, ending, name = reference.rpartition(".py")
    if not ending or (name and not name.startswith(":")):
        return reference
    return f"{Path(place + ending).expanduser().resolve()}{name}"


@lru_cache(maxsize=2)
def _load(source: TaskSource) -> Task:
    if source.file:
        import cloudpickle

        task: Task = cloudpickle.loads(Path(source.file).read_bytes())
        return task
    if os.path.isdir(source.folder) and os.getcwd() != source.folder:  # a node may have none of that name
        os.chdir(source.folder)
    return load_task(source.reference)
