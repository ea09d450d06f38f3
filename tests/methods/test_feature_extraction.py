"""Feature extraction and dense heads: features computed once train the same head as a live frozen model does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from families import CLASSES, build_classifier, labelled_examples
from luthier.core.batch import Example
from luthier.core.errors import ModelError, RecipeError
from luthier.methods.base import Method, trainable
from luthier.methods.dense_head import DenseHead
from luthier.methods.feature_extraction import FeatureExtraction
from luthier.models.classifier import Classifier
from luthier.models.features import open_cache
from luthier.models.load import load_model
from luthier.models.pooling import PooledHead, own_pooling
from luthier.objectives.classify import Classify
from luthier.run.config import parse_recipe
from luthier.train.features import keep_features
from luthier.train.microbatch import Cut
from recipes import luthier, write_recipe, write_rows
from training import engine

ROWS = labelled_examples([9, 3, 14, 6, 1, 11, 2, 8, 9, 5])
POOLINGS = (None, "last", "mean", "max", "cls")


def _train(folder: Path, method: Method, rows: Sequence[Example], cache: Path | None) -> tuple[list[float], Classifier]:
    model = load_model(str(folder), classes=CLASSES)
    assert isinstance(model, Classifier)
    running = engine(model, method, Classify())
    if cache is not None:
        keep_features(model, [rows], cache, Cut())
    return [running.train_step(rows[i : i + 5])["loss"] for _ in range(4) for i in (0, 5)], model


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["llama", "gpt2-dropout", "bert", "bert-dropout"])
def test_features_computed_once_give_the_losses_of_the_live_model(
    family: str, pooling: str | None, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    method = FeatureExtraction.model_validate({"pooling": pooling})
    kept, model = _train(family_folder(family), method, ROWS, tmp_path / "features.safetensors")
    live, other = _train(family_folder(family), method, ROWS, None)
    # Rounding alone: rows are computed in another order and in other batches.
    assert kept == pytest.approx(live, abs=1e-4)
    for name, parameter in trainable(model.module).items():
        torch.testing.assert_close(parameter, trainable(other.module)[name], rtol=1e-3, atol=1e-3)


def test_the_backbone_is_not_run_again(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(str(family_folder("llama")), classes=CLASSES)
    assert isinstance(model, Classifier)
    running = engine(model, FeatureExtraction(), Classify())
    keep_features(model, [ROWS], tmp_path / "features.safetensors", Cut())
    model.module.base_model.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    running.train_step(ROWS)


def test_a_cache_serves_its_own_model_and_rows_alone(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "features.safetensors"
    model = load_model(str(family_folder("llama")), classes=CLASSES)
    assert isinstance(model, Classifier)
    assert keep_features(model, [ROWS, ROWS[:3]], file, Cut()) == len(ROWS), "each sequence once"
    written = file.stat().st_mtime_ns
    keep_features(model, [ROWS], file, Cut())
    assert file.stat().st_mtime_ns == written, "computed once"
    assert open_cache(file, "another model", []) is None
    strange = labelled_examples([4], seed=9)
    assert model.cache is not None
    assert model.cache.of(strange) is None
    assert "features" not in model.collate(strange).extras


def test_the_default_pooling_is_the_architectures_own(family_folder: Callable[[str], Path]) -> None:
    assert own_pooling(build_classifier("llama")) == "last"
    assert own_pooling(build_classifier("bert")) == "own"
    for family in ("llama", "bert"):
        module = build_classifier(family)
        before = {n: type(m) for n, m in module.named_modules()}
        FeatureExtraction().prepare(module)
        assert {n: type(m) for n, m in module.named_modules()} == before, "a plain model, which transformers opens"


def test_a_dense_head_is_layers_of_the_sizes_asked_for() -> None:
    module = build_classifier("llama")
    method = DenseHead(hidden=(20, 10), activation="gelu")
    plain_head, counted = module.score.weight.numel(), method.count(module)
    method.prepare(module)
    sizes = (32 + 1) * 20 + (20 + 1) * 10 + (10 + 1) * 3
    assert sum(p.numel() for p in trainable(module).values()) == sizes == counted + plain_head
    assert isinstance(module.score, PooledHead)
    assert [type(layer).__name__ for layer in module.score] == [
        *("Dropout", "Linear", "GELU") * 2,
        "Dropout",
        "Linear",
    ]


@pytest.mark.parametrize("kind", ["feature_extraction", "dense_head"])
def test_without_classes_there_is_no_head_to_train(kind: str) -> None:
    with pytest.raises(RecipeError, match="objective: classify"):
        parse_recipe({"model": "starter", "method": kind, "data": "x.jsonl", "objective": "sft"})
    from families import build
    from luthier.core.component import component_class

    with pytest.raises(ModelError, match="classifier"):
        component_class("method", kind)().apply(build("llama"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["feature_extraction", {"kind": "dense_head", "hidden": [8]}], ids=str)
def test_a_run_keeps_the_features_beside_its_checkpoints_and_opens_again(
    method: object, family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": " ".join(f"w{3 + (i * k) % 50}" for k in range(1, 6)), "label": i % 3} for i in range(30)]
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = write_recipe(
        tmp_path,
        family_folder("gpt2"),
        method=method,
        objective={"kind": "classify", "names": {"0": "no", "1": "maybe", "2": "yes"}},
        eval_fraction=0.2,
        max_steps=12,
        samples=2,
    )
    said = luthier(capsys, "train", recipe)
    assert said.code == 0, said.err
    assert (tmp_path / "run/00-classify/features.safetensors").is_file()
    report = json.loads((tmp_path / "run/report.json").read_text())
    scores = report["eval"]["after"]
    assert {"held-out loss", "held-out accuracy", "held-out macro-F1"} == set(scores)
    measured = luthier(capsys, "eval", tmp_path / "run", "--json").json
    assert measured["loss"] == pytest.approx(scores["held-out loss"]["value"], abs=1e-5)
    assert measured["accuracy"] == pytest.approx(scores["held-out accuracy"]["value"])
    assert measured["classes"] == ["no", "maybe", "yes"]
