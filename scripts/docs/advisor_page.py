"""docs/advisor.md: how advice is used, and every rule that it is made of, from the records themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from luthier.advise.line import STEPS
from luthier.advise.myths import MYTHS
from luthier.advise.rules import RULES
from luthier.advise.rules.base import GROUPS, Rule, source_words

Language = Literal["en", "zh"]
HEAD = "<!-- Written by `python scripts/docs/write.py` from the rules; change the rules. -->\n"
_GROUPS_ZH = {
    "whole model": "整模型",
    "low rank": "低秩",
    "adapters": "适配器",
    "tiny": "极小",
    "soft prompts": "软提示",
    "deep prompts": "深层提示",
    "heads": "分类头",
}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")

_ENGLISH = """# The advisor

[简体中文](advisor.zh-CN.md)

`luthier advise` looks at a model's config.json, reads your rows, looks at the machine (or is told), and ranks every
method there is. Each place in the ranking is a sum of rules, each with a number and a source; the rules are all on this
page. Then it writes the recipes: a pilot of twenty steps, and the real run in stages.

```console
$ luthier advise
$ luthier advise --model starter --data starter:quickstart --purpose style --out advised
$ luthier advise --model Qwen/Qwen3-8B --data my.jsonl --gpu 24GB --purpose domain,alignment --private --json
```

In a terminal it asks for what it was not told: the model, the data, the purpose, and whether the data must stay where
they are. With `--json`, or without a terminal, it never asks; what it assumed stands in the answer.

```text
{dialogue}
```

## What it is told
| flag | what it says |
|---|---|
| `--model` | a folder, a hub id or `starter`. Only config.json is read. A hub model that is not on this machine is asked for its config.json; offline, its size is taken from its name, and that is said |
| `--data` | a file, a folder or `starter:NAME`; several times for several files. Rows, form, lengths, languages and repeated rows are read from it |
| `--rows` | how many rows there will be, where the file does not show it |
| `--gpu`, `--gpus`, `--cpu`, `--memory` | the machine: `24GB`, `4x80GB`; without them, this one is looked at |
| `--purpose` | style, domain, task, classification, alignment, tasks, domains, languages, verifiable, prototype, production; several with commas |
| `--private`, `--on-device` | the data stay with those who hold them; training runs on the users' devices |
| `--deadline` | `90min`, `6h`, `2d`: the recipe stops there |
| `--variants` | fine-tuned models to be served from one base |
| `--quality` | any, good, best |
| `--reward` | how answers are checked: `exact_match`, or `FILE.py:NAME` |
| `--general` | rows that must not be forgotten: they are watched during training |
| `--out`, `--force` | where the recipes go |

## What programs get
`choice` (method, stages, where, `runs_today`; null where nothing fits), `methods` (ranked: `verdict`, `points`, `fits`,
`peak_bytes`, `memory` by part, `trainable_parameters`, `hours`, `decisive`, `reasons`), `stages`, `notes`, `situation`
(what was seen), `assumed`, and `recipes` with their values and paths.

## How the ranking comes about
Every rule below that holds adds its points to the methods it names, or forbids them. The sums are sorted; equal sums stand
in a fixed order, the simpler and better known first, and are said to be equal. Memory comes from the planner's closed
forms, hours from operations and a card's usual speed, which is an estimate within a factor of two or so.

The framework of the field comes out of it: scarce memory gives QLoRA, then DPO where alignment is asked; a quick prototype
soft prompts; production LoRA in versions, then DPO; ample memory and over 100,000 good rows full fine-tuning on a mixture
of tasks; privacy federated training or training on devices. `tests/advise/situations.yaml` is a table of {cases}
situations with the first choice that is expected in each.

What Luthier cannot do yet is said beside the advice: it trains on one device, and has no federated rounds and no training
on phones. The recipe is then what runs today.

## The rules
Points for and against. Groups: {groups}.

{rules}

## What a method is worth where nothing else is known
{standing}

## Stages
{stages}

## Known mistakes
`luthier check` and `luthier train` name a known mistake once, as a note with its source. It never stops a run, and a
resumed run does not repeat it.

{myths}
"""

_CHINESE = """# 顾问

[English](advisor.md)

`luthier advise` 看模型的 config.json、读你的数据、查看（或被告知）机器，然后给所有方法排序。排序中的每个位置都是若干规则的分数之和，
每条规则都有数字和出处；全部规则都在本页。随后写出配方：二十步的试跑，以及分阶段的正式训练。

```console
$ luthier advise
$ luthier advise --model starter --data starter:quickstart --purpose style --out advised
$ luthier advise --model Qwen/Qwen3-8B --data my.jsonl --gpu 24GB --purpose domain,alignment --private --json
```

在终端里，没告诉它的它会问：模型、数据、用途，以及数据是否必须留在原处。带 `--json` 或没有终端时从不提问；它的假定都写在回答里。
输出语言由 `--lang zh` 或终端的语言决定。

```text
{dialogue}
```

## 告诉它什么
| 选项 | 含义 |
|---|---|
| `--model` | 文件夹、hub 名称或 `starter`。只读 config.json。本机没有的 hub 模型会去取它的 config.json；离线时按名称推断大小，并会说明 |
| `--data` | 文件、文件夹或 `starter:NAME`；多个文件就写多次。从中读出行数、形式、长度、语言和重复行 |
| `--rows` | 文件看不出时，将来会有多少行 |
| `--gpu`、`--gpus`、`--cpu`、`--memory` | 机器：`24GB`、`4x80GB`；不写则查看本机 |
| `--purpose` | style 风格、domain 领域知识、task 新任务、classification 分类、alignment 对齐、tasks 多任务、domains 多领域、languages 多语言、verifiable 可验证的答案、prototype 原型、production 生产；可用逗号写多个 |
| `--private`、`--on-device` | 数据留在持有者手中；在用户设备上训练 |
| `--deadline` | `90min`、`6h`、`2d`：配方到时停止 |
| `--variants` | 要从同一基座部署多少个微调模型 |
| `--quality` | any 随便、good 好、best 最好 |
| `--reward` | 如何检查答案：`exact_match` 或 `FILE.py:NAME` |
| `--general` | 不可遗忘的数据：训练中会监测 |
| `--out`、`--force` | 配方写到哪里 |

## 程序得到什么
`choice`（方法、阶段、地点、`runs_today`；都放不下时为 null），`methods`（已排序：`verdict`、`points`、`fits`、`peak_bytes`、
各部分的 `memory`、`trainable_parameters`、`hours`、`decisive`、`reasons`），`stages`，`notes`，`situation`（看到的情况），
`assumed`，以及带内容和路径的 `recipes`。

## 排序怎样得来
下面每条成立的规则给它点名的方法加减分，或将其排除。按总分排序；同分时按固定次序（更简单、更常用的在前），并说明同分。
内存来自规划器的闭式公式；小时数来自运算量和显卡的通常速度，是误差约两倍以内的估计。

领域通行的决策框架由此得出：内存紧张用 QLoRA，需要对齐时再做 DPO；快速原型用软提示；生产环境用分版本的 LoRA，再做 DPO；
资源充足且有超过 100,000 行好数据时做多任务混合的全量微调；隐私要求用联邦或端侧训练。`tests/advise/situations.yaml`
是一张 {cases} 种情形的表，写明每种情形预期的首选。

Luthier 还做不到的会写在建议旁边：目前在单设备上训练，没有联邦轮次，也没有手机端训练。此时配方就是现在能跑的方案。

## 规则
支持与反对的分数。分组：{groups}。

{rules}

## 其他一无所知时，一种方法值多少
{standing}

## 阶段
{stages}

## 已知的错误
`luthier check` 和 `luthier train` 会把已知错误连同出处作为提示说一次。它不会中止运行，续训时也不再重复。

{myths}
"""

DIALOGUE = {
    "en": """Which model? A folder, a hub id, or starter [starter]:
Which data? A file, a folder, starter:NAME, or Enter for none yet: starter:quickstart starter:preferences
   1  style           style or tone of answers
   …
  11  production      a model for production
What is it for? Numbers or words, with commas [task]: 11, alignment
Must the data stay with those who hold them? y or n [n]: n

First choice: lora (sft → dpo)
  +10    The usual choice: on par with full fine-tuning of GPT-3 with 10,000 times fewer trained parameters. (Hu et
         al. 2021, arXiv:2106.09685)
  +4     In production every version has to be kept and taken back: an adapter of 1.3 MiB a version against 6.1 MiB,
         merged at no cost in speed. (Hu et al. 2021, arXiv:2106.09685; luthier plan)""",
    "zh": """哪个模型？文件夹、hub 名称或 starter [starter]:
哪些数据？文件、文件夹、starter:NAME；还没有就直接回车: starter:quickstart starter:preferences
   1  style           回答的风格或语气
   …
  11  production      生产环境
用途是什么？编号或单词，用逗号分隔 [task]: 11, alignment
数据必须留在持有者手中吗？y 或 n [n]: n

首选: lora (sft → dpo)
  +10    通常的首选：在 GPT-3 上与全量微调相当，可训练参数少一万倍。 (Hu et al. 2021, arXiv:2106.09685)
  +4     生产环境要保存并能回退每个版本：每版适配器 1.3 MiB，整模型则是 6.1 MiB；合并后不影响速度。""",
}
_COLUMNS = {
    "rules": {"en": ("when", "points", "why", "source"), "zh": ("情形", "分数", "理由", "出处")},
    "standing": {
        "en": ("method", "points", "what was measured", "source"),
        "zh": ("方法", "分数", "测得的结果", "出处"),
    },
    "stages": {"en": ("stage", "why", "source"), "zh": ("阶段", "理由", "出处")},
    "myths": {"en": ("mistake", "what is known", "instead", "source"), "zh": ("错误", "已知的事实", "应当", "出处")},
}


def page(language: Language, cases: int) -> str:
    """Return the page; `cases` is how many situations the tests' table has."""
    pick = 0 if language == "en" else 1
    standing = [rule for rule in RULES if rule.name.startswith("standing")]
    others = [rule for rule in RULES if rule not in standing]
    parts = {
        "dialogue": DIALOGUE[language],
        "cases": str(cases),
        "groups": _groups(language),
        "rules": _table("rules", language, (_rule(rule, pick, language) for rule in others)),
        "standing": _table("standing", language, (_standing(rule, pick) for rule in standing)),
        "stages": _table(
            "stages", language, ((f"`{s.objective}`", _plain(s.why[pick]), _linked(s.source)) for s in STEPS)
        ),
        "myths": _table("myths", language, (_myth(myth, pick) for myth in MYTHS)),
    }
    text = HEAD + (_ENGLISH if language == "en" else _CHINESE)
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    return text


def _rule(rule: Rule, pick: int, language: Language) -> tuple[str, ...]:
    return rule.when[pick], _points(rule, language), _plain(rule.why[pick]), _linked(source_words(rule.source)[pick])


def _points(rule: Rule, language: Language) -> str:
    out = {"en": "out", "zh": "排除"}[language]
    everything = {"en": "all", "zh": "所有方法"}[language]
    words = {name: (name if language == "en" else _GROUPS_ZH.get(name, name)) for name in rule.points}
    if len(rule.points) > 15:
        first = next(iter(rule.points.values()))
        return f"{everything}: {out if rule.forbids else f'{first:+g}'}"
    return ", ".join(f"{words[name]} {out if rule.forbids else f'{points:+g}'}" for name, points in rule.points.items())


def _standing(rule: Rule, pick: int) -> tuple[str, ...]:
    (kind, points), *_ = rule.points.items()
    name = f"[`{kind}`](methods/{kind}{'' if pick == 0 else '.zh-CN'}.md)"
    return name, f"{points:g}", _plain(rule.why[pick]), _linked(rule.source)


def _myth(myth: object, pick: int) -> tuple[str, ...]:
    from luthier.advise.myths import Myth

    assert isinstance(myth, Myth)
    name = myth.name if pick == 0 else f"`{myth.key}`"
    return name, _plain(myth.says[pick]), _plain(myth.remedy[pick]), _linked(myth.source)


def _groups(language: Language) -> str:
    names = {name: (name if language == "en" else _GROUPS_ZH[name]) for name in GROUPS}
    return "; ".join(f"{names[name]} ({', '.join(kinds)})" for name, kinds in GROUPS.items())


def _plain(text: str) -> str:
    """Return a reason without its numbers' names: they are a situation's own."""
    return re.sub(r"\{\w+\}", "…", text).replace("|", "\\|")


def _linked(source: str) -> str:
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def _table(name: str, language: Language, rows: Iterable[tuple[str, ...]]) -> str:
    columns = _COLUMNS[name][language]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
