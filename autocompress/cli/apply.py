"""`autocompress apply`: replay one plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.config import find_config
from autocompress.cli.locate import offer_data, the_task

if TYPE_CHECKING:
    from autocompress.task import Task


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan: the JSON file beside each model of a front.")],
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="`file.py`, `file.py:name` or `package.module:name`.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")] = Path("model.onnx"),
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="Hardware profile: a shipped name or a YAML file; repeat it for all machines of the search."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For everything random.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, for tasks that ask for one.")] = None,
) -> None:
    """Carry out one plan again, for example after training the model on more data.

    Example: `autocompress apply runs/digits/front/012-int8.json task.py --output again.onnx`
    """
    from autocompress import api
    from autocompress.objective import LATENCY, LATENCY_RATIO, is_measured, on_each_machine, quantity
    from autocompress.report.table import format_metric

    shares: dict[str, bool] = {}

    def observe(loaded: Task) -> None:
        shares[loaded.the_metric.name] = loaded.the_metric.is_percentage

    config = find_config(Path.cwd())
    offer_data(data, config)
    machines = tuple(hardware or ()) or config.hardware
    options: dict[str, Any] = {"hardware": machines, "seed": config.seed if seed is None else seed}
    given = {name: value for name, value in options.items() if value is not None}
    record = api.apply(plan, the_task(task, config), output=output, observe=observe, **given)
    for name, value in record.values.items():
        if not is_measured(name) and quantity(name) != LATENCY_RATIO:
            typer.echo(f"{name} on validation data: {format_metric(value, shares.get(name, False))}")
    ratios = on_each_machine(record.values, LATENCY_RATIO)
    for machine, latency in on_each_machine(record.values, LATENCY).items():
        where = f" on {machine}" if machine else ""
        typer.echo(f"latency{where}: {latency:.3g} ms, {ratios[machine]:.2f} of the baseline's")
    typer.echo(f"size: {record.values['size_bytes'] / 1024:.1f} KiB")
    typer.echo(f"peak memory: {record.values['peak_memory_bytes'] / 2**20:.1f} MiB")
    for note in record.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"model: {output}")
