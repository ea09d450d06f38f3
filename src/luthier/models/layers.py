"""A model as ordered layer groups: embeddings, block 0 … block n−1, final norm, head.

Freezing, layer-wise rates and gradual unfreezing all speak of these groups, so they work for every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerGroups:
    """Full parameter names by group. A parameter is in one group; the norms inside blocks are also listed apart.

    Attributes:
        embeddings: token (and position) embeddings, and a norm that belongs to them (Bloom, BERT).
        blocks: one list for each transformer block, first to last.
        final: what stands between the last block and the head (the final norm).
        head: the output head; empty when it is tied to the embeddings.
        norms: every normalisation parameter, inside blocks or not.
        is_tied: the head shares its weight with the embeddings.
    """

    embeddings: list[str]
    blocks: list[list[str]]
    final: list[str]
    head: list[str]
    norms: list[str]
    is_tied: bool


def layer_groups(model: PreTrainedModel) -> LayerGroups:
    """Return the ordered groups of a model with one stack of blocks."""
    from torch import nn

    names = {id(p): n for n, p in model.named_parameters()}
    prefix, stack = _block_stack(model)
    blocks = [[f"{prefix}.{i}.{n}" for n, _ in block.named_parameters()] for i, block in enumerate(stack)]
    in_blocks = {n for block in blocks for n in block}
    norms = [
        f"{m_name}.{p_name}"
        for m_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for p_name, _ in module.named_parameters(recurse=False)
    ]
    embeddings = [
        f"{m_name}.{p_name}"
        for m_name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for p_name, _ in module.named_parameters(recurse=False)
        if f"{m_name}.{p_name}" not in in_blocks and f"{m_name}.{p_name}" in names.values()
    ]
    # `word_embeddings_layernorm`, `embeddings.LayerNorm`: normalised before the first block, not after the last.
    norms_of_embeddings = [n for n in norms if n not in in_blocks and "embed" in n]
    embeddings += norms_of_embeddings
    output = model.get_output_embeddings()
    source = model.get_input_embeddings()
    is_tied = output is not None and output.weight is source.weight
    # named_parameters lists a shared tensor once, under the embedding's name; a head's bias stays its own.
    head = [names[id(p)] for p in output.parameters() if p is not source.weight] if output is not None else []
    if output is None:  # a classifier: its head is what stands beside the backbone
        head = [n for n, _ in model.named_parameters() if not n.startswith(f"{model.base_model_prefix}.")]
    taken = in_blocks | set(embeddings) | set(head)
    final = [n for n, _ in model.named_parameters() if n not in taken]
    return LayerGroups(embeddings, blocks, final, head, norms, is_tied)


def block_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the transformer blocks, first to last."""
    return list(_block_stack(model)[1])


def hidden_size(model: PreTrainedModel) -> int:
    """Return H, the width of the residual stream."""
    return int(model.config.get_text_config().hidden_size)


def _block_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of transformer blocks: the longest list of modules that holds most parameters."""
    from torch import nn

    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
