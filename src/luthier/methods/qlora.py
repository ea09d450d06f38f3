"""QLoRA: LoRA on a frozen base in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.lora import Lora


class QLora(Lora):
    """LoRA beside matrices that are kept in 4 or 8 bits."""

    kind: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the same method on another base

    bits: Literal[4, 8] = 4
    """Bits of each frozen weight. 8 is nearly exact and takes twice the memory of 4."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values that 4 bits stand for: nf4 fits normally distributed weights, fp4 is a tiny floating point."""
    double_quantization: bool = True
    """Keep the scales of the 4-bit blocks in 8 bits too: 0.4 bits less per weight at no visible loss."""

    title: ClassVar[str] = "QLoRA"
    summary: ClassVar[str] = "LoRA on a frozen base in 4 bits: about a sixth of the memory for weights."
    principle: ClassVar[str] = (
        "The frozen matrices are stored in blocks of 4-bit numbers and made whole for one product at a time, forward and "
        "backward; the LoRA update beside them stays in full precision and learns to make up for the rounding as well. "
        "Embeddings, norms, the head and matrices of fewer than 16,384 numbers keep their precision. Merged, the model is an ordinary one: the update is added to "
        "the numbers that the bits stand for."
    )
    equation: ClassVar[str] = "y = dequantise(W₄) x + (alpha / r) · B A x"
    paper: ClassVar[str] = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"
    when: ClassVar[str] = (
        "The base model does not fit otherwise: 4-bit weights need an eighth of float32's memory, 8-bit ones a quarter."
    )
    when_not: ClassVar[str] = (
        "Memory suffices for LoRA: dequantising costs time in every product, and rounding a little quality."
    )
    frozen_bytes: ClassVar[tuple[float, ...]] = (0.52, 1)
    zh: ClassVar[dict[str, str]] = {
        **Lora.zh,
        "title": "QLoRA（量化基座上的 LoRA）",
        "summary": "在 4 位量化的冻结基座上做 LoRA：权重内存约为六分之一。",
        "principle": "冻结的矩阵以 4 位数的分块存储，前向和反向时每次只为一个乘法还原；旁边的 LoRA 更新保持全精度，并学会弥补舍入误差。词嵌入、归一化、输出头以及不足 16,384 个数的小矩阵保持原精度。合并后是普通模型：更新加在这些位所代表的数值上。",
        "when": "基座模型否则放不下时：4 位权重的内存是 float32 的八分之一，8 位是四分之一。",
        "when_not": "内存足够做 LoRA 时：每次乘法都要还原权重，费时间；舍入也损失少许质量。",
        "bits": "每个冻结权重的位数。8 位几乎无损，内存是 4 位的两倍。",
        "quant_type": "4 位所代表的 16 个值：nf4 适合正态分布的权重，fp4 是微型浮点数。",
        "double_quantization": "4 位分块的缩放系数也用 8 位存储：每个权重再省 0.4 位，损失不可见。",
    }

    @property
    def base_bits(self) -> Literal[4, 8] | None:
        return self.bits

    @property
    def base_quantization(self) -> tuple[Literal["nf4", "fp4"], bool]:
        return self.quant_type, self.double_quantization

    def problems(self, facts: StageFacts) -> list[Problem]:
        from luthier.models.quantized import has_bitsandbytes

        found = super().problems(facts)
        if not has_bitsandbytes():
            what = "A quantised base model needs the library bitsandbytes, which is not installed."
            found.append(Problem(what, "method", 'pip install "luthier[quantization]"'))
        if self.bits == 8 and "quant_type" in self.model_fields_set:
            found.append(
                Problem(
                    "quant_type says what 4 bits stand for; with bits: 8 it has no effect.",
                    "method.quant_type",
                    "leave it out",
                )
            )
        return found
