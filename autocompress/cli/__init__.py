"""The command line; each command is a file of this folder and a thin call of one function."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: The words after `autocompress`; by default those of this process.
    """
    from autocompress.cli.application import run

    return run(arguments)
