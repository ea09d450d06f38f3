"""`luthier export RUN --to hf|peft OUT`: the trained model as a folder that others open."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Literal


def run(run: Path, to: Literal["hf", "peft"], out: Path, json: bool = False) -> None:
    """Export a run's final checkpoint and say how far the reloaded folder is from it."""
    from luthier.run.opened import open_run

    opened = open_run(run)
    from luthier.export.folders import export_hf, export_peft

    if to == "hf":
        drift = export_hf(opened.model, opened.recipe.method, out)
    else:
        drift = export_peft(opened.model, opened.checkpoint, out)
    if json:
        print(
            json_module.dumps(
                {"out": str(out), "to": to, "checkpoint": str(opened.checkpoint), "max_difference": drift}
            )
        )
        return
    how = "AutoModelForCausalLM.from_pretrained" if to == "hf" else "PeftModel.from_pretrained"
    print(f"{out}: opened again and compared, log-probabilities differ by at most {drift:.1e}. Load it with {how}.")
