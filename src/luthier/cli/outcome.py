"""What `train` and `resume` print on stdout when they are done."""

from __future__ import annotations

import shlex

from luthier.cli.messages import stdout
from luthier.core.rundir import RunDir, read_json
from luthier.run.opened import run_labels


def print_outcome(run: RunDir, as_json: bool) -> None:
    """Print the report, as JSON, or where it is and what can be done next."""
    if as_json:
        print(run.report.read_text(encoding="utf-8"), end="")
        return
    console, path = stdout(), shlex.quote(str(run.path))
    console.print()
    console.print(str(run.report_page))
    labels = run_labels(run)
    if labels is not None and len(labels) == 1:  # a reward model writes nothing
        console.print(f"let it judge  luthier judge FILE --judge {path} --out FILE")
    else:
        console.print(f"talk to it    luthier chat {path}")
    console.print(f"measure it    luthier eval {path} --data FILE")
    form = export_form(run)
    if form:
        console.print(f"use it        luthier export {path} --to {form} OUT")


def export_form(run: RunDir) -> str:
    """Return the form in which a run can be exported: hf, peft where it cannot be merged, or nothing."""
    report = read_json(run.report)
    if not report.get("unmergeable"):
        return "hf"
    adapter = run.path / str(report.get("final_checkpoint")) / "adapter_config.json"
    return "peft" if adapter.is_file() else ""
