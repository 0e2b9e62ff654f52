"""`autocompress device profile`: find what is fast on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from autocompress.profiling.findings import Findings
    from autocompress.profiling.writing import ProfiledDevice


def profile(
    *,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The YAML file to write.")],
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="Profile to begin with: a shipped name or a YAML file; by default `local`, this machine."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one inference; by default those of --hardware.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Measure small models on a machine and write its hardware profile: a search with it tries what is fast there.

    Convolutions, depthwise convolutions, linear layers and attention are timed in fp32, in several integer forms and
    in fp16; convolutions of 8 to 40 channels tell which channel counts waste nothing; sums of known value tell whether
    integers saturate. Takes one to three minutes. The file says beside each value what was measured.

    Example: `autocompress device profile --output my.yaml`, then `autocompress search task.py --hardware my.yaml`
    """
    from autocompress import api
    from autocompress.cli.tables import terminal
    from autocompress.errors import InvalidInput

    first, *others = hardware or ["local"]
    if others:
        raise InvalidInput("--hardware is given several times; a profile is of one machine: write them one by one")
    # what the configuration names is not asked: it may be the very file that is to be written
    result = api.profile_device(
        first, output=output, threads=threads, overwrite=force, observe=lambda line: typer.echo(line, err=True)
    )
    terminal().print(_table(result.findings))
    typer.echo(f"\n{_summary(result)}")
    typer.echo(f"\nwritten: {output}\nuse it:  autocompress search task.py --hardware {output}")


def _table(findings: Findings) -> Table:
    """Latency of every form relative to fp32, a column for each kind of layer; bold where it is clearly faster."""
    from rich.table import Table

    from autocompress.profiling.forms import FORMS
    from autocompress.report.table import format_ms

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("latency relative to fp32")
    for layer in findings.fp32_ms:
        table.add_column(layer, justify="right")
    table.add_row("fp32", *map(format_ms, findings.fp32_ms.values()), style="dim")
    for form, words in FORMS.items():
        cells = []
        for layer in findings.fp32_ms:
            one = findings.of(layer, form)
            text = "–" if one is None else f"{one.latency_ratio:.2f}"
            cells.append(f"[bold]{text}[/bold]" if one is not None and one.verdict == "faster" else text)
        table.add_row(words, *cells)
    return table


def _summary(result: ProfiledDevice) -> str:
    from autocompress.report.table import format_share

    findings, profile = result.findings, result.profile
    multiple, saturation = findings.staircase.multiple, findings.saturation
    fast = ", ".join(f"{kind}: {' '.join(precisions) or 'none'}" for kind, precisions in profile.kernels.items())
    missing = None if saturation.found is None else format_share(max(0.0, saturation.found))
    tested = f"not tested: {saturation.reason}" if missing is None else f"{missing} of the largest sums is missing"
    lines = {
        "faster than fp32": fast,
        "channel multiple": f"{profile.channel_multiple}{'' if multiple else ' (not found, as before)'}",
        "s8 activations clearly slower than u8": ", ".join(findings.slower_when_signed) or "nowhere",
        "weights of 7 bits needed": f"{'yes' if profile.reduce_range else 'no'} ({tested})",
        "can't be run here": ", ".join(f"{one.layer}/{one.form}" for one in findings.unmeasured),
        "machine": f"{findings.machine}; measured in {findings.seconds:.0f} s",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)
