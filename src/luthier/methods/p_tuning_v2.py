"""P-tuning v2: deep prompts, that is prefixes without a network behind them (Liu et al. 2021, arXiv:2110.07602).

The computation and the files are those of prefix tuning. What the paper adds is where it holds: for classification with
an ordinary head, for encoders, and for small models, if the length is chosen for the task.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from luthier.methods.prefix import Prefix


class PTuningV2(Prefix):
    """Train deep prompts: keys and values before the input of every layer."""

    kind: Literal["p_tuning_v2"] = "p_tuning_v2"  # type: ignore[assignment]  # the same method under its other name

    tokens: int = Field(default=20, ge=1)
    """Length of the prompt in each layer. Below 20 for simple classification, around 100 for hard sequence labelling."""
    projection: bool = False
    """Write the prompts by a small network. The paper found it to help on some tasks and to hurt on others."""
    projection_size: int | None = Field(default=None, ge=1)
    """Inner size of that network. Left out, it is the size of a layer's keys."""

    title: ClassVar[str] = "P-tuning v2"
    summary: ClassVar[str] = "Train deep prompts in every layer, for generation or under a classification head."
    principle: ClassVar[str] = (
        "Soft prompts at the input alone fail on small models and hard tasks. With prompts in every layer, trained "
        "directly and read out by an ordinary classification head, models of every size come close to full "
        "fine-tuning at a thousandth of its parameters."
    )
    equation: ClassVar[str] = "attention(Q, [P_K; K], [P_V; V]) in every layer,  logits = head(h_[CLS])"
    paper: ClassVar[str] = "Liu et al. 2021, P-Tuning v2, arXiv:2110.07602"
    moves: ClassVar[str] = "keys and values of the prompts: 2 · layers · tokens · d numbers, and a classifier's head"
    typical_share: ClassVar[str] = "0.1 to 3 %"
    when: ClassVar[str] = "Classification with BERT-like or small models, where soft prompts at the input are too weak."
    when_not: ClassVar[str] = "New knowledge or long training data, where lora learns more; very short contexts."
    zh: ClassVar[dict[str, str]] = {
        "title": "P-tuning v2（深层提示）",
        "summary": "在每一层训练深层提示，用于生成，或配合分类头做分类。",
        "principle": "只在输入端的软提示在小模型和难任务上效果差。把提示放进每一层直接训练，再用普通分类头读出结果，各种规模的模型都能以千分之一的参数接近全量微调。",
        "moves": "提示的键和值：2 · 层数 · tokens · d 个数，以及分类头",
        "when": "用 BERT 类模型或小模型做分类，而输入端的软提示太弱时。",
        "when_not": "学习新知识或训练数据很多时，lora 学得更多；上下文很短时也不合适。",
        "tokens": "每层提示的长度。简单分类不到 20，困难的序列标注约 100。",
        "projection": "用一个小网络写出提示。论文发现它在某些任务上有益，在另一些任务上有害。",
        "projection_size": "该网络的内部宽度。不填则等于一层键的宽度。",
    }
    differs_at_start: ClassVar[str] = "attention sees the prompts, which begin at random, from the first step on"
    unmergeable: ClassVar[str] = "deep prompts are keys and values before every input, and no weight can hold them"
