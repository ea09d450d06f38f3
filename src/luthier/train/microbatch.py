"""Cutting an optimizer step into micro-batches, and telling when memory ran out.

The cut never changes the result: losses are sums, and the engine divides by the whole step's count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.batch import Example

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

AUTO_TOKENS = 2048
AUTO_BYTES = {"cpu": 2**26, "cuda": 2**33}
"""Activations of one forward pass when the recipe says auto. More would not be faster: matrix products are at full
speed from some hundred rows on a CPU, some thousand on a GPU."""


@dataclass(frozen=True)
class Cut:
    """Limits of one micro-batch; None means no limit of that kind."""

    sequences: int | None = None
    tokens: int | None = AUTO_TOKENS

    def apply(self, examples: Sequence[Example], padded: bool = False) -> list[list[Example]]:
        """Return consecutive groups of examples within the limits; a sequence longer than the limit stands alone."""
        groups: list[list[Example]] = []
        for example in examples:
            group = groups[-1] if groups else []
            if groups and self._fits([*group, example], padded):
                group.append(example)
            else:
                groups.append([example])
        return groups

    def _fits(self, group: list[Example], padded: bool) -> bool:
        if self.sequences is not None and len(group) > self.sequences:
            return False
        rows = sum(example.sequences for example in group)
        size = max(example.longest for example in group) * rows if padded else sum(map(len, group))
        return self.tokens is None or size <= self.tokens

    def halved(self, largest: int) -> Cut | None:
        """Return a cut of half as many sequences as the largest group had, or None when that was a single one."""
        return Cut(largest // 2, self.tokens) if largest > 1 else None


def auto_cut(config: PreTrainedConfig, device: str) -> Cut:
    """Return a cut by tokens whose activations stay near AUTO_BYTES; a function of the config alone, so resumable.

    A block keeps about 7 tensors of the hidden size and 3 of the intermediate size for each token, in float32.
    """
    hidden = getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    layers = getattr(config, "num_hidden_layers", 24)
    per_token = 4 * layers * (7 * hidden + 3 * inner)
    budget = AUTO_BYTES.get(device, AUTO_BYTES["cpu"])
    return Cut(None, min(max(budget // per_token, 512), 16384))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the device or on the host."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
