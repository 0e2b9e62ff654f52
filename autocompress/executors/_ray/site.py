"""Where a task of Ray works, and how it reaches the run directory, the machines that measure, and the GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock

from autocompress.executors._ray.connecting import NAMESPACE, the_ray
from autocompress.executors._ray.folders import node_folder, occupy
from autocompress.executors._ray.losses import ATTEMPTS, PAUSE_S, given_up, loss, lost_cluster
from autocompress.executors._ray.needs import Need, Patience, wait_for
from autocompress.executors._ray.shelf import shelf_name
from autocompress.executors._ray.tasks import WITH_GPUS, WITHOUT_GPUS, title, work
from autocompress.executors._ray.trainers import ONE_TRAINER, Crew, train_together
from autocompress.profile import HardwareProfile
from autocompress.serialization import write_atomically
from autocompress.site import Site

T = TypeVar("T")

DEVICE = "device:"
"""How the resources begin by which nodes declare machines; their names follow."""

SETTLED_S = 600.0
"""Seconds after which a file here that the run no longer has is deleted; younger ones may be on their way there."""


@dataclass(frozen=True)
class RaySite(Site):
    """A node of a Ray cluster.

    Args:
        run_id: Of the process that searches.
        run: The run directory on the node of the search; empty before there is one.
        search_node: The node of the search.
        threads: Threads of a trial.
        crew: What training takes.
        declared: The resources by which nodes said that they have machines when the search began. What one of them
            stands for is measured there alone, also while its node is away.
    """

    run_id: str
    run: str = ""
    search_node: str = ""
    threads: int = 1
    crew: Crew = ONE_TRAINER
    declared: frozenset[str] = frozenset()

    @property
    def marker(self) -> Path:
        """The file by which a node that sees the run directory knows it."""
        return Path(self.run) / "artifacts" / f".{self.run_id}"

    @property
    def _is_at_hand(self) -> bool:
        return bool(self.run) and _sees(str(self.marker))

    def directory(self, run: Path) -> Path:
        """The run directory, or a folder of this node whose files are those of it that were needed here."""
        if self._is_at_hand:
            return run
        self._occupy()
        folder = self._scratch / "artifacts"
        folder.mkdir(exist_ok=True)
        known = self._ask("names")
        for file in folder.glob("*.safetensors"):
            if file.name not in known and time.time() - file.stat().st_mtime > SETTLED_S:
                file.unlink(missing_ok=True)
        return self._scratch

    def file(self, path: Path) -> Path:
        """The file itself, or a copy; one for all workers of the node."""
        if path.exists():
            return path
        self._occupy()
        copy = self._scratch / path.name
        with FileLock(copy.with_suffix(".lock")):
            if not copy.exists():
                write_atomically(copy, self._ask("carried", str(path)))
        return copy

    def has(self, file: Path) -> bool:
        """Whether the run has a file; it is copied here."""
        if file.is_file() or self._is_at_hand:
            return file.is_file()
        content = self._ask("get", file.name)
        if content is not None:
            write_atomically(file, content)
        return content is not None

    def share(self, file: Path) -> None:
        """Copy a file into the run directory."""
        if not self._is_at_hand:
            self._ask("put", file.name, file.read_bytes())

    def forget(self, file: Path) -> None:
        """Delete a file here and in the run directory."""
        file.unlink(missing_ok=True)
        if not self._is_at_hand:
            self._ask("drop", file.name)

    def log(self, run: Path, line: str) -> None:
        """Add a line to the log of the run."""
        del run
        self._ask("log", line)

    def measures_here(self, profile: HardwareProfile) -> bool:
        """True for agents, which every node reaches, and on the node of the search for its own machine."""
        if device_resource(profile) in self.declared:
            return False
        here = the_ray().get_runtime_context().get_node_id()
        return bool(profile.addresses) or here == self.search_node

    def at_device(self, profile: HardwareProfile, function: Callable[..., T], *args: object) -> T:
        """Call a function on the node that declares the machine, or on that of the search.

        Raises:
            DeviceUnavailable: If no node has had the machine for as long as the profile waits.
        """
        name = f"measure on {profile.name}: {the_ray().get_runtime_context().get_task_name()}"
        if device_resource(profile) not in self.declared:
            call = partial(self._measure_beside_search, name, function, args, is_quiet=profile.threads > 1)
            measured: T = self._stage(call, name)
            return measured
        options = {"name": name, "runtime_env": WITHOUT_GPUS, "resources": {device_resource(profile): 1}}
        task = _stage_task().options(**options)
        found: T = self._stage(lambda: task.remote(function, args, self.threads), name, _device_need(profile))
        return found

    def _measure_beside_search(
        self, name: str, function: Callable[..., T], args: tuple[object, ...], *, is_quiet: bool
    ) -> Any:
        return self._ask("meter").work.options(name=name).remote(function, args, is_quiet=is_quiet)

    @property
    def trains_here(self) -> bool:
        """True unless training takes GPUs or several trainers: these are held for no longer than it lasts."""
        return self.crew.trainers == 1 and not self.crew.gpus

    def at_trainer(self, function: Callable[..., T], *args: object) -> T:
        """Call a function in a process that has been given GPUs, in several that train together, or in this one.

        Raises:
            DeviceUnavailable: If no nodes have had the room for too long.
        """
        if self.trains_here:
            return function(*args)
        name, crew = title(function, args), self.crew
        if crew.trainers > 1:
            tell = partial(self.log, Path(self.run))
            return cast(T, self._stage(lambda: train_together(crew, name, function, args, tell), name))
        task = _training_task(crew.gpus).options(name=name)
        return cast(T, self._stage(lambda: task.remote(function, args, self.threads), name, crew.need))

    def _stage(self, begin: Callable[[], Any], name: str, need: Need | None = None) -> Any:
        """The result of a task within this one, whose CPUs others may have meanwhile; a lost one is begun again.

        Args:
            begin: Starts it and returns the reference to its outcome.
            name: Of the task.
            need: What a node has to have for it, if that may be gone.

        Raises:
            BrokenExecutor: If it was lost again and again, which is no loss: who asked does not begin it again.
        """
        ray = the_ray()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reference = begin()
                if need is not None:
                    wait_for(reference, Patience(need, partial(self.log, Path(self.run))))
                return ray.get(reference).unwrapped()
            except ray.exceptions.RayError as error:
                reason = loss(error)
                if not reason:
                    raise
                if attempt == ATTEMPTS:
                    raise given_up(f"{name}: {reason}") from error
                self.log(Path(self.run), f"{name}: {reason}; begun again")
                time.sleep(PAUSE_S * attempt)
        raise AssertionError("the last attempt returned or raised")

    @property
    def _scratch(self) -> Path:
        return node_folder(self.run_id)

    def _occupy(self) -> None:
        """Have the folder for copies on this node, and let the search know, which removes it in the end."""
        if not self._scratch.is_dir():
            self._ask("receive", the_ray().get_runtime_context().get_node_id())
        occupy(self._scratch)

    def _ask(self, method: str, *args: object) -> Any:
        """Call the shelf.

        Raises:
            DeviceUnavailable: If it is gone, and with it the way to the files of the run.
        """
        try:
            return the_ray().get(getattr(_shelf(self.run_id), method).remote(*args))
        except the_ray().exceptions.ActorDiedError as error:
            raise lost_cluster(error) from error


def device_resource(profile: HardwareProfile) -> str:
    """The resource by which a node declares that it has a machine."""
    return f"{DEVICE}{profile.name}"


def _device_need(profile: HardwareProfile) -> Need:
    resource = device_resource(profile)
    return Need(
        {resource: 1.0},
        whose=f"device {profile.name!r}",
        what=f"the resource {resource!r}",
        advice=f"start one with ray start --resources '{{\"{resource}\": 1}}'",
        wait_s=profile.wait_s,
    )


@lru_cache(maxsize=4)
def _sees(marker: str) -> bool:
    """Whether this machine has the file; asked once, as a process that works with copies is to stay with them."""
    return Path(marker).exists()


@lru_cache(maxsize=1)
def _stage_task() -> Any:
    """The task of a stage; made once, since Ray keeps each that is made for as long as the search runs.

    It runs outside of the placement group of whoever asks, which has nothing for it.
    """
    return the_ray().remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(work)


@lru_cache(maxsize=1)
def _training_task(gpus: float) -> Any:
    """The task of training, whose process ends with it, and gives its GPU's memory back."""
    return the_ray().remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0, runtime_env=WITH_GPUS)(work)


@lru_cache(maxsize=4)
def _shelf(run_id: str) -> Any:
    try:
        return the_ray().get_actor(shelf_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise lost_cluster(error) from error
