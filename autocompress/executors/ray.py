"""Trials as tasks of a Ray cluster: on this machine, or on as many as the cluster has."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autocompress.cluster import ALONE, Cluster
from autocompress.executors._base import EXECUTORS, WORKER_BYTES, TrialExecutor
from autocompress.executors._ray.connecting import (
    PATIENCE_S,
    connect,
    fitting,
    fitting_trainers,
    hold,
    is_client,
    node_cpus,
    nodes,
    release,
    require_gpus,
    require_reached,
    room_in,
    search_node,
    the_ray,
    threads_for,
)
from autocompress.executors._ray.losses import ATTEMPTS, PAUSE_S, cause_of, errors_of_lost, given_up, loss
from autocompress.executors._ray.mirror import Mirror
from autocompress.executors._ray.needs import Need, Watch, quantity
from autocompress.executors._ray.shelf import end_shelf, start_shelf
from autocompress.executors._ray.site import DEVICE, RaySite
from autocompress.executors._ray.tasks import WITHOUT_GPUS, Outcome, title, work
from autocompress.executors._ray.trainers import Crew

T = TypeVar("T")

BESIDE_GPUS = 2
"""Trials for each that GPUs have room for: one is built or measured while another trains."""


@dataclass(frozen=True)
class _Call:
    """A call that was submitted.

    Args:
        future: What came of it.
        function, args: The call.
        kills: How often all work had been ended before; once more drops it.
        attempt: How often it has been begun.
    """

    future: Future[Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kills: int
    attempt: int = 1


@EXECUTORS.register
class RayExecutor(TrialExecutor):
    """Each call is a task of Ray, which finds a node for it; a call whose worker or node is lost is begun again.

    What a trial trains is kept in the run directory, so a call that is begun again goes on after the last stage that
    ended. Models are measured where the machine of the profile is: on the node that declares the resource
    `device:NAME`, through the agent that the profile gives an address of, or else on the node of the search.

    Args:
        workers: Trials at the same time.
        threads: Threads, and CPUs of Ray, that one trial takes; fewer where no node has as many.
        cluster: Where to run.
        takes_cpus: Whether tasks take CPUs of Ray; if not, they run beside what holds these, on any node, and see its
            GPUs.

    Raises:
        InvalidInput: If Ray is not installed, the cluster can't be reached, or it has not the GPUs or the room for
            trainers that are asked for.
    """

    name: ClassVar[str] = "ray"
    has_cluster: ClassVar[bool] = True

    def __init__(self, workers: int, threads: int, cluster: Cluster = ALONE, *, takes_cpus: bool = True) -> None:
        connect(cluster.address)
        hold()
        try:
            require_gpus(cluster.gpus_per_trial)
            threads, memory_bytes = fitting(threads, WORKER_BYTES)
            crew = Crew(cluster.trainers_per_trial, fitting_trainers(cluster, threads), cluster.gpus_per_trial)
            self._run_id = uuid.uuid4().hex[:12]
            self._shelf = start_shelf(self._run_id)
        except BaseException:
            release()
            raise
        super().__init__(workers, threads, cluster)
        self._site = RaySite(self._run_id, threads=threads, crew=crew, search_node=search_node())
        own = {"num_cpus": threads, "runtime_env": WITHOUT_GPUS}
        options = own if takes_cpus else {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        self._task = the_ray().remote(memory=memory_bytes, max_retries=0, **options)(work)
        self._lock = threading.Lock()
        self._running: dict[Any, _Call] = {}
        self._open: set[Future[Any]] = set()
        """All that have not ended: those of running calls, and of lost ones that are to be begun again."""

        self._kills = 0
        """How often all work was ended: what began before is not begun again."""

        self._watch = Watch(_need(threads, memory_bytes), lambda: bool(self._running), self._say)
        self._marker: Path | None = None
        self._mirror: Mirror | None = None
        # what comes back is looked at in a thread of our own: Ray's must not wait for Ray
        self._desk = ThreadPoolExecutor(1, thread_name_prefix="autocompress-ray")

    @classmethod
    def usual_workers(cls, cluster: Cluster, *, takes_wall_time: bool) -> int:
        """As many as the cluster has CPUs, memory and, if they train on some, GPUs for now, with all of their trainers.

        One alone where timing would suffer, as all is one machine.
        """
        connect(cluster.address)
        if takes_wall_time and len(node_cpus()) == 1:
            return 1
        found, (cpus, memory_bytes) = nodes(), fitting(1, WORKER_BYTES)
        room = sum(room_in(node, {"CPU": cpus, "memory": memory_bytes}) for node in found)
        if cluster.gpus_per_trial:
            trainers = sum(room_in(node, {"CPU": 1.0, "GPU": cluster.gpus_per_trial}) for node in found)
            room = min(room, BESIDE_GPUS * trainers)
        return max(1, room // cluster.trainers_per_trial)

    @classmethod
    def usual_threads(cls, workers: int, cluster: Cluster) -> int:
        """As many as let all trials run at the same time on the nodes that the cluster has now."""
        connect(cluster.address)
        return threads_for(workers * cluster.trainers_per_trial)

    @property
    def site(self) -> RaySite:
        """Where the tasks run."""
        return self._site

    def carry(self, file: Path) -> None:
        """Let other nodes have a file of this machine."""
        ray = the_ray()
        ray.get(self._shelf.carry.remote(str(file), file.read_bytes()))

    def begin(self, run: Path) -> None:
        """Let other nodes have the files of a run; nodes that see its folder find a mark there, and use it."""
        resources = the_ray().cluster_resources()
        declared = frozenset(name for name in resources if name.startswith(DEVICE))
        self._site = replace(self._site, run=str(run), declared=declared)
        self._marker = self._site.marker
        self._marker.touch()
        if is_client():
            self._mirror = Mirror(self._shelf, run)
        else:
            the_ray().get(self._shelf.begin.remote(str(run)))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` on some node."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._start(_Call(future, partial(fn, **kwargs) if kwargs else fn, args, self._kills))
        return future

    def _start(self, call: _Call) -> None:
        """Begin a call, unless all that was submitted before is dropped; what keeps it from beginning ends it."""
        named = self._task.options(name=title(call.function, call.args))
        try:
            with self._lock:
                if call.kills != self._kills:
                    raise BrokenExecutor("dropped")
                require_reached()
                reference = named.remote(call.function, call.args, self.threads)
                ended = reference.future()
                self._running[reference] = call
        except Exception as error:  # as arguments that can't travel, or a connection that is gone
            call.future.set_exception(cause_of(error))
        else:
            ended.add_done_callback(partial(self._hand_over, reference))

    def _hand_over(self, reference: Any, done: Future[Outcome]) -> None:
        with suppress(RuntimeError):  # this executor has been shut down
            self._desk.submit(self._end, reference, done)

    def _end(self, reference: Any, done: Future[Outcome]) -> None:
        with self._lock:
            call = self._running.pop(reference, None)
        if call is None:  # dropped
            return
        try:
            self._pass_on(call, done)
        except Exception as failed:  # as the log on a full disk, or a connection that is gone
            call.future.set_exception(cause_of(failed))

    def _pass_on(self, call: _Call, done: Future[Outcome]) -> None:
        """Begin a lost call again, or give what came of it to whoever waits."""
        error = done.exception()
        reason = loss(error) if error is not None else ""
        if reason and call.attempt < ATTEMPTS:
            self.tell(f"{title(call.function, call.args)}: {reason}; begun again")
            again = replace(call, attempt=call.attempt + 1)
            rest = threading.Timer(PAUSE_S * call.attempt, self._start, [again])  # other calls don't wait for it
            rest.daemon = True
            rest.start()
        elif reason:
            call.future.set_exception(given_up(reason))
        elif error is not None:
            raise error
        else:
            if self._mirror is not None:
                require_reached()
                self._mirror.renew()
            done.result().pass_on_to(call.future)

    def _say(self, event: str) -> None:
        """Tell whoever listens by now."""
        self.tell(event)

    def kill(self) -> None:
        """Cancel every task; workers that run one end with it."""
        with self._lock:
            dropped, self._running = self._running, {}
            self._kills += 1
        for call in dropped.values():
            call.future.set_exception(BrokenExecutor("dropped"))
        with suppress(*errors_of_lost()):  # it has ended by itself
            require_reached()
            for reference in dropped:
                the_ray().cancel(reference, force=True)
            if dropped:
                the_ray().get(self._shelf.drop_meter.remote(), timeout=PATIENCE_S)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the connection to the cluster when all tasks have ended; at once with `cancel_futures` or without `wait`.

        Nodes keep no copies of the run's files.
        """
        begun = list(self._running)
        if cancel_futures or not wait:
            self.kill()
        else:
            futures.wait(list(self._open))
        self._desk.shutdown(wait=wait)
        self._watch.end()
        try:
            if self._marker is not None:
                self._marker.unlink(missing_ok=True)
            with suppress(*errors_of_lost()):  # what is lost already needs no end
                require_reached()
                if begun:
                    the_ray().wait(begun, num_returns=len(begun), timeout=PATIENCE_S)
                end_shelf(self._shelf, self._run_id)
        finally:
            release()


def _need(threads: int, memory_bytes: float) -> Need:
    """What a trial needs of its node."""
    return Need(
        {"CPU": threads, "memory": memory_bytes},
        whose="trials",
        what=f"{quantity(threads, 'CPU')} and {memory_bytes / 1e9:.1f} GB of memory",
        advice="trials run on no others; start one with ray start --address HEAD",
        wait_s=math.inf,
    )
