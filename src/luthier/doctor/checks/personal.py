"""Personal data: addresses and numbers that belong to people, by their form and, where there is one, their checksum."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow

_DIGIT = re.compile(r"\d")
_MAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,10}(?![\w-])")
_CARD = re.compile(r"(?<![\d.,])(?:\d[ -]?){13,19}(?![\d])")
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}[ .-]\d{4}"
    r"|\d{3}[-.]\d{3}[-.]\d{4})(?![\w-])"
)
_MOBILE_CN = re.compile(r"(?<!\d)(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)")
_ID_CN = re.compile(
    r"(?<![\dA-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?![A-Z0-9])")
# Made up for examples by everyone who writes examples.
_EXAMPLES = re.compile(
    r"(?:^|[@.])(?:example|test|email|domain|company|yourdomain|mail)\.|@(?:example|xyz|abc)\b|555[-. ]?\d{4}"
    r"|^(\d)\1+$|123[-. ]?456",
    re.IGNORECASE,
)
_WEIGHTS_CN = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


class Personal(RowCheck):
    """Look for mail addresses, phone, card, account and identity numbers."""

    title = "personal data"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        text = row.text
        found = {}
        if "@" in text:
            found["a mail address"] = self._first(_MAIL, text)
        if len(_DIGIT.findall(text)) >= 9:
            found["an identity number (China)"] = self._first(_ID_CN, text, is_chinese_id)
            found["a card number"] = self._first(_CARD, text, lambda s: is_card(s) and not _ID_CN.search(s))
            found["a mobile number (China)"] = self._first(_MOBILE_CN, text)
            found["a phone number"] = self._first(_PHONE, text)
            found["a social security number (US)"] = self._first(_SSN, text)
            found["an account number (IBAN)"] = self._first(_IBAN, text, is_iban)
        for what, value in found.items():
            if value:
                message = f"It holds what looks like {what}: {_masked(value)}."
                yield row.found("personal_data", message, "replace it by a made-up one, or leave the row out")

    def _first(self, pattern: re.Pattern[str], text: str, is_real: object = None) -> str:
        for match in pattern.finditer(text):
            value = match.group().strip(" -")
            if _EXAMPLES.search(value):
                continue
            if is_real is None or is_real(value):  # type: ignore[operator]
                return value
        return ""


def _masked(value: str) -> str:
    """Return a value with its middle hidden, so that a report does not spread what it warns of."""
    keep = max(2, len(value) // 5)
    return value[:keep] + "…" + value[-2:]


def is_card(value: str) -> bool:
    """Return whether digits are a card number: 13 to 19 of them, a known first digit, and Luhn's checksum."""
    digits = [int(c) for c in value if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 4:
        return False
    doubled = (d if i % 2 else 2 * d - 9 * (d > 4) for i, d in enumerate(reversed(digits), start=1))
    return sum(doubled) % 10 == 0


def is_chinese_id(value: str) -> bool:
    """Return whether the last digit is the checksum of the others (GB 11643)."""
    total = sum(int(digit) * weight for digit, weight in zip(value, _WEIGHTS_CN))
    return "10X98765432"[total % 11] == value[-1].upper()


def is_iban(value: str) -> bool:
    """Return whether the number leaves the rest 1 modulo 97 (ISO 13616)."""
    flat = value.replace(" ", "")
    turned = flat[4:] + flat[:4]
    return 15 <= len(flat) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1
