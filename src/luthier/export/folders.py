"""Write what was trained as folders that others open: a merged Hugging Face model, or a PEFT adapter.

Every export is opened again and compared before it counts as done: an adapter saved under keys that loaders ignore, or
a tied head overwritten on reload, looks fine until someone uses it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from luthier.core.errors import Failure, Problem, RunError
from luthier.core.rundir import disk_fault, settle_files
from luthier.export.adapters import write_base
from luthier.methods.base import Method
from luthier.models.classifier import Classifier
from luthier.models.pooling import pooled_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from luthier.models.loaded import LoadedModel

TOLERANCE = {torch.float32: 1e-3}
"""Nats by which a log-probability may differ after reload: merging rounds once in float32."""
TOLERANCE_16_BITS = 0.1


@dataclass(frozen=True)
class Export:
    """What was written: the number format of the weights, and the largest difference of a log-probability in nats."""

    dtype: str
    drift: float


def export_hf(model: LoadedModel, method: Method, out: Path, trust_remote_code: bool = False) -> Export:
    """Merge the trained tensors into the base and write a plain Hugging Face folder.

    The weights are written in the format in which the run held most of them: float32, or bfloat16 for a method that
    keeps the frozen ones in 16 bits under `dtype: bfloat16`.

    Raises:
        RunError: the folder exists or cannot be written.
        Failure: the reloaded folder does not compute what the run's model computes.
    """
    require_free(out)
    dtype = _usual_dtype(model.module)
    _compute_in(dtype, model)
    before = _fingerprint_logits(model)
    module = method.merge(model.module)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)

    def write(folder: Path) -> None:
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)

    _write_beside(out, write)
    merged = _fingerprint_logits(model)
    loaded = _family(model).from_pretrained(out, dtype=dtype, trust_remote_code=trust_remote_code)
    model.module = _to(loaded, model)
    model.packs = False
    after = _fingerprint_logits(model)
    drift = float(max((before - merged).abs().max(), (before - after).abs().max()))
    if not drift <= TOLERANCE.get(dtype, TOLERANCE_16_BITS):
        shutil.rmtree(out, ignore_errors=True)
        raise Failure(
            f"The merged model differs from the trained one by {drift:.4f} nats after reload; nothing was kept."
        )
    return Export(str(dtype).removeprefix("torch."), drift)


def export_peft(
    model: LoadedModel, checkpoint: Path, out: Path, revision: str | None = None, from_scratch: bool = False
) -> Export:
    """Copy the adapter of a checkpoint as a folder that PEFT opens.

    Raises:
        RunError: the run has no PEFT form, or the folder exists or cannot be written.
        Failure: PEFT opens it as something else than the run's model.
    """
    require_free(out)
    _require_adapter(checkpoint, from_scratch)
    from peft import PeftModel

    def write(folder: Path) -> None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy2(checkpoint / name, folder / name)
        write_base(folder, model)
        model.tokenizer.save_pretrained(folder)

    dtype = _usual_dtype(model.module)
    _compute_in(dtype, model)
    before = _fingerprint_logits(model)
    _write_beside(out, write)
    config = model.module.config if isinstance(model, Classifier) else None  # the classes are not in the base's own
    base = _family(model).from_pretrained(model.path, config=config, dtype=dtype, revision=revision)
    # The wrapper, not what is in it: a prompt or prefix is PEFT's own, outside the base model.
    model.module = _to(PeftModel.from_pretrained(base, str(out)), model)  # type: ignore[arg-type]
    model.packs = False
    drift = float((_fingerprint_logits(model) - before).abs().max())
    if not drift <= TOLERANCE.get(dtype, TOLERANCE_16_BITS):
        shutil.rmtree(out, ignore_errors=True)
        raise Failure(f"PEFT opens the adapter with logits that differ by {drift:.4f} nats; nothing was kept.")
    return Export("float32", drift)


def _family(model: LoadedModel) -> type[_BaseAutoModelClass]:
    """Return the class of transformers that opens what a model is."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if isinstance(model, Classifier) else AutoModelForCausalLM


def require_free(out: Path) -> None:
    """Make sure that nothing is at the place of an export.

    Raises:
        RunError: there is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "The output folder exists already and is not empty." if out.is_dir() else "The output is a file."
        raise RunError(Problem(what, str(out), "choose another folder"))


def _require_adapter(checkpoint: Path, from_scratch: bool) -> None:
    whole = "export the whole model instead with --to hf"
    if not (checkpoint / "adapter_config.json").is_file():
        what = "This run's method has no adapter form: its tensors are part of the model itself."
        raise RunError(Problem(what, str(checkpoint), whole))
    if from_scratch:
        what = "The run started from random weights, which no folder holds: an adapter has nothing to stand on."
        raise RunError(Problem(what, str(checkpoint), whole))


def _usual_dtype(module: PreTrainedModel) -> torch.dtype:
    """Return the number format of most of a model's weights."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in module.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0]


def _compute_in(dtype: torch.dtype, model: LoadedModel) -> None:
    """Compare float32 weights in float32: rounding to 16 bits would hide what an export changes."""
    if dtype is torch.float32:
        model.autocast = None


def _to(module: object, model: LoadedModel) -> PreTrainedModel:
    loaded = cast("PreTrainedModel", module)
    loaded.to(model.device)  # type: ignore[arg-type]  # annotated for a class, where it is called on objects
    return loaded


def _write_beside(out: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside its place and rename it, so that a half-written export is never taken for a whole one."""
    beside = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        settle_files(beside)
        if out.is_dir():
            out.rmdir()
        beside.rename(out)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        fault = disk_fault(out, error)
        if fault is None:
            raise
        raise fault from error


def _fingerprint_logits(model: LoadedModel) -> torch.Tensor:
    """Return log-probabilities of a fixed random sequence by the model's own forward pass."""
    vocabulary = cast("torch.nn.Embedding", model.module.get_input_embeddings()).weight.shape[0]
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, vocabulary, (1, 24))).to(model.device)
    with model.evaluating(), model.computing():
        if isinstance(model, Classifier):
            if pooled_head(model.module) is not None:  # not the model's own head: its merge refuses, with the reason
                return torch.zeros(())
            logits = model.module(input_ids=tokens).logits.float()
            return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)  # one output has no other to compare
        logits = model.module(input_ids=tokens, use_cache=False).logits[0, -tokens.shape[1] :]
        return logits.float().log_softmax(-1)
