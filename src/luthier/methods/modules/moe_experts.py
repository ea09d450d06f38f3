"""Trained updates of single experts inside fused expert tensors.

A fused tensor holds all experts of a layer, and a gradient, a moment or weight decay cannot be had for a slice of it. So
the fused tensor stays frozen whole, and what is trained stands beside it: copies of the chosen slices, or low-rank
updates of them (LoRA, Hu et al. 2021, arXiv:2106.09685). The others cost neither gradient nor moments.

Shape legend: N tokens, K chosen experts of a token, E experts, C experts that are trained, H hidden size, I intermediate
size, R rank.
"""

from __future__ import annotations

import math
import types
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

UPDATE = "update"


class Experts(Protocol):
    """What is used of a fused experts' module of transformers."""

    gate_up_proj: Tensor
    down_proj: Tensor
    act_fn: nn.Module
    num_experts: int
    update: ExpertUpdate


class ExpertUpdate(nn.Module):
    """What is trained of some experts of a layer.

    Attributes:
        chosen: the experts, in ascending order.
    """

    def __init__(self, chosen: tuple[int, ...]) -> None:
        super().__init__()
        self.chosen = chosen
        self._slots = {expert: slot for slot, expert in enumerate(chosen)}

    def gate_up(self, x: Tensor, expert: int, frozen: Tensor) -> Tensor:
        """Return gate and up (n, 2I) of an expert for x (n, H); `frozen` is its slice."""
        slot = self._slots.get(expert)
        return linear(x, frozen) if slot is None else self._gate_up(x, slot, frozen)

    def down(self, x: Tensor, expert: int, frozen: Tensor) -> Tensor:
        """Return the output (n, H) of an expert for x (n, I)."""
        slot = self._slots.get(expert)
        return linear(x, frozen) if slot is None else self._down(x, slot, frozen)

    def _gate_up(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        raise NotImplementedError

    def _down(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen experts' weights (C, 2I, H) and (C, H, I), made of their frozen slices."""
        raise NotImplementedError


class TrainedExperts(ExpertUpdate):
    """Copies of the chosen slices, which are trained in their place."""

    def __init__(self, chosen: tuple[int, ...], gate_up: Tensor, down: Tensor) -> None:
        super().__init__(chosen)
        index = list(chosen)
        self.gate_up_proj = nn.Parameter(gate_up.detach()[index].float())
        self.down_proj = nn.Parameter(down.detach()[index].float())

    def _gate_up(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        return linear(x, self.gate_up_proj[slot])

    def _down(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        return linear(x, self.down_proj[slot])

    def weights(self, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate_up_proj.detach(), self.down_proj.detach()


class LoraExperts(ExpertUpdate):
    """A low-rank update beside both matrices of each chosen expert: W + scale · B A, B zero at the start."""

    def __init__(self, chosen: tuple[int, ...], gate_up: Tensor, down: Tensor, rank: int, alpha: float) -> None:
        super().__init__(chosen)
        self.scale = alpha / rank
        count, (_, double, hidden), inner = len(chosen), gate_up.shape, down.shape[-1]

        def drawn(width: int) -> nn.Parameter:
            # nn.Linear's own start, as LoRA's A has it.
            made = torch.empty(count, rank, width, device=gate_up.device)
            return nn.Parameter(made.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width)))

        self.gate_up_A = drawn(hidden)
        self.gate_up_B = nn.Parameter(torch.zeros(count, double, rank, device=gate_up.device))
        self.down_A = drawn(inner)
        self.down_B = nn.Parameter(torch.zeros(count, hidden, rank, device=gate_up.device))

    def _gate_up(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        return linear(x, frozen) + self.scale * linear(linear(x, self.gate_up_A[slot]), self.gate_up_B[slot])

    def _down(self, x: Tensor, slot: int, frozen: Tensor) -> Tensor:
        return linear(x, frozen) + self.scale * linear(linear(x, self.down_A[slot]), self.down_B[slot])

    def weights(self, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        index = list(self.chosen)
        with torch.no_grad():
            # The product in float32, whatever the frozen weights are kept in.
            return (
                gate_up[index].float() + self.scale * self.gate_up_B @ self.gate_up_A,
                down[index].float() + self.scale * self.down_B @ self.down_A,
            )


def add_update(experts: nn.Module, update: ExpertUpdate) -> None:
    """Put an update beside a layer's fused experts; the fused tensors are frozen."""
    for parameter in experts.parameters():
        parameter.requires_grad_(False)
    experts.add_module(UPDATE, update)
    experts.forward = types.MethodType(_forward, experts)


def update_of(experts: nn.Module) -> ExpertUpdate | None:
    """Return the update of a layer's experts, if it has one."""
    return cast("ExpertUpdate | None", experts._modules.get(UPDATE))


def merged_weights(experts: nn.Module) -> dict[str, Tensor]:
    """Return the fused tensors with the update in them, by name; empty without an update."""
    update, fused = update_of(experts), cast("Experts", experts)
    if update is None:
        return {}
    merged = {}
    with torch.no_grad():
        fresh = update.weights(fused.gate_up_proj, fused.down_proj)
        for name, chosen in zip(("gate_up_proj", "down_proj"), fresh):
            merged[name] = getattr(fused, name).detach().clone()
            merged[name][list(update.chosen)] = chosen.to(merged[name])
    return merged


def fold_in(experts: nn.Module) -> None:
    """Write the update into the fused tensors and take it out again."""
    for name, tensor in merged_weights(experts).items():
        getattr(experts, name).data = tensor
    if update_of(experts) is not None:
        del experts._modules[UPDATE]
        del experts.forward


def _forward(self: Experts, hidden_NH: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Return the weighted sum of each token's experts (N, H); one expert after the other."""
    update, flat = self.update, index_NK.reshape(-1)
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=self.num_experts).tolist()  # the only synchronisation
    weights = weight_NK.reshape(-1)
    out_NH = torch.zeros_like(hidden_NH)
    for expert, places in enumerate(order.split(counts)):
        if not counts[expert] and expert not in update.chosen:
            continue
        # A trained expert without a token runs on none: its gradient is then zero, not absent.
        rows = places // index_NK.shape[1]
        gate, up = update.gate_up(hidden_NH[rows], expert, self.gate_up_proj[expert]).chunk(2, dim=-1)
        out = update.down(self.act_fn(gate) * up, expert, self.down_proj[expert]) * weights[places, None]
        out_NH.index_add_(0, rows, out.to(out_NH.dtype))
    return out_NH


# ---------------------------------------------------------------------- PEFT's layout of the same numbers


def peft_tensors(update: LoraExperts, count: int) -> dict[str, Tensor]:
    """Return the update as PEFT lays it out for two `target_parameters`; experts that are not trained are zero.

    PEFT stacks A by expert (E·R, in), and B by rank (out, R·E). The wrapper of `down_proj` is around the other's.
    """
    found = {}
    for inner, name in (("base_layer.", "gate_up"), ("", "down")):
        a, b = (getattr(update, f"{name}_{part}").detach() for part in "AB")
        all_a, all_b = a.new_zeros(count, *a.shape[1:]), b.new_zeros(count, *b.shape[1:])
        all_a[list(update.chosen)], all_b[list(update.chosen)] = a, b
        found[f"{inner}lora_A.weight"] = all_a.flatten(0, 1)
        found[f"{inner}lora_B.weight"] = all_b.permute(1, 2, 0).flatten(1)
    return found


def own_tensors(update: LoraExperts, count: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `peft_tensors` made under the update's own names and shapes."""
    found, index = {}, list(update.chosen)
    for inner, name in (("base_layer.", "gate_up"), ("", "down")):
        a, b = tensors[f"{inner}lora_A.weight"], tensors[f"{inner}lora_B.weight"]
        found[f"{name}_A"] = a.unflatten(0, (count, -1))[index]
        found[f"{name}_B"] = b.unflatten(1, (-1, count)).permute(2, 0, 1)[index]
    return found
