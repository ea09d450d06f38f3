"""`luthier resume RUN`: go on with an interrupted run."""

from __future__ import annotations

from pathlib import Path

from luthier.cli.outcome import print_outcome
from luthier.run.launch import resume
from luthier.run.screen import Screen


def run(run_dir: Path, json: bool = False) -> None:
    """Resume a run; with `json`, print the report on stdout at the end."""
    done = resume(run_dir, Screen())
    print_outcome(done, json)
