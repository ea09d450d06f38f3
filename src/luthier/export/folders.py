"""Write what was trained as folders that others open: a merged Hugging Face model, or a PEFT adapter.

Every export is opened again and compared before it counts as done: an adapter saved under keys that loaders ignore, or
a tied head overwritten on reload, looks fine until someone uses it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.errors import Failure, Problem, RunError
from luthier.core.rundir import disk_error
from luthier.methods.base import Method

if TYPE_CHECKING:
    from luthier.models.causal import CausalModel

TOLERANCE = 1e-3
"""Nats by which a log-probability may differ after reload; merging rounds once in float32."""


def export_hf(model: CausalModel, method: Method, out: Path) -> float:
    """Merge the trained tensors into the base and write a plain Hugging Face folder; return the largest difference.

    Raises:
        RunError: the folder exists or cannot be written.
        Failure: the reloaded folder does not compute what the run's model computes.
    """
    from transformers import AutoModelForCausalLM

    before = _fingerprint_logits(model)
    module = method.merge(model.module)
    module.config.use_cache = True

    def write(folder: Path) -> None:
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)

    _write_beside(out, write)
    module.config.use_cache = False
    merged = _fingerprint_logits(model)
    model.module = AutoModelForCausalLM.from_pretrained(out, dtype=module.dtype).to(model.device)
    model.packs = False
    after = _fingerprint_logits(model)
    drift = float(max((before - merged).abs().max(), (before - after).abs().max()))
    if drift > (TOLERANCE if module.dtype == torch.float32 else 0.1):
        shutil.rmtree(out, ignore_errors=True)
        raise Failure(
            f"The merged model differs from the trained one by {drift:.4f} nats after reload; nothing was kept."
        )
    return drift


def export_peft(model: CausalModel, checkpoint: Path, out: Path) -> float:
    """Copy the adapter of a checkpoint as a folder that PEFT opens; return the largest difference after reload.

    Raises:
        RunError: the method has no PEFT form, or the folder exists or cannot be written.
    """
    if not (checkpoint / "adapter_config.json").is_file():
        raise RunError(
            Problem(
                "This run's method has no adapter form: its tensors are part of the model itself.",
                where=str(checkpoint),
                remedy="export the whole model instead with --to hf",
            )
        )
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def write(folder: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy2(checkpoint / name, folder / name)
        model.tokenizer.save_pretrained(folder)

    before = _fingerprint_logits(model)
    _write_beside(out, write)
    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=model.module.dtype)
    model.module = PeftModel.from_pretrained(base, str(out)).get_base_model().to(model.device)
    model.packs = False
    drift = float((_fingerprint_logits(model) - before).abs().max())
    if drift > (TOLERANCE if model.module.dtype == torch.float32 else 0.1):
        shutil.rmtree(out, ignore_errors=True)
        raise Failure(f"PEFT opens the adapter with logits that differ by {drift:.4f} nats; nothing was kept.")
    return drift


def _write_beside(out: Path, write) -> None:
    """Fill a folder beside its place and rename it, so that a half-written export is never taken for a whole one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(Problem("The output folder exists already and is not empty.", str(out), "choose another folder"))
    beside = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        for file in beside.iterdir():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        if out.is_dir():
            out.rmdir()
        beside.rename(out)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise disk_error(out, error) from error


def _fingerprint_logits(model: CausalModel) -> torch.Tensor:
    """Return log-probabilities of a fixed random sequence by the model's own forward pass."""
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, vocabulary, (1, 24))).to(model.device)
    with model.evaluating():
        return model.module(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
