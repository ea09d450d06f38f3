"""One piece of memory for large matrices that live for a single product each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """The one piece of memory in which all matrices of a model take their full form, one at a time.

    Allocated anew for every product, full matrices tear the heap into pieces that no later one fits into: the process
    then holds several times what it uses, and waits for the system to clear fresh pages.
    """

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of a shape; it is taken back with the next call."""
        size = math.prod(shape) * dtype.itemsize
        if self._flat.numel() < size:
            self._flat = torch.empty(0)  # let go first, so that both never stand side by side
            self._flat = torch.empty(size, dtype=torch.uint8)
        return self._flat[:size].view(dtype).view(*shape)

    def __deepcopy__(self, memo: dict[int, object]) -> Workspace:
        return self
