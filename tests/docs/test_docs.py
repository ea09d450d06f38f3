"""What the pages say is so: recipes parse, commands exist, links lead somewhere, generated pages are up to date."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

import luthier
from luthier.cli.main import _verbs, app
from luthier.core.component import kinds
from luthier.data.curriculum import Curriculum
from luthier.data.formats import SHAPES
from luthier.data.load import load_records
from luthier.data.mixture import DataSet, Mix
from luthier.data.spec import DataSpec
from luthier.run.config import EvalTask, ModelSpec, Recipe, parse_recipe
from luthier.run.draft import read_draft
from luthier.run.examine import examine
from luthier.run.limits import Forgetting, Gate, GeneralSet
from luthier.run.pipeline import StageKeys, examine_pipeline, has_stages, read_pipeline
from luthier.run.schema import FAMILIES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import names_page  # noqa: E402
import recipe_page  # noqa: E402
import write  # noqa: E402

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "src" / "luthier" / "starter" / "CARD.md")
    if page.name != "contract.md"
)
COMPARISON = ROOT / "examples" / "all-methods.yaml"
"""No recipe: it varies one, and has tests of its own."""
EXAMPLES = sorted(set((ROOT / "examples").glob("*.yaml")) - {COMPARISON})
OWN_EXAMPLES = {"design.md"}
"""Pages whose recipes use components that the page itself adds; their own test trains with them."""


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, *languages)]


def commands() -> list[tuple[str, str]]:
    """Every line of a command block, with its place."""
    return [
        (str(block), line.removeprefix("$ "))
        for block in all_blocks("console", "bash", "sh")
        for line in block.text.splitlines()
        if line.strip() and not line.startswith("#")
    ]


LUTHIER = [command for command in commands() if command[1].startswith("luthier ")]
MAKE = [command for command in commands() if command[1].startswith("make ")]


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_passes_the_check(path: Path) -> None:
    has_weights = (Path(luthier.__file__).parent / "starter" / "model.safetensors").is_file()
    overrides = [] if has_weights else ["model.from_scratch=true"]
    if has_stages(path):
        assert examine_pipeline(read_pipeline(path, overrides)).problems == []
    else:
        assert examine(read_draft(path, overrides)).problems == []
    assert f"luthier train examples/{path.name}" in path.read_text(encoding="utf-8")


def test_every_method_and_objective_has_an_example() -> None:
    recipes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES]
    recipes += [{**recipe, **stage} for recipe in recipes for stage in recipe.get("stages", ())]
    recipes = [recipe for recipe in recipes if "stages" not in recipe or "objective" in recipe]
    words = [{r["method"] if isinstance(r["method"], str) else r["method"]["kind"] for r in recipes}]
    compared = yaml.safe_load(COMPARISON.read_text(encoding="utf-8"))["variants"].values()
    words[0] |= {said if isinstance(said, str) else said["method"]["kind"] for said in compared}
    goals = [r.get("objective", "sft") for r in recipes]
    words.append({goal if isinstance(goal, str) else goal["kind"] for goal in goals})
    assert words == [set(kinds("method")), set(kinds("objective"))]


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_a_recipe_on_a_page_parses(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.text)
    if "stages" in values:
        (tmp_path / "line.yaml").write_text(block.text, encoding="utf-8")
        assert examine_pipeline(read_pipeline(tmp_path / "line.yaml")).problems == []
        return
    assert {"model", "method", "data"} <= values.keys(), "a yaml block of the pages is a whole recipe"
    if block.page.name not in OWN_EXAMPLES:
        parse_recipe(values)


def test_pages_mention_no_key_that_does_not_exist() -> None:
    parts = [Recipe, ModelSpec, DataSpec, DataSet, Mix, Curriculum, EvalTask, StageKeys, Gate, Forgetting, GeneralSet]
    parts += [cls for family in (*FAMILIES, "task") for cls in kinds(family).values()]
    known = {name for part in parts for name in part.model_fields}
    # Not keys of a recipe: fields of data rows, a tensor's shape.
    others = {"split", "good", "bad"}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            for key in re.findall(r"(?:^|[{,] ?)([a-z_]+)(?:\.[a-z_]+)?: (?=[\w{\[\"])", code):
                is_column = key in {field for shape in SHAPES for field in shape.parts}
                assert key in known | others or is_column, f"{page.name}: `{code}`"


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize(("place", "command"), LUTHIER, ids=[f"{p} {c}" for p, c in LUTHIER])
def test_a_command_on_a_page_is_one_that_the_program_takes(place: str, command: str) -> None:
    verb, *words = shlex.split(command, comments=True)[1:]
    group = typer.main.get_group(app)
    assert verb in group.commands, f"{place}: there is no verb {verb}"
    context = group.commands[verb].make_context(verb, words)
    recipe = context.params.get("recipe")
    overrides = context.params.get("overrides") or []
    if recipe is not None and (ROOT / recipe).is_file():
        found = read_draft(ROOT / recipe, overrides)
        assert examine(found).recipe_problems == []


@pytest.mark.parametrize(("place", "command"), MAKE, ids=[f"{p} {c}" for p, c in MAKE])
def test_a_target_on_a_page_is_in_the_makefile(place: str, command: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(command.split()[1:]) <= targets, place


# ---------------------------------------------------------------------- links and languages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in headings(place), f"{place.name} has no heading #{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings get where it is shown."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_a_readme_lists_every_verb_and_every_method(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `luthier (\w+)`", text, re.MULTILINE)) == sorted(_verbs())
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)) == sorted(kinds("method"))


def test_both_readmes_show_the_same_commands_and_have_the_same_parts() -> None:
    english, chinese = ([b.text for b in blocks(readme, "console", "text")] for readme in READMES)
    assert english == chinese
    parts = [len(re.findall(r"^## ", readme.read_text(encoding="utf-8"), re.MULTILINE)) for readme in READMES]
    assert parts[0] == parts[1]
    assert [len(yaml.safe_load(b.text)) for b in blocks(READMES[0], "yaml")] == [
        len(yaml.safe_load(b.text)) for b in blocks(READMES[1], "yaml")
    ]


# ---------------------------------------------------------------------- pages that are written from the source


@pytest.mark.parametrize("name", write.pages())
def test_a_page_that_is_written_from_the_source_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == write.pages()[name], recipe_page.COMMAND


def test_every_key_is_described_in_chinese_and_nothing_else_is() -> None:
    english = {part: set(fields) for part, fields in recipe_page.described().items() if fields}
    assert {part: set(texts) for part, texts in recipe_page.chinese_texts().items()} == english


def test_the_reference_has_every_key_of_a_recipe() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert [key for key in Recipe.model_fields if f"| `{key}` |" not in text] == []


@pytest.mark.parametrize("tool", names_page.TOOLS)
def test_no_name_of_a_tool_is_listed_twice(tool: str) -> None:
    names = names_page.names(tool)
    assert len(set(names)) == len(names) >= 25


# ---------------------------------------------------------------------- data


def test_the_rows_on_the_page_of_data_are_recognised_as_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^### `(\w+)`$.*?^```jsonl\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in rows} == {shape.name for shape in SHAPES} | {"sharegpt"}
    for name, row in rows:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(row, encoding="utf-8")
        assert load_records(DataSpec(path=str(path)), objective="lm" if name == "text" else "sft").format == name


def test_the_judged_rows_on_the_page_of_data_are_recognised_as_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^### [\w ]+: `(\w+)`$.*?^```jsonl\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in blocks} == {"preference", "rated", "prompt"}
    for name, rows in blocks:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(rows, encoding="utf-8")
        for line, row in enumerate(rows.splitlines()):
            path.write_text(row, encoding="utf-8")
            assert load_records(DataSpec(path=str(path)), objective=name).format == name, f"{name} {line}"  # type: ignore[arg-type]


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## [{luthier.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
