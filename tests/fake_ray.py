"""A stand-in for the package Ray: tasks end when a test says so, and nothing is started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.executors._ray import connecting


class Reference:
    """A call of a task, which waits for its end."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self._future: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self._future

    def end(self, outcome: Any) -> None:
        """End with a result or an error."""
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class Remote:
    """What can be called on a cluster."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def options(self, **kwargs: Any) -> Remote:
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class Actor:
    """An actor whose methods do nothing."""

    def __getattr__(self, name: str) -> Remote:
        return Remote(lambda *args: frozenset())


class FakeRay:
    """The part of Ray that the executor calls.

    Args:
        nodes: Resources of the nodes.
    """

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.exceptions = pytest.importorskip("ray").exceptions
        self.has = list(nodes)
        self.begun = list[Reference]()
        self.connected = False
        self.addresses = list[str | None]()
        self.canceled = list[Reference]()
        self.util = SimpleNamespace(
            client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: False)),
            scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: None),
            get_node_ip_address=lambda: "10.0.0.1",
        )
        self._private = SimpleNamespace(worker=SimpleNamespace())

    def init(self, address: str | None, **options: Any) -> None:
        self.addresses.append(address)
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def is_initialized(self) -> bool:
        return self.connected

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": str(index), "Resources": has} for index, has in enumerate(self.has)]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56, gcs_address="10.0.0.1:6379")

    def remote(self, made: Any = None, **options: Any) -> Any:
        if made is None:
            return self.remote
        return Remote(lambda *args: Actor()) if isinstance(made, type) else Remote(self._begin)

    def _begin(self, *args: Any) -> Reference:
        assert self.connected, "Ray would start a cluster"
        self.begun.append(Reference(args))
        return self.begun[-1]

    def get(self, found: Any, timeout: float | None = None) -> Any:
        assert self.connected, "Ray would start a cluster"
        return found

    def wait(self, references: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return references, []

    def cancel(self, reference: Reference, *, force: bool) -> None:
        assert self.connected, "Ray would start a cluster"
        self.canceled.append(reference)

    def kill(self, actor: Actor) -> None:
        assert self.connected, "Ray would start a cluster"


def stand_in(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> FakeRay:
    """Have a cluster of some nodes in place of Ray, for a test."""
    fake = FakeRay(*nodes)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(connecting, "_CONNECTION", connecting._Connection())
    monkeypatch.setattr(connecting, "_is_left_over", lambda: False)
    return fake
