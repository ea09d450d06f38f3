"""`packing: false` pads, and trains the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.run.draft import Draft
from luthier.run.examine import examine
from luthier.run.launch import start
from luthier.run.screen import Screen


def _losses(folder: Path, model: Path, packing: bool) -> tuple[list[float], str]:
    rows = [{"prompt": "one day " * n, "completion": "there was a cat"} for n in (1, 5, 2, 9)]
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {"model": str(model), "method": "full", "data": str(data), "max_steps": 3, "learning_rate": 1e-3}
    draft = Draft.of_mapping({**recipe, "packing": packing, "run": str(folder / f"run-{packing}")}, (), None)
    run = start(examine(draft), Screen(quiet=True))
    log = (run.path / "00-sft" / "log.txt").read_text(encoding="utf-8")
    return [row["loss"] for row in run.stages()[0].read_metrics()], log


def test_padding_instead_of_packing_gives_the_same_losses(tmp_path: Path, shared: Path) -> None:
    model = shared / "models" / "stories260K"
    packed, said_packed = _losses(tmp_path, model, packing=True)
    padded, said_padded = _losses(tmp_path, model, packing=False)
    assert padded == pytest.approx(packed, rel=1e-5)
    assert "packed without padding" in said_packed
    assert "padded" in said_padded
    assert "without padding" not in said_padded
