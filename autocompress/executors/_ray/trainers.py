"""Trainers of one trial: processes of a cluster that start together, know one another, and end together."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from autocompress.errors import DeviceUnavailable, InvalidInput, TeamBroken
from autocompress.exchange import exchanging
from autocompress.executors._base import prepare_process
from autocompress.executors._ray.connecting import the_ray
from autocompress.executors._ray.needs import LOOK_S, TRAINER_WAIT_S, Need, Patience, quantity
from autocompress.executors._ray.tasks import WITH_GPUS, WITHOUT_GPUS, Outcome, hide_gpus, work

MEETING_S = 300.0
"""Seconds that trainers have to reach one another, once all run."""

SILENCE_S = 24 * 3600.0
"""Seconds that a trainer waits for another: the first one scores alone, and one that is lost is noticed by Ray."""

GRACE_S = 15.0
"""Seconds that the cause has to show itself, once trainers say that they have lost one another."""


@dataclass(frozen=True)
class Crew:
    """What training a trial takes.

    Args:
        trainers: Processes.
        threads: Threads, and CPUs of Ray, of each where there are several.
        gpus: GPUs of Ray of each.
    """

    trainers: int = 1
    threads: int = 1
    gpus: float = 0.0

    @property
    def has_whole_gpus(self) -> bool:
        """True if no two trainers share a GPU, which NCCL needs."""
        return self.gpus >= 1

    @property
    def need(self) -> Need:
        """What the cluster has to have for it; the CPU of a single trainer is that of the trial, which waits."""
        cpus = self.threads if self.trainers > 1 else 1
        each = " and ".join([quantity(self.gpus, "GPU")] * (self.gpus > 0) + [quantity(cpus, "CPU")])
        flags = {"--trainers-per-trial": self.trainers > 1, "--gpus-per-trial": self.gpus > 0}
        fewer = " or ".join(flag for flag, is_asked in flags.items() if is_asked)
        return Need(
            {"CPU": float(cpus)} | ({"GPU": self.gpus} if self.gpus else {}),
            whose=f"trainers per trial {self.trainers}" if self.trainers > 1 else f"gpus per trial {self.gpus:g}",
            what=f"{each} for each of {self.trainers} trainers" if self.trainers > 1 else each,
            advice=f"start one with them (ray start --address HOST:PORT), or train on fewer with {fewer}",
            wait_s=TRAINER_WAIT_S,
            count=self.trainers,
        )


ONE_TRAINER = Crew()
"""One process, on processors."""


def train_together(
    crew: Crew, name: str, function: Callable[..., Any], args: tuple[Any, ...], tell: Callable[[str], None]
) -> Any:
    """Call a function in all trainers of a trial at the same time; a reference to the outcome of the first.

    Args:
        crew: The trainers.
        name: Of what they do.
        function, args: The call.
        tell: Told when the cluster has no room for them any more.
    """
    ray = the_ray()
    here = ray.get_runtime_context().get_node_id()
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    made = _actor_class(Team).options(num_cpus=0, scheduling_strategy=affinity, lifetime="detached")
    team = made.remote(os.getpid())
    reference = team.train.options(name=name).remote(crew, name, function, args, tell)
    team.end.remote()
    return reference


class Team:
    """Starts the trainers of a trial, waits for them, and ends them.

    Ray removes a placement group with the actor that made it if that is a detached one; any other would leave the group
    behind when it dies, and with it the CPUs. So it looks itself whether the trial still runs, on whose node it is.

    Args:
        trial: Number of the process that wants the training; this one ends with it.
    """

    def __init__(self, trial: int) -> None:
        threading.Thread(target=_end_after, args=(trial,), daemon=True).start()

    def train(
        self, crew: Crew, name: str, function: Callable[..., Any], args: tuple[Any, ...], tell: Callable[[str], None]
    ) -> Outcome:
        """Call a function in every trainer, for which there has to be room at the same time.

        Returns:
            What came of it in the first, or an error in any.

        Raises:
            InvalidInput: If trainers don't reach one another.
            RayError: If one is lost.
        """
        ray = the_ray()
        bundle = {"CPU": float(crew.threads)} | ({"GPU": crew.gpus} if crew.gpus else {})
        # as few nodes as can be: gradients are exchanged after every step, fastest within a node
        group = ray.util.placement_group([bundle] * crew.trainers, strategy="PACK")
        trainers, patience = list[Any](), Patience(crew.need, tell)
        try:
            while not group.wait(LOOK_S):
                patience.look()
            trainers = [_trainer(crew, group, rank) for rank in range(crew.trainers)]
            _introduce(trainers, crew, patience)
            named = [trainer.work.options(name=f"{name} ({rank + 1})") for rank, trainer in enumerate(trainers)]
            return _outcome([call.remote(function, args, crew.threads) for call in named])
        except DeviceUnavailable as error:
            return Outcome(error=error)
        except ray.exceptions.GetTimeoutError:
            return Outcome(error=_unreachable(crew))
        finally:
            for trainer in trainers:
                ray.kill(trainer)
            ray.util.remove_placement_group(group)

    def end(self) -> None:
        """End this process."""
        the_ray().actor.exit_actor()


class Trainer:
    """A process that trains with others; it ends with the training."""

    def __init__(self) -> None:
        self._store: Any = None

    def prepare(self, threads: int) -> bool:
        """Load what training needs; returns whether this process can exchange data by NCCL."""
        hide_gpus()
        prepare_process(threads)
        import torch
        import torch.distributed as dist

        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(_own_address()))
        return bool(torch.cuda.is_available() and dist.is_nccl_available())

    def invite(self, trainers: int) -> tuple[str, int]:
        """Open a place where trainers meet; returns its host and port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, patience = _own_address(), timedelta(seconds=MEETING_S)
        self._store = TCPStore(host, 0, trainers, is_master=True, timeout=patience, wait_for_workers=False)
        return host, self._store.port

    def meet(self, rank: int, trainers: int, place: tuple[str, int], backend: str) -> None:
        """Become one of a group of `torch.distributed`.

        Raises:
            TeamBroken: If others are not there.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        patience = timedelta(seconds=MEETING_S)
        with exchanging(f"trainer {rank + 1} of {trainers} did not reach the others"):
            store = self._store or TCPStore(*place, trainers, is_master=False, timeout=patience)
            silence = timedelta(seconds=SILENCE_S)
            dist.init_process_group(backend, store=store, rank=rank, world_size=trainers, timeout=silence)
            for device in ("cpu", "cuda") if "nccl" in backend else ("cpu",):
                dist.all_reduce(torch.zeros(1, device=device))

    def work(self, function: Callable[..., Any], args: tuple[Any, ...], threads: int) -> Outcome:
        """Call a function."""
        return work(function, args, threads)


def _end_after(number: int) -> None:
    """End this process as soon as another one of this machine has ended: Ray ends what it has started."""
    import psutil  # that of Ray

    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(number)
        while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_S)
    os._exit(1)


def _trainer(crew: Crew, group: Any, rank: int) -> Any:
    strategy = the_ray().util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=rank
    )
    made = _actor_class(Trainer).options(
        num_cpus=crew.threads,
        num_gpus=crew.gpus,
        scheduling_strategy=strategy,
        runtime_env=WITH_GPUS if crew.gpus else WITHOUT_GPUS,
    )
    return made.remote()


def _introduce(trainers: Sequence[Any], crew: Crew, patience: Patience) -> None:
    """Make trainers know one another.

    Raises:
        DeviceUnavailable: If some have not begun for too long, as their node is gone.
        TeamBroken: If they don't reach one another.
        GetTimeoutError: If they take too long for that.
    """
    ray, count = the_ray(), len(trainers)
    pending = preparing = [trainer.prepare.remote(crew.threads) for trainer in trainers]
    while pending:
        ready, pending = ray.wait(pending, num_returns=len(pending), timeout=LOOK_S)
        ray.get(ready)  # one that is lost is told at once
        if pending:
            patience.look()
    know_nccl = ray.get(preparing)
    backend = "cpu:gloo,cuda:nccl" if crew.has_whole_gpus and all(know_nccl) else "gloo"
    place = ray.get(trainers[0].invite.remote(count))
    meetings = [trainer.meet.remote(rank, count, place, backend) for rank, trainer in enumerate(trainers)]
    ray.get(meetings, timeout=MEETING_S)


def _outcome(calls: Sequence[Any]) -> Outcome:
    """What the first call returned once all have, or the error of any; others may wait for that one for ever.

    Raises:
        RayError: If a trainer is lost. What others say of it comes second: it is its consequence.
    """
    ray, pending, consequence = the_ray(), list(calls), None
    while pending:
        done, pending = ray.wait(pending, timeout=GRACE_S if consequence else None)
        if not done:
            break
        try:
            outcome: Outcome = ray.get(done[0])
        except TeamBroken as error:
            consequence = error
            continue
        if outcome.error is not None:
            return outcome
    if consequence is not None:
        raise consequence
    first: Outcome = ray.get(calls[0])
    return first


def _unreachable(crew: Crew) -> InvalidInput:
    return InvalidInput(
        f"trainers per trial {crew.trainers}: they did not reach one another within {MEETING_S:g} s; let the nodes of "
        "the cluster connect to one another on all ports, or take one trainer"
    )


def _own_address() -> str:
    """The address by which other nodes reach this one."""
    return str(the_ray().util.get_node_ip_address())


def _interface(address: str) -> str:
    """The network interface that has an address; empty if none has it."""
    import psutil  # that of Ray

    for name, known in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == address for one in known):
            return str(name)
    return ""


@lru_cache(maxsize=2)
def _actor_class(kind: type) -> Any:
    """A class of actors; made once, since Ray keeps each that is made for as long as the search runs."""
    return the_ray().remote(kind)
