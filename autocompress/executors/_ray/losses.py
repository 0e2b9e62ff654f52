"""Which errors of Ray mean that work, or the cluster itself, was lost by no fault of the work."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from autocompress.errors import DeviceUnavailable, TeamBroken, one_line
from autocompress.executors._ray.connecting import the_ray

PAUSE_S = 0.5
"""Seconds before work is begun again, times how often it has been begun."""

ATTEMPTS = 5
"""How often a piece of work is begun at most."""


def loss(error: BaseException) -> str:
    """Why work was lost, for errors after which it may succeed if begun again; empty for all others."""
    errors = the_ray().exceptions
    reasons = {
        errors.OutOfMemoryError: "its worker was ended, as its node ran out of memory",
        errors.NodeDiedError: "its node was lost",
        errors.WorkerCrashedError: "its worker process died",
        errors.ObjectLostError: "what it needed was lost with a node",
        errors.LocalRayletDiedError: "Ray on its node died",
        errors.ActorDiedError: "a worker that it needed died",
        errors.ActorUnavailableError: "a worker that it needed can't be reached",
        errors.TaskUnschedulableError: "the node that it has to run on is gone",
        TeamBroken: "its trainers lost one another",
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "")


def given_up(what: str) -> BrokenExecutor:
    """The error of work that was begun as often as it may be."""
    return BrokenExecutor(f"{what}, {ATTEMPTS} times in a row")


def lost_cluster(error: Exception) -> DeviceUnavailable:
    """The error of a search that has lost its cluster, with what it was seen by as its cause."""
    lost = DeviceUnavailable(f"Ray cluster: lost: {one_line(error)}")
    lost.__cause__ = error
    return lost


def cause_of(error: Exception) -> Exception:
    """The error itself; where it says that the connection or the shelf is gone, that the cluster is lost.

    Args:
        error: Of a call that is not made again.
    """
    is_lost = isinstance(error, (ConnectionError, the_ray().exceptions.RayActorError))
    return lost_cluster(error) if is_lost else error


def errors_of_lost() -> tuple[type[Exception], ...]:
    """What calls to a cluster may raise that is lost: Ray's errors, those of the connection, and gRPC's once closed."""
    return the_ray().exceptions.RayError, ConnectionError, ValueError
