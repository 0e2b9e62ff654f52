"""The installed ONNX Runtime, asked in a process of its own so that the agent stays small."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from autocompress.devices._process import module_command, module_environment
from autocompress.devices._session import shortened
from autocompress.errors import DeviceUnavailable
from autocompress.serialization import from_json, to_json


@dataclass(frozen=True)
class Runtime:
    """An ONNX Runtime.

    Args:
        name: With the version.
        providers: Execution providers that it has.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    providers: tuple[str, ...]


def installed_runtime() -> Runtime:
    """What jobs will run on.

    Raises:
        DeviceUnavailable: If ONNX Runtime is not installed or can't be loaded.
    """
    done = subprocess.run(
        module_command("autocompress.devices.agent.runtime"),
        env=module_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = shortened(done.stderr[-1000:])
        raise DeviceUnavailable(f"ONNX Runtime can't be loaded: {said}; install it by: pip install onnxruntime")
    return from_json(Runtime, done.stdout)


def _main() -> None:
    import sys

    import onnxruntime

    known = Runtime(f"onnxruntime {onnxruntime.__version__}", tuple(onnxruntime.get_available_providers()))
    sys.stdout.write(to_json(known))


if __name__ == "__main__":
    _main()
