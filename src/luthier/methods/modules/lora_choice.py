"""What a LoRA method adapts in a given model, by name, with the rank and the alpha of each part.

Worked out from names and shapes alone, so that a model on the meta device is enough: counting and applying agree because
both start here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from luthier.core.errors import ModelError, Problem, did_you_mean
from luthier.models.targets import is_linear, match_linear, matrix_shape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

EXPERTS = "experts"
_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class Choice:
    """Full names of what is adapted.

    Attributes:
        modules: linear modules that get an update.
        parameters: fused tensors (experts, rows, columns) that get an update for each expert.
        saved: modules that are trained in full.
        ranks: rank of every name in `modules` and `parameters`.
        alphas: alpha of the same names.
    """

    modules: list[str]
    parameters: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)


def choose(
    model: PreTrainedModel,
    targets: str | Sequence[str],
    rank: int,
    alpha: float,
    *,
    exclude: Sequence[str] = (),
    target_parameters: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> Choice:
    """Return what the fields of a LoRA method mean in a model.

    Raises:
        ModelError: with everything that matches nothing, or what cannot be trained.
    """
    problems: list[Problem] = []
    parameters = _gather(problems, _match_tensors, model, target_parameters)
    saved = _gather(problems, _match_modules, model, modules_to_save)
    modules: list[str] = []
    if targets or not target_parameters:
        modules = _gather(problems, match_linear, model, targets)
    left_out = set(_gather(problems, match_linear, model, exclude, "method.exclude") if exclude else [])
    inside = tuple(f"{name}." for name in saved)
    modules = [n for n in modules if n not in left_out and n not in saved and not n.startswith(inside)]
    names = [*modules, *parameters]
    if not names and not problems:
        remedy = "exclude less"
        problems.append(Problem("Everything that targets names is excluded, so no update is left.", "method", remedy))
    ranks = _by_pattern(problems, names, rank, rank_pattern or {}, model, "method.rank_pattern")
    alphas = _by_pattern(problems, names, alpha, alpha_pattern or {}, model, "method.alpha_pattern")
    if problems:
        raise ModelError(*problems)
    return Choice(modules, parameters, saved, ranks, alphas)


def count(model: PreTrainedModel, choice: Choice, *, dora: bool = False, token_rows: int = 0) -> int:
    """Return how many numbers a choice trains."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    total = 0
    for name in choice.modules:
        inputs, outputs = matrix_shape(modules[name])
        total += choice.ranks[name] * (inputs + outputs) + (outputs if dora else 0)
    for name in choice.parameters:
        experts, rows, columns = parameters[name].shape
        total += choice.ranks[name] * experts * (rows + columns)
    inside = tuple(f"{name}." for name in choice.saved)
    total += sum(p.numel() for n, p in parameters.items() if inside and n.startswith(inside))
    if token_rows:
        total += token_rows * int(model.get_input_embeddings().weight.shape[1])  # type: ignore[index]
    return total


def fused_experts(model: nn.Module) -> list[str]:
    """Return the tensors that hold the matrices of many experts in one: (experts, rows, columns)."""
    return [n for n, p in model.named_parameters() if p.ndim == 3 and EXPERTS in n]


def shortest(names: list[str], everything: list[str]) -> list[str]:
    """Return last names (`q_proj`) where these mean exactly the chosen modules, else the full names."""
    last = {n.rpartition(".")[2] for n in names}
    meant = [n for n in everything if n.rpartition(".")[2] in last]
    return sorted(last) if set(meant) == set(names) else names


def has_experts(model_config: Mapping[str, object]) -> bool:
    """Return whether a config.json describes a mixture of experts."""
    inner = model_config.get("text_config")
    config = {**model_config, **(inner if isinstance(inner, Mapping) else {})}
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    numbers = [config.get(key) for key in keys]
    return any(isinstance(n, int) and n > 1 for n in numbers)


def _gather(problems: list[Problem], match: object, *arguments: object) -> list[str]:
    """Return what a search finds; what it raises is put with the other problems."""
    try:
        return match(*arguments)  # type: ignore[operator]
    except ModelError as error:
        problems += error.problems
        return []


def _match_tensors(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    stacked = [n for n, p in model.named_parameters() if p.ndim == 3]
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        hits = fused_experts(model) if pattern == EXPERTS else _hits(pattern, stacked)
        if not hits:
            here = sorted({".".join(n.split(".")[-3:]) for n in stacked})
            what = f"tensors here: {', '.join(here)}" if here else "this model has none; its matrices are in targets"
            problems.append(
                Problem(
                    f'"{pattern}" matches no fused tensor (experts, rows, columns).{did_you_mean(pattern, here)}',
                    where="method.target_parameters",
                    remedy=what,
                )
            )
        chosen.update(hits)
    if problems:
        raise ModelError(*problems)
    return [n for n in stacked if n in chosen]


def _match_modules(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    names = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters())]
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        hits = _hits(pattern, names)
        if not hits:
            known = sorted({n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdigit()})
            problems.append(
                Problem(
                    f'"{pattern}" matches no module.{did_you_mean(pattern, known)}',
                    where="method.modules_to_save",
                    remedy=f"modules here: {', '.join(known)}",
                )
            )
        chosen.update(hits)
    problems += _tied_with_others(model, [n for n in names if n in chosen])
    if problems:
        raise ModelError(*problems)
    # A module inside a chosen one is trained with it.
    return [n for n in names if n in chosen and not any(n.startswith(f"{outer}.") for outer in chosen)]


def _tied_with_others(model: PreTrainedModel, chosen: list[str]) -> list[Problem]:
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    if source is None or head is None or head.weight is not source.weight:
        return []
    hit = [n for n in chosen if any(m in (source, head) for m in model.get_submodule(n).modules())]
    remedy = "train only the rows of some tokens (new_tokens), or take the method layers with embeddings: true"
    what = "Embeddings and head are one matrix in this model, which an adapter's files cannot hold for both."
    return [Problem(what, f"method.modules_to_save ({n})", remedy) for n in hit[:1]]


def _by_pattern(
    problems: list[Problem],
    names: list[str],
    usual: _T,
    patterns: Mapping[str, _T],
    model: PreTrainedModel,
    where: str,
) -> dict[str, _T]:
    values = dict.fromkeys(names, usual)
    for pattern, value in patterns.items():
        try:
            hits = match_linear(model, pattern, where)
        except ModelError as error:
            hits = fused_experts(model) if pattern == EXPERTS else _hits(pattern, names)
            if not hits:
                problems += error.problems
                continue
        meant = [n for n in hits if n in values]
        if not meant and names:
            remedy = "widen targets, or take the pattern out"
            problems.append(Problem(f'"{pattern}" names nothing that targets has chosen.', where, remedy))
        values.update(dict.fromkeys(meant, value))
    return values


def _hits(pattern: str, names: list[str]) -> list[str]:
    exact = [n for n in names if n == pattern or n.endswith("." + pattern)]
    return exact or [n for n in names if fnmatch.fnmatchcase(n, pattern)]


def all_linear(model: PreTrainedModel) -> list[str]:
    """Return every linear module by name, heads included: what a short name in PEFT's config could mean."""
    return [n for n, m in model.named_modules() if is_linear(m)]
