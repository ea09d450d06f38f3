"""Rules about memory: full, then LoRA, then QLoRA as it tightens."""

from __future__ import annotations

from luthier.advise.rules.base import EVERY, PLANNER, Rule
from luthier.advise.situation import Situation

COMFORTABLE = 0.85
"""The share of the memory up to which there is room for longer rows and larger micro-batches."""
_SMALL_MODEL = 500_000_000


def _is_scarce(s: Situation, _: str) -> bool:
    if s.fits("lora"):
        return s.use("lora") > COMFORTABLE
    # Spread over several devices it may fit; but one device is what there is today, if 4 bits make one suffice.
    return s.fits("qlora") or not s.fits_sharded("lora") or s.use("lora") > COMFORTABLE


def _is_ample_for_lora(s: Situation, _: str) -> bool:
    return not _is_scarce(s, _)


RULES = (
    Rule(
        "does not fit",
        EVERY,
        lambda s, method: not s.fits_sharded(method),
        ("its peak is more than the memory", "峰值超过内存"),
        (
            "It needs {need} at least, and {devices} of {device} hold {room} after a reserve.",
            "至少需要 {need}，而 {devices} 个 {device} 的设备扣除余量后只有 {room}。",
        ),
        PLANNER,
        forbids=True,
    ),
    Rule(
        "needs several devices",
        dict.fromkeys(EVERY, -1.0),
        lambda s, method: s.fits_sharded(method) and not s.fits(method),
        ("it fits only spread over several devices", "只有分摊到多个设备才放得下"),
        (
            "On one device it needs {need}; spread over {devices} it is {sharded} each. Luthier trains on one device so far.",
            "单设备需要 {need}；分摊到 {devices} 个设备各需 {sharded}。Luthier 目前只在单设备上训练。",
        ),
        PLANNER,
    ),
    Rule(
        "memory is scarce",
        {"qlora": 5},
        _is_scarce,
        (
            "LoRA on a 16-bit base does not fit, or fills over 85 % of the memory",
            "16 位基座的 LoRA 放不下，或占用超过 85 % 的内存",
        ),
        (
            "LoRA on an ordinary base takes {lora_need} of {device}; on 4 bits it is {qlora_need}.",
            "普通基座上的 LoRA 需要 {device} 中的 {lora_need}；4 位基座只需 {qlora_need}。",
        ),
        "Dettmers et al. 2023, arXiv:2305.14314; " + "luthier plan",
    ),
    Rule(
        "memory suffices for LoRA",
        {"qlora": -4},
        _is_ample_for_lora,
        ("LoRA fits comfortably", "内存足够做 LoRA"),
        (
            "LoRA fits ({lora_need} of {device}). 4 bits would save a third of the memory and cost 39 % more time.",
            "LoRA 放得下（{device} 中的 {lora_need}）。4 位能省约三分之一内存，却多花 39 % 的时间。",
        ),
        "Raschka 2023, Practical Tips for Finetuning LLMs; luthier plan",
    ),
    Rule(
        "the model is small",
        {"qlora": -4},
        lambda s, _: s.model.parameters < _SMALL_MODEL,
        ("the model has under 500 M parameters", "模型不足 5 亿参数"),
        (
            "The whole model has {parameters} parameters: 4 bits save next to nothing, and thin models lose most by them.",
            "整个模型只有 {parameters} 参数：4 位几乎省不了什么，小模型的损失反而最大。",
        ),
        PLANNER,
    ),
    Rule(
        "fits tightly",
        {"whole model": -4, "layers": -1, "hybrid": -1},
        lambda s, method: s.fits_sharded(method) and s.use(method) > COMFORTABLE,
        ("it would fill over 85 % of the memory", "会占用超过 85 % 的内存"),
        (
            "It would fill {use} of the memory, with no room for longer rows.",
            "会占用 {use} 的内存，没有余地容纳更长的样本。",
        ),
        PLANNER,
    ),
)
