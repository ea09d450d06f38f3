"""Imports run downward only, and a library is imported in the folders it belongs to."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import luthier

SOURCE = Path(luthier.__file__).parent

# From the top down. Folders on one level do not import each other.
LEVELS = (
    ("cli", "web"),
    ("run",),
    ("federate", "device", "evaluate", "advise", "doctor", "export", "serve"),
    ("train",),
    ("methods", "objectives", "optim", "regularizers"),
    ("rewards",),  # objectives hold rewards as fields
    ("models", "data"),
    ("core",),
)
LEVEL_OF = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}

# Where an optional or heavy library may be imported at all.
HOMES = {
    "peft": {"methods", "export"},
    "deepspeed": {"train"},
    "flwr": {"federate"},
    "typer": {"cli"},
    "gradio": {"web"},
    "fastapi": {"web", "serve"},
    "wandb": {"train", "run"},
    "mlflow": {"train", "run"},
    "tensorboard": {"train", "run"},
    "datasets": {"data"},
    "httpx": {"rewards"},
    "optuna": {"run"},
    "sacrebleu": {"evaluate"},
    "rouge_score": {"evaluate"},
    "lm_eval": {"evaluate"},
}

# What reading a recipe, `--help` and `luthier check` must not wait for: inside functions only, in these places.
HEAVY = {"torch", "transformers", "peft", "datasets", "pandas", "pyarrow"}
LIGHT = (
    "cli",
    "methods",
    "objectives",
    "optim",
    "regularizers",
    "rewards",
    "data",
    "core/component.py",
    "core/errors.py",
    "core/batch.py",
    "core/rundir.py",
    "models/files.py",
    "evaluate/tasks",
    "evaluate/intervals.py",
    "run/config.py",
    "run/draft.py",
    "run/cross_checks.py",
    "run/explain.py",
    "run/fields.py",
    "run/foreign_names.py",
    "run/foreign_values.py",
    "run/schema.py",
    "run/yaml_lines.py",
)
# Layers that are torch modules themselves; the method that uses them imports them inside a function.
TORCH_MODULES = "methods/modules/"


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_top: bool


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return every import of a file but those for type checkers only."""

    def walk(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are written in full"
                module = child.module or ""
                yield Import(module, child.lineno, at_top)
                if module == "luthier":
                    yield from (Import(f"luthier.{alias.name}", child.lineno, at_top) for alias in child.names)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, at_top and not inside)

    return tuple(walk(ast.parse(path.read_text(encoding="utf-8")), True))


def folder_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def is_upward(folder: str, module: str) -> bool:
    parts = module.split(".")
    if parts[0] != "luthier" or len(parts) < 2 or parts[1] not in LEVEL_OF or folder not in LEVEL_OF:
        return False
    target = parts[1]
    return target != folder and LEVEL_OF[target] <= LEVEL_OF[folder]


def test_imports_run_downward_only():
    wrong = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in files()
        for found in imports(path)
        if is_upward(folder_of(path), found.module)
    ]
    assert wrong == []


def test_every_folder_has_its_level():
    known = {*LEVEL_OF, "starter"}
    folders = {folder_of(path) for path in files()} - {""}
    assert folders <= known, "a new folder needs its place in the order"


def test_only_the_program_stands_beside_the_folders():
    assert {name_of(path) for path in files() if not folder_of(path)} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_at_home_only(library: str):
    wrong = [
        f"{name_of(path)}:{found.line}"
        for path in files()
        for found in imports(path)
        if found.module.split(".")[0] == library and folder_of(path) not in HOMES[library]
    ]
    assert wrong == []


def test_what_a_recipe_needs_waits_for_no_heavy_library():
    light = [p for p in files() if name_of(p).startswith(LIGHT) and not name_of(p).startswith(TORCH_MODULES)]
    wrong = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in light
        for found in imports(path)
        if found.at_top and found.module.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_components_never_see_engine_stage_or_run_folder():
    wrong = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in files()
        if folder_of(path) in ("methods", "objectives", "optim", "regularizers", "rewards")
        for found in imports(path)
        if found.module.startswith(("luthier.train", "luthier.run", "luthier.core.rundir"))
    ]
    assert wrong == []


def test_the_program_imports_a_verb_when_it_is_called():
    at_top = [found.module for found in imports(SOURCE / "cli" / "main.py") if found.at_top]
    assert {m for m in at_top if m.startswith("luthier.")} == {"luthier.__version__", "luthier.core.errors"}


def test_only_the_engine_differentiates():
    """`.backward()` stands in one file; autograd functions define a backward, they do not call one."""
    callers = [
        name_of(path)
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]
    assert set(callers) <= {"train/engine.py"}


UPWARD = [("models", "luthier.train.engine"), ("methods", "luthier.objectives"), ("core", "luthier.data.spec")]


@pytest.mark.parametrize(("folder", "module"), UPWARD)
def test_the_law_sees_an_import_that_runs_upward_or_aside(folder: str, module: str):
    assert is_upward(folder, module)


@pytest.mark.parametrize(("folder", "module"), [("run", "luthier.train.engine"), ("run", "luthier.run.config")])
def test_the_law_allows_an_import_that_runs_downward_or_within(folder: str, module: str):
    assert not is_upward(folder, module)
