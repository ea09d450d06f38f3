"""What the routers of a mixture decided in the forward pass that has just run: for their loss, and for the report.

Hooks see the routers' logits, but only inside a forward pass of the whole backbone that builds a graph: what gradient
checkpointing computes a second time is not counted, and nothing is held in evaluation.

Shape legend: N tokens, E experts, L layers with experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.models.mixture import Mixture

NAME = "routing"
_FADE = 0.98
"""Share of the sums that a step keeps: what is reported is the last 50 steps or so."""


class Routing(nn.Module):
    """The routers' logits of one forward pass, and sums over the passes since the last step."""

    def __init__(self, backbone: nn.Module, layers: Sequence[Mixture]) -> None:
        super().__init__()
        self.names = [layer.name for layer in layers]
        self.experts, self.top_k = layers[0].count, layers[0].top_k
        self._logits: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}
        self._is_watching = False
        self._handles = [
            backbone.register_forward_pre_hook(self._begin),
            backbone.register_forward_hook(self._end),
            *(layer.router.register_forward_hook(self._see) for layer in layers),
        ]

    def _begin(self, backbone: nn.Module, inputs: object) -> None:
        self._is_watching = torch.is_grad_enabled()
        if self._is_watching:  # a pass without a graph, as of a reference model, leaves those of the last one with it
            self._logits = []

    def _end(self, backbone: nn.Module, inputs: object, output: object) -> None:
        self._is_watching = False

    def _see(self, router: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
        if self._is_watching:
            self._logits.append(output[0])

    def take(self) -> list[Tensor]:
        """Return the logits (N, E) of each layer and let go of them."""
        taken, self._logits = self._logits, []
        return taken

    def add(self, logits: Sequence[Tensor], mask: Tensor | None) -> None:
        """Add a pass to the sums; `mask` (N,) is 1 at real tokens."""
        with torch.no_grad():
            probs_LNE = torch.stack([layer.detach().float() for layer in logits]).softmax(-1)
            real_N = torch.ones_like(probs_LNE[0, :, 0]) if mask is None else mask.reshape(-1).to(probs_LNE)
            hits = torch.zeros_like(probs_LNE).scatter_(-1, probs_LNE.topk(self.top_k, dim=-1).indices, 1.0)
            entropy_LN = torch.special.entr(probs_LNE).sum(-1)
            passed = {
                "routing.tokens": torch.einsum("lne,n->le", hits, real_N),
                "routing.probability": torch.einsum("lne,n->le", probs_LNE, real_N),
                "routing.entropy": entropy_LN @ real_N,
                "routing.seen": real_N.sum(),
            }
            self._sums = {n: t + self._sums[n] if n in self._sums else t for n, t in passed.items()}

    def new_state(self, device: torch.device) -> dict[str, Tensor]:
        """Return the sums over training, all zero."""
        layers = len(self.names)
        return {
            "routing.tokens": torch.zeros(layers, self.experts, device=device),
            "routing.probability": torch.zeros(layers, self.experts, device=device),
            "routing.entropy": torch.zeros(layers, device=device),
            "routing.seen": torch.zeros((), device=device),
        }

    def step(self, state: dict[str, Tensor]) -> None:
        """Move the sums of a step into the state, whose older part fades."""
        for name, total in self._sums.items():
            state[name].mul_(_FADE).add_(total)
        self._sums = {}

    def report(self, state: dict[str, Tensor]) -> dict[str, dict[str, object]]:
        """Return for each layer what went to each expert, and entropies as shares of their most.

        `share` is of the tokens' choices, `probability` the mean of what the router gave; `balance` is the entropy of the
        shares (1: all experts alike), `entropy` the mean one of a token's probabilities (0: certain, 1: undecided).
        """
        found: dict[str, dict[str, object]] = {}
        most = torch.tensor(float(self.experts)).log()
        for index, name in enumerate(self.names):
            tokens = state["routing.tokens"][index].cpu()
            share = tokens / tokens.sum().clamp(min=1.0)
            seen = state["routing.seen"].cpu().clamp(min=1.0)
            probability, entropy = (state[f"routing.{n}"][index].cpu() / seen for n in ("probability", "entropy"))
            found[name] = {
                "share": [round(float(s), 4) for s in share],
                "probability": [round(float(p), 4) for p in probability],
                "balance": round(float(torch.special.entr(share).sum() / most), 4),
                "entropy": round(float(entropy / most), 4),
            }
        return found

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()


def watch(model: nn.Module, layers: Sequence[Mixture]) -> None:
    """Begin to watch the routers of a model."""
    model.add_module(NAME, Routing(cast("nn.Module", model.base_model), layers))


def routing_of(model: nn.Module) -> Routing:
    """Return what watches a model's routers."""
    return cast("Routing", model._modules[NAME])


def unwatch(model: nn.Module) -> None:
    """Stop watching, if the model is watched."""
    if NAME in model._modules:
        routing_of(model).remove()
        del model._modules[NAME]
