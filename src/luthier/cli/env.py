"""`luthier env`: the machine, what works on it (by trying it), and what to install for what."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.layout import Cell, print_facts, print_heading, print_table
from luthier.cli.messages import print_json, stderr, stdout
from luthier.cli.probes import Outcome, Probe, probes
from luthier.core.cache import VARIABLE, cache_folder, folder_bytes
from luthier.run.environment import collect_environment
from luthier.run.facts import environment_facts
from luthier.run.numbers import byte_size

if TYPE_CHECKING:
    from rich.console import Console

_MARKS: dict[Outcome, Cell] = {
    "works": ("✓", "green"),
    "slow": ("!", "yellow"),
    "missing": ("–", "dim"),
    "broken": ("✗", "red"),
}
PURPOSES = {
    "data": "read Parquet, Arrow and data sets of the hub",
    "tensorboard": "log_to: tensorboard",
    "wandb": "log_to: wandb",
    "quantization": "method: qlora, optimizer: adamw_8bit",
    "mlflow": "log_to: mlflow",
    "web": "luthier label",
    "evaluate": "tasks rouge, bleu and chrf",
    "lm-eval": "tasks of lm-evaluation-harness",
    "tune": "luthier tune",
    "dev": "work on Luthier itself",
}
_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['"]([A-Za-z0-9._-]+)['"]""")


@dataclass(frozen=True)
class Extra:
    """A group of optional libraries. `missing` are those that are not installed."""

    name: str
    purpose: str
    libraries: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        return f'pip install "luthier[{self.name}]"'


def run(json: bool = False) -> None:
    """Print the machine, the probes and the extras; progress goes to standard error."""
    tried = _try_all()
    environment, optional = collect_environment(), extras()
    if json:
        groups = [{**asdict(e), "command": e.command} for e in optional]
        folder = cache_folder()
        cache = {"folder": str(folder) if folder else None, "bytes": folder_bytes(folder) if folder else 0}
        probes_made = [p.as_dict() for p in tried]
        print_json({"environment": environment, "probes": probes_made, "extras": groups, "cache": cache})
        return
    console = stdout()
    _print_machine(console, environment)
    print_heading(console, "Tried just now")
    rows: list[list[Cell]] = [[_MARKS[p.outcome], p.name, p.detail, (p.remedy, "dim")] for p in tried]
    print_table(console, ["", "", "", ""], rows)
    _print_cache(console)
    if optional:
        print_heading(console, "What to install for what")
        table: list[list[Cell]] = [
            [_MARKS["missing" if e.missing else "works"], e.purpose, e.command if e.missing else ("installed", "dim")]
            for e in optional
        ]
        print_table(console, ["", "", ""], table)


def _print_cache(console: Console) -> None:
    print_heading(console, "Kept for later runs")
    folder = cache_folder()
    if folder is None:
        console.print(f"nothing: {VARIABLE} says so")
        return
    size = byte_size(folder_bytes(folder)) if folder.is_dir() else "nothing yet"
    console.print(f"{folder}: {size}; it may be removed at any time; {VARIABLE} names another folder, or off")


def extras() -> list[Extra]:
    """Return the groups of optional libraries, as the package's own metadata names them."""
    groups: dict[str, list[str]] = {}
    for requirement in requires("luthier") or []:
        found = _REQUIREMENT.match(requirement)
        if found and found[1] != "luthier":
            groups.setdefault(found[2], []).append(found[1])
    return [
        Extra(
            name, PURPOSES.get(name, name), tuple(libraries), tuple(lib for lib in libraries if not _is_installed(lib))
        )
        for name, libraries in groups.items()
    ]


def _try_all() -> list[Probe]:
    console = stderr()
    found: list[Probe] = []
    with console.status("") as status:
        for name, probe in probes(Path.cwd()):
            status.update(f"trying {name} …")
            found += probe()
    return found


def _print_machine(console: Console, environment: Mapping[str, object]) -> None:
    print_heading(console, f"Luthier {environment['luthier']} on Python {sys.version.split()[0]}")
    hidden = ("luthier", "python", "packages")
    print_facts(console, [(f.label, f.value) for f in environment_facts(environment) if f.label not in hidden])
    print_heading(console, "Libraries")
    packages = environment["packages"]
    assert isinstance(packages, Mapping)
    console.print(", ".join(f"{name} {number}" for name, number in packages.items()))


def _is_installed(library: str) -> bool:
    try:
        version(library)
    except PackageNotFoundError:
        return False
    return True
