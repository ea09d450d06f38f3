"""What `train` and `resume` print on stdout when they are done."""

from __future__ import annotations

from luthier.core.rundir import RunDir


def print_outcome(run: RunDir, as_json: bool) -> None:
    """Print the report, as JSON, or where it is and what can be done next."""
    if as_json:
        print(run.report.read_text(encoding="utf-8"), end="")
        return
    print(f"\n{run.report_page}")
    print(
        f"next: luthier chat {run.path} · luthier eval {run.path} --data FILE · luthier export {run.path} --to hf OUT"
    )
