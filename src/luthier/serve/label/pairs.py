"""Pairs to be compared: made once, kept beside what is written, and the same after every restart."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier.core.errors import Problem, RunError
from luthier.core.rundir import write_atomic


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        id: a hash of what it says.
        given: the columns of the prompt as they are written out.
        prompt: the same as text, for the page.
        a, b: the answers.
    """

    id: str
    given: Mapping[str, object]
    prompt: str
    a: str
    b: str


def make_pair(given: Mapping[str, object], prompt: str, a: str, b: str) -> Pair:
    """Return a pair with its id."""
    content = json.dumps([given, a, b], ensure_ascii=False, sort_keys=True, default=str)
    return Pair(hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16], given, prompt, a, b)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the pairs, once and for all."""
    write_atomic(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs that were made before.

    Raises:
        RunError: the file was changed by hand into something else.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            found.append(Pair(**json.loads(line)))
        except (ValueError, TypeError) as error:
            what = f"This line is no pair of answers ({type(error).__name__})."
            raise RunError(Problem(what, f"{path}:{number}", "put the file back, or choose another --out")) from error
    return found


def order_for(annotator: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs in the order in which an annotator sees them: the same at every visit, another for everyone."""
    ordered = list(pairs)
    random.Random(f"order {annotator}").shuffle(ordered)
    return ordered


def is_swapped(annotator: str, pair: Pair) -> bool:
    """Return whether an annotator sees b on the left."""
    return random.Random(f"side {annotator} {pair.id}").random() < 0.5
