"""Files shipped as data: search spaces and hardware profiles, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

from autocompress.errors import InvalidInput, UnknownName

_PACKAGE = Path(__file__).parent


def shipped_names(folder: str) -> tuple[str, ...]:
    """The names of the YAML files in the shipped `folder`, without their ending."""
    return tuple(sorted(path.stem for path in _shipped(folder).glob("*.yaml")))


def find_yaml(folder: str, name: str, kind: str) -> Path:
    """Path of a shipped file by its name, or of the user's own file by its path.

    Args:
        folder: "search_spaces" or "hardware_profiles".
        name: A shipped name (`joint`) or a path to a YAML file (`my/space.yaml`).
        kind: How messages call such a file.

    Raises:
        UnknownName: If no shipped file has that name.
        InvalidInput: If a path was given and no file is there.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InvalidInput(
                f"{kind} {name!r}: no such file; give a path or one of {', '.join(shipped_names(folder))}"
            )
        return path
    path = _shipped(folder) / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName(kind, name, shipped_names(folder))
    return path


def _shipped(folder: str) -> Path:
    """The folder inside the installed package, or beside the package in a checkout."""
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / folder).is_dir():
            return root / folder
    raise FileNotFoundError(f"the folder {folder!r} is neither in {_PACKAGE} nor beside it; reinstall autocompress")
