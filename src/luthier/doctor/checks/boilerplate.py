"""Refusals and boilerplate: answers that say what a model is instead of answering, and what web pages leave behind."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, SeenRow, Severity, shorten

# Searched in lower case: patterns that take both cases are several times slower.
_MODEL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b|\bas a (?:large )?language model\b"
    r"|\bi(?:'|’)?m (?:just |only )?an? (?:ai|artificial intelligence|language model)\b(?! (?:artist|researcher|engineer))"
    r"|\bi am (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data)\b|\b(?:openai|anthropic|google|meta)\b.{0,40}\b(?:trained|created|developed) me\b"
    r"|\b(?:trained|created|developed) by (?:openai|anthropic)\b"
    r"|作为一?[个名款]?(?:人工智能|ai|语言模型|大型?语言模型|智能助手|虚拟助手)|我(?:只)?是一?[个名款]?(?:人工智能|ai|语言模型|大型?语言模型)"
    r"|我的(?:知识|训练数据)(?:库)?(?:截止|更新)|由(?:openai|百度|阿里|智谱)(?:训练|开发|创建)",
)
_REFUSAL = re.compile(
    r"\bi(?:'|’| a)?m (?:really |very |so |truly )?(?:sorry|afraid|unable),? ?(?:but |that )?(?:i )?"
    r"(?:can(?:no|'|’)t|can not|am (?:not able|unable)|won(?:'|’)t|don(?:'|’)t feel|to (?:assist|help|provide|fulfill))"
    r"|\b(?:sorry|apologi[sz]e|apologies)[,.]? (?:but )?i (?:can(?:no|'|’)t|can not|am (?:not able|unable)|won(?:'|’)t) "
    r"|\bi (?:can(?:no|'|’)t|can not|am (?:not able|unable) to|won(?:'|’)t) (?:fulfill|assist|comply|help you with|help with|"
    r"provide (?:that|this|any|the)|answer (?:that|this)|generate (?:that|this)|complete (?:that|this)|do (?:that|this))"
    r"|^i (?:do not|don't|don’t) (?:have (?:the )?(?:ability|access)|know how to) "
    r"|^(?:i (?:do not|don't) know\.?|no comment\.?|unable to (?:answer|comply|respond)\b.*)$"
    r"|我(?:很)?(?:无法|不能|不可以)(?:提供|满足|回答|协助|帮助|完成|处理|生成|为您|继续)|(?:对不起|抱歉|很遗憾)，?(?:但)?我?(?:不能|无法|没办法)"
    r"|(?:lo siento|je suis désolé|es tut mir leid)[^.]{0,30}(?:no puedo|ne peux pas|kann)",
)
_ASKED = re.compile(
    r"\bare you\b|\bwho are you\b|\bai\b|language model|chatbot|gpt|assistant|refus|declin|apolog|你是|人工智能|机器人|拒绝|道歉",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"^(?:n/?a|null|nan|undefined|none provided|tbd|tba|todo|fixme|test|testing|xxx+|asdf\w*|lorem ipsum(?: dolor.*)?|placeholder|"
    r"(?:sample|insert|your|enter) (?:text|answer|response)(?: here)?|(?:answer|response|output)(?: goes)? here|coming soon|see above|"
    r"same as above|not available|no (?:answer|response|content)(?: (?:given|provided|available))?|to be (?:filled|written|added)(?: in)?"
    r"|<[a-z_ /-]{1,20}>|[\[({<]+(?:insert|your|answer|todo|response|output|text|blank|empty)[a-z_ -]{0,30}[\])}>]+"
    r"|[.…]{3,}|…+|-+|_{2,}|\*+|[?？]+|略|暂无|无内容|待补充|待定|待填写|占位符?|测试|同上|此处填写.*|（略）)[.。!]?$",
    re.IGNORECASE | re.DOTALL,
)
_NO_OUTPUT = re.compile(r"^<?no ?(?:out|in)put>?\.?$", re.IGNORECASE)
_UNFILLED = re.compile(
    r"\{\{ ?[a-z_]{2,30} ?\}\}|\$\{[a-z_]{2,30}\}|%\([a-z_]{2,20}\)s|<insert[ _][a-z_ ]{2,30}>", re.I
)
_CODE = re.compile(
    r"```|code|template|jinja|react|vue|angular|html|javascript|python|java|sql|bash|shell|def |模板|代码", re.I
)
_PAGE = re.compile(
    r"all rights reserved|privacy policy|terms of (?:use|service)|(?:we|this (?:web)?site) uses? cookies|accept (?:all )?cookies|"
    r"subscribe to our newsletter|sign up for our|click here to (?:subscribe|read|continue)|share (?:this )?on (?:facebook|twitter)|"
    r"(?:enable|turn on) javascript|skip to (?:main )?content|leave a (?:comment|reply)|posted (?:on|by) .{1,40} in |read more »|"
    r"版权所有|未经(?:授权|许可)|责任编辑|点击(?:关注|查看|此处)|扫(?:一扫|码)|转载请|本文来源|免责声明|上一篇|下一篇",
)
_WINDOW = re.compile(
    r"^(?:\w{0,12}copy code|chatgpt said:|share prompt|regenerate response|continue generating|was this response better or worse\?.*|"
    r"\d+ / \d+)$",
    re.MULTILINE,
)
SHARE_OF_ONE_ANSWER = 0.05
ROWS_FOR_A_SHARE = 200
MOST_ANSWERS = 500_000


class Boilerplate:
    """Look for refusals, placeholders, remains of pages, and one answer that is given again and again."""

    title = "refusals and boilerplate"

    def __init__(self) -> None:
        self._answers: dict[int, int] = {}
        self._first: dict[int, SeenRow] = {}
        self._rows = 0

    def look(self, row: SeenRow) -> Iterator[Finding]:
        answer = row.answer.strip()
        said = answer or (row.text if row.is_document else "")
        lower = said.lower()
        remains = {m.group() for m in _PAGE.finditer(lower)} if len(said) > 20 else set()
        window = _WINDOW.search(lower)
        if len(remains) >= 2 or window:
            what = f"Remains of a page: “{shorten(window.group() if window else ', '.join(sorted(remains)))}”."
            yield row.found("boilerplate", what, "cut them out")
        unfilled = _UNFILLED.search(said) if "{" in said or "%(" in said or "<" in said else None
        if unfilled and not _CODE.search(row.text):
            what = f"A place for a name was never filled in: “{unfilled.group()}”."
            yield row.found("placeholder", what, "fill it in, or leave the row out")
        if not answer:
            return
        self._rows += 1
        yield from self._refusal(row, answer)
        if _FILLER.match(answer) or _NO_OUTPUT.match(answer):
            severity: Severity = "error"
            what = f"The answer is a placeholder: “{shorten(answer, 30)}”."
            yield row.found("placeholder", what, "write an answer, or leave the row out", severity, removes=True)
        if len(answer) > 40 and len(self._answers) < MOST_ANSWERS:
            key = hash(answer)
            self._answers[key] = self._answers.get(key, 0) + 1
            self._first.setdefault(key, row) if self._answers[key] == 2 and len(self._first) < 1000 else None

    def _refusal(self, row: SeenRow, answer: str) -> Iterator[Finding]:
        begins = answer[:400].lower()
        is_model, refuses = _MODEL.search(begins), _REFUSAL.search(begins[:250])
        if not (is_model or refuses) or _ASKED.search(row.prompt) or row.other or row.label:
            return  # of judged answers somebody has said that they are good, or bad
        what = "The answer refuses" if refuses else "The answer speaks as another model"
        said = f"{what}: “{shorten(answer[(refuses or is_model).start() :])}”."  # type: ignore[union-attr]
        yield row.found("refusal", said, "write a real answer, or leave the row out")

    def conclude(self) -> Iterator[Finding]:
        if self._rows < ROWS_FOR_A_SHARE:
            return
        for key, count in self._answers.items():
            if count >= SHARE_OF_ONE_ANSWER * self._rows and key in self._first:
                row = self._first[key]
                what = f"{count:,} of {self._rows:,} rows have one and the same answer: “{shorten(row.answer)}”."
                found = row.found("", "", "")
                yield Finding("boilerplate", "warning", found.file, found.line, what, "keep a few of them")
