"""Which profile fits which machine."""

from __future__ import annotations

import pytest

from autocompress.devices import detect_profile, profile_names, resolve_profile
from autocompress.devices.detection import matching_profile
from autocompress.errors import InvalidInput, UnknownName
from autocompress.serialization import from_json, to_json

ZEN4 = frozenset({"avx2", "avx512f", "avx512_vnni"})
ALDER_LAKE = frozenset({"avx2", "avx_vnni"})
SKYLAKE_SERVER = frozenset({"avx2", "avx512f"})
HASWELL = frozenset({"avx2"})


@pytest.mark.parametrize(
    ("flags", "multiple", "reduce_range"),
    [
        (ZEN4, 16, False),
        (ALDER_LAKE, 8, False),
        (SKYLAKE_SERVER, 16, True),
        (HASWELL, 8, True),
        (frozenset(), 8, True),
    ],
)
def test_x86_is_told_apart_by_its_instruction_sets(flags: frozenset[str], multiple: int, reduce_range: bool) -> None:
    profile = matching_profile("x86_64", flags)
    assert (profile.channel_multiple, profile.reduce_range) == (multiple, reduce_range)
    assert profile.kernels["conv"] == ("int8",)


@pytest.mark.parametrize("machine", ["arm64", "aarch64"])
def test_arm_has_a_profile_of_its_own(machine: str) -> None:
    assert matching_profile(machine, frozenset()).name == "arm64"


@pytest.mark.parametrize(("machine", "flags"), [("riscv64", frozenset()), ("x86_64", frozenset({"sse2"}))])
def test_nothing_is_taken_to_be_fast_on_a_machine_that_is_not_known(machine: str, flags: frozenset[str]) -> None:
    assert not matching_profile(machine, flags).kernels


def test_the_detected_profile_is_called_local_and_names_the_processor() -> None:
    profile = resolve_profile("local")
    assert profile == detect_profile()
    assert (profile.name, profile.device) == ("local", "local")
    assert profile.cpu
    assert profile.memory_bytes > 0


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="processors"):
        detect_profile(threads=100_000)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_survives_json(name: str) -> None:
    profile = resolve_profile(name)
    assert profile.name == name
    assert from_json(type(profile), to_json(profile)) == profile


def test_an_unknown_profile_offers_the_nearest_also_the_detected_one() -> None:
    with pytest.raises(UnknownName, match="did you mean 'local'"):
        resolve_profile("locl")
