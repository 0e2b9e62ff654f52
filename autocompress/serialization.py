"""Frozen dataclasses to JSON and back, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from autocompress.errors import InvalidInput, did_you_mean

T = TypeVar("T")


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def to_json(fact: Any, *, indent: int | None = None) -> str:
    """JSON text of a frozen dataclass; NaN and infinities are kept as `NaN` and `Infinity`."""
    data = _adapter(cast(Hashable, type(fact))).dump_python(fact, mode="python")
    return dumps(data, indent=indent)


def dumps(data: Any, *, indent: int | None = None) -> str:
    """JSON text of plain data (dicts, lists, numbers, text)."""
    return json.dumps(data, indent=indent, ensure_ascii=False)


def from_json(kind: type[T], text: str | bytes) -> T:
    """The dataclass `kind` from its JSON text.

    Raises:
        InvalidInput: If the text is no JSON, or a key or value does not fit; names the first that does not.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"not valid JSON for a {kind.__name__}: {error}") from error
    return from_data(kind, data)


def from_data(kind: type[T], data: Any, *, source: str = "") -> T:
    """The dataclass or pydantic model `kind` from plain data, with errors that name the key.

    Args:
        kind: A dataclass or pydantic model.
        data: Dicts, lists, numbers and text, as JSON or YAML give them.
        source: Where the data came from, for the message.

    Raises:
        InvalidInput: If a key is unknown (offers the nearest), missing, or holds a wrong value.
    """
    try:
        value: T = _adapter(cast(Hashable, kind)).validate_python(data)
    except ValidationError as error:
        raise InvalidInput(_explain(kind, error, source)) from error
    return value


def digest(fact: Any, length: int = 12) -> str:
    """First hexadecimal digits of the SHA-256 of the canonical JSON of `fact`."""
    data = _adapter(cast(Hashable, type(fact))).dump_python(fact, mode="json")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InvalidInput: If it can't be read or is no YAML; says the line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that at any moment either the old or the new content is there, whole."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside another, whose place it takes in the end; after an error it is gone.

    No other process has one of its name, on whatever machine: folders may lie on storage that several share.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _explain(kind: Any, error: ValidationError, source: str) -> str:
    first = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    where = f"{source}: " if source else ""
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        *above, key = (str(part) for part in first["loc"])
        known = _fields(_inside(kind, above))
        hint = f"; {did_you_mean(key, known)}" if known else ""
        return f"{where}unknown key {location!r}{hint}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"{where}the key {location!r} is missing"
    given = f" (given: {first['input']!r})" if not isinstance(first["input"], dict | list) else ""
    return f"{where}{location or kind.__name__}: {first['msg']}{given}"


def _inside(kind: Any, path: Sequence[str]) -> Any:
    """The type found in `kind` along a path of field names, keys and indices; None where it can't be told."""
    for part in path:
        arguments = get_args(kind)
        if arguments:  # Mapping[str, T], tuple[T, ...]
            kind = arguments[0] if arguments[-1] is Ellipsis else arguments[-1]
        else:
            kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind


def _fields(kind: Any) -> tuple[str, ...]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return tuple(field.alias or name for name, field in kind.model_fields.items())
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()
