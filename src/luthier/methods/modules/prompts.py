"""What soft prompts and prefixes share: their sizes in PEFT's config, what of them is trained, and their files.

PEFT keeps one tensor, `prompt_embeddings`: what the encoder gives, not the encoder. That is all that inference needs; a
run that goes on needs the encoder too, so where there is one its tensors are kept beside PEFT's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.methods.base import TENSORS, Method, head_parameters, read_tensors, train_only
from luthier.methods.modules.peft_files import head_modules, read_adapter, write_adapter
from luthier.models.room import NAME
from luthier.models.virtual_tokens import prefix_shape, virtual_tokens

if TYPE_CHECKING:
    from peft.config import PromptLearningConfig
    from transformers import PreTrainedModel

_STORED = "prompt_embeddings"
_HEAD = "base_model."


def embedding_width(model: PreTrainedModel) -> int:
    """Return the size of a token's embedding."""
    return int(model.get_input_embeddings().weight.shape[-1])  # type: ignore[union-attr, index]


def fill_sizes(config: PromptLearningConfig, model: PreTrainedModel, width: int) -> None:
    """Write a model's sizes into PEFT's config.

    Args:
        width: numbers in one virtual token (of one layer's keys, for a prefix).
    """
    shape = prefix_shape(model.config)
    config.token_dim = width
    config.num_layers = shape.layers
    config.num_attention_heads = shape.heads
    config.num_transformer_submodules = 1


def train_virtual_tokens(model: PreTrainedModel) -> None:
    """Freeze everything but the virtual tokens."""
    train_only(model, [n for n, _ in model.named_parameters() if f".{NAME}." in f".{n}"])


def save_virtual_tokens(
    method: Method, model: PreTrainedModel, folder: Path, base: str, config: PromptLearningConfig
) -> None:
    """Write PEFT's files, and the encoder's tensors where the embeddings are not all there is."""
    from safetensors.torch import save_file

    virtual = virtual_tokens(model)
    assert virtual is not None, "the method has been applied"
    was_training = virtual.training
    virtual.eval()
    with torch.no_grad():
        tensors = {_STORED: virtual().float()}
    virtual.train(was_training)
    chosen = set(head_parameters(model))
    tensors |= {_HEAD + n: p.detach() for n, p in model.named_parameters() if n in chosen}
    write_adapter(folder, config, tensors, base, head_modules(model))
    if not _is_plain(virtual.encoder):
        own = {n: t.contiguous().cpu() for n, t in method.state_dict(model).items()}
        save_file(own, folder / TENSORS, metadata={"format": "pt"})


def load_virtual_tokens(method: Method, model: PreTrainedModel, folder: Path) -> None:
    """Read what `save_virtual_tokens` wrote.

    Raises:
        RunError: a file is missing or damaged, or belongs to other sizes.
    """
    virtual = virtual_tokens(model)
    assert virtual is not None, "the method has been applied"
    if not _is_plain(virtual.encoder):
        method.load_state_dict(model, read_tensors(folder / TENSORS))
        return
    [name] = [n for n, _ in model.named_parameters() if f".{NAME}." in f".{n}"]
    stored = read_adapter(folder)
    method.load_state_dict(model, {_own_name(n, name): t for n, t in stored.items()})


def _own_name(stored: str, embedding: str) -> str:
    return embedding if stored == _STORED else stored.removeprefix(_HEAD)


def _is_plain(encoder: nn.Module) -> bool:
    """Return whether an encoder is nothing but the table that PEFT keeps."""
    return [n for n, _ in encoder.named_parameters()] == ["embedding.weight"]


def put_rows(table: nn.Module, rows: Tensor) -> None:
    """Fill the embedding of an encoder."""
    with torch.no_grad():
        table.get_parameter("embedding.weight").copy_(rows)
