"""`autocompress measure`: how fast and large one model is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.config import find_config

if TYPE_CHECKING:
    from autocompress.measurement import Measurement


class Format(StrEnum):
    """How a measurement is printed."""

    TEXT = "text"
    JSON = "json"


def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    *,
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="Hardware profile: a shipped name or a YAML file; repeat it for several machines."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Another ONNX file, measured in the same minutes; ratios are to it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one inference.")] = 1,
    format: Annotated[Format, typer.Option("--format", "-f", help="`json` holds the samples too.")] = Format.TEXT,
) -> None:
    """Measure latency, size and memory of an ONNX file on a machine, and energy where its processor tells.

    Example: `autocompress measure model.onnx --reference original.onnx`
    """
    from autocompress import api
    from autocompress.serialization import to_json

    machines = hardware or [find_config(Path.cwd()).machine or "local"]
    for machine in machines:
        result = api.measure(
            model,
            hardware=machine,
            reference=reference,
            batch_size=batch_size,
            observe=lambda event: typer.echo(event, err=True),
        )
        if format is Format.JSON:
            typer.echo(to_json(result))
        else:
            title = f"{machine}\n" if len(machines) > 1 else ""
            typer.echo(title + _text(result, model.stat().st_size, with_reference=reference is not None))


def _text(result: Measurement, size_bytes: int, *, with_reference: bool) -> str:
    from autocompress.report.table import format_bytes, format_interval, format_mj, format_ms

    lines = {
        "latency": format_ms(result.latency_ms) + (f" a batch of {result.batch_size}" if result.batch_size > 1 else ""),
        "ratio to the reference": f"{result.latency_ratio:.3f} ({format_interval(result.latency_ratio_interval)})",
        "wall time": f"{format_ms(result.wall_p50_ms)} (p50), {format_ms(result.wall_p95_ms)} (p95), "
        f"{format_ms(result.wall_p99_ms)} (p99)",
        "throughput": f"{result.throughput_per_s:.4g} samples a second",
        "loading": format_ms(result.session_ms),
        "wall time over CPU time": f"{result.contention:.2f}",
        "disturbed": f"the reference took {100 * result.disturbance:.0f} % longer than when nothing disturbs it",
        "energy of an inference": f"{format_mj(result.energy_mj or 0)}, of the whole processor with its idle power",
        "size": format_bytes(size_bytes),
        "peak memory": format_bytes(result.peak_memory_bytes),
        "nodes on integer kernels": f"{result.integer_nodes} of {result.nodes}",
        "machine": result.machine,
    }
    if not with_reference:
        del lines["ratio to the reference"]
    if not result.disturbance:
        del lines["disturbed"]
    if result.energy_mj is None:
        del lines["energy of an inference"]
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
