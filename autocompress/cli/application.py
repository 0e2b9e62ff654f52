"""The commands joined, and what becomes of their errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from autocompress import __version__
from autocompress.cli.apply import apply
from autocompress.cli.check import check
from autocompress.cli.device import device
from autocompress.cli.measure import measure
from autocompress.cli.pick import pick
from autocompress.cli.report import report
from autocompress.cli.search import search
from autocompress.cli.show import show
from autocompress.errors import AutocompressError, TaskFailed

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT."""

app = typer.Typer(
    name="autocompress",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (search, check, show, pick, report, apply, measure):
    app.command()(command)
app.add_typer(device)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autocompress {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find the best compressed versions of a neural network, measured on the machine that will run them.

    Start with `autocompress check task.py`, then `autocompress search task.py --budget 15m`.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors raised on purpose become a line on stderr, bugs keep their traceback.

    Returns:
        0; 1 where the user's own code failed or a check did; 2 for anything given that can't be used; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given or ["--help"], prog_name="autocompress", standalone_mode=False)
    except TaskFailed as error:
        return _fail(f"{error.traceback.rstrip()}\nerror: {error}".lstrip("\n"), 1)
    except AutocompressError as error:
        return _fail(f"error: {error}", 2)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return _fail(f"error: {message.splitlines()[0]}\nsee: autocompress {_command(given)}--help", 2)
    except typer.Abort:
        code = INTERRUPTED
    if code == INTERRUPTED:  # what typer makes of KeyboardInterrupt
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _command(given: Sequence[str]) -> str:
    names = {command.__name__ for command in (search, check, show, pick, report, apply, measure)}
    if given and given[0] == device.info.name:
        known = {command.name for command in device.registered_commands}
        return " ".join([*given[:1], *(word for word in given[1:2] if word in known), ""])
    return f"{given[0]} " if given and given[0] in names else ""


def _fail(message: str, code: int) -> int:
    typer.echo(message, err=True)
    return code
