"""The project's configuration: `autocompress.yaml`, or `[tool.autocompress]` in `pyproject.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from autocompress.errors import InvalidInput
from autocompress.serialization import from_data, read_yaml

_YAML = "autocompress.yaml"
_TOML = "pyproject.toml"
_YAML_ENDINGS = (".yaml", ".yml")
_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:|file:)(.+)")
"""The URL of a file by a path that is not absolute: what is before it, and the path."""


class Config(BaseModel):
    """What a project sets once for all its searches; every key has a flag that beats it.

    Paths are relative to the folder of the file: `data`, `output`, and `task`, `space`, `hardware` and `storage` where
    they name a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: str | None = None
    data: str | None = None
    budget: str | int | float | None = None
    trials: PositiveInt | None = None
    space: str | None = None
    hardware: str | list[str] | None = None
    strategy: str | None = None
    objectives: list[str] = Field(default_factory=list)
    constraints: list[str] = Field(default_factory=list)
    max_drop: float | None = None
    workers: PositiveInt | None = None
    executor: str | None = None
    address: str | None = None
    gpus_per_trial: float | None = None
    trainers_per_trial: PositiveInt | None = None
    seed: int | None = None
    output: str | None = None
    score_on_device: bool | None = None
    storage: str | None = None

    @property
    def machines(self) -> tuple[str, ...]:
        """All hardware profiles; none where the key is not set."""
        return (self.hardware,) if isinstance(self.hardware, str) else tuple(self.hardware or ())

    @property
    def machine(self) -> str | None:
        """The hardware profile, or the first of several, for commands that take one."""
        return next(iter(self.machines), None)

    def values(self) -> dict[str, Any]:
        """The keys that are set."""
        return {key: value for key, value in self.model_dump().items() if value is not None and value != []}


def find_config(start: Path) -> Config:
    """The configuration of the nearest folder from `start` upwards that has one; an empty one if none has.

    In one folder `autocompress.yaml` stands above `pyproject.toml`; a `pyproject.toml` without `[tool.autocompress]` is
    passed by.

    Raises:
        InvalidInput: If the file can't be read, or holds an unknown key (names the nearest) or a wrong value.
    """
    for folder in (start, *start.parents):
        for name, read in ((_YAML, read_yaml), (_TOML, _read_pyproject)):
            path = folder / name
            if path.is_file() and (data := read(path)) is not None:
                return _resolve(from_data(Config, data, source=_source(path)), folder)
    return Config()


def _read_pyproject(path: Path) -> Mapping[str, Any] | None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not valid TOML: {error}") from error
    section: Mapping[str, Any] | None = content.get("tool", {}).get("autocompress")
    return section


def _source(path: Path) -> str:
    return f"{path} [tool.autocompress]" if path.name == _TOML else str(path)


def _resolve(config: Config, folder: Path) -> Config:
    files = {key: value for key in ("data", "output") if (value := getattr(config, key)) is not None}
    for key, endings in (("task", (".py",)), ("space", _YAML_ENDINGS)):
        value = getattr(config, key)
        if value is not None and value.partition(":")[0].endswith(endings):
            files[key] = value
    found: dict[str, Any] = {key: _inside(folder, value) for key, value in files.items()}
    if config.hardware is not None:
        several = [config.hardware] if isinstance(config.hardware, str) else config.hardware
        places = [_inside(folder, one) if one.endswith(_YAML_ENDINGS) else one for one in several]
        found["hardware"] = places[0] if isinstance(config.hardware, str) else places
    if config.storage is not None and (relative := _SQLITE_FILE.fullmatch(config.storage)):
        found["storage"] = relative[1] + _inside(folder, relative[2])
    return config.model_copy(update=found)


def _inside(folder: Path, name: str) -> str:
    return str(folder / Path(name).expanduser())
