"""The house has one direction of knowledge (docs: "one direction, no circle"); here it is read from the imports."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "envbuilder"

# Lowest first. A module may import from rooms that stand lower, and from its own.
FLOORS = (
    ("errors", "values"),
    ("elsewhere", "files", "reading", "torch_version"),
    ("process", "console", "layout"),
    ("uv", "turns"),
    ("facts", "binaries", "targets"),
    ("store",),
    ("compile",),  # locking reads from a source what its build would fetch
    ("images", "smoke", "locking", "report"),
    ("build", "doctor"),
    ("commands",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
NEVER = {"torch", "vllm", "transformers", "llmcompressor"}
SAME_FLOOR = {("binaries", "facts"), ("facts", "binaries")}  # in one direction only, as the test for circles sees to


def modules() -> list[Path]:
    """Return the modules of this process: what is run by, or laid over, a built environment is no part of it."""
    foreign = {"inside", "overlays"}
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name == "__init__.py" or not foreign & set(path.parts)]


@cache
def imported(path: Path) -> frozenset[tuple[str, int]]:
    """Return (absolute module, line) of every import, wherever it stands: one inside a function makes a circle as well."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=names):
                found |= {(name.name, node.lineno) for name in names}
            case ast.ImportFrom(module=module, names=names, level=0):
                found |= {(f"{module}.{name.name}" if module == "envbuilder" else str(module), node.lineno) for name in names}
            case ast.ImportFrom(level=level) if level:
                pytest.fail(f"{path}: a relative import hides which room is meant")
            case _:
                pass
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split(".")[1]


def room_of_path(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_floor() -> None:
    """A new room must say where it stands, or this whole file would not see it."""
    rooms = {room_of_path(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= LEVEL.keys(), rooms - LEVEL.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_knows_only_what_stands_below_it(path: Path) -> None:
    own = room_of_path(path)
    if own in {"__init__", "__main__"}:
        return
    upward = []
    for module, line in imported(path):
        if not module.startswith("envbuilder.") or module == "envbuilder.__version__" or room_of(module) == own:
            continue
        room = room_of(module)
        if LEVEL[room] >= LEVEL[own] and (own, room) not in SAME_FLOOR:
            upward.append(f"line {line}: {module}")
    assert upward == []


def test_no_two_rooms_know_each_other() -> None:
    """Rooms of one floor may speak in one direction at most, and never in a ring."""
    edges: dict[str, set[str]] = {room: set() for room in LEVEL}
    for path in modules():
        own = room_of_path(path)
        if own in LEVEL:
            edges[own] |= {room_of(module) for module, _ in imported(path) if module.startswith("envbuilder.")} - {own, "__version__"}

    def reach(room: str, seen: frozenset[str]) -> None:
        for other in edges.get(room, ()):
            assert other not in seen, f"a circle: {' → '.join([*sorted(seen), other])}"
            reach(other, seen | {other})

    for room in edges:
        reach(room, frozenset({room}))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_and_vllm_are_never_imported(path: Path) -> None:
    """They live in built environments: an import here would tie envbuilder to one of the builds it is to judge."""
    assert {module for module, _ in imported(path) if module.partition(".")[0] in NEVER} == set()


@pytest.mark.parametrize("name", ["cli.py", "console.py", "errors.py", "files.py", "process.py", "__init__.py", "__main__.py"])
def test_what_every_start_loads_is_the_standard_library(name: str) -> None:
    """A third-party import at the top of one of these would be paid for by `--help` and `explain`."""
    tree = ast.parse((PACKAGE / name).read_bytes())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in names:
                top = module.partition(".")[0]
                assert top in sys.stdlib_module_names | {"envbuilder", "__future__"}, f"{name}: {module}"


def test_programs_are_run_in_one_place() -> None:
    """process.py logs, bounds and ends what it starts; whoever starts a program by hand leaves it running some day."""
    allowed = {PACKAGE / "process.py", PACKAGE / "smoke" / "server.py"}  # the server lives longer than a call; it has a guard of its own
    mentioned = [path for path in modules() if "subprocess" in {module for module, _ in imported(path)}]
    users = {path for path in mentioned if "subprocess" in {module for module, _ in imported_at_run_time(path)}}
    assert users <= allowed, users - allowed


def imported_at_run_time(path: Path) -> set[tuple[str, int]]:
    """Return the imports without those that only the type checker sees."""
    tree = ast.parse(path.read_bytes())
    hidden = {
        child.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
        if isinstance(child, ast.Import | ast.ImportFrom)
    }
    return {(module, line) for module, line in imported(path) if line not in hidden}
