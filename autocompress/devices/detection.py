"""Which machine this is, and which hardware profile fits it."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

from autocompress.errors import InvalidInput, UnknownName
from autocompress.profile import HardwareProfile, load_profile
from autocompress.resources import shipped_names

LOCAL = "local"
"""The name of the profile that is detected, not read."""

_X86 = frozenset({"x86_64", "amd64"})
_ARM64 = frozenset({"arm64", "aarch64"})
_UNLIMITED = 1 << 60  # cgroup version 1 writes a huge number where there is no limit


def profile_names() -> tuple[str, ...]:
    """Every profile that has a name: the detected one, and those that ship."""
    return (LOCAL, *shipped_names("hardware_profiles"))


def resolve_profile(name: str) -> HardwareProfile:
    """A profile by its name: "local" is detected, others are read.

    Args:
        name: One of `profile_names()`, or the path of a YAML file.

    Raises:
        UnknownName: If no profile has that name.
        InvalidInput: If the file is missing, no YAML, or holds an unknown key or a wrong value.
    """
    if name == LOCAL:
        return detect_profile()
    if not name.endswith((".yaml", ".yml")) and name not in profile_names():
        raise UnknownName("hardware profile", name, profile_names())
    return load_profile(name)


def detect_profile(threads: int = 1) -> HardwareProfile:
    """The shipped profile that fits this machine, as "local", with its processor and memory filled in.

    Args:
        threads: Threads of one inference, from 1 to the processors this process may use.

    Raises:
        InvalidInput: If there are not that many processors.
    """
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise InvalidInput(f"threads {threads}: this machine has {cores} processors; give 1 to {cores}")
    base = matching_profile(platform.machine(), cpu_flags())
    return replace(
        base,
        name=LOCAL,
        description=f"detected: {processor_name()}, {cores} processors; {base.description}",
        threads=threads,
        cpu=processor_name(),
        memory_bytes=memory_bytes(),
    )


def matching_profile(machine: str, flags: frozenset[str]) -> HardwareProfile:
    """The profile for a processor.

    Args:
        machine: Architecture, as `platform.machine()` says it.
        flags: Instruction sets as Linux calls them; empty if the system does not tell, which an x86 processor is then
            taken to have AVX2 and no more.

    Returns:
        A shipped profile. On x86 the channel multiple follows the width of the registers (16 floats with AVX-512,
        else 8). A processor that none fits gets one that takes no precision to be fast.
    """
    if machine.lower() in _ARM64:
        return load_profile("arm64")
    if machine.lower() in _X86 and (not flags or "avx2" in flags):
        has_vnni = not flags.isdisjoint({"avx512_vnni", "avx_vnni"})
        base = load_profile("x86_vnni" if has_vnni else "x86_avx2")
        return replace(base, channel_multiple=16 if "avx512f" in flags else 8)
    return HardwareProfile(name=LOCAL, description=f"no shipped profile fits the processor {machine!r}")


def processor_name() -> str:
    """What the processor says it is."""
    fields = _cpuinfo()
    return fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty on other systems."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container limits it; 0 if unknown."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(Path(path)).strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits)


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first value of every key in /proc/cpuinfo; empty on systems without it."""
    fields: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
