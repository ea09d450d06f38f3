"""Write the mixture of several runs as a folder, and replace one of its experts later.

Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv:2403.07816. The routers of a joined mixture are new: train them with
`method: {kind: moe, train: router}`, or join and train in one run with `method: {kind: moe, join: […]}`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from luthier.core.errors import ModelError, Problem
from luthier.core.rundir import RunDir, final_checkpoint
from luthier.export.folders import require_free
from luthier.methods.modules.task_experts import dense_tensors, join_runs, plain_model
from luthier.models.load import load_tokenizer
from luthier.models.mixture import dense_shapes, mixtures, put_expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def join_experts(base: str, runs: Sequence[str], out: Path, top_k: int = 2, seed: int = 0) -> Path:
    """Write the mixture whose expert i is the feed-forward of run i; its routers are new and still to be trained.

    Args:
        base: the dense model's folder, for config and tokenizer.
        runs: run folders or model folders, all trained from `base`.
        out: a folder that does not exist yet, or is empty.
        top_k: experts that each token goes to.
        seed: of the routers.

    Raises:
        ModelError: a run does not fit; the architecture has no mixture.
        RunError: there is something in `out`; a run has no checkpoint.
    """
    require_free(out)
    model = plain_model(base)
    join_runs(model, [_saved(run) for run in runs], top_k, seed)
    model.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    return out


def replace_expert(folder: Path, index: int, run: str) -> None:
    """Put the feed-forward of a run in the place of expert `index` of a mixture's folder; all else keeps its bits.

    Raises:
        ModelError: there is no such expert, or the run has other sizes.
        RunError: the run has no checkpoint.
    """
    from transformers import AutoModelForCausalLM

    model = cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    found = mixtures(model)
    if not found or not 0 <= index < found[0].count:
        has = f"{found[0].count} experts, counted from 0" if found else "no experts"
        raise ModelError(Problem(f"There is no expert {index}: the model has {has}.", where=str(folder)))
    put_expert(model, index, dense_tensors(_saved(run), dense_shapes(model)))
    # Rewritten beside its place, so that the folder is never found half old and half new.
    beside, going = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("model*.safetensors*"))
    model.save_pretrained(beside)
    folder.rename(going)
    beside.rename(folder)
    shutil.rmtree(going, ignore_errors=True)


def _saved(run: str) -> str:
    """Return the folder in which what was trained lies: of a run, its final checkpoint."""
    place = RunDir(Path(run))
    return str(final_checkpoint(place)) if place.resolved.is_file() else run
