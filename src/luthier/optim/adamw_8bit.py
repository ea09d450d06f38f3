"""AdamW with a smaller state: moments in 8 bits (Dettmers et al. 2021, arXiv:2110.02861), moments in paged memory.

Moments are kept in blocks of 256 numbers, each block with its own scale, on a grid that is fine near zero. Tensors of
fewer than 4,096 numbers (norms, biases) keep float32 moments. bitsandbytes computes; it runs on CPUs and on GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import MissingExtra, Problem, RecipeError
from luthier.optim.base import Optimizer

if TYPE_CHECKING:
    import torch

_ELSEWHERE = "use optimizer: adamw_8bit (a quarter of the memory), or optimizer: adamw"


class AdamW8bit(Optimizer):
    """AdamW with moments in 8 bits: 2 bytes for each trained parameter instead of 8."""

    kind: Literal["adamw_8bit"] = "adamw_8bit"

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment (momentum)."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment. 0.95 to 0.99 reacts faster and suits short runs."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment, against division by zero."""

    def build(self, groups: list[dict[str, object]], learning_rate: float) -> torch.optim.Optimizer:
        """Return bitsandbytes' optimizer of this kind over parameter groups."""
        try:
            from bitsandbytes.optim import adamw
        except ImportError as error:
            raise MissingExtra("bitsandbytes", "quantization", f"optimizer: {self.kind}") from error
        known = {
            "adamw_8bit": adamw.AdamW8bit,
            "paged_adamw_8bit": adamw.PagedAdamW8bit,
            "paged_adamw": adamw.PagedAdamW,
        }
        return known[self.kind](groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.eps)


class PagedAdamW8bit(AdamW8bit):
    """AdamW with moments in 8 bits that move to the host when the GPU is full. Needs a CUDA GPU."""

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"  # type: ignore[assignment]

    def problems(self, facts: StageFacts) -> list[Problem]:
        return _without_gpu(self.kind)

    def build(self, groups: list[dict[str, object]], learning_rate: float) -> torch.optim.Optimizer:
        _require_gpu(self.kind)
        return super().build(groups, learning_rate)


class PagedAdamW(AdamW8bit):
    """AdamW with float32 moments that move to the host when the GPU is full. Needs a CUDA GPU."""

    kind: Literal["paged_adamw"] = "paged_adamw"  # type: ignore[assignment]

    def problems(self, facts: StageFacts) -> list[Problem]:
        return _without_gpu(self.kind)

    def build(self, groups: list[dict[str, object]], learning_rate: float) -> torch.optim.Optimizer:
        _require_gpu(self.kind)
        return super().build(groups, learning_rate)


def _without_gpu(kind: str) -> list[Problem]:
    """Return a warning where there is no GPU: the recipe may be meant for another machine, or only be looked at."""
    import torch

    if torch.cuda.is_available():
        return []
    what = f"{kind} pages between a CUDA GPU and the host, and this machine has no such GPU: it will not train here."
    return [Problem(what, "optimizer", _ELSEWHERE, severity="warning")]


def _require_gpu(kind: str) -> None:
    import torch

    if not torch.cuda.is_available():
        what = f"{kind} pages between a CUDA GPU and the host, and this machine has no such GPU."
        raise RecipeError(Problem(what, "optimizer", _ELSEWHERE))
