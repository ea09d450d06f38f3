"""NEFTune: noise on the embeddings of a training sequence.

Jain et al. 2023, arXiv:2310.05914: each number of a sequence's embeddings gets ε·α/√(L·d) added, with ε uniform in
(−1, 1), L the tokens of that sequence and d the embedding's width. Measurements and generation see no noise.

Shape legend: N positions of a batch, B rows, T positions of a row, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.regularizers.base import Regularizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.batch import Batch
    from luthier.models.loaded import LoadedModel


class Neftune(Regularizer):
    """Add noise to the embeddings in training, so that answers do not stick to the words of the rows."""

    kind: Literal["neftune"] = "neftune"

    alpha: float = Field(default=5.0, gt=0)
    """How much noise (α in the paper, which uses 5, 10 and 15)."""

    title: ClassVar[str] = "NEFTune"
    summary: ClassVar[str] = "Noise on the embeddings of training rows, against learning them by heart."
    paper: ClassVar[str] = (
        "Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning, arXiv:2310.05914"
    )
    equation: ClassVar[str] = "E + ε·α/√(L·d),  ε ~ U(−1, 1)"
    when: ClassVar[str] = "Instruction tuning on few rows over several epochs."
    when_not: ClassVar[str] = "Exact answers are wanted from exact words, as in arithmetic."
    zh: ClassVar[dict[str, str]] = {
        "title": "NEFTune 噪声",
        "summary": "训练时在词嵌入上加噪声，防止死记硬背训练数据。",
        "when": "用少量数据做多个轮次的指令微调。",
        "when_not": "需要由精确的词得出精确的答案，例如算术。",
        "alpha": "噪声大小（论文中的 α，取 5、10 或 15）。",
    }

    is_noisy: ClassVar[bool] = True

    def problems(self, facts: StageFacts) -> list[Problem]:
        if facts.data_form == "prompt":
            what = (
                "neftune would compare answers with and without noise, where only the model's own change should count."
            )
            return [Problem(what, "", "remove it, or use an objective that learns from rows")]
        if not facts.keeps_features:
            return []
        what = "neftune has no effect: the backbone runs once for each row, before training, and without noise."
        return [Problem(what, "", "remove it, or use a method that trains more than the head")]

    @contextmanager
    def disturbing(self, model: LoadedModel, batch: Batch) -> Iterator[None]:
        """Run the body with noise on what the embedding gives for this batch."""
        import torch

        width_N = _lengths(batch)

        def shake(layer: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            if not layer.training or embedded[..., 0].numel() != len(width_N):
                return embedded
            scale_N = self.alpha / (width_N * embedded.shape[-1]).sqrt()
            scale_BT1 = scale_N.to(embedded).reshape(*embedded.shape[:-1], 1)
            return embedded + (2.0 * torch.rand_like(embedded) - 1.0) * scale_BT1

        layer = model.module.get_input_embeddings()
        assert layer is not None, "a text model has input embeddings"
        handle = layer.register_forward_hook(shake)
        try:
            yield
        finally:
            handle.remove()


def _lengths(batch: Batch) -> Tensor:
    """Return for each position (N,) the length of its sequence; of sequences that begin alike, the longest."""
    import torch

    if not batch.is_packed:
        assert batch.attention_mask is not None
        return batch.attention_mask.sum(1, keepdim=True).expand_as(batch.tokens).reshape(-1).float()
    longest = batch.pieces
    if batch.branches:
        longest = tuple(size - sum(ends) + max(ends, default=0) for size, ends in zip(batch.pieces, batch.branches))
    pieces_P = torch.tensor(batch.pieces, device=batch.tokens.device)
    return torch.tensor(longest, device=batch.tokens.device).repeat_interleave(pieces_P).float()
