"""The registry: look-up by name over a package of modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import UnknownName
from autocompress.registry import Registry

PACKAGE = "plugged_in_parts"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable, empty package; modules put into it are forgotten afterwards."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from autocompress.registry import Registry\nPARTS = Registry('part', __name__)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def parts() -> Registry[Any]:
    """The registry of the package."""
    import importlib

    registry: Registry[Any] = importlib.import_module(PACKAGE).PARTS
    return registry


def write_part(folder: Path, name: str, file: str = "") -> None:
    """A module that registers one class."""
    code = f"from {PACKAGE} import PARTS\n\n@PARTS.register\nclass Part:\n    name = {name!r}\n"
    (folder / f"{file or name}.py").write_text(code)


def test_every_module_of_the_package_is_found(package: Path) -> None:
    write_part(package, "wheel")
    write_part(package, "axle")
    assert list(parts()) == ["axle", "wheel"]
    assert len(parts()) == 2
    assert "axle" in parts()
    assert parts()["wheel"].name == "wheel"


def test_modules_with_an_underscore_are_left_alone(package: Path) -> None:
    write_part(package, "hidden", file="_hidden")
    assert "hidden" not in parts()


def test_an_unknown_name_offers_the_nearest(package: Path) -> None:
    write_part(package, "wheel")
    with pytest.raises(UnknownName, match=r"unknown part 'weel'; did you mean 'wheel'\?"):
        parts()["weel"]


def test_a_module_that_fails_to_import_fails_loudly_each_time(package: Path) -> None:
    (package / "broken.py").write_text("import no_such_module_anywhere\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            list(parts())


def test_two_parts_of_one_name_are_refused(package: Path) -> None:
    write_part(package, "wheel", file="first")
    write_part(package, "wheel", file="second")
    with pytest.raises(ValueError, match="two entries want to be the part 'wheel'"):
        list(parts())


def test_a_part_without_a_name_is_refused() -> None:
    registry: Registry[Any] = Registry("part", PACKAGE)
    with pytest.raises(TypeError, match="a part needs a class attribute `name`"):
        registry.register(object())


def test_registering_the_same_part_again_changes_nothing(package: Path) -> None:
    write_part(package, "wheel")
    wheel = parts()["wheel"]
    assert parts().register(wheel) is wheel
    assert len(parts()) == 1
