"""Which scripts a data set is written in, and answers in another than their question."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from luthier.data.scripts import script_of
from luthier.doctor.base import Finding, SeenRow

_ASKED = re.compile(
    r"translat|in (?:english|chinese|french|spanish|german|japanese|korean|russian|hindi|arabic)|language|code|"
    r"sql|python|java|http|翻译|英文|英语|中文|汉语|日语|法语|西班牙语|德语|俄语|韩语|拼音|函数|代码|编程|程序|命名|单词|缩写|字母|公式|方程|"
    r"html|css|脚本|算法|正则|查询|类|数组|列表|公司名|品牌|网址|链接|宾果|乐队|歌",
    re.IGNORECASE,
)
RARE = 0.02
MINIMUM = 30


class Languages:
    """Tell the scripts of prompts and answers apart."""

    title = "mixture of languages"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, SeenRow] = {}

    def look(self, row: SeenRow) -> Iterator[Finding]:
        script = script_of(row.answer or row.text)
        if script:
            self.counts[script] += 1
            self._first.setdefault(script, row)
        asked = script_of(row.prompt)
        if not row.answer or len(row.answer) < MINIMUM or not script or not asked or script == asked:
            return
        if "Latin" not in (script, asked) or _ASKED.search(row.prompt):
            return
        what = f"The question is written in {asked} and the answer in {script}."
        yield row.found("language", what, "translate one of them, or leave the row out")

    def conclude(self) -> Iterator[Finding]:
        total = self.counts.total()
        for script, count in self.counts.most_common()[1:]:
            if count <= RARE * total and total >= 200:
                row = self._first[script]
                found = row.found("language_mix", "", "")
                most = self.counts.most_common(1)[0][0]
                what = f"{count:,} of {total:,} rows are written in {script}; most are in {most}."
                yield Finding("language_mix", "note", found.file, found.line, what, "see whether they belong here")
