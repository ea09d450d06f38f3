"""A new recipe is right as it stands, and so is every key that it explains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.cli.new import recipe_text, run
from luthier.core.component import kinds
from luthier.core.errors import RecipeError
from luthier.run.config import Recipe, load_recipe
from luthier.run.draft import read_draft
from luthier.run.examine import examine


@pytest.mark.parametrize("method", kinds("method"))
def test_a_new_recipe_passes_the_check(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "recipe.yaml"
    run(path, method)
    assert f"luthier train {path}" in capsys.readouterr().out
    # from_scratch: the starter's weights need not be there to say that the recipe is right
    found = examine(read_draft(path, ["model.from_scratch=true"]))
    assert found.problems == []
    assert found.require().method.kind == method
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_a_new_recipe_explains_every_key_once():
    text = recipe_text(Path("r.yaml"), kinds("method")["lora"])  # type: ignore[arg-type]
    for key in Recipe.model_fields:
        assert len(re.findall(rf"^(?:# )?{key}:", text, re.MULTILINE)) == 1, key


@pytest.mark.parametrize("key", sorted(set(Recipe.model_fields) - {"model", "method", "data"}))
def test_a_key_in_a_comment_may_be_put_into_force(key: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    text = recipe_text(path, kinds("method")["lora"])  # type: ignore[arg-type]
    path.write_text(re.sub(rf"^# ({key}:)", r"\1", text, flags=re.MULTILINE))
    assert load_recipe(path)


def test_the_fields_of_a_method_may_be_put_into_force(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    text = recipe_text(path, kinds("method")["lora"])  # type: ignore[arg-type]
    path.write_text(re.sub(r"^  # (\w+: \S+)$", r"  \1", text, flags=re.MULTILINE))
    assert load_recipe(path).method == kinds("method")["lora"]()
    assert load_recipe(path).method.model_fields_set >= {"rank", "alpha"}


def test_nothing_is_written_over(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    with pytest.raises(RecipeError, match="--force"):
        run(path)
    assert path.read_text() == "mine"
    run(path, force=True)
    assert "starter" in path.read_text()


@pytest.mark.parametrize(("name", "remedy"), [("my", "my.yaml"), ("r.json", "r.json.yaml"), ("", "recipe.yaml")])
def test_a_recipe_gets_a_name_that_says_what_it_is(name: str, remedy: str, tmp_path: Path):
    with pytest.raises(RecipeError, match=re.escape(remedy)):
        run(tmp_path / name)


def test_an_unknown_method_is_told_its_neighbour(tmp_path: Path):
    with pytest.raises(RecipeError, match='Did you mean "lora"'):
        run(tmp_path / "r.yaml", "lara")
