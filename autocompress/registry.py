"""Look-up by name of the parts that plug in: methods, strategies, devices, executors, formats."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from autocompress.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes or functions by their `name`, gathered from a package and from entry points on first use.

    Args:
        kind: What one entry is called in messages, for example "compression method".
        package: The package whose modules register themselves.
        group: The entry point group of plug-ins; named like the package if not given.

    A module that fails to import fails loudly: its error reaches the caller.
    """

    def __init__(self, kind: str, package: str, *, group: str = "") -> None:
        self.kind = kind
        self.package = package
        self.group = group or package
        self._entries: dict[str, T] = {}
        self._gathered = False

    def register(self, entry: T) -> T:
        """Add `entry` under its attribute `name`; used as a decorator."""
        name: Any = getattr(entry, "name", None)
        if not isinstance(name, str) or not name:
            raise TypeError(f"a {self.kind} needs a class attribute `name`: str; {entry!r} has {name!r}")
        known = self._entries.get(name)
        if known is not None and known is not entry:
            raise ValueError(f"two entries want to be the {self.kind} {name!r}: {known!r} and {entry!r}")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        self._gather()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(self.kind, name, self._entries) from None

    def __iter__(self) -> Iterator[str]:
        self._gather()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._gather()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        self._gather()
        return name in self._entries

    def _gather(self) -> None:
        if self._gathered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            self.register(point.load())
        self._gathered = True
