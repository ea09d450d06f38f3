"""The method and the objective that docs/design.md adds work as the page says: found, lawful, trained by a recipe."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from families import examples
from luthier.cli.train import run as train
from luthier.core import component
from luthier.core.component import component_class, kinds
from luthier.methods.base import Method, trainable
from luthier.models.load import load_model
from luthier.objectives.base import Objective
from luthier.train.audit import audit, digests
from luthier.train.microbatch import Cut
from training import engine

PAGE = Path(__file__).parents[2] / "docs" / "design.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the page's files as a package with the page's entry points, and take them out again."""
    home = tmp_path_factory.mktemp("site")
    modules = {re.match(r"# (\w+)\.py\n", code)[1]: code for code in blocks("python")}  # type: ignore[index]
    for name, code in modules.items():
        (home / f"{name}.py").write_text(code, encoding="utf-8")
    (entries,) = map(tomllib.loads, blocks("toml"))
    info = home / "luthier_rescale-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: luthier-rescale\nVersion: 0.1\n")
    lines = [f"{name} = {module}" for name, module in entries["project"]["entry-points"]["luthier.components"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[luthier.components]", *lines, ""]))
    before = {family: dict(table) for family, table in component._TABLE.items()}
    sys.path.insert(0, str(home))
    component._load_entry_points.cache_clear()
    yield
    sys.path.remove(str(home))
    component._load_entry_points.cache_clear()
    for family, table in component._TABLE.items():
        for kind in table.keys() - before.get(family, {}).keys():
            del table[kind]
    for name in modules:
        sys.modules.pop(name, None)


def rescale() -> Method:
    return component_class("method", "rescale")()  # type: ignore[return-value]


def per_answer() -> Objective:
    return component_class("objective", "per_answer")()  # type: ignore[return-value]


def logits(module: torch.nn.Module) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module(input_ids=torch.arange(3, 20)[None], use_cache=False).logits


def test_the_entry_points_make_both_known() -> None:
    assert "rescale" in kinds("method")
    assert "per_answer" in kinds("objective")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_method_keeps_the_laws(family: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, method = load_model(str(family_folder(family))), rescale()
    base = logits(model.module)
    plain = {name for name, _ in model.module.named_parameters()}
    running = engine(model, method)
    assert torch.equal(logits(model.module), base)
    bits = digests(model.module)
    model.module.train()
    for seed in range(2):
        running.train_step(examples([9, 14, 5], seed=seed))
    trained = logits(model.module)
    outcome = audit(model.module, bits)
    assert outcome.passed
    assert outcome.trained == len(trainable(model.module)) == len(bits) - len(plain)
    assert (trained - base).abs().max() > 1e-3
    method.save(model.module, tmp_path, base=model.path)
    fresh = load_model(str(family_folder(family))).module
    method.apply(fresh)
    method.load(fresh, tmp_path)
    assert torch.equal(logits(fresh), trained)
    merged = method.merge(fresh)
    assert {name for name, _ in merged.named_parameters()} == plain
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)


def test_the_objective_does_not_depend_on_how_a_step_is_cut(family_folder: Callable[[str], Path]) -> None:
    gradients = []
    for cut in (Cut(), Cut(sequences=1), Cut(sequences=2)):
        model = load_model(str(family_folder("llama")))
        running = engine(model, component_class("method", "full")(), per_answer(), cut=cut)  # type: ignore[arg-type]
        sums = running.forward_backward(examples([9, 14, 5, 20]))
        assert sums.count == 4
        gradients.append(torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=1e-5)


def test_the_recipe_of_the_page_trains(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": " ".join(["w5 w6"] * (1 + i % 2))} for i in range(3, 19)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (recipe,) = map(yaml.safe_load, blocks("yaml"))
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    own = {"model": str(family_folder("llama")), "data": str(data), "run": str(run), "samples": 0, "max_steps": 30}
    path.write_text(yaml.safe_dump(recipe | own), encoding="utf-8")
    train(path)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["status"] == "finished"
    assert report["frozen_unchanged"] is True
    assert report["method"] == "rescale"
    assert report["loss_last"] < report["loss_first"]
