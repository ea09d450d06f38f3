"""Prompt tuning: trained embeddings before every input (Lester et al. 2021, arXiv:2104.08691), in PEFT's files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, Probe
from luthier.models.room import room_problems

if TYPE_CHECKING:
    from peft import PromptTuningConfig
    from torch import nn
    from transformers import PreTrainedModel


class Prompt(Method):
    """Train a soft prompt: embeddings before every input."""

    kind: Literal["prompt"] = "prompt"

    tokens: int = Field(default=20, ge=1)
    """Length of the soft prompt in virtual tokens. 20 to 100 is usual; every one takes a place of the model's context."""
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    """What the soft prompt starts from: embeddings of tokens drawn from the vocabulary, those of a text, or noise."""
    init_text: str = ""
    """With init: text, the words to start from, e.g. a description of the task. Repeated or cut to the length."""
    init_tokens: tuple[int, ...] = ()
    """With init: text, the tokens of the text. The run finds them with the model's tokenizer; leave it out."""

    title: ClassVar[str] = "Prompt tuning"
    summary: ClassVar[str] = "Train a soft prompt: embeddings before every input, nothing else."
    principle: ClassVar[str] = (
        "A written prompt steers a frozen model through the embeddings of its words. Prompt tuning trains such "
        "embeddings directly, so they need not be words. One file of a few kilobytes per task, on one shared model; "
        "the larger the model, the closer it comes to full fine-tuning."
    )
    equation: ClassVar[str] = "p(y | [P; E(x)]),  P ∈ ℝ^{tokens × d} is trained, all weights are frozen"
    paper: ClassVar[str] = "Lester et al. 2021, Prompt Tuning, arXiv:2104.08691"
    moves: ClassVar[str] = "the soft prompt: tokens · d numbers"
    typical_share: ClassVar[str] = "0.0001 to 0.01 %"
    when: ClassVar[str] = (
        "Many tasks on one large model (billions of parameters); batches that mix tasks; the smallest possible file."
    )
    when_not: ClassVar[str] = (
        "Models below some billion parameters, new knowledge, short contexts: lora or p_tuning_v2 learn more."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "提示微调（Prompt Tuning）",
        "summary": "只训练软提示：放在每个输入之前的嵌入向量。",
        "principle": "手写提示通过词嵌入引导冻结的模型。提示微调直接训练这些嵌入，因此它们不必对应任何词。每个任务只有几千字节的文件，共用同一个模型；模型越大，效果越接近全量微调。",
        "moves": "软提示：tokens · d 个数",
        "when": "在一个大模型（数十亿参数）上做许多任务；同一批次混合多个任务；需要尽可能小的文件时。",
        "when_not": "参数量低于几十亿的模型、学习新知识、上下文很短时：lora 或 p_tuning_v2 学得更多。",
        "tokens": "软提示的长度（虚拟词元数）。常用 20 到 100；每个都占用模型上下文的一个位置。",
        "init": "软提示的起点：vocabulary 取词表中随机词元的嵌入，text 取一段文字的嵌入，random 为随机噪声。",
        "init_text": "init 为 text 时的起始文字，例如任务描述。长度不足时重复，超出时截断。",
        "init_tokens": "init 为 text 时文字对应的词元。训练开始时由模型的分词器得出，请勿填写。",
    }
    default_learning_rate: ClassVar[float] = 3e-2
    differs_at_start: ClassVar[str] = "the model reads the soft prompt before every input from the first step on"
    unmergeable: ClassVar[str] = "a soft prompt stands before every input, and no weight of the model can hold it"

    @property
    def reserved_positions(self) -> int:
        return self.tokens

    def problems(self, facts: StageFacts) -> list[Problem]:
        found = room_problems(self.tokens, facts.model_config)
        if self.init == "text" and not (self.init_text.strip() or self.init_tokens):
            remedy = "say the words in method.init_text, or use init: vocabulary"
            found.append(Problem("The soft prompt is to start from a text, but there is none.", "method.init", remedy))
        if self.init != "text" and (self.init_text or self.init_tokens):
            remedy = "set init: text, or leave the text out"
            found.append(
                Problem(f"There is a text to start from, but init is {self.init}.", "method.init_text", remedy)
            )
        return found

    def choose(self, probe: Probe) -> Self:
        """Find the tokens of the text to start from.

        Raises:
            ModelError: the tokenizer makes none of it.
        """
        if self.init != "text" or self.init_tokens:
            return self
        found = probe.tokenizer(self.init_text, add_special_tokens=False)["input_ids"]
        ids = [int(i) for i in found]  # type: ignore[union-attr, arg-type]
        if not ids:
            raise ModelError(_no_tokens())
        return self.model_copy(update={"init_tokens": tuple(itertools.islice(itertools.cycle(ids), self.tokens))})

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.prompts import train_virtual_tokens
        from luthier.models.virtual_tokens import add_soft_prompt

        add_soft_prompt(model, self._encoder(model), self.tokens)
        train_virtual_tokens(model)

    def _encoder(self, model: PreTrainedModel) -> nn.Module:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        import torch
        from peft import PromptEmbedding

        from luthier.methods.modules.prompts import put_rows

        words = model.get_input_embeddings()
        encoder = PromptEmbedding(self._peft_config(model), words)
        if self.init == "random":
            return encoder
        if self.init == "vocabulary":
            ids = torch.randint(0, int(words.weight.shape[0]), (self.tokens,))  # type: ignore[union-attr, index]
        elif self.init_tokens:
            ids = torch.tensor(list(itertools.islice(itertools.cycle(self.init_tokens), self.tokens)))
        else:
            raise ModelError(_no_tokens())
        with torch.no_grad():
            put_rows(encoder, words(ids.to(model.device)).float())
        return encoder

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.prompts import embedding_width

        return self.tokens * embedding_width(model)

    def _peft_config(self, model: PreTrainedModel) -> PromptTuningConfig:
        from peft import PromptTuningConfig

        from luthier.methods.modules.peft_files import task_type
        from luthier.methods.modules.prompts import embedding_width, fill_sizes

        # Whatever it starts from, the trained file holds the result; PEFT's own TEXT would ask for a tokenizer.
        config = PromptTuningConfig(task_type=task_type(model), num_virtual_tokens=self.tokens)
        fill_sizes(config, model, embedding_width(model))
        return config

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as PEFT reads them."""
        from luthier.methods.modules.prompts import save_virtual_tokens

        save_virtual_tokens(self, model, folder, base, self._peft_config(model))

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules.prompts import load_virtual_tokens

        load_virtual_tokens(self, model, folder)


def _no_tokens() -> Problem:
    return Problem(
        "The text that the soft prompt starts from has no tokens.",
        where="method.init_text",
        remedy="give words that the model's tokenizer knows, or use init: vocabulary",
    )
