"""Reaching a Ray cluster, or starting one of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.cluster import Cluster
from autocompress.errors import InvalidInput, one_line

NAMESPACE = "autocompress"
PATIENCE_S = 5.0
"""Seconds that a cluster may take to answer at all."""

CARRIED = "AUTOCOMPRESS_DATA"
"""Environment variable that workers of a cluster get, too: where data are."""

OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
"""Environment variable by which Ray takes what a job has been given from its program, too."""

LOOPBACK = {"127.0.0.1", "::1"}
"""Addresses by which every machine knows itself."""

HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head."""


def the_ray() -> Any:
    """The package Ray.

    Raises:
        InvalidInput: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidInput(
            "executor 'ray': Ray is not installed; install it with pip install 'autocompress[ray]', or take the "
            "executor 'processes'"
        ) from error
    return ray


@dataclass
class _Connection:
    """That of this process, of which Ray allows one."""

    address: str | None = None
    is_ours: bool = False
    users: int = 0


_CONNECTION = _Connection()


def connect(address: str | None) -> None:
    """Reach a cluster, unless this process has reached it already, by whomever.

    Args:
        address: "auto", `host:port` of the head or `ray://host:port` of its client server; None for what the
            environment names (`RAY_ADDRESS`, a job), a cluster that runs on this machine, or else a new one of this
            machine alone.

    Raises:
        InvalidInput: If Ray is not installed, the cluster can't be reached, or this process has reached another one.
    """
    ray, asked = the_ray(), address
    if ray.is_initialized() and _CONNECTION.is_ours and not _CONNECTION.users and asked != _CONNECTION.address:
        _leave()
    if ray.is_initialized():
        if address is not None and not (_CONNECTION.is_ours and address == _CONNECTION.address):
            _require_at(address)
        return
    if address is None and _is_left_over():
        address = "local"
    elif address is not None and not _answers(address):
        raise InvalidInput(
            f"Ray cluster {address}: nothing answers there; expected host:port of a head that runs (ray start --head), "
            "ray://host:10001 of its client server, or no address"
        )
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray sets its own, by which a search could not end in order
    variables = {CARRIED: os.environ[CARRIED]} if CARRIED in os.environ else {}
    try:
        with _overriding_job():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables} if variables else None,
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InvalidInput(
            f"Ray cluster {address or 'of this machine'}: can't be reached: {one_line(error)}; expected host:port of a "
            "head that runs (ray start --head), ray://host:10001 of its client server, or no address"
        ) from error
    # what Ray prints of workers that die would run through the progress, long as it is; the log of the run tells it
    ray._private.worker._worker_logs_enabled = False
    _CONNECTION.address, _CONNECTION.is_ours = asked, True
    if threading.current_thread() is threading.main_thread() and on_terminate is not None:
        signal.signal(signal.SIGTERM, on_terminate)


@contextmanager
def _overriding_job() -> Iterator[None]:
    """Let Ray take a variable that it has been given with the job, too, which it refuses even for the same value."""
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OVERRIDE]
        else:
            os.environ[OVERRIDE] = before


def _require_at(address: str) -> None:
    """Refuse to work on another cluster than the one that was asked for.

    Args:
        address: What was asked for; "auto" stands for any that runs.

    Raises:
        InvalidInput: If this process is connected to another, or to the same one in another way.
    """
    client = the_ray().util.client.ray
    reached = f"ray://{client.worker._conn_str}" if is_client() else the_ray().get_runtime_context().gcs_address
    if address != "auto" and not _is_same(address, reached):
        raise InvalidInput(
            f"Ray cluster {address}: this process is connected to {reached} already; end that first (ray.shutdown()), "
            "or leave the address out to search there"
        )


def _is_same(address: str, other: str) -> bool:
    """Whether two addresses, each `host:port` or `ray://host:port`, are of one server."""
    (scheme, host, port), (other_scheme, other_host, other_port) = _parts(address), _parts(other)
    return (scheme, port) == (other_scheme, other_port) and bool(_ips(host) & _ips(other_host))


def _parts(address: str) -> tuple[str, str, str]:
    """What stands before "://", the host and the port."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    return scheme, host.strip("[]"), port


def _ips(host: str) -> set[str]:
    """IP addresses of a host, the name itself among them; with any that stands for this machine that of its node."""
    try:
        found = {str(known[4][0]) for known in socket.getaddrinfo(host, None)}
    except OSError:
        found = set()
    own = {str(the_ray().util.get_node_ip_address())} if found & LOOPBACK else set()
    return {host} | found | own


def _answers(address: str) -> bool:
    """Whether anything listens at an address, which Ray takes minutes to find out; True for what is no address."""
    _, host, port = _parts(address)
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def _is_left_over() -> bool:
    """Whether Ray would look for a cluster of this machine that was killed: it has left its address."""
    noted = _ray_folder() / "ray_current_cluster"
    if "RAY_ADDRESS" in os.environ or not noted.is_file():
        return False
    return not _answers(noted.read_text(encoding="utf-8").strip())


def _ray_folder() -> Path:
    """Where Ray notes the cluster of this machine, and looks for it."""
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    usual = tempfile.gettempdir() if sys.platform == "win32" else "/tmp"
    return Path(next((os.environ[name] for name in variables if name in os.environ), usual)) / "ray"


def require_reached() -> None:
    """Refuse to call a cluster that has been lost: Ray would start another one in this process.

    Raises:
        ConnectionError: If it has been.
    """
    if not the_ray().is_initialized():
        raise ConnectionError("its connection has ended")


def is_client() -> bool:
    """True if this process is no part of the cluster and reaches it by `ray://`."""
    return bool(the_ray().util.client.ray.is_connected())


def search_node() -> str:
    """The node of this process; the head for a client.

    Raises:
        InvalidInput: If a client finds no head.
    """
    ray = the_ray()
    if not is_client():
        return str(ray.get_runtime_context().get_node_id())
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    if not heads:
        raise InvalidInput("Ray cluster: has no head node that is alive; start it anew")
    return str(heads[0])


def hold() -> None:
    """Need the connection, until `release`."""
    _CONNECTION.users += 1


def release() -> None:
    """Need the connection no more; the last one leaves a cluster that was reached here, or ends it if it began here."""
    _CONNECTION.users -= 1
    if not _CONNECTION.users and _CONNECTION.is_ours:
        _leave()


def _leave() -> None:
    the_ray().shutdown()
    _CONNECTION.address, _CONNECTION.is_ours = None, False


def fitting(threads: int, memory_bytes: float) -> tuple[int, float]:
    """CPUs and bytes of memory that a task may ask for: no more than some node has, or it would wait for ever.

    Of nodes that have too little of either, that counts which has the memory. Where no node has a CPU yet, as on a
    cluster that grows when it is asked to, they are left as they are.
    """
    fits = [(min(memory, memory_bytes), min(cpus, threads)) for cpus, memory in _rooms()]
    bytes_of_one, cpus_of_one = max(fits, default=(memory_bytes, threads))
    return cpus_of_one, bytes_of_one


def threads_for(workers: int) -> int:
    """The most threads of each that let so many tasks run at the same time on the nodes as they are; 1 at least."""
    cpus = node_cpus()
    counts = range(max(cpus, default=1), 1, -1)
    return next((count for count in counts if sum(each // count for each in cpus) >= workers), 1)


def node_cpus() -> list[int]:
    """CPUs of every node that has one."""
    return [cpus for cpus, _ in _rooms()]


def _rooms() -> list[tuple[int, float]]:
    """CPUs and bytes of memory of every node that has a CPU."""
    return [(int(has["CPU"]), has.get("memory", 0.0)) for has in nodes() if has.get("CPU", 0.0) >= 1]


def require_gpus(count: float) -> None:
    """Refuse to wait for GPUs that the cluster does not have.

    Where no node has a CPU yet, as on a cluster that grows when it is asked to, they may come.

    Raises:
        InvalidInput: If it has none, or no node has as many.
    """
    found = nodes()
    most = max((node.get("GPU", 0.0) for node in found), default=0.0)
    if count > most and has_processors(found):
        raise InvalidInput(
            f"gpus per trial {count:g}: no node of the cluster has more than {most:g}; ask for fewer, or start nodes "
            "with more (ray start --num-gpus N)"
        )


def fitting_trainers(cluster: Cluster, threads: int) -> int:
    """CPUs that each trainer of a trial may ask for: no more than leave room for all of them at the same time.

    Where no node has a CPU yet, as on a cluster that grows when it is asked to, they are left as they are.

    Raises:
        InvalidInput: If the cluster has no room for so many trainers of one CPU each.
    """
    found, gpus = nodes(), cluster.gpus_per_trial
    if cluster.trainers_per_trial == 1 or not has_processors(found):
        return threads
    for cpus in range(threads, 0, -1):
        room = sum(room_in(node, {"CPU": cpus, "GPU": gpus}) for node in found)
        if room >= cluster.trainers_per_trial:
            return cpus
    each = f"a CPU and {gpus:g} GPUs" if gpus else "a CPU"
    raise InvalidInput(
        f"trainers per trial {cluster.trainers_per_trial}: each takes {each}, and the cluster has room for {room} "
        f"(nodes: {len(found)}); ask for fewer, or start more nodes (ray start --address HOST:PORT)"
    )


def room_in(node: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """How many times a node has all that is needed of Ray's resources; a part of a GPU is of a single one."""
    return min(_room_of(name, node.get(name, 0.0), least) for name, least in needed.items() if least)


def _room_of(name: str, has: float, least: float) -> int:
    rounding = 1e-9
    if name == "GPU" and least < 1:
        return int(has) * int(1 / least + rounding)
    return int(has / least + rounding)


def has_processors(found: Iterable[Mapping[str, float]]) -> bool:
    """Whether any of some nodes has a CPU."""
    return any(node.get("CPU", 0.0) >= 1 for node in found)


def nodes() -> list[dict[str, float]]:
    """The resources of every node that is alive."""
    return [node["Resources"] for node in the_ray().nodes() if node["Alive"]]
