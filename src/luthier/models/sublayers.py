"""The two sublayers of each transformer block, attention and feed-forward, and where they join the residual stream.

What an adapter needs is the place just before the residual addition. In most families that is the output of the
attention and feed-forward modules; some modules add the residual themselves (BERT's `output`, Bloom's `mlp`), and then
the place lies inside them. Found by structure, not by model name.

Shape legend: B rows, T positions, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import ModelError, Problem
from luthier.models.layers import _block_stack, layer_groups
from luthier.models.targets import linear_roles

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "block_sparse_moe")


@dataclass(frozen=True)
class Sublayer:
    """One sublayer, by the modules that matter to what is put beside or behind it.

    Attributes:
        end: its output (B, T, H), alone or first in a tuple, is what is added to the residual stream.
        adder: the module that does the addition, called with (hidden, residual); None where the block itself adds.
        adder_starts: `adder` is the whole sublayer, so that its hidden argument is the sublayer's input; otherwise the
            residual argument is (post-norm).
        projection: full name of the last matrix of the sublayer; empty where it is no linear module (fused experts).
    """

    end: nn.Module
    adder: nn.Module | None
    adder_starts: bool
    projection: str


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        name: full name.
        norm: full name of the normalisation after attention: the one before the feed-forward, or of the sum where the
            norm follows the addition.
    """

    name: str
    module: nn.Module
    attention: Sublayer
    feed_forward: Sublayer
    norm: str


def block_sublayers(model: PreTrainedModel) -> list[Block]:
    """Return every block's sublayers, first block to last.

    Raises:
        ModelError: a block is built in another way.
    """
    prefix, stack = _block_stack(model)
    roles = linear_roles(model)
    return [_block(model, f"{prefix}.{i}", block, roles) for i, block in enumerate(stack)]


def _block(model: PreTrainedModel, name: str, block: nn.Module, roles: Mapping[str, str]) -> Block:
    children = dict(block.named_children())
    attention = next((c for c in _ATTENTION if c in children), None)
    forward = next((c for c in _FEED_FORWARD if c in children), None)
    if attention is None or (forward is None and not {"intermediate", "output"} <= children.keys()):
        raise ModelError(
            Problem(
                f"Attention and feed-forward were not found in {name} ({type(block).__name__} has: "
                f"{', '.join(children)}).",
                where=type(model).__name__,
                remedy="use a method without adapters, such as lora",
            )
        )
    whole = f"{name}.{attention}"
    inner = dict(children[attention].named_children()).get("output")
    if inner is not None:  # BERT and its kin: attention.output adds and normalises
        attended = _post_norm(f"{whole}.output", inner)
    else:
        attended = _pre_norm(whole, children[attention], {n for n, r in roles.items() if r == "o"}, model)
    if forward is not None:
        down = {n for n, r in roles.items() if r == "down"}
        fed = _pre_norm(f"{name}.{forward}", children[forward], down, model)
    else:
        fed = _post_norm(f"{name}.output", children["output"])
    return Block(name, block, attended, fed, _norm_after_attention(name, block, attended))


def _post_norm(name: str, output: nn.Module) -> Sublayer:
    return Sublayer(end=output.get_submodule("dropout"), adder=output, adder_starts=False, projection=f"{name}.dense")


def _pre_norm(name: str, module: nn.Module, projections: set[str], model: PreTrainedModel) -> Sublayer:
    inside = [n for n in projections if n.startswith(f"{name}.")]
    projection = inside[0] if len(inside) == 1 else ""
    if "residual" not in inspect.signature(type(module).forward).parameters:
        return Sublayer(end=module, adder=None, adder_starts=False, projection=projection)
    # Bloom: the module returns the sum, so that what is added is what its last matrix gives.
    return Sublayer(end=model.get_submodule(projection), adder=module, adder_starts=True, projection=projection)


def _norm_after_attention(name: str, block: nn.Module, attention: Sublayer) -> str:
    holder = attention.adder if attention.adder is not None and not attention.adder_starts else block
    prefix = next(n for n, m in block.named_modules() if m is holder)
    norms = [n for n, m in holder.named_children() if "norm" in type(m).__name__.lower()]
    if not norms:
        return ""
    # DistilBERT's first norm already follows attention; the others' first one precedes it. A parallel block has one.
    chosen = norms[0] if len(norms) == 1 or norms[0].startswith("sa_") else norms[1]
    return ".".join(part for part in (name, prefix, chosen) if part)


def chosen_blocks(depth: int, blocks: tuple[int, ...], drop_first: int) -> list[int]:
    """Return the indices of the blocks that get an adapter: those named, or all but the first `drop_first`.

    Raises:
        ModelError: there is no such block.
    """
    found = missing_blocks(depth, blocks, drop_first)
    if found:
        raise ModelError(*found)
    return sorted({b % depth for b in blocks}) if blocks else list(range(drop_first, depth))


def choice_problems(config: Mapping[str, object], blocks: tuple[int, ...], drop_first: int) -> list[Problem]:
    """Return what is wrong with a choice of blocks, as far as config.json tells."""
    found = []
    if blocks and drop_first:
        remedy = "give one of them: blocks names those with adapters, drop_first those without"
        found.append(Problem("blocks and drop_first both choose the blocks.", "method.drop_first", remedy))
    depth = config.get("num_hidden_layers") or config.get("n_layer")
    return found + (missing_blocks(depth, blocks, drop_first) if isinstance(depth, int) else [])


def missing_blocks(depth: int, blocks: tuple[int, ...], drop_first: int) -> list[Problem]:
    """Return a problem for each choice that a model of `depth` blocks does not have."""
    found = []
    outside = [b for b in blocks if not -depth <= b < depth]
    if outside:
        found.append(Problem(f"There is no block {outside[0]}.", "method.blocks", f"choose from 0 to {depth - 1}"))
    if drop_first >= depth:
        remedy = f"choose from 0 to {depth - 1}"
        found.append(
            Problem(f"With drop_first {drop_first} none of {depth} blocks is left.", "method.drop_first", remedy)
        )
    return found


def norms_of(model: PreTrainedModel, chosen: list[int]) -> list[str]:
    """Return the normalisation parameters inside the chosen blocks and behind the last block; not a head's own."""
    prefix, stack = _block_stack(model)
    everything = [n for n, _ in model.named_parameters()]
    last = max(i for i, n in enumerate(everything) if n.startswith(f"{prefix}.{len(stack) - 1}."))
    wanted = tuple(f"{prefix}.{i}." for i in chosen)
    backbone = {id(p) for p in model.base_model.parameters()}
    behind = {n for n in everything[last + 1 :] if id(model.get_parameter(n)) in backbone}
    return [n for n in layer_groups(model).norms if n in behind or n.startswith(wanted)]
