"""A hardware profile: what a machine is, what is fast on it, and how it is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict

from autocompress.errors import InvalidInput
from autocompress.resources import find_yaml
from autocompress.serialization import from_data, read_yaml

KernelKind = Literal["conv", "depthwise", "linear", "attention"]
FastPrecision = Literal["int8", "dynamic_int8", "nbits"]

GENERAL: Mapping[KernelKind, KernelKind] = {"depthwise": "conv", "attention": "linear"}
"""Kernels that a profile need not tell apart to those that stand for them then."""

REMOTE = "remote"
"""The device that is reached at addresses."""

_ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")


@dataclass(frozen=True)
class Protocol:
    """How a latency is taken.

    Args:
        warmup_runs: Inferences before the first counted one, for each model.
        block_ms: CPU milliseconds of one block; blocks of all models are shuffled together, so that what slows the
            machine for a moment slows all of them.
        min_cpu_s: CPU seconds to spend on each model at least.
        max_cpu_s: CPU seconds to spend on each model at most.
        interval: Wanted half width of the 95 % interval of the latency ratio, relative (0.02 = 2 %); measuring ends
            when it is reached.
        patience: What `max_cpu_s` is multiplied by while the reference takes over 3 % longer than in the quietest of
            its last ten measurements, from 1 up: what disturbs a machine may pass. One that is slower for good, as when
            it is throttled, costs that for ten measurements of each process only: no quicker ones are remembered then.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    warmup_runs: int = 5
    block_ms: float = 8.0
    min_cpu_s: float = 0.25
    max_cpu_s: float = 1.0
    interval: float = 0.015
    patience: float = 3.0

    def __post_init__(self) -> None:
        if min(self.warmup_runs, self.block_ms, self.min_cpu_s, self.interval) <= 0 or self.max_cpu_s < self.min_cpu_s:
            raise InvalidInput(f"{self}: expected positive numbers and max_cpu_s >= min_cpu_s")
        if not 1 <= self.patience < math.inf:
            raise InvalidInput(f"patience {self.patience}: expected a number from 1 up")


@dataclass(frozen=True)
class HardwareProfile:
    """One kind of machine.

    Args:
        name: What the user calls it.
        device: How it is reached: a name in the registry of devices (`local`, `fake`, `remote`).
        addresses: Where a remote device's agents listen, `http[s]://host:port`; several are a pool of equal machines.
        certificate: File with the authority that signed the agents' certificates; empty for the system's authorities.
        provider: Execution provider of ONNX Runtime.
        threads: Threads of one inference.
        channel_multiple: Channel counts that are not a multiple of this waste work.
        kernels: Kind of layer to the precisions that run faster than fp32 there, among `int8` (static, u8 activations
            and s8 weights), `dynamic_int8` and `nbits` (blocks of 8, 4 or 2 bits, for products of a single row). The
            kinds are `conv`, `linear`, and, where they differ from these two, `depthwise` (convolutions) and
            `attention`.
        reduce_range: True to quantize weights to 7 bits, where the u8×s8 product saturates in 16 bits (x86 without
            VNNI).
        memory_bytes: Memory of the machine, 0 if unknown.
        cpu: What the processor says it is.
        protocol: How latency is taken.
        wait_s: Seconds to wait for a machine that is missing or measures for others, until it counts as unavailable.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    description: str = ""
    device: str = "local"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    channel_multiple: int = 8
    kernels: Mapping[KernelKind, tuple[FastPrecision, ...]] = field(default_factory=dict)
    reduce_range: bool = False
    memory_bytes: int = 0
    cpu: str = ""
    protocol: Protocol = field(default_factory=Protocol)
    addresses: tuple[str, ...] = ()
    certificate: str = ""
    wait_s: float = 1800.0

    def __post_init__(self) -> None:
        self._check_addresses()
        if not 0 <= self.wait_s < math.inf:
            raise InvalidInput(f"hardware profile {self.name!r}: wait_s {self.wait_s}: expected seconds from 0 up")
        if self.threads < 1 or self.channel_multiple < 1:
            raise InvalidInput(
                f"hardware profile {self.name!r}: threads {self.threads} and channel_multiple {self.channel_multiple}: "
                "expected whole numbers from 1 up"
            )

    def fast(self, kind: KernelKind) -> tuple[FastPrecision, ...]:
        """The precisions that are faster than fp32 for a kind of layer; those of the general kind if it is not named.

        >>> profile = HardwareProfile("machine", kernels={"conv": ("int8",)})
        >>> profile.fast("depthwise"), profile.fast("linear")
        (('int8',), ())
        """
        return self.kernels.get(kind, self.kernels.get(GENERAL.get(kind, kind), ()))

    def _check_addresses(self) -> None:
        if self.addresses and self.device != REMOTE:
            raise InvalidInput(
                f"hardware profile {self.name!r}: device {self.device!r} with addresses; expected `device: {REMOTE}`, "
                "which alone has some"
            )
        if self.device == REMOTE and not self.addresses:
            raise InvalidInput(
                f"hardware profile {self.name!r}: device {REMOTE!r} without addresses; expected a list of at least one"
            )
        for address in self.addresses:
            if not _ADDRESS.fullmatch(address):
                raise InvalidInput(
                    f"hardware profile {self.name!r}: address {address!r}: expected http://host:port or "
                    "https://host:port, and nothing after it"
                )
        if len(set(self.addresses)) < len(self.addresses):
            raise InvalidInput(f"hardware profile {self.name!r}: an address comes twice: {', '.join(self.addresses)}")
        if self.certificate and not any(address.startswith("https:") for address in self.addresses):
            raise InvalidInput(
                f"hardware profile {self.name!r}: certificate {self.certificate!r} without an address of https"
            )


def made_for(profiles: Sequence[HardwareProfile]) -> HardwareProfile:
    """What models have to fit that run on several machines; the profile itself if there is one.

    Precisions are offered that are fast on any of them, channels come in multiples that suit all, and weights have 7
    bits if one of them needs that.
    """
    first, *others = profiles
    if not others:
        return first
    kernels: dict[KernelKind, tuple[FastPrecision, ...]] = {
        kind: tuple(dict.fromkeys(precision for one in profiles for precision in one.fast(kind)))
        for kind in get_args(KernelKind)
    }
    return replace(
        first,
        name=", ".join(one.name for one in profiles),
        kernels=kernels,
        channel_multiple=math.lcm(*(one.channel_multiple for one in profiles)),
        reduce_range=any(one.reduce_range for one in profiles),
    )


def load_profile(name: str) -> HardwareProfile:
    """A shipped hardware profile by name, or the user's own by the path of its YAML file.

    Raises:
        UnknownName: If no shipped profile has that name.
        InvalidInput: If the file is missing, no YAML, or holds an unknown key or a wrong value.

    A certificate's path is relative to the folder of the file.
    """
    path = find_yaml("hardware_profiles", name, "hardware profile")
    data: Any = read_yaml(path)
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: expected a mapping with the keys name, kernels, …; found {type(data).__name__}")
    profile = from_data(HardwareProfile, {"name": Path(path).stem} | data, source=str(path))
    certificate = str(path.parent / profile.certificate) if profile.certificate else ""
    return replace(profile, certificate=certificate)
