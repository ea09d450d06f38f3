"""Numbers as people read them: on the report page and in the terminal alike."""

from __future__ import annotations

import math
from collections.abc import Callable

Text = Callable[[float], str]
# From where, divided by what: 999,999 would round to "1000 k", so it belongs to the next magnitude.
_MAGNITUDES = ((999.5e9, 1e12, "T"), (999.5e6, 1e9, "B"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k"))
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def number(value: float, digits: int = 4) -> str:
    """Return a measured value with `digits` significant digits, in scientific form where zeros would hide it."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return _minus(f"{mantissa}e{int(exponent)}")
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return _minus(f"{value:,.{decimals}f}")


def setting(value: float) -> str:
    """Return a number that somebody chose, as they would write it: `0.001`, `2e-4`."""
    text = number(value)
    return text if "e" in text or "." not in text else text.rstrip("0").rstrip(".")


def count(value: float) -> str:
    """Return a number of things: exact below 10,000, then in k, M, B, T with three digits."""
    for start, size, letter in _MAGNITUDES:
        if abs(value) >= start:
            return f"{_three_digits(value / size)} {letter}"
    return _minus(f"{value:,.0f}")


def byte_size(value: float) -> str:
    """Return a size in binary units, e.g. `1.42 GiB`."""
    unit = 0
    while abs(value) >= 1023.5 and unit < len(_BYTES) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {_BYTES[unit]}"


def duration(seconds: float) -> str:
    """Return a span of time in its two leading units, e.g. `2 h 14 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def percent(share: float) -> str:
    """Return a share (0.0032) as a percentage (`0.32%`), keeping two digits of what is small."""
    value = share * 100
    if value == 0 or abs(value) >= 99.95:
        return _minus(f"{value:.0f}%")
    decimals = 1 if abs(value) >= 1 else min(6, 1 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:.{decimals}f}%")


def change(before: float, after: float) -> str:
    """Return the relative change with its sign, e.g. `−24%`; empty where it has no meaning."""
    if before == 0 or not (math.isfinite(before) and math.isfinite(after)):
        return ""
    ratio = (after - before) / abs(before) * 100
    text = f"{ratio:+.1f}" if abs(ratio) < 10 else f"{ratio:+,.0f}"
    return _minus(f"{text}%")


def _three_digits(value: float) -> str:
    return _minus(f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}")


def _minus(text: str) -> str:
    return text.replace("-", "−") if "e-" not in text else text
