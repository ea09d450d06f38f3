"""Broken encodings: text of another code page, lost characters, leftovers of web pages, control characters."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow, shorten

# UTF-8 read as Windows-1252 or Latin-1: a lead byte shows as à Ã â …, followed by what a continuation byte shows as.
_CONTINUATIONS = "".join(bytes([b]).decode("cp1252", errors="replace") for b in range(0x80, 0xC0)).replace("\ufffd", "")
_LATIN = re.compile(f"[\u00c2-\u00f4][\u0080-\u00bf{_CONTINUATIONS}]")
# GBK read as UTF-8 and back, and UTF-8 read as GBK.
_CHINESE = re.compile("锟斤拷|烫烫烫|屯屯屯|锘|鈥[檚淨擾渰橈]|涓[€\ue000-\uf8ff]|浣犲ソ|鐨勪|鏄剧")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0081\u008d\u008f\u0090\u009d]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#39|#x27);")
_ESCAPED = re.compile(r"\\u[0-9a-fA-F]{4}\\u[0-9a-fA-F]{4}")
_MARKUP = re.compile(r"</?(?:div|span|br|p|td|tr|table|font|li|ul)\b[^>]{0,80}>", re.IGNORECASE)
_CODE = re.compile(r"html|markup|xml|web ?page|tag|网页|标签|```|css", re.IGNORECASE)


class Encoding(RowCheck):
    """Look for characters that no author wrote."""

    title = "broken encodings"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        text = row.text
        if "\ufffd" in text:
            at = text.index("\ufffd")
            what = f"Lost characters (\ufffd): “{shorten(text[max(0, at - 20) : at + 20])}”."
            yield row.found("encoding", what, "read the file in its own encoding and write it again as UTF-8")
        broken = self._mojibake(text)
        if broken:
            what = f"Text that was read in a wrong encoding: “{shorten(broken)}”."
            yield row.found("encoding", what, "read the file in its own encoding again; `ftfy` repairs such text")
        control = _CONTROL.search(text)
        if control:
            what = f"A control character (U+{ord(control.group()):04X}) in the text."
            yield row.found("encoding", what, "take it out")
        if _ESCAPED.search(text) and not _CODE.search(text):
            yield row.found("encoding", "Characters stand as \\u escapes.", "decode them when the file is written")
        if not _CODE.search(text) and (len(_ENTITY.findall(text)) >= 2 or len(_MARKUP.findall(text)) >= 2):
            found = _ENTITY.search(text) or _MARKUP.search(text)
            assert found is not None
            what = f"Leftovers of a web page: “{found.group()}” and more."
            yield row.found("markup", what, "convert it to plain text")

    def _mojibake(self, text: str) -> str:
        """Return a piece that is text of another encoding, or nothing."""
        chinese = _CHINESE.search(text)
        if chinese:
            return text[max(0, chinese.start() - 10) : chinese.end() + 10]
        pairs = list(_LATIN.finditer(text))
        if not pairs:
            return ""
        first = pairs[0]
        back = any(_reads_back(text[first.start() : first.start() + size]) for size in (2, 3, 4))
        back = back or (len(pairs) >= 3 and first.group()[0] in "ÃÂâ")
        return text[max(0, first.start() - 10) : first.end() + 20] if back else ""


def _reads_back(piece: str) -> bool:
    """Return whether a piece, written in Windows-1252 again, is one character of UTF-8."""
    try:
        return len(piece.encode("cp1252").decode("utf-8")) == 1
    except (UnicodeEncodeError, UnicodeDecodeError):
        return False
