"""How problems look in the terminal, and as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import Interrupted, LuthierError, Problem, UserError, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def stderr() -> Console:
    """Return a console on standard error: colours on a terminal, plain lines that are never wrapped elsewhere."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stderr.isatty())


def stdout() -> Console:
    """Return a console on standard output, for what the user asked to see."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def show_error(error: LuthierError, as_json: bool) -> None:
    """Print an error: as one JSON document on standard output, or for people on standard error."""
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "problems": [p.as_dict() for p in problems_of(error)]}})
        return
    if isinstance(error, Interrupted):
        stderr().print(str(error))
        return
    show_problems(problems_of(error))


def problems_of(error: LuthierError) -> list[Problem]:
    """Return an error's problems; a failure is one."""
    return error.problems if isinstance(error, UserError) else [Problem(str(error))]


def show_problems(problems: Sequence[Problem]) -> None:
    """Print problems on standard error, and how many there are when they are several."""
    console = stderr()
    for problem in problems:
        console.print(_as_text(problem))
    errors = sum(problem.severity == "error" for problem in problems)
    if errors > 1:
        console.print(f"{errors} problems", style="bold")


def print_json(value: object) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def _as_text(problem: Problem) -> Text:
    from rich.text import Text

    text = Text.assemble((problem.severity, _STYLES[problem.severity]), ": ")
    if problem.where:
        text.append(visible(problem.where), "bold").append(": ")
    text.append(visible(problem.what))
    if problem.remedy:
        text.append("\n  → ", "green").append(visible(problem.remedy))
    return text
