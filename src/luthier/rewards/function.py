"""A reward of the user's own: a Python function in a file that the recipe names."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, Self, cast

from pydantic import Field, field_validator

from luthier.core.errors import Problem, RecipeError, did_you_mean
from luthier.core.paths import locate
from luthier.rewards.base import Place, Reward, Row, Scorer, Turns

_PLAIN = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.Expr)
"""Statements that bind no other name than their own."""
UserFunction = Callable[[list[str], list[str], list[dict[str, object]]], object]


class Function(Reward):
    """What a Python function of yours says of an answer."""

    kind: Literal["function"] = "function"

    path: str = Field(min_length=1)
    """The file and the function, such as rewards.py:score. The function takes (prompts, answers, rows), three lists of
    the same length, and returns a list of as many numbers. In a recipe the path alone will do: `reward:
    rewards.py:score`. The file is looked up beside the recipe and is run as it stands."""

    title: ClassVar[str] = "Python function"
    summary: ClassVar[str] = "What a function of yours, (prompts, answers, rows) → numbers, says of the answers."
    zh: ClassVar[dict[str, str]] = {
        "title": "Python 函数",
        "summary": "由你自己的函数 (prompts, answers, rows) → 数字列表 给回答打分。",
        "path": "文件与函数，例如 rewards.py:score。函数接收等长的三个列表 (prompts, answers, rows)，返回同样多的数字。在配方中可以直接写 `reward: rewards.py:score`。文件在配方旁边查找，并按原样执行。",
    }

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: str) -> str:
        file, _, name = path.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError("write file.py:function, such as rewards.py:score")
        return path

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the reward with the file's absolute path."""
        file, _, name = self.path.rpartition(":")
        return self.model_copy(update={"path": f"{find(file).absolute()}:{name}"})

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Look for the file and read, without running it, whether it defines the function."""
        file, _, name = self.path.rpartition(":")
        try:
            tree = ast.parse(find(file).read_bytes())
        except OSError:
            return [_no_file(find(file))]
        except (SyntaxError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            return [Problem(f"The file is no Python: {error}.", f"{find(file)}{line}", "mend that line")]
        made = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        # A name may also be assigned, imported, or made under a condition: what is run decides then.
        if name in made or any(not isinstance(node, _PLAIN) for node in tree.body):
            return []
        return [_no_function(find(file), name, sorted(made))]

    def open(self, place: Place) -> Scorer:
        """Run the file and return its function.

        Raises:
            RecipeError: there is no such file or function, or the file cannot be run; with its line.
        """
        name = self.path.rpartition(":")[2]
        file = locate(self.path.rpartition(":")[0], (place.folder, Path.cwd())).absolute()
        if not file.is_file():
            raise RecipeError(_no_file(file))
        module = _run(file)
        function = getattr(module, name, None)
        if not callable(function):
            own = [
                n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
            ]
            raise RecipeError(_no_function(file, name, own))
        return _Called(cast("UserFunction", function), file, name)


@dataclass
class _Called(Scorer):
    function: UserFunction
    file: Path
    name: str

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        """Return what the function says.

        Raises:
            RecipeError: it broke, or did not return as many finite numbers as there are answers; with file and line.
        """
        try:
            values = self.function(list(prompts), list(answers), [dict(row) for row in rows])
        except (Exception, SystemExit) as error:
            raise _broken(self.file, error) from error
        return self._numbers(values, len(answers))

    def _numbers(self, values: object, wanted: int) -> list[float]:
        line = getattr(getattr(self.function, "__code__", None), "co_firstlineno", None)
        place = str(self.file) if line is None else f"{self.file}:{line}"
        remedy = "return one finite number for each answer"
        try:
            listed = list(values)  # type: ignore[call-overload]
        except TypeError as error:
            what = f"{self.name} returned {type(values).__name__} in place of a list of {wanted} numbers."
            raise RecipeError(Problem(what, place, remedy)) from error
        if len(listed) != wanted:
            what = f"{self.name} returned {len(listed)} numbers for {wanted} answers."
            raise RecipeError(Problem(what, place, remedy))
        numbers = []
        for index, value in enumerate(listed):
            try:
                number = math.nan if isinstance(value, str | bytes) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                what = (
                    f"{self.name} returned {value!r} for answer {index + 1} of {wanted}; it has to be a finite number."
                )
                raise RecipeError(Problem(what, place, remedy))
            numbers.append(number)
        return numbers


def _no_file(file: Path) -> Problem:
    remedy = "write reward: FILE.py:FUNCTION; the file is looked up in the recipe's folder"
    return Problem("The file with the reward function is not there.", str(file), remedy)


def _no_function(file: Path, name: str, own: Sequence[str]) -> Problem:
    remedy = f"it has: {', '.join(own)}" if own else f"write def {name}(prompts, answers, rows): …"
    return Problem(f'The file has no function "{name}".{did_you_mean(name, own)}', str(file), remedy)


def _run(file: Path) -> ModuleType:
    """Return the module that a file makes when it is run. What lies beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location(f"luthier_reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _broken(file, error) from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have taken it out itself
            sys.path.remove(str(file.parent))
    return module


def _broken(file: Path, error: BaseException) -> RecipeError:
    """Return the user's message for a fault in their file: the deepest line of it that was being run."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = str(file) if line is None else f"{file}:{line}"
    return RecipeError(Problem(f"The reward function broke: {type(error).__name__}: {error}.", place, "mend that line"))
