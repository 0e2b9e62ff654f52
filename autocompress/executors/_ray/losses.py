"""Which errors of Ray mean that work was lost by no fault of its own."""

from __future__ import annotations

from autocompress.errors import TeamBroken
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
