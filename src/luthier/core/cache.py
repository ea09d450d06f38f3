"""The user's cache folder: what can be computed again, kept for later runs.

`LUTHIER_CACHE` names another folder, or says `off`. Without it: `$XDG_CACHE_HOME/luthier`, else `~/.cache/luthier`.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LUTHIER_CACHE"


def cache_folder() -> Path | None:
    """Return the folder, which may not be there yet; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE, "").strip()
    if named.lower() in ("off", "0", "none"):
        return None
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "luthier"


def folder_bytes(folder: Path) -> int:
    """Return the size of what lies in a folder; what vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
