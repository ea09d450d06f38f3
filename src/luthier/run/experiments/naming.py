"""What a cell of an experiment is called: short, readable, and fit for a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from luthier.run.numbers import setting

_SHORT = {"learning_rate": "lr", "batch_size": "batch", "data.limit": "rows", "max_length": "length"}


def cell_name(variant: str, grid: Mapping[str, object]) -> str:
    """Return the name of a cell: its variant's, and what the grid chose."""
    return (
        "-".join(part for part in (variant, *(word_for(key, value) for key, value in grid.items())) if part) or "base"
    )


def word_for(key: str, value: object) -> str:
    """Return a key's value as a word: a component's is its kind, a number's has the key before it."""
    short = _SHORT.get(key, key.rpartition(".")[2])
    if isinstance(value, Mapping):
        kind = value.get("kind") or value.get("path")
        rest = [word_for(str(k), v) for k, v in value.items() if k not in ("kind", "path")]
        return "-".join([_folder_word(kind) if kind else short, *rest])
    if isinstance(value, list):
        return f"{short}_{'+'.join(_plain(item) for item in value)}"
    if isinstance(value, str) and key in ("method", "objective", "optimizer", "schedule", "on_overlong", "dtype"):
        return _folder_word(value)
    return f"{short}_{_plain(value)}"


def model_name(model: object) -> str:
    """Return the last part of a model's path."""
    path = model.get("path") if isinstance(model, Mapping) else model
    return PurePath(str(path)).name


def _plain(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return setting(value).replace("−", "-")
    if isinstance(value, Mapping):
        return word_for("", value)
    return _folder_word(value)


def _folder_word(value: object) -> str:
    """Return a text without what a folder's name cannot hold; of a path its last part."""
    text = PurePath(str(value)).name or str(value)
    return re.sub(r"[^\w.+,=-]+", "_", text)[:60]
