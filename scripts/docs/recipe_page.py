"""The reference of recipes, in English and Chinese, from the JSON schema that editors use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from luthier.cli.cards import cards
from luthier.cli.new import _SECTIONS as SECTIONS
from luthier.core.component import kinds
from luthier.evaluate.tasks.base import Task
from luthier.methods.base import Method
from luthier.objectives.base import Objective
from luthier.regularizers.base import Regularizer
from luthier.run.schema import FAMILIES, recipe_schema

COMMAND = "python scripts/docs/write.py"
PARTS = {
    "model": "ModelSpec",
    "data": "DataSpec",
    "data[]": "DataSet",
    "mix": "Mix",
    "curriculum": "Curriculum",
    "evaluate": "EvalTask",
    "forgetting": "Forgetting",
    "gate": "Gate",
}
_HOMES = {"regularizer": "regularizers", "task": "evaluate"}
"""Families that stand in a recipe as a list, with its key."""
_REF = "#/$defs/"
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_LARGE = 2**31
"""Bounds above this only say that a number fits into 32 bits."""

Schema = Mapping[str, object]


@dataclass(frozen=True)
class Words:
    """One language of the page. `types` says what stands for a value; `sections` are in the order of the recipe."""

    title: str
    other: str
    lead: str
    header: str
    sections: tuple[str, ...]
    parts: Mapping[str, str]
    component: str
    none: str
    more: str
    methods: str
    types: Mapping[str, str]
    either: str
    required: str


ENGLISH = Words(
    title="The recipe, key by key",
    other="[简体中文](recipe.zh-CN.md)",
    lead="A recipe is a YAML or JSON file. Only `model`, `method` and `data` have to be given. Any key can be changed "
    "on the command line: `luthier train recipe.yaml max_steps=20 method.rank=4`. `luthier new` writes a recipe "
    "in which all of this stands as comments; `luthier check --json-schema` prints the schema for editors.",
    header="| key | values | default | what it does |",
    sections=tuple(SECTIONS),
    parts={
        "model": "`model` in its long form",
        "data": "`data` and `eval_data` in their long form",
        "data[]": "One of several data sets",
        "mix": "`mix`",
        "curriculum": "`curriculum` in its long form",
        "evaluate": "A task of `evaluate`",
        "forgetting": "`forgetting` in its long form",
        "gate": "A condition of `gate`",
    },
    component="`{family}: {{kind: {kind}}}`",
    none="No settings.",
    more="Each method has a page with its keys: [methods](methods/README.md).",
    methods="| method | what it does |",
    types={
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "array": "list",
        "object": "mapping",
        "component": "{kinds}; or a mapping with `kind`",
        "part": "text, or a mapping with `path`",
        "Curriculum": "text, or a mapping with `by`, `column`, `start`, `over`, `pace`",
        "Mix": "a mapping with `temperature`, `max_examples`",
        "EvalTask": "mappings with `name`, `data`, `metric`",
        "Task": "mappings with `kind`, YAML files, `lm_eval:NAME`",
        "Reward": "a reward",
        "Forgetting": "text, a list, or a mapping with `data`",
        "GeneralSet": "texts, or mappings with `path`",
        "Gate": "mappings with `task`",
        "Upcycle": "a mapping with `experts`, `top_k`, `noise`, `seed`",
        "Join": "a mapping with `runs`, `top_k`, `seed`",
    },
    either=" or ",
    required="required",
)
CHINESE = Words(
    title="配方：逐键说明",
    other="[English](recipe.md)",
    lead="配方是一个 YAML 或 JSON 文件，只有 `model`、`method`、`data` 必须写。任何键都可以在命令行上改："
    "`luthier train recipe.yaml max_steps=20 method.rank=4`。`luthier new` 会写出一份把这些说明都放进注释的配方；"
    "`luthier check --json-schema` 打印供编辑器使用的 schema。",
    header="| 键 | 取值 | 默认值 | 作用 |",
    sections=("训练什么、目标、数据", "序列长度", "多久、多快", "测量什么", "保存什么", "怎样计算"),
    parts={
        "model": "`model` 的长写法",
        "data": "`data` 与 `eval_data` 的长写法",
        "data[]": "多个数据集中的一个",
        "mix": "`mix`",
        "curriculum": "`curriculum` 的长写法",
        "evaluate": "`evaluate` 中的一项任务",
        "forgetting": "`forgetting` 的长写法",
        "gate": "`gate` 中的一个条件",
    },
    component="`{family}: {{kind: {kind}}}`",
    none="没有可设的项。",
    more="每种方法各有一页，列出它的键：[微调方法](methods/README.zh-CN.md)。",
    methods="| 方法 | 作用 |",
    types={
        "integer": "整数",
        "number": "数",
        "boolean": "true、false",
        "string": "文本",
        "array": "列表",
        "object": "映射",
        "component": "{kinds}；或带 `kind` 的映射",
        "part": "文本，或带 `path` 的映射",
        "Curriculum": "文本，或带 `by`、`column`、`start`、`over`、`pace` 的映射",
        "Mix": "带 `temperature`、`max_examples` 的映射",
        "EvalTask": "带 `name`、`data`、`metric` 的映射",
        "Task": "带 `kind` 的映射、YAML 文件、`lm_eval:名称`",
        "Reward": "一种奖励",
        "Forgetting": "文本、列表，或带 `data` 的映射",
        "GeneralSet": "文本，或带 `path` 的映射",
        "Gate": "带 `task` 的映射",
        "Upcycle": "带 `experts`、`top_k`、`noise`、`seed` 的映射",
        "Join": "带 `runs`、`top_k`、`seed` 的映射",
    },
    either=" 或 ",
    required="必填",
)


def chinese_texts() -> dict[str, dict[str, str]]:
    """Return what each key does, in Chinese, by part of the recipe; components that know Chinese say it themselves."""
    texts = yaml.safe_load(Path(__file__).with_name("recipe_zh.yaml").read_text(encoding="utf-8"))
    for family in ("method", "objective", "regularizer", "task"):
        for kind, component in kinds(family).items():
            assert issubclass(component, Method | Objective | Regularizer | Task)
            known = {**Task.zh, **component.zh} if issubclass(component, Task) else component.zh
            said = {name: known[name] for name in component.model_fields if name in known}
            texts |= {f"{family}.{kind}": said} if said else {}
    return texts


def described() -> dict[str, dict[str, Schema]]:
    """Return every key of a recipe with its schema, by part: recipe, model, data, evaluate, method.lora, …"""
    schema = recipe_schema()
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    found = {"recipe": schema["properties"]}
    for part, name in PARTS.items():
        whole = definitions[name]
        found[part] = (whole["anyOf"][1] if "anyOf" in whole else whole)["properties"]
    shared = found["data"]  # what one of several sets takes as well stands in the table before
    found["data[]"] = {name: field for name, field in found["data[]"].items() if name not in shared}  # type: ignore[operator]
    for family in (*FAMILIES, "task"):
        for kind in kinds(family):
            fields = definitions[f"{family}.{kind}"]["properties"]
            found[f"{family}.{kind}"] = {name: field for name, field in fields.items() if name != "kind"}
    return found  # type: ignore[return-value]


def page(words: Words, texts: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return the page in one language; without `texts` the descriptions of the schema are used."""
    parts = described()
    lines = [f"<!-- Written by `{COMMAND}`. -->", f"# {words.title}", "", words.other, "", words.lead]
    for title, keys in zip(words.sections, SECTIONS.values()):
        lines += ["", f"## {title}", *_table("recipe", {key: parts["recipe"][key] for key in keys}, words, texts)]
    for part, title in words.parts.items():
        lines += ["", f"## {title}", *_table(part, parts[part], words, texts)]
    for family in (*FAMILIES, "task"):
        lines += ["", f"## `{_HOMES.get(family, family)}`"]
        if family == "method":
            lines += [words.more, "", *_methods(words)]
            continue
        for kind in kinds(family):
            component = words.component.format(family=family, kind=kind)
            # A recipe has a list of them.
            component = f"`{_HOMES[family]}: [{{kind: {kind}}}]`" if family in _HOMES else component
            lines += ["", f"### {component}"]
            lines += _table(f"{family}.{kind}", parts[f"{family}.{kind}"], words, texts)
    return "\n".join(lines) + "\n"


def _methods(words: Words) -> list[str]:
    """Return the list of methods; each has a page of its own with its keys."""
    language, ending = ("zh", ".zh-CN.md") if words is CHINESE else ("en", ".md")
    rows = [f"| [`{card.kind}`](methods/{card.kind}{ending}) | {card.summary} |" for card in cards("method", language)]
    return [words.methods, "|---|---|", *rows]


def _table(
    part: str, fields: Mapping[str, Schema], words: Words, texts: Mapping[str, Mapping[str, str]] | None
) -> list[str]:
    if not fields:
        return [words.none]
    lines = [words.header, "|---|---|---|---|"]
    for key, schema in fields.items():
        text = texts[part][key] if texts is not None else str(schema.get("description", ""))
        default = f"`{_plain(schema['default'])}`" if "default" in schema else words.required
        cells = (f"`{key}`", _values(schema, words), default, " ".join(text.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _values(schema: Schema, words: Words) -> str:
    """Return the values that a key takes, as people write them: `whole number ≥ 1`."""
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix(_REF)
        if name in FAMILIES:
            return words.types["component"].format(kinds=", ".join(f"`{kind}`" for kind in kinds(name)))
        return words.types.get(name, words.types["part"])
    if "const" in schema:
        return f"`{schema['const']}`"
    fixed, choices, items = schema.get("enum"), schema.get("anyOf", schema.get("oneOf")), schema.get("items")
    if isinstance(fixed, list):
        return ", ".join(f"`{value}`" for value in fixed)
    if isinstance(choices, list):
        return words.either.join(dict.fromkeys(_values(c, words) for c in choices if c.get("type") != "null"))
    kind = words.types[str(schema["type"])]
    if isinstance(items, Mapping):
        return f"{kind}: {_values(items, words)}" if items else kind
    limits = [f"{sign} {_plain(b)}" for key, sign in _BOUNDS.items() if (b := _bound(schema, key)) is not None]
    return " ".join([kind, ", ".join(limits)]).strip()


def _bound(schema: Schema, key: str) -> float | None:
    value = schema.get(key)
    return value if isinstance(value, (int, float)) and abs(value) < _LARGE else None


def _plain(value: object) -> str:
    """Return a value as YAML writes it in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
