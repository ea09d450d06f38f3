"""Write the pages of docs/ that are made from the source: `python scripts/docs/write.py`."""

from __future__ import annotations

from pathlib import Path

import names_page
import recipe_page

from luthier.cli.cards import objectives_page

DOCS = Path(__file__).parents[2] / "docs"


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {
        "recipe.md": recipe_page.page(recipe_page.ENGLISH),
        "recipe.zh-CN.md": recipe_page.page(recipe_page.CHINESE, recipe_page.chinese_texts()),
        "coming-from.md": names_page.page(),
        "objectives.md": objectives_page("en"),
        "objectives.zh-CN.md": objectives_page("zh"),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)
