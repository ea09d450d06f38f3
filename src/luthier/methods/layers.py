"""Chosen layers: train some blocks, the norms, the head, or whatever a pattern names; all else stays frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, sizes, train_only
from luthier.models.layers import layer_groups
from luthier.models.targets import match_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Layers(Method):
    """Train chosen layers."""

    kind: Literal["layers"] = "layers"

    last: int | None = Field(default=None, ge=1)
    """Train the last N blocks. Upper blocks hold what is most specific to a task."""
    first: int | None = Field(default=None, ge=1)
    """Train the first N blocks (new vocabulary, new script, new domain of words)."""
    blocks: tuple[int, ...] = ()
    """Train these blocks, counted from 0; negative numbers count from the end."""
    embeddings: bool = False
    """Also train the token embeddings (and with them a tied head)."""
    norms: bool = False
    """Also train every normalisation weight."""
    head: bool = False
    """Also train the output head, where it is not tied to the embeddings."""
    patterns: tuple[str, ...] = ()
    """Also train parameters whose full names match, e.g. "*.mlp.down_proj.*" or "model.layers.3"."""

    title: ClassVar[str] = "Chosen layers"
    summary: ClassVar[str] = "Train chosen blocks, norms, embeddings or the head; freeze the rest."
    principle: ClassVar[str] = (
        "A model is an ordered list of groups: embeddings, blocks, final norm, head. The chosen ones are trained in full, "
        "the others keep their bits, and no gradient is computed below the lowest trained one."
    )
    equation: ClassVar[str] = "θ_S ← θ_S − η · AdamW(∇θ_S L),  θ_rest unchanged"
    paper: ClassVar[str] = "Lee et al. 2022, Surgical Fine-Tuning, arXiv:2210.11466"
    moves: ClassVar[str] = "the chosen groups"
    typical_share: ClassVar[str] = "1 to 30 %"
    when: ClassVar[str] = (
        "A task near the base model's own; less memory than full without any new module; studying layers."
    )
    when_not: ClassVar[str] = "Several variants to serve, or a large change of domain that every layer has to follow."
    zh: ClassVar[dict[str, str]] = {
        "title": "选层微调",
        "summary": "只训练选定的层、归一化、词嵌入或输出头，其余冻结。",
        "principle": "模型是有序的分组：词嵌入、各层、末端归一化、输出头。选中的部分完整训练，其余逐位不变；最低的可训练层以下不计算梯度。",
        "moves": "选中的分组",
        "when": "任务与基座接近；想比全量省内存又不添加新模块；研究各层作用时。",
        "when_not": "需要部署多个变体，或领域变化大到每一层都要跟着改变时。",
    }
    default_learning_rate: ClassVar[float] = 1e-4
    example: ClassVar[dict[str, object]] = {"last": 2}

    def problems(self, facts: StageFacts) -> list[Problem]:
        found = []
        if not any((self.last, self.first, self.blocks, self.embeddings, self.norms, self.head, self.patterns)):
            found.append(
                Problem(
                    "The method layers is told no layer, so nothing would be trained.",
                    where="method",
                    remedy="say which, e.g. `method: {kind: layers, last: 2}`",
                )
            )
        depth = facts.model_config.get("num_hidden_layers") or facts.model_config.get("n_layer")
        if isinstance(depth, int):
            found += self._missing_blocks(depth)
        if self.head and facts.model_config.get("tie_word_embeddings") is True:
            found.append(_tied_head())
        return found

    def _missing_blocks(self, depth: int) -> list[Problem]:
        found = []
        for name, wanted in (("last", self.last or 0), ("first", self.first or 0)):
            if wanted > depth:
                remedy = f"choose from 1 to {depth}"
                found.append(Problem(f"The model has {depth} blocks, not {wanted}.", f"method.{name}", remedy))
        outside = [b for b in self.blocks if not -depth <= b < depth]
        if outside:
            remedy = f"choose from 0 to {depth - 1}"
            found.append(Problem(f"There is no block {outside[0]}.", "method.blocks", remedy))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        train_only(model, self._names(model))

    def count(self, model: PreTrainedModel) -> int:
        size = sizes(model)
        return sum(size[n] for n in set(self._names(model)))

    def _names(self, model: PreTrainedModel) -> list[str]:
        groups = layer_groups(model)
        depth = len(groups.blocks)
        missing = self._missing_blocks(depth)  # again: of a hub model, `problems` could not know the depth
        if missing:
            raise ModelError(*missing)
        wanted = {b % depth for b in self.blocks}
        wanted |= set(range(self.first or 0)) | set(range(depth - (self.last or 0), depth))
        names = [n for index in sorted(wanted) for n in groups.blocks[index]]
        if self.embeddings:
            names += groups.embeddings
        if self.norms:
            names += groups.norms
        if self.head:
            if groups.is_tied:
                raise ModelError(_tied_head())
            names += groups.head
        return names + match_parameters(model, self.patterns, "method.patterns")


def _tied_head() -> Problem:
    return Problem(
        "The head shares its weight with the embeddings, so it cannot be trained alone.",
        where="method.head",
        remedy="use embeddings: true to train the shared matrix",
    )
