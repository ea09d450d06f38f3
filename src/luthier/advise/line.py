"""Which stages lead there: one record for each, in the order in which they run.

    lm → sft → dpo | kto | grpo        classify        regress

A stage whose data are not there yet is named, with what has to be made first, and no recipe is written for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luthier.advise.situation import DataProfile, Form, Situation

Words = tuple[str, str]


@dataclass(frozen=True)
class Step:
    """One stage of the line.

    Attributes:
        data: the files that it is trained on; empty where they are missing.
        missing: what has to be made first (English, Chinese), and how.
    """

    objective: str
    data: tuple[DataProfile, ...]
    why: Words
    source: str
    missing: Words | None = None
    on_chosen: bool = False


@dataclass(frozen=True)
class StepRule:
    """When a stage belongs into the line."""

    objective: str
    forms: tuple[Form, ...]
    holds: Callable[[Situation, str], bool]
    why: Words
    source: str
    missing: Words | None = None
    on_chosen: bool = False


_JUDGED: tuple[Form, ...] = ("preference", "rated", "prompt")


def _writes(s: Situation) -> bool:
    return not s.model.is_encoder and not s.classifies


def _sft_on_chosen(s: Situation, _: str) -> bool:
    pairs = s.of_form("preference")
    return bool(pairs) and not s.model.talks and not s.of_form("conversation") and pairs[0].chosen_column is not None


def _has_reward(s: Situation) -> bool:
    asked = (*s.of_form("prompt"), *(s.of_form("conversation") if s.wants("verifiable") else ()))
    return s.wishes.reward is not None or any(d.answer_column for d in asked)


def _checks(s: Situation, _: str) -> bool:
    return _writes(s) and (bool(s.of_form("prompt")) or s.wants("verifiable"))


STEPS = (
    StepRule(
        "lm",
        ("text",),
        lambda s, method: not s.model.is_encoder and (not s.classifies or method == "ulmfit"),
        (
            "First the texts themselves: continued pre-training on a domain helped in 4 domains and 8 tasks.",
            "先学文本本身：在领域文本上继续预训练，在 4 个领域、8 个任务上都有帮助。",
        ),
        "Gururangan et al. 2020, arXiv:2004.10964",
    ),
    StepRule(
        "sft",
        ("conversation",),
        lambda s, _: _writes(s) and not (s.wants("verifiable") and s.model.talks and _has_reward(s)),
        (
            "The answers are learnt: supervised fine-tuning is the first of InstructGPT's 3 steps.",
            "学习回答：监督微调是 InstructGPT 三步中的第一步。",
        ),
        "Ouyang et al. 2022, arXiv:2203.02155",
    ),
    StepRule(
        "sft",
        ("preference",),
        _sft_on_chosen,
        (
            "The model was never tuned on instructions: it first learns the better answers, which is where DPO's "
            "reference (step 1 of 2) has to stand.",
            "模型没有经过指令微调：先学较好的回答，这正是 DPO 参考模型应处的位置（两步中的第 1 步）。",
        ),
        "Rafailov et al. 2023, arXiv:2305.18290",
        on_chosen=True,
    ),
    StepRule(
        "sft",
        (),
        lambda s, _: _writes(s) and {d.form for d in s.data} == {"text"} and not s.model.talks and bool(s.data),
        (
            "A model that has read the domain still has to learn to answer: some 1,000 good answers do.",
            "读过领域文本的模型还要学会回答：约 1,000 条好回答即可。",
        ),
        "Zhou et al. 2023, arXiv:2305.11206",
        (
            "rows of prompts and answers, given with a second --data",
            "问答数据，用第二个 --data 给出",
        ),
    ),
    StepRule(
        "classify",
        ("labelled",),
        lambda s, _: s.classifies,
        (
            "Labels are learnt by a head of classes, 1 pass for each row; nothing has to be written.",
            "标签由分类头学习，每行 1 次前向，不需要生成文本。",
        ),
        "Devlin et al. 2018, arXiv:1810.04805",
    ),
    StepRule(
        "regress",
        ("scored",),
        lambda s, _: s.classifies,
        ("The rows carry numbers: a head with 1 output learns them.", "数据带的是数值：由 1 个输出的头来学习。"),
        "Devlin et al. 2018, arXiv:1810.04805",
    ),
    StepRule(
        "dpo",
        ("preference",),
        lambda s, _: _writes(s),
        (
            "Pairs teach which of 2 answers is better, without a reward model and without sampling.",
            "成对数据直接教会 2 个回答哪个更好，无需奖励模型和采样。",
        ),
        "Rafailov et al. 2023, arXiv:2305.18290",
    ),
    StepRule(
        "kto",
        ("rated",),
        lambda s, _: _writes(s),
        (
            "Single ratings, 1 answer each: KTO learns from good and bad answers that are no pairs.",
            "单条评分，每次 1 个回答：KTO 从不成对的好坏回答中学习。",
        ),
        "Ethayarajh et al. 2024, arXiv:2402.01306",
    ),
    StepRule(
        "grpo",
        ("prompt", "conversation"),
        lambda s, _: _checks(s, _) and _has_reward(s),
        (
            "Answers can be checked: of several answers to a prompt the better ones become likelier (GSM8K 82.9 → 88.2 %).",
            "答案可以验证：同一提示的多个回答中，较好的会变得更可能（GSM8K 82.9 → 88.2 %）。",
        ),
        "Shao et al. 2024, arXiv:2402.03300",
    ),
    StepRule(
        "grpo",
        (),
        lambda s, _: _checks(s, _) and not _has_reward(s),
        (
            "Prompts without answers: 1 number for each of the model's own answers has to come from somewhere.",
            "只有提示、没有答案：模型每个回答的 1 个分数得有来源。",
        ),
        "Shao et al. 2024, arXiv:2402.03300",
        (
            "a reward: a column with the right answer, or --reward FILE.py:NAME",
            "奖励：一列正确答案，或 --reward FILE.py:NAME",
        ),
    ),
    StepRule(
        "dpo",
        (),
        lambda s, _: (
            _writes(s) and s.wants("alignment", "production") and not s.of_form(*_JUDGED) and not s.wants("verifiable")
        ),
        (
            "Then preferences: DPO comes after supervised fine-tuning, on pairs of the model's own answers.",
            "然后是偏好：在监督微调之后，用模型自己的回答对做 DPO（第 2 步）。",
        ),
        "Rafailov et al. 2023, arXiv:2305.18290",
        (
            "pairs of a better and a worse answer: luthier label runs/RUN --out pairs.jsonl (people), or luthier judge",
            "成对的好坏回答：luthier label runs/RUN --out pairs.jsonl（人工），或 luthier judge",
        ),
    ),
)


def line(s: Situation, method: str) -> tuple[Step, ...]:
    """Return the stages of a situation with a method, in order."""
    steps = []
    for rule in STEPS:
        files = s.of_form(*rule.forms)
        if rule.objective == "grpo" and rule.forms:
            files = s.of_form("prompt") or files
        if rule.holds(s, method) and (files or rule.missing is not None):
            steps.append(Step(rule.objective, files, rule.why, rule.source, rule.missing, rule.on_chosen))
    return tuple(steps)
