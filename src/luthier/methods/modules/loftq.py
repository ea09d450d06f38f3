"""LoftQ: start the update at what quantisation lost (Li et al. 2023, arXiv:2310.08659).

The base is quantised already, so this is the method's first iteration, as PEFT's `replace_lora_weights_loftq` does it:
s·B·A is the best approximation of W − Q(W) of that rank. W is read from the model's files, one matrix at a time.
"""
# bitsandbytes, and PEFT's layers on it, have no types.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer

from luthier.core.errors import ModelError, Problem
from luthier.methods.modules.peft_files import ADAPTER
from luthier.models.quantized import is_quantized, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def start_from_what_was_lost(model: PreTrainedModel) -> None:
    """Set A and B of every LoRA layer on a quantised matrix.

    Raises:
        ModelError: the matrix in full is not to be found in the model's files.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    stored = stored_tensors(Path(str(model.config._name_or_path)))
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if not is_quantized(base):
            continue
        if f"{name}.weight" not in stored:
            what = f"{name} does not stand by this name in the model's files, so what quantisation lost is not known."
            raise ModelError(Problem(what, "method.init", "leave init out, or use a model in a local folder"))
        whole = stored[f"{name}.weight"]().float().to(base.weight.device)
        whole_OI = whole.t() if base.was_transposed else whole
        u, s, vh = torch.linalg.svd(whole_OI - base.dequantized(torch.float32), full_matrices=False)
        rank = layer.r[ADAPTER]
        root = (s[:rank] / layer.scaling[ADAPTER]).sqrt()
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        a.zero_()[: len(root)] = root[:, None] * vh[:rank]
        b.zero_()[:, : len(root)] = u[:, :rank] * root
