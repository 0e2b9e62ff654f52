"""`autocompress apply`: replay one plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.cli.config import find_config
from autocompress.cli.locate import offer_data, the_task


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan: the JSON file beside each model of a front.")],
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="`file.py`, `file.py:name` or `package.module:name`.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")] = Path("model.onnx"),
    hardware: Annotated[str | None, typer.Option(help="Hardware profile: a shipped name or a YAML file.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything random.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, for tasks that ask for one.")] = None,
) -> None:
    """Carry out one plan again, for example after training the model on more data.

    Example: `autocompress apply runs/digits/front/012-int8.json task.py --output again.onnx`
    """
    from autocompress import api
    from autocompress.objective import LATENCY_RATIO, MEASURED

    config = find_config(Path.cwd())
    offer_data(data, config)
    options: dict[str, Any] = {"hardware": hardware or config.machine, "seed": config.seed if seed is None else seed}
    given = {name: value for name, value in options.items() if value is not None}
    record = api.apply(plan, the_task(task, config), output=output, **given)
    measured = {objective.name for objective in MEASURED} | {LATENCY_RATIO}
    for name, value in record.values.items():
        if name not in measured:
            typer.echo(f"{name} on validation data: {value:.6g}")
    typer.echo(f"latency: {record.values['latency_ms']:.3g} ms, {record.values['latency_ratio']:.2f} of the baseline's")
    typer.echo(f"size: {record.values['size_bytes'] / 1024:.1f} KiB")
    typer.echo(f"peak memory: {record.values['peak_memory_bytes'] / 2**20:.1f} MiB")
    for note in record.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"model: {output}")
