"""What to keep in mind beside the method: the field's rules of thumb, each where it applies, with its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from luthier.advise.facts import count, facts_of, size
from luthier.advise.rank import Ranked
from luthier.advise.rules.base import MACHINE, PLANNER, source_words
from luthier.advise.rules.data import REPEATS
from luthier.advise.situation import GIB, MANY, Situation, Where

Words = tuple[str, str]
_SMALL_FOR_A_PHONE = 4_000_000_000


@dataclass(frozen=True)
class Note:
    """A remark: what, and from where it is known."""

    name: str
    text: Words
    source: Words


@dataclass(frozen=True)
class NoteRule:
    """When a remark is made. `text` may use the numbers of facts.facts_of and of `more`."""

    name: str
    holds: Callable[[Situation, Ranked], bool]
    text: Words
    source: str
    more: Callable[[Situation, Ranked], dict[str, str]] = lambda s, first: {}


def where(s: Situation) -> Where:
    """Return where the training belongs: privacy keeps data with those who hold them, or on their devices."""
    if s.wishes.on_device:
        return "device"
    return "federated" if s.wishes.private else "here"


def runs_today(place: Where) -> bool:
    """Return whether this installation of Luthier can train there."""
    folder = {"federated": "luthier.federate", "device": "luthier.device"}.get(place)
    return folder is None or find_spec(folder) is not None


def _held_out(s: Situation, _: Ranked) -> dict[str, str]:
    return {"held": f"{min(max(round(s.rows * held_share(s.rows)), 1), s.rows):,}"}


def held_share(rows: int) -> float:
    """Return the share of the rows to hold out: a tenth, and of many rows about a thousand."""
    return 0.1 if rows <= 10_000 else max(0.01, round(1000 / rows, 3))


def _is_out(s: Situation, first: Ranked) -> bool:
    return any(reason.rule == "does not fit" for reason in first.reasons)


def _largest(s: Situation, _: Ranked) -> dict[str, str]:
    """Return the largest models that would fit: 4-bit weights take about 0.57 bytes with activations and constants."""
    qlora = s.needs["qlora"].peak_bytes
    largest = s.model.parameters * s.room / max(qlora, 1)
    cards = -(-qlora // int(s.machine.device_bytes * 0.9))
    whole = next((g for g in (8, 12, 16, 24, 40, 48, 80, 96, 141, 192) if g * GIB * 0.92 >= qlora), None)
    return {
        "largest": count(largest * 0.95),
        "qlora": size(qlora),
        "card": f"{whole} GB" if whole else f"{-(-qlora // (80 * GIB))} × 80 GB",
        "cards": str(cards),
        "host": size(max(0, qlora - s.room)),
    }


NOTES = (
    NoteRule(
        "nothing fits",
        _is_out,
        (
            "Nothing fits. What would: a model of up to about {largest} parameters by QLoRA on this memory; or this model "
            "by QLoRA on one card of {card} ({qlora}); or {host} of it offloaded to the processor's memory, or spread "
            "over {cards} cards, which Luthier does not do yet.",
            "都放不下。可行的办法：在此内存上用 QLoRA 训练不超过约 {largest} 参数的模型；或用一张 {card} 的卡以 QLoRA 训练本模型（{qlora}）；"
            "或把其中 {host} 卸载到主机内存，或分摊到 {cards} 张卡——Luthier 目前还不支持后两者。",
        ),
        PLANNER,
        _largest,
    ),
    NoteRule(
        "start small",
        lambda s, _: True,
        (
            "Start small: pilot.yaml trains 20 steps on some of the rows; look at its losses and samples first.",
            "从小做起：pilot.yaml 只在部分数据上训练 20 步；先看它的损失和样例。",
        ),
        "Zhou et al. 2023, arXiv:2305.11206",
    ),
    NoteRule(
        "evaluate first",
        lambda s, _: s.rows > 1,
        (
            "Evaluate first: {held} rows are held out and measured before, during and after training.",
            "评测先行：留出 {held} 行，在训练前、中、后都测量。",
        ),
        "Ouyang et al. 2022, arXiv:2203.02155",
        _held_out,
    ),
    NoteRule(
        "quality before quantity",
        lambda s, _: s.main is not None and (s.main.duplicates > REPEATS or s.main.unreadable > 0),
        (
            "Quality before quantity: {duplicates} of the rows repeat others and {unreadable} cannot be read. "
            "luthier doctor DATA --fix CLEAN first; 9,000 good rows of 52,000 did better than all of them.",
            "质量先于数量：{duplicates} 的行重复，{unreadable} 行读不了。先运行 luthier doctor DATA --fix CLEAN；52,000 行中的 9,000 行好数据胜过全部。",
        ),
        "Chen et al. 2023, arXiv:2307.08701",
        lambda s, _: {"unreadable": f"{s.main.unreadable:,}" if s.main else "0"},
    ),
    NoteRule(
        "watch forgetting",
        lambda s, first: not s.classifies,
        (
            "Watch forgetting: models of 1 to 7 B lost general ability with every narrow set. LoRA forgets less than full "
            "fine-tuning; with --general FILE the recipe measures rows of what must stay (forgetting), and a part of them can be "
            "replayed (regularizers: replay).",
            "警惕遗忘：1–7 B 的模型在每个窄数据集上都会损失通用能力。LoRA 比全量微调忘得少；用 --general FILE 给出不可遗忘的数据，配方会监测它们（forgetting），还可回放一部分（regularizers: replay）。",
        ),
        "Luo et al. 2023, arXiv:2308.08747; Biderman et al. 2024, arXiv:2405.09673",
    ),
    NoteRule(
        "federated",
        lambda s, _: where(s) == "federated",
        (
            "Privacy: each holder trains on its own rows and sends {file} a round instead of data (FedAvg). The recipe "
            "trains what one of them would, on this machine, and nothing leaves it. Updates can still tell of single "
            "rows: 2012.07805 took 600 verbatim out of GPT-2.",
            "隐私：各方在自己的数据上训练，每轮只发送 {file} 的更新而不是数据（FedAvg）。配方训练的是其中一方要训练的内容，在本机进行，数据不出本机。"
            "更新仍可能泄露个别样本：2012.07805 从 GPT-2 中逐字提取了 600 条。",
        ),
        "McMahan et al. 2016, arXiv:1602.05629; Carlini et al. 2020, arXiv:2012.07805",
        lambda s, first: {"file": size(s.needs[first.method].file_bytes)},
    ),
    NoteRule(
        "not built yet",
        lambda s, _: not runs_today(where(s)),
        (
            "Luthier {version} has no verb for federated rounds or for training on devices yet: the recipe runs on 1 "
            "machine.",
            "Luthier {version} 还没有联邦训练或端侧训练的命令：配方在 1 台机器上运行。",
        ),
        MACHINE,
        lambda s, _: {"version": _version()},
    ),
    NoteRule(
        "too large for a device",
        lambda s, _: s.wishes.on_device and s.model.parameters > _SMALL_FOR_A_PHONE,
        (
            "{parameters} parameters are much for a device ({weights} in 16 bits); models of 0.1 to 3 B are made for it.",
            "{parameters} 参数对端侧设备太大（16 位下 {weights}）；0.1–3 B 的模型才适合。",
        ),
        "Liu et al. 2024, MobileLLM, arXiv:2402.14905",
    ),
    NoteRule(
        "the deadline",
        lambda s, first: s.wishes.hours is not None and s.needs[first.method].hours > s.wishes.hours,
        (
            "All rows would take about {time}; the recipe stops after {deadline}. Fewer, better rows are the remedy, not "
            "another method: luthier select keeps the best.",
            "全部数据约需 {time}；配方在 {deadline} 处停止。应当减少并精选数据（luthier select），而不是换方法。",
        ),
        PLANNER,
    ),
    NoteRule(
        "slow here",
        lambda s, first: s.machine.kind == "cpu" and s.needs[first.method].hours > 24 and not _is_out(s, first),
        (
            "It fits, but this processor would need about {time}: rent a GPU, or take a smaller model.",
            "放得下，但这颗处理器约需 {time}：租用 GPU，或换小一点的模型。",
        ),
        MACHINE,
    ),
    NoteRule(
        "one device",
        lambda s, first: not s.fits(first.method) and s.fits_sharded(first.method),
        (
            "On {devices} devices it takes {sharded} each; on one it would take {need}. Luthier trains on one device so "
            "far, so today.yaml is the best that runs now.",
            "在 {devices} 个设备上各需 {sharded}；单设备则需 {need}。Luthier 目前只在单设备上训练，today.yaml 是现在能跑的最佳方案。",
        ),
        PLANNER,
    ),
    NoteRule(
        "many rows",
        lambda s, _: s.rows > MANY,
        (
            "With {rows} rows one pass is enough; mix tasks by temperature, so that large ones do not drown small ones.",
            "有 {rows} 行数据时 1 遍就够；按温度混合任务，免得大任务淹没小任务。",
        ),
        "Raffel et al. 2019, arXiv:1910.10683",
    ),
    NoteRule(
        "versions",
        lambda s, _: s.wants("production"),
        (
            "Versions: the run is called v1; each later one gets a name of its own, and {file} are kept for each.",
            "版本：本次运行叫 v1；以后每版各取其名，每版保存 {file}。",
        ),
        PLANNER,
        lambda s, first: {"file": size(s.needs[first.method].file_bytes)},
    ),
)


def notes(s: Situation, first: Ranked) -> tuple[Note, ...]:
    """Return the remarks that apply, those of the framework among them."""
    found = []
    for rule in NOTES:
        if rule.holds(s, first):
            facts = {**facts_of(s, first.method), **rule.more(s, first)}
            english, chinese = (text.format_map(facts) for text in rule.text)
            found.append(Note(rule.name, (english, chinese), source_words(rule.source)))
    return tuple(found)


def _version() -> str:
    import luthier

    return luthier.__version__
