"""What the class of a method or an objective says about itself: a card for the terminal, for JSON, for the manual.

A card has nothing that the class does not say, so a new method's page is written by writing the method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from luthier.core.component import Component, component_class, kinds
from luthier.core.errors import Problem, RecipeError, did_you_mean
from luthier.methods.base import Method
from luthier.objectives.base import Objective
from luthier.run.numbers import setting

COMMAND = "python -m luthier.cli.methods --write docs/methods"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class FieldCard:
    """One hyper-parameter: its default as a recipe writes it, the values it takes, and what it does."""

    name: str
    default: str
    values: str
    advice: str


@dataclass(frozen=True)
class Card:
    """A component in words. Fields that an objective does not have are empty."""

    kind: str
    family: str
    title: str
    summary: str
    principle: str
    equation: str
    paper: str
    moves: str
    typical_share: str
    cost: str
    when: str
    when_not: str
    learning_rate: float | None
    fields: tuple[FieldCard, ...]
    example: str

    def as_dict(self) -> dict[str, object]:
        """Return the card for `--json`, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def cards(family: str, language: str = "en") -> list[Card]:
    """Return the cards of a family ("method" or "objective"), by kind."""
    return [card_of(family, kind, language) for kind in kinds(family)]


def find_card(kind: str, language: str = "en") -> Card:
    """Return the card of a method or, failing that, of an objective.

    Raises:
        RecipeError: neither has that name.
    """
    for family in ("method", "objective"):
        if kind in kinds(family):
            return card_of(family, kind, language)
    choices = [*kinds("method"), *kinds("objective")]
    raise RecipeError(
        Problem(
            f'There is no method "{kind}".{did_you_mean(kind, choices)}', remedy=f"choose one of: {', '.join(choices)}"
        )
    )


def card_of(family: str, kind: str, language: str = "en") -> Card:
    """Return one card; what a class has no Chinese for stays English."""
    component = component_class(family, kind)
    assert issubclass(component, Method | Objective)
    translated = component.zh if language == "zh" else {}
    english = {"title": component.title, "summary": component.summary, "paper": component.paper, **_about(component)}
    said = {key: translated.get(key, text) for key, text in english.items()}
    if language == "zh":
        said["typical_share"] = said["typical_share"].replace(" to ", "–")
    return Card(
        kind=kind,
        family=family,
        **said,
        cost=_cost(component, language),
        learning_rate=component.default_learning_rate if issubclass(component, Method) else None,
        fields=_fields(component, language, translated),
        example=_example(component, kind),
    )


def _about(component: type[Method | Objective]) -> dict[str, str]:
    """Return what a component says beyond its title; what only methods have is empty for an objective."""
    is_method = issubclass(component, Method)
    return {
        "principle": component.principle if is_method else "",
        "equation": component.equation,
        "moves": component.moves if is_method else "",
        "typical_share": component.typical_share if is_method else "",
        "when": component.when,
        "when_not": component.when_not,
    }


def _cost(component: type[Component], language: str) -> str:
    """Return the memory that AdamW in float32 needs; what is frozen has neither gradient nor moments."""
    if not issubclass(component, Method):
        return ""
    frozen = [f"{count:g}" for count in component.frozen_bytes] if component.freezes_most else []
    if language == "zh":
        trained = "每个可训练参数 16 字节（权重、梯度、两个动量）"
        return f"{trained}，每个冻结参数 {' 或 '.join(frozen)} 字节" if frozen else trained
    trained = "16 bytes for each trained parameter (weight, gradient, two moments)"
    return f"{trained}, {' or '.join(frozen)} for each frozen one" if frozen else trained


# ---------------------------------------------------------------------- hyper-parameters


def _fields(component: type[Component], language: str, translated: Mapping[str, str]) -> tuple[FieldCard, ...]:
    properties = component.model_json_schema().get("properties", {})
    return tuple(
        FieldCard(
            name=name,
            default=_TYPES[language]["required"]
            if component.model_fields[name].is_required()
            else _recipe_value(component.model_fields[name].get_default(call_default_factory=True)),
            values=_values(properties[name], _TYPES[language]),
            advice=" ".join(translated.get(name, component.model_fields[name].description or "").split()),
        )
        for name in component.model_fields
        if name != "kind"
    )


_TYPES = {
    "en": {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "array": "list",
        "mapping": "mapping",
        "or": " or ",
        "required": "required",
    },
    "zh": {
        "integer": "整数",
        "number": "数",
        "boolean": "true 或 false",
        "string": "文本",
        "array": "列表",
        "mapping": "映射",
        "or": "或",
        "required": "必填",
    },
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _values(schema: Mapping[str, object], words: Mapping[str, str]) -> str:
    """Return the values a field takes, as people write them: `whole number ≥ 1`, `text or list`."""
    choices, fixed = schema.get("anyOf"), schema.get("enum")
    if isinstance(choices, list):
        parts = [_values(choice, words) for choice in choices if choice.get("type") != "null"]
        return words["or"].join(dict.fromkeys(parts))
    if isinstance(fixed, list):
        return ", ".join(str(value) for value in fixed)
    if "$ref" in schema:
        return words["mapping"]
    limits = [f"{sign} {_recipe_value(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([words.get(str(schema.get("type")), ""), ", ".join(limits)]).strip()


def _recipe_value(value: object) -> str:
    """Return a value as YAML writes it in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_recipe_value(v) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {_recipe_value(v)}' for k, v in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _example(component: type[Method | Objective], kind: str) -> str:
    """Return a recipe that trains the starter with a component."""
    is_method = issubclass(component, Method)
    chosen = component.example
    inner = ", ".join([f"kind: {kind}", *(f"{k}: {_recipe_value(v)}" for k, v in chosen.items())])
    objective = component.example_objective if is_method else kind
    written = "{" + inner + "}" if chosen else kind
    lines = {
        "model": "starter",
        "method": written if is_method else "lora",
        **({"objective": objective if is_method else written} if objective != "sft" or not is_method else {}),
        "data": _data_for(objective),
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _data_for(objective: str) -> str:
    chosen = component_class("objective", objective)
    assert issubclass(chosen, Objective)
    return chosen.example_data


# ---------------------------------------------------------------------- pages of the manual

_ENGLISH = {
    "other": "[简体中文]({kind}.zh-CN.md)",
    "moves": "What moves",
    "typical_share": "Typical share of the parameters",
    "cost": "Memory",
    "learning_rate": "Default learning rate",
    "paper": "Paper",
    "principle": "Principle",
    "equation": "Equation",
    "when": "When to use it",
    "when_not": "When not",
    "fields": "Hyper-parameters",
    "none": "None.",
    "header": "| key | default | values | what it does |",
    "example": "A recipe",
    "objectives": "Objectives",
    "objectives_lead": "Towards what a model is trained. One word of the recipe: `objective: dpo`. "
    "What rows look like for each: [data](data.md). How a vLLM server writes the answers of `grpo`, `rloo` and `ppo`: "
    "[vllm](vllm.md).",
    "index": "Methods",
    "index_lead": "What is trained. To change the method, change one word of the recipe: `method: lora`.",
    "index_header": "| method | what moves | share | when |",
}
_CHINESE = {
    "other": "[English]({kind}.md)",
    "moves": "训练什么",
    "typical_share": "参数占比（通常）",
    "cost": "内存",
    "learning_rate": "默认学习率",
    "paper": "论文",
    "principle": "原理",
    "equation": "公式",
    "when": "何时使用",
    "when_not": "何时不用",
    "fields": "超参数",
    "none": "无。",
    "header": "| 键 | 默认值 | 取值 | 作用 |",
    "example": "配方示例",
    "objectives": "训练目标",
    "objectives_lead": "朝什么方向训练。配方中的一个词：`objective: dpo`。每种目标需要的数据格式见 [data](data.md)。"
    "如何让 vLLM 服务器为 `grpo`、`rloo`、`ppo` 写回答：[vllm](vllm.zh-CN.md)。",
    "index": "微调方法",
    "index_lead": "训练什么。要换方法，只需改配方中的一个词：`method: lora`。",
    "index_header": "| 方法 | 训练什么 | 占比 | 何时使用 |",
}


def pages() -> dict[str, str]:
    """Return the pages of all methods and their index, by file name, in English and Chinese."""
    found = {}
    for language, ending, words in (("en", ".md", _ENGLISH), ("zh", ".zh-CN.md", _CHINESE)):
        all_cards = cards("method", language)
        found[f"README{ending}"] = _index(all_cards, ending, words)
        found |= {f"{card.kind}{ending}": markdown(card, words) for card in all_cards}
    return found


def markdown(card: Card, words: Mapping[str, str]) -> str:
    """Return a card as a page."""
    rate = setting(card.learning_rate) if card.learning_rate is not None else ""
    table = {"moves": card.moves, "typical_share": card.typical_share, "cost": card.cost, "learning_rate": rate}
    table["paper"] = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", card.paper)
    lines = [f"<!-- Written by `{COMMAND}` from the class; change the class. -->", f"# {card.title}", ""]
    lines += [
        f"`method: {card.kind}` · {words['other'].format(kind=card.kind)}",
        "",
        card.summary,
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {words[key]} | {_cell(value)} |" for key, value in table.items()]
    lines += ["", f"## {words['principle']}", card.principle, "", "```text", card.equation, "```"]
    for key, text in (("when", card.when), ("when_not", card.when_not)):
        lines += ["", f"## {words[key]}", text]
    lines += ["", f"## {words['fields']}"]
    if card.fields:
        lines += [words["header"], "|---|---|---|---|"]
        lines += [f"| `{f.name}` | `{f.default}` | {_cell(f.values)} | {_cell(f.advice)} |" for f in card.fields]
    else:
        lines += [words["none"]]
    lines += ["", f"## {words['example']}", "```yaml", card.example.rstrip(), "```", ""]
    return "\n".join(lines)


def objectives_page(language: str) -> str:
    """Return the page of all objectives, in English ("en") or Chinese ("zh")."""
    words = _ENGLISH if language == "en" else _CHINESE
    command = "python scripts/docs/write.py"
    lines = [f"<!-- Written by `{command}` from the classes; change the classes. -->", f"# {words['objectives']}", ""]
    lines += [words["other"].format(kind="objectives"), "", words["objectives_lead"], ""]
    for card in cards("objective", language):
        lines += [f"## {card.title}: `{card.kind}`", card.summary, ""]
        if card.paper:
            lines += [_ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", card.paper), ""]
        if card.equation:
            lines += ["```text", card.equation, "```", ""]
        lines += [f"- {words[key]}: {text}" for key, text in (("when", card.when), ("when_not", card.when_not)) if text]
        lines += [""] if card.when else []
        if card.fields:
            lines += [words["header"], "|---|---|---|---|"]
            lines += [f"| `{f.name}` | `{f.default}` | {_cell(f.values)} | {_cell(f.advice)} |" for f in card.fields]
            lines += [""]
        lines += ["```yaml", card.example.rstrip(), "```", ""]
    return "\n".join(lines)


def _index(all_cards: list[Card], ending: str, words: Mapping[str, str]) -> str:
    rows = [
        f"| [{c.title}]({c.kind}{ending}) `{c.kind}` | {_cell(c.moves)} | {c.typical_share} | {_cell(c.when)} |"
        for c in all_cards
    ]
    head = [f"<!-- Written by `{COMMAND}`. -->", f"# {words['index']}", "", words["other"].format(kind="README"), ""]
    return "\n".join([*head, words["index_lead"], "", words["index_header"], "|---|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
