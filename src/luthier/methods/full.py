"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.errors import Problem, RunError
from luthier.methods.base import Method, sizes, train_only

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Full(Method):
    """Train every parameter."""

    kind: Literal["full"] = "full"

    title: ClassVar[str] = "Full fine-tuning"
    summary: ClassVar[str] = "Train every parameter of the model."
    principle: ClassVar[str] = (
        "Every weight follows its own gradient. The most capable method and the most expensive one: besides the weights, "
        "memory holds a gradient and two optimizer moments for each, 16 bytes per parameter in float32."
    )
    equation: ClassVar[str] = "θ ← θ − η · AdamW(∇θ L)"
    paper: ClassVar[str] = "Howard & Ruder 2018, Universal Language Model Fine-tuning, arXiv:1801.06146"
    moves: ClassVar[str] = "all parameters"
    typical_share: ClassVar[str] = "100 %"
    when: ClassVar[str] = (
        "Much data (tens of thousands of good rows), a large change of domain or language, ample memory."
    )
    when_not: ClassVar[str] = (
        "Few rows (it overfits and forgets), several variants to serve (each is a whole model), little memory."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "全量微调",
        "summary": "训练模型的全部参数。",
        "principle": "每个权重都按自己的梯度更新。能力最强，代价也最高：除权重外，每个参数还要保存梯度和两个优化器动量，float32 下共 16 字节。",
        "moves": "全部参数",
        "when": "数据多（数万条高质量样本）、领域或语言变化大、显存充足时。",
        "when_not": "样本少（容易过拟合和遗忘）、需要部署多个变体（每个都是完整模型）、显存不足时。",
    }
    default_learning_rate: ClassVar[float] = 2e-5
    in_place: ClassVar[bool] = True
    freezes_most: ClassVar[bool] = False

    def apply(self, model: PreTrainedModel) -> None:
        train_only(model, [n for n, _ in model.named_parameters()])

    def count(self, model: PreTrainedModel) -> int:
        return sum(sizes(model).values())

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write a complete Hugging Face folder: nothing of the base is needed to open it."""
        model.save_pretrained(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        self.load_state_dict(model, read_whole_model(model, folder))


def read_whole_model(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Return a complete folder's tensors, read by transformers, which undoes what it renamed and split to write it.

    Raises:
        RunError: the file is missing or damaged.
    """
    import torch
    from safetensors import SafetensorError

    if not any(folder.glob("model*.safetensors")):
        remedy = "the folder was saved by another method, or a part of it was deleted"
        raise RunError(Problem("There is no model.safetensors.", where=str(folder), remedy=remedy))
    try:
        saved, info = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)  # type: ignore[misc]
    except (SafetensorError, OSError, RuntimeError) as error:  # damaged, unreadable, misshapen
        remedy = "use another copy"
        raise RunError(Problem(f"The model cannot be read ({error}).", where=str(folder), remedy=remedy)) from error
    # What the file lacks, transformers has filled with random numbers.
    return {n: p.detach() for n, p in saved.named_parameters() if n not in info["missing_keys"]}
