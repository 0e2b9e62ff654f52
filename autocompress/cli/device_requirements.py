"""`autocompress device requirements`: what a machine needs to serve."""

from __future__ import annotations

from importlib.resources import files

import typer


def requirements() -> None:
    """Print what `autocompress device serve` needs: no torch.

    Example: `autocompress device requirements > requirements.txt`, then on the board `pip install -r requirements.txt`
    and `pip install --no-deps autocompress`
    """
    typer.echo((files("autocompress.devices.agent") / "requirements.txt").read_text(encoding="utf-8").rstrip())
