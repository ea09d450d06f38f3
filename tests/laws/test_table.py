"""The table of the manual: which method ran through the laws on which family, and why where it did not.

Written anew by: WRITE_LAWS_TABLE=1 python -m pytest tests/laws/test_table.py
"""

from __future__ import annotations

import os
from pathlib import Path

from laws import test_methods, test_methods_classify
from luthier.core.component import kinds
from luthier.methods.base import Method

README = Path(__file__).parents[2] / "docs" / "methods" / "README.md"
BEGIN, END = "<!-- laws -->", "<!-- /laws -->"
NAMES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gpt2": "GPT-2",
    "mixtral": "Mixtral",
    "bert": "BERT",
}


def laws_table() -> str:
    """Return the table as Markdown, with the reasons below it."""
    reasons: list[str] = []

    def note(reason: str) -> str:
        if reason not in reasons:
            reasons.append(reason)
        return f"[{reasons.index(reason) + 1}]"

    language = [(f, test_methods.refusals) for f in test_methods.CORE]
    classes = [(f, test_methods_classify.refusals) for f in test_methods_classify.FAMILIES]
    head = [*(NAMES[f] for f, _ in language), *(f"{NAMES[f]} classifier" for f, _ in classes)]
    lines = [
        f"| method | {' | '.join(head)} | equals the base before step 1 | merges |",
        "|---" * (len(head) + 3) + "|",
    ]
    for kind, component in kinds("method").items():
        assert issubclass(component, Method)
        cells = []
        for family, refusals in [*language, *classes]:
            found = refusals(kind, family)
            cells.append("".join(note(r) for r in found) if found else "✓")
        starts = note(component.differs_at_start) if component.differs_at_start else "✓"
        merges = note(component.unmergeable) if component.unmergeable else "✓"
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {starts} | {merges} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes])


def block() -> str:
    lead = (
        "Each ✓ is a run of the suite `tests/laws`: step 0, only declared tensors move, save and load, merge, "
        "closed-form counts, packed = padded. A number is the reason why there is none."
    )
    return f"{BEGIN}\n## What holds on which family\n{lead}\n\n{laws_table()}\n{END}\n"


def test_the_table_of_the_manual_is_what_the_suite_runs() -> None:
    text = README.read_text(encoding="utf-8")
    kept, _, _ = text.partition(BEGIN)
    if os.environ.get("WRITE_LAWS_TABLE"):
        README.write_text(kept + block(), encoding="utf-8")
        return
    assert text == kept + block(), "write it anew: WRITE_LAWS_TABLE=1 python -m pytest tests/laws/test_table.py"


def test_every_method_runs_somewhere() -> None:
    ran = {kind for kind, _ in [*test_methods.PAIRS, *test_methods_classify.PAIRS]}
    assert ran == set(kinds("method"))
