"""A model's architecture from its config alone: every tensor on the meta device, which has sizes and no numbers.

What is counted here needs neither weights nor tokenizer, so a model of 70 billion parameters takes a second and no
memory to speak of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from luthier.core.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


def meta_model(
    source: str | PreTrainedConfig, classes: int | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the model of a config without any memory behind its tensors.

    Args:
        source: a folder that holds a config.json, a hub id, or a config.
        classes: build a classifier of so many classes instead of a language model.

    Raises:
        ModelError: there is no config, or no such model can be built from it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from luthier.models.load import load_config

    config = load_config(source, None, trust_remote_code) if isinstance(source, str) else source
    where = source if isinstance(source, str) else config.model_type
    if classes is not None:
        config.num_labels = classes
    family = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            return family.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever sizes that do not fit together raise inside an architecture, by name
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "language model" if classes is None else "classifier"
        raise ModelError(
            Problem(
                f"No {what} can be built from this config ({type(error).__name__}: {first[:300]}).",
                where=str(where),
                remedy="check model_type, architectures and the sizes in config.json",
            )
        ) from error


def is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a config describes an encoder (BERT and its kin), which classifies rather than writes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    is_decoder = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder


def count_parameters(module: nn.Module, only_trained: bool = False) -> int:
    """Return the number of parameters; shared ones count once, and each 4-bit number as one, not as half a byte."""
    return sum(_elements(p) for p in module.parameters() if p.requires_grad or not only_trained)


def _elements(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit numbers into a byte
    return math.prod(packed.shape) if packed is not None else parameter.numel()
