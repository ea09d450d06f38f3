"""Layers whose matrix is a sum of Kronecker products, W = Σᵢ Aᵢ ⊗ (Lᵢ Rᵢ), with the Aᵢ shared by all layers.

Shape legend: N number of terms (and side of each A), I inputs / N, O outputs / N, K rank of each product Lᵢ Rᵢ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.methods.modules.bottleneck import ACTIVATIONS


class SharedRule(nn.Module):
    """The factors Aᵢ, (N, N, N): how the parts of the input mix, learned once for the whole model."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.empty(terms, terms, terms))
        nn.init.normal_(self.factors, std=0.01)


class KroneckerLinear(nn.Module):
    """y = x W + b with W = Σᵢ Aᵢ ⊗ (Lᵢ Rᵢ), (inputs, outputs); the product is made anew in each forward pass."""

    def __init__(self, rule: SharedRule, inputs: int, outputs: int, rank: int, zero: bool) -> None:
        super().__init__()
        terms = len(rule.factors)
        self.rule = rule
        self.left = nn.Parameter(torch.empty(terms, inputs // terms, rank))
        self.right = nn.Parameter(torch.zeros(terms, rank, outputs // terms))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for term in range(terms):
            nn.init.xavier_uniform_(self.left[term], gain=math.sqrt(2))
            if not zero:
                nn.init.xavier_uniform_(self.right[term], gain=math.sqrt(2))

    def matrix(self) -> Tensor:
        """Return W, (inputs, outputs)."""
        products_NIO = self.left @ self.right
        side = self.rule.factors.shape[-1]
        mixed = torch.einsum("nab,nio->aibo", self.rule.factors, products_NIO)
        return mixed.reshape(side * products_NIO.shape[1], side * products_NIO.shape[2])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix() + self.bias


class KroneckerBottleneck(nn.Module):
    """W_up f(W_down x + b_down) + b_up, float32, both matrices Kronecker sums; the update starts at zero."""

    def __init__(self, rule: SharedRule, hidden: int, bottleneck: int, rank: int, activation: str) -> None:
        super().__init__()
        self.down = KroneckerLinear(rule, hidden, bottleneck, rank, zero=False)
        self.activation = ACTIVATIONS[activation]()
        self.up = KroneckerLinear(rule, bottleneck, hidden, rank, zero=True)

    def forward(self, x_BTH: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x_BTH.to(self.down.left.dtype))))


def kronecker_size(hidden: int, bottleneck: int, rank: int) -> int:
    """Return the parameters of one adapter, without the shared rule: two layers of rank · (d + r), and the biases."""
    return 2 * rank * (hidden + bottleneck) + bottleneck + hidden
