"""The language of what a verb prints: what was asked for, else what the terminal speaks."""

from __future__ import annotations

import os
from typing import Literal

Language = Literal["en", "zh"]


def language_of(asked: Language | None) -> Language:
    """Return the language asked for; without one Chinese where the locale is Chinese, English everywhere else."""
    if asked is not None:
        return asked
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return "zh" if locale.startswith("zh") else "en"
