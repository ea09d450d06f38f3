"""Write the pages of docs/ that are made from the source: `python scripts/docs/write.py`."""

from __future__ import annotations

from pathlib import Path

import advisor_page
import names_page
import recipe_page
import yaml

from luthier.cli.cards import objectives_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    situations = len(yaml.safe_load((ROOT / "tests" / "advise" / "situations.yaml").read_text(encoding="utf-8")))
    return {
        "advisor.md": advisor_page.page("en", situations),
        "advisor.zh-CN.md": advisor_page.page("zh", situations),
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
