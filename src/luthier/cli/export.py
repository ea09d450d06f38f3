"""`luthier export RUN --to hf|peft OUT`: the trained model as a folder that others open."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from luthier.cli.messages import print_json, stdout
from luthier.core.rundir import RunDir


def run(run: Path, to: Literal["hf", "peft"], out: Path, json: bool = False, ignore_gate: bool = False) -> None:
    """Export a run's final checkpoint and say how far the reloaded folder is from it.

    Raises:
        RunError: the run did not pass its gate.
    """
    from luthier.run.gates import require_gate

    ignored = require_gate(RunDir.open(run), "export", ignore_gate)
    from luthier.run.opened import open_run, run_labels

    opened = open_run(run)
    from luthier.export.folders import export_hf, export_peft

    spec = opened.recipe.model
    if to == "hf":
        done = export_hf(opened.model, opened.recipe.method, out, spec.trust_remote_code)
    else:
        done = export_peft(opened.model, opened.checkpoint, out, spec.revision, spec.from_scratch)
    if json:
        facts = {"out": str(out), "to": to, "checkpoint": str(opened.checkpoint)}
        against = {"gate_ignored": ignored} if ignored else {}
        print_json({**facts, "dtype": done.dtype, "max_difference": done.drift, **against})
        return
    family = "AutoModelForCausalLM" if run_labels(opened.run) is None else "AutoModelForSequenceClassification"
    how = f"{family}.from_pretrained" if to == "hf" else "PeftModel.from_pretrained"
    console = stdout()
    for fault in ignored:
        console.print(f"exported although its gate was not passed: {fault}", markup=False)
    console.print(f"{out}: written as {done.dtype}, opened again and compared with the run")
    console.print(f"  log-probabilities differ by at most {done.drift:.1e}; load it with {how}")
