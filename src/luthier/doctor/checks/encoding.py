"""Broken encodings: text of another code page, lost characters, leftovers of web pages, control characters.

Text that was read in a wrong encoding is found by reading it back: what decodes cleanly in the other direction, or
shows letters that no language puts side by side, was written by no one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow, shorten

# UTF-8 read as Windows-1252 or Latin-1: a lead byte shows as à Ã â …, followed by what a continuation byte shows as.
_CONTINUATIONS = "".join(bytes([b]).decode("cp1252", errors="replace") for b in range(0x80, 0xC0)).replace("\ufffd", "")
_LATIN = re.compile(f"[\u00c2-\u00f4][\u0080-\u00bf{_CONTINUATIONS}]")
# GBK read as UTF-8 and back, and UTF-8 read as GBK.
_CHINESE = re.compile("锟斤拷|烫烫烫|屯屯屯|锘|鈥[檚淨擾渰橈]|涓[€\ue000-\uf8ff]|浣犲ソ|鐨勪|鏄剧")
_WIDE_RUN = re.compile("[\u4e00-\u9fff€\ue000-\uf8ff]{4,}")
_CHINESE_LETTER = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
# A code page of Asia or Russia read as Latin-1: no language has so many of these in a row.
_CROWDED = re.compile("[\u00a1-\u00ff]{5,}")
_SHIFT_JIS = re.compile("(?:[\u201a\u0192\u0081][^\\s\\w,.][\u201a\u0192\u0081]?|[\u201a\u0192\u0081]\\w){4,}")
# Signs of trade and law inside words: Big5 and others, whose second byte may be a plain letter.
_SIGNS_IN_WORDS = re.compile("[A-Za-z\u00c0-\u00ff][¢£¤¥¦¨ª¬¯´¶¸¹¼¾§][A-Za-z\u00a1-\u00ff]")
_TURNED_CASE = re.compile("(?<![\u0400-\u04ff])[\u0430-\u044f][\u0410-\u042f]{2,}(?![\u0400-\u04ff])")
_CYRILLIC = re.compile("[\u0400-\u04ff]{3,}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u0084\u0086-\u009f]")
_UNSEEN = re.compile("(?<=[^\\W\\d_])[\u200b\ufeff\u00ad\u2060](?=[^\\W\\d_])|[\ue000-\uf8ff]")
_ENTITY = re.compile(r"&(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,5});", re.IGNORECASE)
_ESCAPED = re.compile(r"\\u[0-9a-fA-F]{4}\\u[0-9a-fA-F]{4}|(?:\\x[0-9a-fA-F]{2}){2,}")
_LINE_ESCAPE = re.compile(r"(?<=[\w.,:;!?。，：])\\r?\\?n(?=[A-Z0-9\u4e00-\u9fff*\\-]|\s)")
_PERCENT = re.compile(r"(?:%[0-9A-F]{2}){3,}")
_ASKING = re.compile(r"\?[?\s]{2,}\?")
_MARKUP = re.compile(r"</?(?:div|span|br|p|td|tr|table|font|li|ul|strong|em|h[1-6]|img|script)\b[^>]{0,80}>", re.I)
_CODE = re.compile(
    r"html|markup|xml|web ?page|tag|网页|标签|```|css|javascript|regex|encod|unicode|escape|url|编码|转义|jsx|svg|latex|"
    r"string|def |print|import |function |\\frac|\\begin|code",
    re.IGNORECASE,
)
AGAIN = "read the file in its own encoding again; `ftfy` repairs such text"


class Encoding(RowCheck):
    """Look for characters that no author wrote."""

    title = "broken encodings"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        text = row.text
        is_code: bool | None = None
        if not text.isascii():
            yield from self._beyond_ascii(row, text)
        control = _CONTROL.search(text)
        if control:
            what = f"A control character (U+{ord(control.group()):04X}) in the text."
            yield row.found("encoding", what, "take it out")
        if "\\" in text or "%" in text:
            is_code = bool(_CODE.search(text))
            kind = None if is_code else self._escapes(text)
            if kind:
                yield row.found("encoding", f"Characters stand as {kind}.", "decode them when the file is written")
        if text.count("?") >= 6 and self._is_asking(text):
            what = f"Letters were lost and stand as question marks: “{shorten(text.strip())}”."
            yield row.found("encoding", what, "read the file in its own encoding and write it again as UTF-8")
        if ("&" in text or "<" in text) and not (is_code if is_code is not None else _CODE.search(text)):
            entities, tags = _ENTITY.findall(text), _MARKUP.findall(text)
            if len(entities) >= 2 or len(tags) >= 2:
                found = _ENTITY.search(text) or _MARKUP.search(text)
                assert found is not None
                what = f"Leftovers of a web page: “{found.group()}” and more."
                yield row.found("markup", what, "convert it to plain text")

    def _beyond_ascii(self, row: SeenRow, text: str) -> Iterator[Finding]:
        if "\ufffd" in text:
            at = text.index("\ufffd")
            what = f"Lost characters (\ufffd): “{shorten(text[max(0, at - 20) : at + 20])}”."
            yield row.found("encoding", what, "read the file in its own encoding and write it again as UTF-8")
        broken = _mojibake(text)
        if broken:
            what = f"Text that was read in a wrong encoding: “{shorten(broken)}”."
            yield row.found("encoding", what, AGAIN)
        unseen = _UNSEEN.findall(text)
        if len(unseen) >= 2:
            what = (
                f"{len(unseen)} characters that nobody sees (U+{ord(unseen[0]):04X} and the like) stand inside words."
            )
            yield row.found("encoding", what, "take them out")

    def _escapes(self, text: str) -> str:
        """Return as what characters are escaped, or nothing."""
        if _ESCAPED.search(text):
            return r"\u or \x escapes"
        if len(_LINE_ESCAPE.findall(text)) >= 2:
            return r"escapes: line breaks are written \n"
        if _PERCENT.search(text) and "http" not in text and "www." not in text:
            return "escapes of web addresses (%E4%BD%A0)"
        return ""

    def _is_asking(self, text: str) -> bool:
        """Return whether whole words are question marks."""
        return any(
            len(run.group().replace(" ", "")) >= 6 and (" " in run.group() or text.count("?") > 0.3 * len(text))
            for run in _ASKING.finditer(text)
        )


def _mojibake(text: str) -> str:
    """Return a piece that is text of another encoding, or nothing."""
    found = _CHINESE.search(text) or _wide(text) or _crowded(text) or _SHIFT_JIS.search(text)
    if found is None and len(signs := list(_SIGNS_IN_WORDS.finditer(text))) >= 3:
        found = signs[0]
    if found is None and len(turned := _TURNED_CASE.findall(text)) >= 2:
        words = _CYRILLIC.findall(text)
        found = _TURNED_CASE.search(text) if len(turned) >= 0.5 * len(words) else None
    if found is not None:
        return text[max(0, found.start() - 10) : found.end() + 10]
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


def _wide(text: str) -> re.Match[str] | None:
    """Return a run of Chinese characters whose GBK bytes are UTF-8; those of real Chinese hardly ever are."""
    for run in _WIDE_RUN.finditer(text, 0, 2000):
        raw = run.group().encode("gbk", errors="ignore")
        back = raw.decode("utf-8", errors="ignore")
        # Two bytes may be a letter of Greek or Cyrillic by chance; what counts are the three of a Chinese character.
        if 3 * len(_CHINESE_LETTER.findall(back)) >= 0.7 * len(raw) and len(raw) >= 8:
            return run
    return None


def _crowded(text: str) -> re.Match[str] | None:
    """Return a run of accented letters and signs such as no language has."""
    for run in _CROWDED.finditer(text):
        if len(set(run.group())) >= 4 and sum(c.isalpha() for c in run.group()) >= 3:
            return run
    return None
