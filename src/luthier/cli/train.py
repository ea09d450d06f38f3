"""`luthier train RECIPE [key=value …]`: train, show it, and leave a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.cli.outcome import print_outcome
from luthier.run.draft import read_draft
from luthier.run.examine import examine
from luthier.run.launch import start
from luthier.run.pipeline import examine_pipeline, has_stages, read_pipeline
from luthier.run.pipeline_launch import start_pipeline
from luthier.run.screen import Screen


def run(recipe: Path, overrides: Sequence[str] = (), json: bool = False) -> None:
    """Train a recipe; with `json`, print the report on stdout at the end."""
    if has_stages(recipe):
        done = start_pipeline(examine_pipeline(read_pipeline(recipe, overrides)), Screen())
    else:
        done = start(examine(read_draft(recipe, overrides)), Screen())
    print_outcome(done, json)
