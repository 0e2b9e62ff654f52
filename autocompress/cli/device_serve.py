"""`autocompress device serve`: this machine measures for others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from autocompress.errors import InvalidInput
from autocompress.objective import BYTES

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)", re.IGNORECASE)
_UNITS = {"b": 1} | {unit.lower(): size for unit, size in BYTES.items()}


def parse_size(text: str) -> int:
    """Bytes of a size.

    >>> parse_size("512MiB"), parse_size("1.5 GB")
    (536870912, 1500000000)

    Raises:
        InvalidInput: If the text is no size, or none larger than 0.
    """
    found = _SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise InvalidInput(f"size {text!r}: expected a number above 0 and a unit, like 512MiB or 4GiB")
    return size


def serve(
    *,
    host: Annotated[str, typer.Option(help="Network interface; 0.0.0.0 for all, which needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the secret that clients give; else AUTOCOMPRESS_TOKEN.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file, for TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where files are kept.")] = None,
    quota: Annotated[str, typer.Option(help="What the files in it may take.")] = "4GiB",
    max_upload: Annotated[str, typer.Option(help="Largest file.")] = "512MiB",
    max_memory: Annotated[
        str | None, typer.Option(help="Address space of one job; by default the machine's memory.")
    ] = None,
    max_seconds: Annotated[float, typer.Option(min=1.0, help="Time that one job may take.")] = 1800.0,
    lease: Annotated[float, typer.Option(min=1.0, help="Seconds after which a job nobody asks about ends.")] = 60.0,
) -> None:
    """Measure and run ONNX files for others on this machine.

    It needs no torch: `autocompress device requirements` prints what it does need.

    Example: `autocompress device serve --host 0.0.0.0 --token-file token.txt`
    """
    import logging

    from autocompress.devices.agent.messages import Limits
    from autocompress.devices.agent.server import DEFAULT_FOLDER, ServerOptions, read_token
    from autocompress.devices.agent.server import serve as serve_agent

    limits = Limits(
        upload_bytes=parse_size(max_upload),
        memory_bytes=parse_size(max_memory) if max_memory is not None else 0,
        job_s=max_seconds,
        lease_s=lease,
    )
    options = ServerOptions(
        host=host,
        port=port,
        token=read_token(token_file),
        certificate=certificate,
        key=key,
        folder=folder or DEFAULT_FOLDER,
        quota_bytes=parse_size(quota),
        limits=limits,
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    serve_agent(options, lambda address: typer.echo(f"the agent listens on {address}"))
