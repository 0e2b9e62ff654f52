"""What the benchmark finds on a machine, and what follows for its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from autocompress.profile import FastPrecision, KernelKind
from autocompress.profiling.forms import FormName
from autocompress.profiling.models import LayerName
from autocompress.profiling.staircase import Staircase

Verdict = Literal["faster", "smaller", "neither"]


@dataclass(frozen=True)
class Evidence:
    """A measurement that tells a precision to be fast if it is faster than fp32, and than a rival where there is one.

    Args:
        layer, form: What was measured.
        rival: Another form of the same layers, which a search could have instead.
    """

    layer: LayerName
    form: FormName
    rival: FormName | None = None


EVIDENCE: Mapping[KernelKind, Mapping[FastPrecision, tuple[Evidence, ...]]] = {
    "conv": {"int8": (Evidence("conv", "int8"),)},
    "depthwise": {"int8": (Evidence("depthwise", "int8", "int8_dense"),)},
    "linear": {
        "int8": (Evidence("linear", "int8"), Evidence("linear_rows", "int8")),
        "dynamic_int8": (Evidence("linear", "dynamic_int8"), Evidence("linear_rows", "dynamic_int8")),
        "nbits": (Evidence("linear", "nbits_8"), Evidence("linear", "nbits_4")),
    },
    "attention": {
        "int8": (Evidence("attention", "int8"),),
        "dynamic_int8": (Evidence("attention", "dynamic_int8"),),
    },
}
"""Kind of layer and precision, as far as quantization offers them, to the measurements of which one is enough to tell
that it is fast. A profile does not tell rows apart, and quantization offers `nbits` for a single row alone."""


@dataclass(frozen=True)
class Finding:
    """One form of one kind of layer against fp32.

    Args:
        layer, form: What was measured.
        latency_ratio: Latency over that of fp32.
        interval: 95 % interval of that ratio.
        size_ratio: Bytes of the file over those of fp32.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    layer: LayerName
    form: FormName
    latency_ratio: float
    interval: tuple[float, float]
    size_ratio: float

    @property
    def verdict(self) -> Verdict:
        """Faster only if the whole interval says so; smaller counts where it is not."""
        if self.interval[1] < 1:
            return "faster"
        return "smaller" if self.size_ratio < 1 else "neither"


@dataclass(frozen=True)
class Unmeasured:
    """A form that the machine can't run, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    layer: LayerName
    form: FormName
    reason: str


@dataclass(frozen=True)
class Saturation:
    """Whether products of u8 and s8 saturate before they are added up.

    Args:
        found: Share of the exact sum that is missing, at its worst; None where it could not be tested.
        reason: Why it could not be tested; empty where it was.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    found: float | None
    reason: str = ""

    @property
    def needs_reduced_range(self) -> bool | None:
        """True where weights of 8 bits lose more than rounding explains; None where it is not known."""
        return None if self.found is None else self.found > 0.02


@dataclass(frozen=True)
class Findings:
    """Everything that the benchmark found.

    Args:
        machine: Processor and runtime.
        date: Day of the benchmark, YYYY-MM-DD.
        seconds: Wall time that it took.
        fp32_ms: Kind of layer to the latency of its float model.
        ratios: What was measured, kind by kind.
        unmeasured: What could not be.
        staircase: Latency against channels.
        saturation: Of integer products.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    machine: str
    date: str
    seconds: float
    fp32_ms: Mapping[LayerName, float]
    ratios: tuple[Finding, ...]
    unmeasured: tuple[Unmeasured, ...]
    staircase: Staircase
    saturation: Saturation

    def of(self, layer: LayerName, form: FormName) -> Finding | None:
        """What was found of a form; None if it could not be measured, or suits other layers alone."""
        return next((one for one in self.ratios if (one.layer, one.form) == (layer, form)), None)

    @property
    def kernels(self) -> dict[KernelKind, tuple[FastPrecision, ...]]:
        """Every kind of layer to the precisions that were clearly faster than fp32."""
        return {
            kind: tuple(precision for precision, evidence in known.items() if any(map(self._is_fast, evidence)))
            for kind, known in EVIDENCE.items()
        }

    def _is_fast(self, evidence: Evidence) -> bool:
        found = self.of(evidence.layer, evidence.form)
        rival = self.of(evidence.layer, evidence.rival) if evidence.rival else None
        beaten = rival is None or (found is not None and found.interval[1] < rival.interval[0])
        return found is not None and found.verdict == "faster" and beaten

    @property
    def slower_when_signed(self) -> tuple[LayerName, ...]:
        """Kinds of layers that are clearly slower with s8 activations than with u8 ones."""
        pairs = ((layer, self.of(layer, "int8"), self.of(layer, "int8_s8")) for layer in self.fp32_ms)
        return tuple(layer for layer, u8, s8 in pairs if u8 and s8 and s8.interval[0] > u8.interval[1])
