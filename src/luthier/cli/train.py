"""`luthier train RECIPE [key=value …]`: train, show it, and leave a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.cli.outcome import print_outcome
from luthier.run.config import load_recipe
from luthier.run.launch import start
from luthier.run.screen import Screen


def run(recipe: Path, overrides: Sequence[str] = (), json: bool = False) -> None:
    """Train a recipe; with `json`, print the report on stdout at the end."""
    loaded = load_recipe(recipe, overrides)
    done = start(loaded, Screen())
    print_outcome(done, json)
