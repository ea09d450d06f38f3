"""Modules by the part they play: `attention`, `mlp`, `q`, `norms`, `head` … mean the same in every family.

Families name their projections differently (`q_proj`, `c_attn`, `query_key_value`, `Wqkv`); methods choose by role, by
module name, or by pattern, and what a choice matched is shown. A choice that matches nothing is an error.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import ModelError, Problem, did_you_mean
from luthier.models.heads import head_parameters
from luthier.models.room import NAME

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# Last component of a module's name → role. Fused projections carry the role of all their parts.
_ROLE_OF_NAME = {
    "q": ("q_proj", "query", "wq", "q_lin", "query_proj"),
    "k": ("k_proj", "key", "wk", "k_lin", "key_proj"),
    "v": ("v_proj", "value", "wv", "v_lin", "value_proj"),
    "qkv": ("c_attn", "query_key_value", "Wqkv", "qkv_proj", "in_proj", "wqkv"),
    "o": ("o_proj", "out_proj", "wo", "out_lin"),
    "gate": ("gate_proj", "w1", "gate_up_proj", "Wi"),
    "up": ("up_proj", "w3", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "lin1"),
    "down": ("down_proj", "w2", "dense_4h_to_h", "fc2", "fc_out", "lin2"),
}
_ATTENTION_PATH = re.compile(r"(^|\.)(self_attn|attn|attention|self_attention|self)(\.|$)")
_MLP_PATH = re.compile(r"(^|\.)(mlp|ffn|feed_forward|block_sparse_moe|experts|intermediate)(\.|$)")
_GROUPS = {
    "attention": {"q", "k", "v", "qkv", "o"},
    "mlp": {"gate", "up", "down"},
    "all-linear": {"q", "k", "v", "qkv", "o", "gate", "up", "down", "other"},
}
ROLES = (*_ROLE_OF_NAME, *_GROUPS)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix: nn.Linear, its quantised kin, or GPT-2's transposed Conv1D."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear module; its weight may be on the meta device, transposed or quantised."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features  # type: ignore[return-value]


def linear_roles(model: PreTrainedModel) -> dict[str, str]:
    """Return the role of every linear module in the backbone, by full name; no head is among them.

    A classifier's head is new, so methods train it in full.
    """
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if is_linear(m) and m is not head and f".{NAME}." not in n]
    new = {name.rpartition(".")[0] for name in head_parameters(model)}
    return {n: _role(n) for n in linear if n not in new}


def _role(name: str) -> str:
    last = name.rpartition(".")[2]
    for role, names in _ROLE_OF_NAME.items():
        if last in names:
            return role
    if last in ("c_proj", "dense", "Wo"):  # GPT-2, GPT-NeoX, BERT, ModernBERT: the same word in several places
        if _ATTENTION_PATH.search(name):
            return "o"
        if name.endswith("intermediate.dense"):
            return "up"
        return "down" if _MLP_PATH.search(name) or name.endswith(".output.dense") else "other"
    return "other"


def match_linear(model: PreTrainedModel, targets: str | Sequence[str], where: str = "method.targets") -> list[str]:
    """Return the full names of the linear modules that `targets` means, in model order.

    Each target is a role (`attention`, `q`, `mlp`, `all-linear` …), a module's last name (`q_proj`), a full name, or a
    pattern with * (`model.layers.[0-3].*`), tried in this order.

    Raises:
        ModelError: a target matches nothing; lists what exists.
    """
    roles = linear_roles(model)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    chosen: set[str] = set()
    problems = []
    if not wanted:
        remedy = "leave it out to train all-linear, or name at least one"
        problems.append(Problem("The list of targets is empty, so nothing would be trained.", where, remedy))
    for target in wanted:
        hits = _hits(target, roles)
        if not hits:
            names = sorted({n.rpartition(".")[2] for n in roles})
            present = sorted({r for r in roles.values() if r != "other"})
            problems.append(
                Problem(
                    f'The target "{target}" matches no linear module of this model.'
                    f"{did_you_mean(target, [*names, *ROLES])}",
                    where=where,
                    remedy=f"roles here: {', '.join([*present, *_GROUPS])}; modules here: {', '.join(names)}",
                )
            )
        chosen.update(hits)
    if problems:
        raise ModelError(*problems)
    return [n for n in roles if n in chosen]


def _hits(target: str, roles: dict[str, str]) -> list[str]:
    if target in _GROUPS:
        return [n for n, r in roles.items() if r in _GROUPS[target]]
    if target in _ROLE_OF_NAME:
        fused = {"q": "qkv", "k": "qkv", "v": "qkv"}.get(target)
        return [n for n, r in roles.items() if r in (target, fused)]
    exact = [n for n in roles if n == target or n.rpartition(".")[2] == target or n.endswith("." + target)]
    return exact or [n for n in roles if fnmatch.fnmatchcase(n, target)]


def match_parameters(model: PreTrainedModel, patterns: Iterable[str], where: str) -> list[str]:
    """Return the parameters whose full name matches any of the patterns (`*` allowed; a module name takes all in it).

    Raises:
        ModelError: a pattern matches nothing.
    """
    names = [n for n, _ in model.named_parameters()]
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        hits = [n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".")]
        if not hits:
            problems.append(
                Problem(
                    f'The pattern "{pattern}" matches no parameter.{did_you_mean(pattern, names)}',
                    where=where,
                    remedy=f"parameters look like: {', '.join(names[:3])}, …",
                )
            )
        chosen.update(hits)
    if problems:
        raise ModelError(*problems)
    return [n for n in names if n in chosen]
