"""Chosen layers: train some blocks, the norms, the head, or whatever a pattern names; all else stays frozen.

Blocks are named, or chosen by a short look at the gradients of the untouched model (Lee et al. 2022, Surgical
Fine-Tuning, arXiv:2210.11466, the criteria of Auto-RGN and Auto-SNR, taken over whole blocks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, Probe, sizes, train_only
from luthier.models.layers import layer_groups
from luthier.models.targets import ROLES, match_linear, match_parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

PROBE_BATCHES = 16
"""Batches whose gradients decide; more moved the ranking of no model that was tried."""


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
    """Also train parameters whose full names match, e.g. "*.mlp.down_proj.*" or "model.layers.3", or the matrices of a
    role: attention, mlp, q, k, v, o, gate, up, down."""
    select: Literal["gradient", "signal_to_noise"] | None = None
    """Let the data choose the blocks, in a few batches before training. gradient takes those whose gradient is largest
    beside their weights; signal_to_noise those whose gradient says the same in every batch."""
    top: int | None = Field(default=None, ge=1)
    """How many blocks select chooses."""
    ranking: tuple[float, ...] = ()
    """What select found: the score of each block, first to last. The run fills it in; leave it out."""

    title: ClassVar[str] = "Chosen layers"
    summary: ClassVar[str] = "Train chosen blocks, norms, embeddings or the head; freeze the rest."
    principle: ClassVar[str] = (
        "A model is an ordered list of groups: embeddings, blocks, final norm, head. The chosen ones are trained in full, "
        "the others keep their bits, and no gradient is computed below the lowest trained one; with several epochs the "
        "frozen blocks below it run only once for each row. Which blocks matter depends on what changes: new words sit low, "
        "new answers high. `select` measures it."
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
        "last": "训练最后 N 层。上层保存与任务最相关的内容。",
        "first": "训练最前 N 层（新词表、新文字、新领域的词汇）。",
        "blocks": "训练这些层，从 0 数起；负数从末尾数。",
        "embeddings": "同时训练词嵌入（以及与其共享权重的输出头）。",
        "norms": "同时训练所有归一化权重。",
        "head": "同时训练输出头（未与词嵌入共享权重时）。",
        "patterns": '同时训练全名匹配的参数，例如 "*.mlp.down_proj.*"；也可写角色：attention、mlp、q、k、v、o、gate、up、down。',
        "select": "训练前用少量批次由数据选层：gradient 选梯度相对权重最大的层，signal_to_noise 选各批次梯度方向最一致的层。",
        "top": "select 选出的层数。",
        "ranking": "select 的结果：各层得分，由运行填写，请勿自行填写。",
        "title": "选层微调",
        "summary": "只训练选定的层、归一化、词嵌入或输出头，其余冻结。",
        "principle": "模型是有序的分组：词嵌入、各层、末端归一化、输出头。选中的部分完整训练，其余逐位不变；最低的可训练层以下不计算梯度，多轮训练时其下的冻结层对每行数据只计算一次。哪些层重要取决于变化的内容：新词汇在低层，新答案在高层；select 可以测出来。",
        "moves": "选中的分组",
        "when": "任务与基座接近；想比全量省内存又不添加新模块；研究各层作用时。",
        "when_not": "需要部署多个变体，或领域变化大到每一层都要跟着改变时。",
    }
    default_learning_rate: ClassVar[float] = 1e-4
    in_place: ClassVar[bool] = True
    example: ClassVar[dict[str, object]] = {"last": 2}

    def problems(self, facts: StageFacts) -> list[Problem]:
        found = []
        named = (self.last, self.first, self.blocks, self.embeddings, self.norms, self.head, self.patterns, self.select)
        if not any(named):
            found.append(
                Problem(
                    "The method layers is told no layer, so nothing would be trained.",
                    where="method",
                    remedy="say which, e.g. `method: {kind: layers, last: 2}`",
                )
            )
        if self.select and self.top is None:
            remedy = f"add top: 2, as in `method: {{kind: layers, select: {self.select}, top: 2}}`"
            found.append(Problem("select is not told how many blocks to choose.", "method.select", remedy))
        if self.top is not None and not self.select:
            remedy = "add select: gradient, or write last: N to train the last blocks"
            found.append(Problem("top has no effect without select.", "method.top", remedy))
        depth = facts.model_config.get("num_hidden_layers") or facts.model_config.get("n_layer")
        if isinstance(depth, int):
            found += self._missing_blocks(depth)
        if self.head and facts.model_config.get("tie_word_embeddings") is True:
            found.append(_tied_head())
        return found

    def _missing_blocks(self, depth: int) -> list[Problem]:
        found = []
        for name, wanted in (("last", self.last or 0), ("first", self.first or 0), ("top", self.top or 0)):
            if wanted > depth:
                remedy = f"choose from 1 to {depth}"
                found.append(Problem(f"The model has {depth} blocks, not {wanted}.", f"method.{name}", remedy))
        outside = [b for b in self.blocks if not -depth <= b < depth]
        if outside:
            remedy = f"choose from 0 to {depth - 1}"
            found.append(Problem(f"There is no block {outside[0]}.", "method.blocks", remedy))
        return found

    def choose(self, probe: Probe) -> Self:
        """Rank the blocks by their gradients, and name the best `top` of them in `blocks`."""
        if self.select is None or self.ranking:
            return self
        names = layer_groups(probe.model).blocks
        scores = (_relative_gradients if self.select == "gradient" else _signal_to_noise)(probe, names)
        best = sorted(range(len(names)), key=lambda block: -scores[block])[: self.top]
        return self.model_copy(
            update={"blocks": (*self.blocks, *sorted(best)), "ranking": tuple(float(f"{s:.4g}") for s in scores)}
        )

    def in_words(self) -> str:
        """Return what `select` found, best block first."""
        if not self.ranking:
            return ""
        order = sorted(range(len(self.ranking)), key=lambda block: -self.ranking[block])
        shown = ", ".join(f"{block} ({self.ranking[block]:.3g})" for block in order)
        return f"blocks {', '.join(map(str, self.blocks))}, by {self.select}: {shown}"

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        if not self.ranking:
            return {}
        return {"chosen_blocks": list(self.blocks), "criterion": self.select, "block_scores": list(self.ranking)}

    def apply(self, model: PreTrainedModel) -> None:
        if self.select and not self.ranking:
            remedy = "name them with blocks: [...], or use `luthier train`, which looks at the data first"
            raise ModelError(Problem("Which blocks to train was not chosen from data yet.", "method.select", remedy))
        train_only(model, self._names(model))

    def count(self, model: PreTrainedModel) -> int:
        """Count the chosen tensors; blocks that are yet to be chosen count as the last ones do."""
        size, names = sizes(model), set(self._names(model))
        if self.select and not self.ranking:
            blocks = layer_groups(model).blocks
            names |= {n for block in blocks[len(blocks) - (self.top or 0) :] for n in block}
        return sum(size[n] for n in names)

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
        roles = [p for p in self.patterns if p in ROLES]
        if roles:
            matrices = {f"{n}." for n in match_linear(model, roles, "method.patterns")}
            names += [n for n, _ in model.named_parameters() if n[: n.rfind(".") + 1] in matrices]
        return names + match_parameters(model, [p for p in self.patterns if p not in ROLES], "method.patterns")


def _tied_head() -> Problem:
    return Problem(
        "The head shares its weight with the embeddings, so it cannot be trained alone.",
        where="method.head",
        remedy="use embeddings: true to train the shared matrix",
    )


def _relative_gradients(probe: Probe, blocks: list[list[str]]) -> list[float]:
    """Return ‖g‖ / ‖w‖ of each block, the mean over the batches (Auto-RGN)."""
    import torch

    weights = {n: p.detach() for n, p in probe.model.named_parameters()}
    sizes_B = torch.stack([_norm([weights[n] for n in block]) for block in blocks])
    total_B, batches = torch.zeros(len(blocks), dtype=torch.float64), 0
    for gradients in probe.gradients(PROBE_BATCHES):
        total_B += torch.stack([_norm([gradients[n] for n in block if n in gradients]) for block in blocks])
        batches += 1
    return (total_B / max(batches, 1) / sizes_B).tolist()


def _signal_to_noise(probe: Probe, blocks: list[list[str]]) -> list[float]:
    """Return ‖mean g‖² / Σ var g of each block, over the batches (Auto-SNR).

    Of the variance only its sum over a block is needed: n/(n−1)·(mean ‖g‖² − ‖mean g‖²).

    Raises:
        ModelError: there is but one batch, and nothing varies.
    """
    import torch

    sums: dict[str, Tensor] = {}
    squares_B, batches = torch.zeros(len(blocks), dtype=torch.float64), 0
    for gradients in probe.gradients(PROBE_BATCHES):
        squares_B += torch.stack([_norm([gradients[n] for n in block if n in gradients]) for block in blocks]) ** 2
        for name in {n for block in blocks for n in block} & gradients.keys():
            sums[name] = sums[name] + gradients[name].float() if name in sums else gradients[name].float()
        batches += 1
    if batches < 2:
        what = "signal_to_noise compares batches, and the data is only one."
        raise ModelError(Problem(what, "method.select", "lower batch_size, or use select: gradient"))
    signal_B = torch.stack([_norm([sums[n] / batches for n in block if n in sums]) for block in blocks]) ** 2
    noise_B = (squares_B / batches - signal_B) * batches / (batches - 1)
    return (signal_B / noise_B.clamp_min(1e-30)).tolist()  # batches that are all alike have no noise at all


def _norm(tensors: list[Tensor]) -> torch.Tensor:
    import torch

    squares = [t.float().square().sum(dtype=torch.float64).cpu() for t in tensors]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)
