"""Which languages a data set is written in, and answers in another than their question.

Scripts are told apart by their letters; of the Latin ones the language by its function words, and only where a text
has enough of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from luthier.data.scripts import SCRIPTS, script_of
from luthier.doctor.base import Finding, SeenRow

_FUNCTION_WORDS = {
    "English": "the of and to in is that it for was on are with as his they be at this have from or by not but what all "
    "were we when your can there an which their if do will how about these would them then its into has you my",
    "French": "le la les des et est une dans que qui pour pas sur au avec ce il elle nous vous sont mais plus par du aux "
    "cette ses être ont comme leur tout fait c'est d'une qu'il l'on",
    "German": "der die das und ist nicht ein eine zu den mit sich des auf für im dem von sie wird auch es an werden aus "
    "er hat dass wie bei oder zum nach sind einer einem einen durch kann",
    "Spanish": "el la los las de y que en es un una por con para se del al lo como más pero sus le ha su son está también "
    "fue este muy porque entre cuando todo hay desde",
    "Portuguese": "o os as e de que em um uma do da dos das para com não por mais se no na como mas foi ao ele seu sua ou "
    "quando muito nos já também são está você",
    "Italian": "il lo gli di e che è un una non con sono del della dei nel alla si più anche ma ha questo "
    "essere dal delle nella ci suo sua cui tra",
    "Dutch": "de het een en van ik dat die in te is niet op aan met voor zijn er maar om hem dan zou of wat mijn dit zo "
    "door over naar worden ook wordt bij",
    "Swedish": "och att det som en på är av för med den till inte om ett han men var jag sig från vi så kan de har hade "
    "ska du skulle alla",
    "Polish": "na się nie że jest jak tak od przez ale czy jego dla są był tym może przy już oraz które jako",
    "Turkish": "ve bir bu için ile de da çok olarak daha gibi olan ne kadar ama ya en sonra var değil her olduğu",
    "Vietnamese": "và của là có được trong cho không một người với các để những khi này đã từ về như ra tôi cũng",
    "Indonesian": "yang dan di dengan untuk dari ini itu tidak ke pada adalah dalam akan juga atau oleh sebagai dapat",
}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_BY_WORD: dict[str, tuple[str, ...]] = {}
for _name, _words in _FUNCTION_WORDS.items():
    for _each in _words.split():
        _BY_WORD[_each] = (*_BY_WORD.get(_each, ()), _name)
_ASKED = re.compile(
    r"translat|in (?:english|chinese|french|spanish|german|japanese|korean|russian|hindi|arabic|italian|portuguese|dutch|"
    r"latin)|language|code|sql|python|java|http|lyric|song|quote|script|name|title|"
    r"翻译|英文|英语|中文|汉语|日语|法语|西班牙语|德语|俄语|韩语|拼音|函数|代码|编程|程序|命名|单词|缩写|字母|公式|方程|"
    r"html|css|脚本|算法|正则|查询|类|数组|列表|公司名|品牌|网址|链接|宾果|乐队|歌|句子|段落|文本|文章|语法|改写|重写|编辑|"
    r"traduc|traduz|tradu|übersetz|auf (?:englisch|deutsch)|en (?:anglais|français|inglés|español)",
    re.IGNORECASE,
)
RARE = 0.02
MINIMUM = 30
FEWEST_WORDS = 4
LEAD = 2.0


class Languages:
    """Tell the languages of prompts and answers apart."""

    title = "mixture of languages"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, SeenRow] = {}

    def look(self, row: SeenRow) -> Iterator[Finding]:
        said = language_of(row.answer or row.text)
        if said:
            self.counts[said] += 1
            self._first.setdefault(said, row)
        if (
            not row.answer
            or len(row.answer) < (8 if said in ("Chinese", "Japanese", "Korean") else MINIMUM)
            or not said
        ):
            return
        asked_text = _last_question(row)
        asked = language_of(asked_text)
        if asked == "Latin" and said in _FUNCTION_WORDS:
            asked = _likeliest(asked_text)
        if not asked or said == asked or _ASKED.search(row.prompt[:2000]):
            return
        if "Latin" in (said, asked) and {said, asked} & _FUNCTION_WORDS.keys():
            return  # of one of them it is not known which it is
        # What the answer quotes or works on may stand in the prompt in its own language.
        mixes = script_of(asked_text) != script_of(row.answer) and _share(asked_text, row.answer) > 0.1
        if (
            mixes
            or _has_also(row.prompt, said)
            or ({said, asked} <= {"Chinese", "Japanese"} and len(row.answer) < MINIMUM)
        ):
            return
        what = f"The question is written in {asked} and the answer in {said}."
        yield row.found("language", what, "translate one of them, or leave the row out")

    def conclude(self) -> Iterator[Finding]:
        total = self.counts.total()
        for name, count in self.counts.most_common()[1:]:
            if count <= RARE * total and total >= 200:
                row = self._first[name]
                found = row.found("language_mix", "", "")
                most = self.counts.most_common(1)[0][0]
                verb = "row is" if count == 1 else "rows are"
                what = f"{count:,} of {total:,} {verb} written in {name}; most are in {most}."
                yield Finding("language_mix", "note", found.file, found.line, what, "see whether they belong here")


def _last_question(row: SeenRow) -> str:
    """Return the last turn of the user's; the whole prompt where it is short, since an input may stand behind it."""
    return next((m.content for m in reversed(row.turns) if m.role == "user"), row.prompt)


def _likeliest(question: str) -> str:
    """Return the language that a short question has most function words of, two at the least."""
    hits = _hits(question).most_common(2)
    clear = bool(hits) and hits[0][1] >= 2 and (len(hits) == 1 or hits[0][1] >= LEAD * hits[1][1])
    return hits[0][0] if clear else "Latin"


def _share(asked: str, answer: str) -> float:
    """Return how much of an answer is in the script of the question."""
    pattern = SCRIPTS.get(script_of(asked))
    return len(pattern.findall(answer[:2000])) / max(len(answer[:2000]), 1) if pattern is not None else 0.0


def _has_also(prompt: str, name: str) -> bool:
    """Return whether a prompt holds some text of a language too."""
    if name in SCRIPTS and name != "Latin":
        return len(SCRIPTS[name].findall(prompt[:2000])) >= 3
    if len(SCRIPTS["Latin"].findall(prompt[:2000])) >= 12 and script_of(prompt) != "Latin":
        return True
    hits = _hits(prompt)
    return (
        bool(hits)
        and hits.get(name, 0) >= 4
        and script_of(prompt) == "Latin"
        and hits[name] >= 0.5 * max(hits.values())
    )


def language_of(text: str) -> str:
    """Return the language of a text by its script and, for Latin letters, its function words.

    Empty where there is too little text, "Latin" where the letters are and the language is not to be told.
    """
    script = script_of(text)
    if script != "Latin":
        return script
    hits = _hits(text)
    if not hits:
        return "Latin"
    (first, most), *rest = hits.most_common(2)
    second = rest[0][1] if rest else 0
    return first if most >= FEWEST_WORDS and most >= LEAD * second else "Latin" if most < FEWEST_WORDS else ""


def _hits(text: str) -> Counter[str]:
    """Count the different function words of each language in the beginning of a text."""
    hits: Counter[str] = Counter()
    for word in set(_WORD.findall(text[:1000].lower())):
        for name in _BY_WORD.get(word, ()):
            hits[name] += 1
    return hits
