"""The house: which layer a module belongs to and what it may import; read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autocompress"

LAYERS = {
    0: {"errors", "registry", "resources", "serialization", "duration", "interrupts", "user_code"},
    1: {"space", "plan", "student", "task", "objective", "artifact", "profile", "record", "front", "data", "doubt"}
    | {"cluster", "exchange", "landscape", "machine_events", "measurement", "point", "probe", "run_directory", "screen"}
    | {"site", "snapshot", "study_trials", "task_source"},
    2: {"graph"},
    3: {"methods", "recovery", "formats", "devices", "executors"},
    4: {"planner", "landscapes", "pipeline", "profiling", "storage", "strategies", "loop", "report"},
    5: {"api", "run", "checks", "request", "session", "tune", "worker"},
    6: {"cli", "__main__"},
}
"""Modules and packages directly below `autocompress`, by layer; a layer imports those below it."""

LAYER = {part: number for number, parts in LAYERS.items() for part in parts}
HIGHEST = {"storage": 1, "strategies": 1, "loop": 1, "report": 1}
"""Parts that look no higher than this layer, though their own is further up."""

OPEN = (0, 1, 5)
"""Layers whose parts may import one another, as long as no circle comes of it."""

NEIGHBORS = {"loop": {"strategies"}, "pipeline": {"planner"}, "landscapes": {"planner"}, "__main__": {"cli"}}
"""What parts may import from their own layer, in layers whose parts keep to themselves."""

WITHOUT_TORCH = ("devices", "profiling", "storage", "strategies", "report", *sorted(LAYERS[0] | LAYERS[1]))
HEAVY = {"torch", "torch_pruning", "ray", "tensorflow", "keras", "mindspore", "openvino", "executorch"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The module or package directly below `autocompress` that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """The other parts of autocompress that a file imports, for types or inside functions too."""
    names = [name.split(".") for name in imported(ast.parse(path.read_text()))]
    parts = {name[1] for name in names if name[0] == "autocompress" and len(name) > 1}
    return (parts & LAYER.keys()) - {part_of(path)}


def imports_on_start(tree: ast.Module) -> Iterator[str]:
    """First names of what is imported as the module is, so neither in functions nor for types alone."""
    for node in tree.body:
        if not isinstance(node, ast.If | ast.FunctionDef | ast.ClassDef):
            yield from (name.split(".")[0] for name in imported(node))


def modules_of(part: str) -> list[str]:
    """The dotted names of a part and all below it."""
    files = [path for path in MODULES if part_of(path) == part]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_imports_only_from_below(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return  # the table of contents, resolved on first use
    assert part in LAYER, f"{part} has no layer yet: give it one here and in the style guide's table"
    for other in parts_imported(path):
        below = LAYER[other] < min(LAYER[part], HIGHEST.get(part, 6) + 1)
        beside = LAYER[other] == LAYER[part] and (LAYER[part] in OPEN or other in NEIGHBORS.get(part, ()))
        assert below or beside, f"{part} (layer {LAYER[part]}) must not import {other} (layer {LAYER[other]})"


def test_no_module_imports_itself_through_others() -> None:
    edges = {part: set[str]() for part in LAYER}
    for path in MODULES:
        edges.get(part_of(path), set()).update(parts_imported(path))
    while leaves := {part for part, others in edges.items() if not others & edges.keys()}:
        edges = {part: others for part, others in edges.items() if part not in leaves}
    assert not edges, f"these import one another in a circle: {sorted(edges)}"


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_parts_for_small_boards_never_import_torch_at_module_level(part: str) -> None:
    for path in (path for path in MODULES if part_of(path) == part):
        assert not HEAVY & set(imports_on_start(ast.parse(path.read_text()))), path


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh process holds after running some code."""
    code += f"\nimport sys; print(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split("\n")[-2].split())


def test_importing_autocompress_imports_neither_torch_nor_ray() -> None:
    assert loaded_by("import autocompress") == set()


@pytest.mark.parametrize("part", ["devices", "profiling", "storage", "strategies", "report", "run_directory", "task"])
def test_parts_for_small_boards_start_without_torch(part: str) -> None:
    assert loaded_by("\n".join(f"import {name}" for name in modules_of(part))) == set()


QUIETLY = """
from autocompress.cli import main
try:
    main()
except SystemExit:
    pass
"""


def test_the_help_of_the_command_line_starts_without_torch() -> None:
    assert loaded_by(f"import sys\nsys.argv = ['autocompress', '--help']\n{QUIETLY}") == set()
