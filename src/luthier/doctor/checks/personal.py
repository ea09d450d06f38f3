"""Personal data: addresses and numbers that belong to people, by their form and, where there is one, their checksum."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from datetime import date

from luthier.doctor.base import Finding, RowCheck, SeenRow

_DIGIT = re.compile(r"\d")
# ASCII throughout: a Chinese character beside a number is no part of it.
_MAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,10}(?![\w-])", re.ASCII)
_SPELLED_MAIL = re.compile(
    r"(?<![\w.])[A-Za-z0-9][\w.+-]{1,63} ?(?:\(at\)|\[at\]|\{at\}| AT ) ?[A-Za-z0-9-]+"
    r"(?: ?(?:\(dot\)|\[dot\]|\{dot\}| DOT |\.) ?[A-Za-z]{2,10})+\b",
    re.ASCII,
)
# In one piece, in groups of four, or as American Express writes them; always with the same sign between.
_CARD = re.compile(
    r"(?<![\d.,-])(?:\d{13,19}|\d{4}([ .-])\d{4}\1\d{4}\1\d{1,7}(?:\1\d{3})?|\d{4}([ .-])\d{6}\2\d{5})(?![\d-]|[.,]\d)",
    re.ASCII,
)
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}[ .-]\d{4}"
    r"|(?:1-)?\d{3}([-.])\d{3}\1\d{4}|(?<!\d )\d{3} \d{3} \d{4}(?! \d)|0\d{2,3}[ -]\d{3,4}[ -]?\d{4}(?: \d{2})?"
    r"|0[1-9](?:[ .]\d{2}){4}|07\d{3} \d{6}|\((?:0\d{1,4})\) ?\d{3,4}[ -]?\d{3,4})(?![\w-]|[.,]\d)",
    re.ASCII,
)
_MOBILE_CN = re.compile(r"(?<![\d.])(?:\+?86[ -]?)?1[3-9]\d([ -]?)\d{4}\1\d{4}(?!\d|\.\d)", re.ASCII)
_ID_CN = re.compile(r"(?<![\dA-Za-z])[1-8]\d{5}[ -]?(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])[ -]?\d{3}[\dXx]"
                    r"(?![\dA-Za-z])", re.ASCII)  # fmt: skip
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII)
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?![A-Z0-9])", re.ASCII)
_SAID = re.compile(
    r"(?:(?:wechat|微信|qq|薇信)(?: ?id)?号?(?:码)?|passport(?: no\.?| number)?|护照(?:号码?)?|车牌号?)\s*(?:是|为|is|[:：#])\s*"
    r"(?=[\w-]*\d)[A-Za-z0-9_\u4e00-\u9fff-]{5,20}",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bhf_[A-Za-z0-9]{30,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY"
)
# Made up for examples by everyone who writes examples.
_EXAMPLES = re.compile(
    r"(?:^|[@.])(?:example|test|email|domain|company|yourdomain|mail)\.|@(?:example|xyz|abc)\b|555[-. ]?\d{4}|555[-. )]"
    r"|^(\d)\1+$|123[-. ]?456|^(?:4111|5555|4242|3782)|(\d)\2{6}",
    re.IGNORECASE,
)
# What a bare row of digits is called where it is no number of arithmetic.
_ABOUT_NUMBERS = re.compile(
    r"card|visa|credit|debit|phone|mobile|\bcell\b|\btel|call|contact|whatsapp|\bfax|卡|手机|电话|联系|号码|微信|身份证|[\u4e00-\u9fff]",
    re.IGNORECASE,
)
_WEIGHTS_CN = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_PROVINCES = frozenset((*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83))  # fmt: skip
_LENGTHS = {"2": (16,), "3": (14, 15, 16), "4": (13, 16, 19), "5": (16,), "6": (16, 17, 18, 19)}
FEWEST_DIGITS = 7


class Personal(RowCheck):
    """Look for mail addresses, phone, card, account and identity numbers, and keys of services."""

    title = "personal data"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        text = row.text
        if not text.isascii():  # ０１２ and ＠ are digits and signs as well
            text = unicodedata.normalize("NFKC", text)
        for what, value in self._values(text):
            message = f"It holds what looks like {what}: {_masked(value)}."
            if _EXAMPLES.search(value) or (value.isdecimal() and not _ABOUT_NUMBERS.search(text)):
                remedy = "see whether it is a person's; if so, replace it or leave the row out"
                yield row.found("personal_data", message, remedy, "note")
            else:
                yield row.found("personal_data", message, "replace it by a made-up one, or leave the row out")

    def _values(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield each kind with the first value of it; one that looks made up only where no other is there."""
        found: list[tuple[str, str]] = []
        if "@" in text:
            found.append(("a mail address", _first(_MAIL, text)))
        if ("at)" in text or "at]" in text or "at}" in text or " AT " in text) and not found:
            found.append(("a mail address", _first(_SPELLED_MAIL, text)))
        if len(_DIGIT.findall(text)) >= FEWEST_DIGITS:
            card = _first(_CARD, text, lambda s: is_card(s) and not is_chinese_id(s))
            found += [
                ("an identity number (China)", _first(_ID_CN, text, is_chinese_id)),
                ("a card number", card),
                ("a mobile number (China)", _first(_MOBILE_CN, text)),
                ("a phone number", "" if card else _first(_PHONE, text, is_phone)),
                ("a social security number (US)", _first(_SSN, text)),
                ("an account number (IBAN)", _first(_IBAN, text, is_iban)),
            ]
        if "-" in text or "_" in text or "AKIA" in text:
            found.append(("the key of a service", _first(_KEY, text)))
        if ":" in text or "是" in text or "为" in text or " is " in text:
            found.append(("the name or number of an account", _first(_SAID, text)))
        yield from ((what, value) for what, value in found if value)


def _first(pattern: re.Pattern[str], text: str, is_real: Callable[[str], bool] | None = None) -> str:
    made_up = ""
    for match in pattern.finditer(text):
        value = match.group().strip(" -")
        if is_real is not None and not is_real(value):
            continue
        if not _EXAMPLES.search(value):
            return value
        made_up = made_up or value
    return made_up


def _masked(value: str) -> str:
    """Return a value with its middle hidden, so that a report does not spread what it warns of."""
    keep = max(2, len(value) // 5)
    return value[:keep] + "…" + value[-2:]


def is_card(value: str) -> bool:
    """Return whether digits are a card number: a known first digit with its lengths, and Luhn's checksum."""
    digits = [int(c) for c in value if c.isdigit()]
    if len(digits) not in _LENGTHS.get(str(digits[0]), ()) or len(set(digits)) < 2:
        return False
    doubled = (d if i % 2 else 2 * d - 9 * (d > 4) for i, d in enumerate(reversed(digits), start=1))
    return sum(doubled) % 10 == 0


def is_chinese_id(value: str) -> bool:
    """Return whether a number begins with a province, holds a day, and ends with its checksum (GB 11643)."""
    flat = re.sub(r"[ -]", "", value)
    if len(flat) != 18 or not flat[:17].isdecimal() or int(flat[:2]) not in _PROVINCES:
        return False
    try:
        date(int(flat[6:10]), int(flat[10:12]), int(flat[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(flat, _WEIGHTS_CN))
    return "10X98765432"[total % 11] == flat[-1].upper()


def is_phone(value: str) -> bool:
    """Return whether a number has as many digits as phone numbers have, and is not all of one or in sequence."""
    digits = re.sub(r"\D", "", value)
    return 8 <= len(digits) <= 13 and len(set(digits)) >= 3


def is_iban(value: str) -> bool:
    """Return whether the number leaves the rest 1 modulo 97 (ISO 13616)."""
    flat = value.replace(" ", "")
    turned = flat[4:] + flat[:4]
    return 15 <= len(flat) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1
