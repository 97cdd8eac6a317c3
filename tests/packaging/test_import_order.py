"""The import graph of the source tree: one direction, no circle, imports at the top of the file.

The graph is read from the sources, not from a running interpreter. The links in `edge_asr` are followed, and
imports inside functions and under TYPE_CHECKING count like all others. Three rules hold:

1. A room imports only what stands below it in `ORDER`; rooms of one line do not import one another.
2. No modules import one another in a circle, within a room either.
3. `edge_asr.*` is imported at the top of a file. Exceptions are the commands (`cli`), whose `--help` loads
   nothing, the `__init__` files whose names load when first used, and what `DEFERRED` lists with its reason.

The planted faults at the end show that each rule can fail.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

#: From the top down. A room is a package directly below `edge_asr`.
ORDER: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("serving", "integrations", "benchmark", "cluster"),
    ("diagnostics",),
    ("export",),
    ("calibration",),
    ("proof",),
    ("graph",),
    ("training",),
    ("checkpoints",),
    ("model",),
    ("runtime",),
    ("bundle",),
    ("words",),  # the modules that stand in edge_asr itself; they may use one another, without a circle
    ("errors", "lazy", "edge_asr"),  # `edge_asr` is its own __init__.py: the version
)

TORCH = "the module imports torch at its top; what imports it must load without torch"
COLD_START = "the first word comes sooner: only a bundle of this kind needs it"
COLD_CHOICE = "the first word comes sooner: greedy search, the default, needs none of it"
LATE_CHECK = "doctor reports a module that cannot be imported as a line, not as a traceback"
TIMED = "a fresh process whose imports are what is measured"
OPTIONAL = "needs an extra that this road alone asks for"

#: (room that imports, module imported inside a function): why it may not stand at the top of the file.
DEFERRED: Mapping[tuple[str, str], str] = {
    ("benchmark", "edge_asr.runtime.decoding.choice"): TIMED,
    ("runtime", "edge_asr.runtime.alignment.aligner"): COLD_START,
    ("runtime", "edge_asr.runtime.decoding.attention.network"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.attention.rescoring"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.attention.search"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.beam"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.grammar.read"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.hotwords"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.lm.model_file"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.decoding.lm.scorer"): COLD_CHOICE,
    ("runtime", "edge_asr.runtime.engine.backend"): COLD_START,
    ("runtime", "edge_asr.runtime.engine.lookup"): COLD_START,
    ("runtime", "edge_asr.runtime.engine.shapes"): COLD_START,
    ("runtime", "edge_asr.runtime.engine.stream_runner"): COLD_START,
    ("runtime", "edge_asr.runtime.live.streaming_decoder"): COLD_START,
    ("runtime", "edge_asr.runtime.self_test"): COLD_START,
    ("runtime", "edge_asr.runtime.streaming_model"): COLD_START,
    ("bundle", "edge_asr.stream_geometry"): COLD_START,
    ("export", "edge_asr.export.decoders.lstm"): TORCH,
    ("export", "edge_asr.export.inference_form"): TORCH,
    ("export", "edge_asr.model.streaming"): TORCH,
    ("benchmark", "edge_asr.benchmark.accuracy"): OPTIONAL,
    ("benchmark", "edge_asr.benchmark.gpu"): TIMED,
    ("benchmark", "edge_asr.benchmark.random_models"): OPTIONAL,
    ("benchmark", "edge_asr.calibration"): OPTIONAL,
    ("benchmark", "edge_asr.checkpoints"): TORCH,
    ("benchmark", "edge_asr.errors"): TIMED,
    ("benchmark", "edge_asr.export"): OPTIONAL,
    ("benchmark", "edge_asr.feature_config"): OPTIONAL,
    ("benchmark", "edge_asr.model"): TORCH,
    ("benchmark", "edge_asr.runtime.recognizer"): TIMED,
    ("benchmark", "edge_asr.vocabulary"): OPTIONAL,
    ("diagnostics", "edge_asr.bundle.folder"): LATE_CHECK,
    ("diagnostics", "edge_asr.bundle.manifest"): LATE_CHECK,
    ("diagnostics", "edge_asr.bundle.names"): LATE_CHECK,
    ("diagnostics", "edge_asr.runtime.engine.lookup"): LATE_CHECK,
    ("diagnostics", "edge_asr.runtime.engine.sidecar"): LATE_CHECK,
}

#: Rooms and file names where an import inside a function needs no reason of its own.
FREE_ROOMS = ("cli", "__main__")


class Import(NamedTuple):
    """One module of ours that another one names."""

    importer: str
    imported: str
    rooms: tuple[str, str]
    line: int
    in_function: bool


def find_modules(root: Path) -> dict[str, Path]:
    """Every module below `root`/edge_asr by its dotted name, links followed; a package is its folder."""
    modules = {}
    for folder, subfolders, files in os.walk(root / "edge_asr", followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in ("__pycache__", "models")]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder) / name
                dotted = ".".join(path.relative_to(root).with_suffix("").parts)
                modules[dotted.removesuffix(".__init__")] = path
    return modules


def room_of(module: str, modules: Mapping[str, Path]) -> str:
    """The package below `edge_asr` that a module stands in; "words" for a module of no package."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in ("__main__", "errors", "lazy"):
        return parts[-1]
    is_package = modules[".".join(parts[:2])].name == "__init__.py"
    return parts[1] if is_package else "words"


def _nodes(tree: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        yield node, in_function
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _nodes(node, in_function or inside)


@cache  # the planted trees differ from the real one in a single file
def _import_statements(source: str) -> tuple[tuple[tuple[str, ...], int, bool], ...]:
    """Every import of a source text: what it may name, its line, whether it stands in a function."""
    found = []
    for node, in_function in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [((alias.name,), node.lineno, in_function) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                found.append(((f"{node.module}.{alias.name}", node.module), node.lineno, in_function))
    return tuple(found)


def find_imports(modules: Mapping[str, Path]) -> list[Import]:
    """All imports of `modules` by one another; `from package import module` names the module."""
    found = []
    for importer, path in modules.items():
        for names, line, in_function in _import_statements(path.read_text()):
            imported = next((name for name in names if name in modules), None)
            if imported is not None and imported != importer:
                rooms = (room_of(importer, modules), room_of(imported, modules))
                found.append(Import(importer, imported, rooms, line, in_function))
    return found


LEVELS = {room: level for level, rooms in enumerate(reversed(ORDER)) for room in rooms}


def unplaced_rooms(modules: Mapping[str, Path]) -> list[str]:
    """Rooms that `ORDER` does not have: a new one has to be given its place."""
    return sorted({room_of(module, modules) for module in modules} - set(LEVELS))


def wrong_arrows(imports: list[Import]) -> list[str]:
    """Imports of a room that stands higher than the importer's own, or beside it."""
    return [
        f"{one.importer}:{one.line} imports {one.imported}"
        for one in imports
        if one.rooms[0] != one.rooms[1] and LEVELS[one.rooms[1]] >= LEVELS[one.rooms[0]]
    ]


def circles(imports: list[Import]) -> list[list[str]]:
    """Sets of modules that reach one another (strongly connected components, Tarjan 1972)."""
    graph: dict[str, list[str]] = {}
    for one in imports:
        graph.setdefault(one.importer, []).append(one.imported)
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for other in graph.get(module, ()):
            if other not in numbers:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], numbers[other])
        if lowest[module] == numbers[module]:
            position = stack.index(module)
            component = stack[position:]
            del stack[position:]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in numbers:
            visit(module)
    return found


def deferred_imports(modules: Mapping[str, Path], imports: list[Import]) -> list[Import]:
    """Imports inside functions, but for the rooms and files where they are free."""
    return [
        one
        for one in imports
        if one.in_function and one.rooms[0] not in FREE_ROOMS and modules[one.importer].name != "__init__.py"
    ]


def unlisted(deferred: list[Import]) -> list[str]:
    """Deferred imports that `DEFERRED` does not excuse."""
    return [
        f"{one.importer}:{one.line} imports {one.imported} inside a function"
        for one in deferred
        if (one.rooms[0], one.imported) not in DEFERRED
    ]


def complaints(root: Path) -> list[str]:
    """All that breaks a rule in the tree at `root`."""
    modules = find_modules(root)
    imports = find_imports(modules)
    return [
        *(f"the room {room!r} has no place in ORDER" for room in unplaced_rooms(modules)),
        *wrong_arrows([one for one in imports if set(one.rooms) <= set(LEVELS)]),
        *(f"circle: {', '.join(circle)}" for circle in circles(imports)),
        *unlisted(deferred_imports(modules, imports)),
    ]


def test_the_tree_keeps_the_rules(repository: Path) -> None:
    modules = find_modules(repository)
    assert {"edge_asr.cli.main", "edge_asr.export.pipeline", "edge_asr.runtime.recognizer"} <= set(modules)
    assert len(find_imports(modules)) > 500
    assert complaints(repository) == []


def test_every_exception_is_still_needed(repository: Path) -> None:
    modules = find_modules(repository)
    deferred = deferred_imports(modules, find_imports(modules))
    used = {(one.rooms[0], one.imported) for one in deferred}
    assert sorted(set(DEFERRED) - used) == [], (
        "these stand at the top of their files now: drop them from DEFERRED"
    )


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the sources, links as links, to plant faults in."""
    for name in ("edge_asr", "export", "runtime", "calibration"):
        ignored = shutil.ignore_patterns("__pycache__", "models")
        shutil.copytree(repository / name, tmp_path / name, symlinks=True, ignore=ignored)
    assert complaints(tmp_path) == []
    return tmp_path


def plant(file: Path, text: str) -> None:
    """Append `text` to a module."""
    file.write_text(f"{file.read_text()}\n{text}\n")


def test_a_planted_circle_is_found(tree: Path) -> None:
    # transcript is imported by recognizer: the circle closes inside one room, across a link.
    plant(tree / "runtime" / "transcript.py", "from edge_asr.runtime import recognizer")
    (complaint,) = complaints(tree)
    assert complaint.startswith("circle: ")
    assert {"edge_asr.runtime.recognizer", "edge_asr.runtime.transcript"} <= set(complaint[8:].split(", "))


def test_a_planted_arrow_upward_is_found(tree: Path) -> None:
    lines = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edge_asr.export.pipeline import _load"
    )
    plant(tree / "edge_asr" / "proof" / "clips.py", lines)
    found = complaints(tree)
    assert any(
        c.startswith("edge_asr.proof.clips:") and c.endswith("imports edge_asr.export.pipeline")
        for c in found
    )


def test_a_planted_arrow_sideways_is_found(tree: Path) -> None:
    plant(tree / "edge_asr" / "graph" / "check.py", "import edge_asr.proof.clips")
    (complaint,) = complaints(tree)
    assert complaint.startswith("edge_asr.graph.check:")
    assert complaint.endswith("imports edge_asr.proof.clips")


def test_a_planted_arrow_from_the_words_is_found(tree: Path) -> None:
    plant(tree / "edge_asr" / "errors.py", "def late():\n    from edge_asr import frames")
    found = complaints(tree)
    assert any(c.startswith("edge_asr.errors:") and c.endswith("imports edge_asr.frames") for c in found)
    assert any(c.startswith("circle: ") and "edge_asr.errors" in c for c in found)
    assert any(c.endswith("imports edge_asr.frames inside a function") for c in found)


def test_a_planted_lazy_import_is_found(tree: Path) -> None:
    late = "async def late():\n    if True:\n        import edge_asr.bundle.folder"
    plant(tree / "runtime" / "windows.py", late)
    (complaint,) = complaints(tree)
    assert complaint.startswith("edge_asr.runtime.windows:")
    assert complaint.endswith("imports edge_asr.bundle.folder inside a function")


def test_a_command_may_import_late(tree: Path) -> None:
    plant(tree / "edge_asr" / "cli" / "listen.py", "def late():\n    import edge_asr.proof.clips")
    assert complaints(tree) == []


def test_a_room_without_a_place_is_found(tree: Path) -> None:
    (tree / "edge_asr" / "utils").mkdir()
    (tree / "edge_asr" / "utils" / "__init__.py").write_text("")
    assert complaints(tree) == ["the room 'utils' has no place in ORDER"]
