"""P-tuning: a soft prompt written by a small network (Liu et al. 2021, arXiv:2103.10385), in PEFT's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method
from luthier.models.room import room_problems

if TYPE_CHECKING:
    from peft import PromptEncoderConfig
    from transformers import PreTrainedModel

_LSTM_LAYERS = 2


class PTuning(Method):
    """Train a soft prompt through a prompt encoder."""

    kind: Literal["p_tuning"] = "p_tuning"

    tokens: int = Field(default=20, ge=1)
    """Length of the soft prompt in virtual tokens. 10 to 50 is usual; every one takes a place of the model's context."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network that writes the prompt: three linear layers, or the paper's two-way LSTM, which is slower."""
    encoder_size: int | None = Field(default=None, ge=1)
    """Inner size of the network. Left out, it is the model's embedding size; 128 is enough for most tasks."""
    encoder_layers: int | None = Field(default=None, ge=1)
    """Layers of the LSTM, 2 if left out. The three linear layers have no such choice."""
    encoder_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout between the layers of the LSTM. Helps on very small data."""

    title: ClassVar[str] = "P-tuning"
    summary: ClassVar[str] = "Train a soft prompt through a small network that writes it."
    principle: ClassVar[str] = (
        "Free embeddings are hard to train: each moves alone, and a frozen model reacts to them abruptly. P-tuning lets "
        "a small network write them, so that they move together and smoothly. After training the network is no longer "
        "needed: its output is the prompt."
    )
    equation: ClassVar[str] = "P = MLP(E) or MLP(LSTM(E)),  p(y | [P; E(x)]);  the network and E are trained"
    paper: ClassVar[str] = "Liu et al. 2021, GPT Understands, Too (P-tuning), arXiv:2103.10385"
    moves: ClassVar[str] = "the prompt's embeddings and the network that turns them into a prompt"
    typical_share: ClassVar[str] = "0.05 to 1 %"
    when: ClassVar[str] = (
        "Classification and short answers, also with small models on which a bare soft prompt does not learn."
    )
    when_not: ClassVar[str] = "Long generation and new knowledge: lora or p_tuning_v2 learn more."
    zh: ClassVar[dict[str, str]] = {
        "title": "P-tuning（提示编码器）",
        "summary": "通过一个小网络训练软提示。",
        "principle": "直接训练嵌入很难：每个嵌入各自移动，冻结的模型对它们反应突兀。P-tuning 让一个小网络写出这些嵌入，使它们协同、平滑地变化。训练后不再需要该网络：它的输出就是提示。",
        "moves": "提示的嵌入，以及把它们变成提示的网络",
        "when": "分类和简短回答；也适用于单纯软提示学不动的小模型。",
        "when_not": "长文本生成和学习新知识：lora 或 p_tuning_v2 学得更多。",
        "tokens": "软提示的长度（虚拟词元数）。常用 10 到 50；每个都占用模型上下文的一个位置。",
        "encoder": "写出提示的网络：mlp 为三个线性层，lstm 为论文中的双向 LSTM（较慢）。",
        "encoder_size": "网络的内部宽度。不填则等于模型的嵌入维度；多数任务 128 就够。",
        "encoder_layers": "LSTM 的层数，不填为 2。三个线性层没有此选项。",
        "encoder_dropout": "LSTM 层间的 dropout。数据很少时有帮助。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    differs_at_start: ClassVar[str] = "the model reads the soft prompt before every input from the first step on"
    unmergeable: ClassVar[str] = "a soft prompt stands before every input, and no weight of the model can hold it"

    @property
    def reserved_positions(self) -> int:
        return self.tokens

    def problems(self, facts: StageFacts) -> list[Problem]:
        found = room_problems(self.tokens, facts.model_config)
        if self.encoder == "mlp":
            of_lstm = {"encoder_layers": self.encoder_layers is not None, "encoder_dropout": self.encoder_dropout > 0}
            found += [
                Problem(f"{name} belongs to the LSTM, and encoder is mlp.", f"method.{name}", "set encoder: lstm")
                for name, is_set in of_lstm.items()
                if is_set
            ]
        elif self.encoder_dropout > 0 and self.encoder_layers == 1:
            remedy = "use more layers, or leave the dropout out"
            found.append(Problem("Dropout acts between layers, and there is one.", "method.encoder_dropout", remedy))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        from peft import PromptEncoder

        from luthier.methods.modules.prompts import train_virtual_tokens
        from luthier.models.virtual_tokens import add_soft_prompt

        add_soft_prompt(model, PromptEncoder(self._peft_config(model)), self.tokens)
        train_virtual_tokens(model)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.prompts import embedding_width

        width = embedding_width(model)
        inner = self.encoder_size or width
        table = self.tokens * width
        if self.encoder == "mlp":
            return table + (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
        inputs = [width] + [2 * inner] * ((self.encoder_layers or _LSTM_LAYERS) - 1)
        lstm = sum(2 * 4 * inner * (i + inner + 2) for i in inputs)
        return table + lstm + (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width

    def _peft_config(self, model: PreTrainedModel) -> PromptEncoderConfig:
        from peft import PromptEncoderConfig
        from peft.tuners.p_tuning import PromptEncoderReparameterizationType

        from luthier.methods.modules.peft_files import task_type
        from luthier.methods.modules.prompts import embedding_width, fill_sizes

        width = embedding_width(model)
        config = PromptEncoderConfig(
            task_type=task_type(model),
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(self.encoder.upper()),
            encoder_hidden_size=self.encoder_size or width,
            encoder_num_layers=self.encoder_layers or _LSTM_LAYERS,
            encoder_dropout=self.encoder_dropout,
        )
        fill_sizes(config, model, width)
        return config

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write PEFT's files, which hold the finished prompt, and beside them the network, to go on training."""
        from luthier.methods.modules.prompts import save_virtual_tokens

        save_virtual_tokens(self, model, folder, base, self._peft_config(model))

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules.prompts import load_virtual_tokens

        load_virtual_tokens(self, model, folder)
