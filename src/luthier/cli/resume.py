"""`luthier resume RUN`: go on with an interrupted run."""

from __future__ import annotations

from pathlib import Path

from luthier.cli.outcome import print_outcome
from luthier.core.rundir import RunDir
from luthier.run.launch import resume
from luthier.run.pipeline_launch import resume_pipeline
from luthier.run.screen import Screen


def run(run_dir: Path, json: bool = False) -> None:
    """Resume a run; with `json`, print the report on stdout at the end."""
    done = (resume_pipeline if RunDir(run_dir).pipeline.is_file() else resume)(run_dir, Screen())
    print_outcome(done, json)
