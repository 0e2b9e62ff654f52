"""From findings to a hardware profile, and to its commented YAML file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import yaml
from pydantic import ConfigDict

from autocompress.profile import HardwareProfile
from autocompress.profiling.findings import Findings, Verdict
from autocompress.profiling.forms import FORMS
from autocompress.profiling.models import LAYERS, LayerName

WIDTH = 118

VERDICTS: dict[Verdict, str] = {
    "faster": "",
    "smaller": "size alone",
    "neither": "dropped",
}
"""What follows where a form is not faster."""

LEGEND = (
    "Latency relative to fp32, with its 95 % interval, and size of the file relative to fp32, of small models. A "
    "precision is listed for a kind of layer if the whole interval is below 1: for linear layers, with one row or with "
    "many; for blocks, with 8 bits and with 4; for depthwise convolutions, if the block is also clearly faster than "
    "with them alone in fp32. 'Size alone' is smaller but not faster: it is not listed, and weights of as few bits "
    "that become floats when they are loaded (weight_only, fp16) are offered by every profile. 'Dropped' is neither "
    "faster nor smaller."
)


@dataclass(frozen=True)
class ProfiledDevice:
    """A profile that was found by measuring, and what was measured.

    Args:
        profile: As the file holds it.
        findings: Behind it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    profile: HardwareProfile
    findings: Findings


def profile_of(base: HardwareProfile, findings: Findings, name: str) -> HardwareProfile:
    """The profile of a machine by what was found on it.

    Args:
        base: Where the benchmark began; what it could not find out stays as it is there.
        findings: Of the benchmark.
        name: What the new profile is called.
    """
    multiple, narrow = findings.staircase.multiple, findings.saturation.needs_reduced_range
    threads = f"{base.threads} thread{'s' if base.threads > 1 else ''}"
    return replace(
        base,
        name=name,
        description=f"measured on {findings.date}: {findings.machine}, {base.provider}, {threads}",
        channel_multiple=base.channel_multiple if multiple is None else multiple,
        kernels=findings.kernels,
        reduce_range=base.reduce_range if narrow is None else narrow,
    )


def profile_yaml(profile: HardwareProfile, findings: Findings) -> str:
    """The text of a profile's file, with what was measured beside what follows from it.

    Args:
        profile: Made of the findings by `profile_of`.
        findings: Of the benchmark.
    """
    parts = [
        *_entries(description=profile.description, device=profile.device, provider=profile.provider),
        *_entries(**_reached(profile)),
        *_entries(threads=profile.threads, cpu=profile.cpu, memory_bytes=profile.memory_bytes),
        *_comment(_on_the_staircase(profile, findings)),
        *_entries(channel_multiple=profile.channel_multiple),
        *_comment(LEGEND),
        *(line for layer in findings.fp32_ms for line in _on_a_layer(layer, findings)),
        *_comment(_on_signs(findings)),
        "kernels:",
        *(f"  {kind}: [{', '.join(precisions)}]" for kind, precisions in profile.kernels.items()),
        *_comment(_on_saturation(profile, findings)),
        *_entries(reduce_range=profile.reduce_range),
        "protocol:",
        *(f"  {line}" for line in _entries(**asdict(profile.protocol))),
    ]
    return "\n".join(parts) + "\n"


def _reached(profile: HardwareProfile) -> dict[str, Any]:
    """How a remote device is reached, and how long to wait for any that is not as usual."""
    addresses = {"addresses": list(profile.addresses)} if profile.addresses else {}
    certificate = {"certificate": profile.certificate} if profile.certificate else {}
    wait_s = {"wait_s": profile.wait_s} if profile.wait_s != HardwareProfile.wait_s else {}
    return addresses | certificate | wait_s


def _on_the_staircase(profile: HardwareProfile, findings: Findings) -> str:
    staircase = findings.staircase
    base = min(staircase.latency_ms.values())
    steps = ", ".join(f"{channels}={latency / base:.2f}" for channels, latency in staircase.latency_ms.items())
    if staircase.multiple is None:
        return (
            f"Not found: latency hardly follows the channels (power {staircase.exponent:.2f}), so the multiple is that "
            f"of the profile that the benchmark began with. Latency of 3×3 convolutions by channels, relative: {steps}."
        )
    return (
        f"Latency of 3×3 convolutions by channels, relative: {steps}. Its steps are best explained by multiples of "
        f"{profile.channel_multiple}."
    )


def _on_a_layer(layer: LayerName, findings: Findings) -> Iterator[str]:
    yield from _comment(f"{layer}: {LAYERS[layer]}; fp32 {findings.fp32_ms[layer]:.3g} ms")
    for one in (one for one in findings.ratios if one.layer == layer):
        low, high = one.interval
        verdict = VERDICTS[one.verdict]
        yield from _comment(
            f"- {FORMS[one.form]}: {one.latency_ratio:.2f} ({low:.2f}-{high:.2f}), size {one.size_ratio:.2f}"
            + (f"; {verdict}" if verdict else ""),
            indent="  ",
        )
    for failed in (failed for failed in findings.unmeasured if failed.layer == layer):
        yield from _comment(f"- {FORMS[failed.form]}: can't be run here: {failed.reason}", indent="  ")


def _on_signs(findings: Findings) -> str:
    slower = ", ".join(findings.slower_when_signed)
    if not slower:
        return "Signed activations (s8) are not clearly slower than unsigned ones (u8) in any of these."
    return f"Signed activations (s8) are clearly slower than unsigned ones (u8): {slower}."


def _on_saturation(profile: HardwareProfile, findings: Findings) -> str:
    saturation = findings.saturation
    if saturation.found is None:
        return f"Not tested whether products of u8 and s8 saturate ({saturation.reason}); as the benchmark began."
    if saturation.needs_reduced_range:
        return (
            f"Of the largest sums of u8 and s8 products {100 * saturation.found:.0f} % are missing: they saturate, so "
            "weights get 7 bits."
        )
    return "The largest sums of u8 and s8 products come out exact, so 8-bit weights do not saturate."


def _comment(text: str, *, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=f"# {indent}",
        subsequent_indent=f"# {indent}{indent}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entries(**values: Any) -> Iterator[str]:
    """Lines of YAML, quoted where that is needed."""
    for key, value in values.items():
        yield yaml.safe_dump({key: value}, width=10_000, allow_unicode=True).rstrip("\n")
