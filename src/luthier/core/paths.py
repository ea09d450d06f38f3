"""Where a relative path leads: one rule for models, data and templates.

A path in a recipe is looked up in the recipe's folder, then in the working directory, so that a recipe and its data can
be moved together and called from anywhere. A path typed on the command line is looked up the other way round.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path


def locate(path: str, folders: Sequence[Path]) -> Path:
    """Return an absolute path as it is, any other in the first of the folders that holds it, else in the first one.

    A folder holds a pattern such as `data/*.jsonl` when something in it matches.
    """
    wanted = Path(path).expanduser()
    places = [folder / wanted for folder in folders] or [wanted]
    return next((place for place in places if _is_there(place)), places[0])


def _is_there(place: Path) -> bool:
    try:
        if place.exists():
            return True
    except OSError:  # a name too long for the file system, or one with a NUL in it, is nowhere
        return False
    pattern = str(place)
    return glob.has_magic(pattern) and next(glob.iglob(pattern, recursive=True), None) is not None
