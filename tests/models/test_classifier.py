"""Models loaded as classifiers: what is new, what is left behind, and logits that are transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import families
from families import CLASSES, FAMILIES, build_classifier, config, enlarge, labelled_examples
from luthier.core.batch import Example
from luthier.core.component import component_class
from luthier.core.errors import ModelError
from luthier.data.labelled import encode_labelled
from luthier.methods.base import Method, head_parameters, trainable
from luthier.models.classifier import Classifier
from luthier.models.load import load_model
from luthier.objectives.classify import Classify
from recipes import luthier, write_recipe, write_rows
from training import engine

ROWS = labelled_examples([9, 3, 14, 1, 20])
DECODERS = [n for n in FAMILIES if FAMILIES[n].packs and n != "gpt2-dropout"]


WITHOUT_CLASSIFIER = ("cohere", "granite")
"""Families for which transformers has no class with a head for classes."""


def load(folder: Path, classes: tuple[str, ...] = CLASSES, **options: object) -> Classifier:
    model = load_model(str(folder), classes=classes, **options)  # type: ignore[arg-type]
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A BERT as pre-training on masked words leaves it: without a pooler."""
    folder = tmp_path / "masked"
    enlarge(AutoModelForMaskedLM.from_config(config("bert"), dtype=torch.float32)).save_pretrained(folder)
    families.bert_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [*DECODERS, "qwen2-moe", "bert"])
def test_packed_or_padded_the_logits_are_those_of_transformers(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    if family in WITHOUT_CLASSIFIER:
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(family_folder(family))
        return
    model = load(family_folder(family))
    assert model.packs == (family in DECODERS)
    enlarge(model.module)
    for packs in {model.packs, False}:
        model.packs = packs
        with model.evaluating():
            found = model.class_logits(model.collate(ROWS))
            for row, expected in zip(ROWS, found):
                tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
                torch.testing.assert_close(model.module(input_ids=tokens).logits[0], expected, rtol=1e-4, atol=1e-4)


def test_a_new_head_comes_from_the_seed_and_is_said(family_folder: Callable[[str], Path]) -> None:
    first, same, other = (load(family_folder("llama"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.module.score.weight, same.module.score.weight)
    assert not torch.equal(first.module.score.weight, other.module.score.weight)
    assert first.fingerprint == same.fingerprint
    assert any("new head" in note for note in first.notes)
    assert any("lm_head.weight" in note for note in first.notes)
    assert first.classes == list(CLASSES)


def test_the_saved_folder_opens_with_its_classes_and_gives_the_same_logits_in_a_padded_batch(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load(family_folder("gpt2"))
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.config.label2id == {name: i for i, name in enumerate(CLASSES)}
    texts = ["w5 w6 w7", "w9", "w10 w11 w12 w13 w14"]
    rows = [
        Example(np.array(e.ids, np.int32), np.zeros(len(e.ids), np.float32))
        for e in encode_labelled(tokenizer, [(t, "") for t in texts])
    ]
    with torch.no_grad(), model.evaluating():
        theirs = opened(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(theirs, model.class_logits(model.collate(rows)), rtol=0, atol=1e-5)


def test_a_classifier_is_opened_with_its_head_where_the_classes_are_the_same(tmp_path: Path) -> None:
    module = build_classifier("qwen2")
    module.save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    kept = load(tmp_path)
    assert torch.equal(kept.module.score.weight, module.score.weight)
    assert not any("new head" in note for note in kept.notes)
    assert any("new head" in note for note in load(tmp_path, classes=("a", "b")).notes)


def test_weights_that_are_missing_elsewhere_than_in_the_head_stay_an_error(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for file in family_folder("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["lora", "bitfit", "feature_extraction", "ulmfit", "full", "layers"])
def test_a_pooler_that_the_folder_lacks_is_new_and_trained_with_every_method(kind: str, masked: Path) -> None:
    model = load(masked)
    head = head_parameters(model.module)
    assert head == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    method = component_class("method", kind).model_validate({"last": 1} if kind == "layers" else {})
    assert isinstance(method, Method)
    running = engine(model, method, Classify())
    trained = trainable(model.module)
    unread = kind in ("feature_extraction", "ulmfit")  # their heads pool by themselves
    assert unread or set(head) <= set(trained)
    running.train_step(ROWS)
    running.train_step(ROWS)


def test_peft_opens_a_classifiers_adapter_with_its_head_and_new_pooler(masked: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load(masked)
    method = component_class("method", "lora").model_validate({"rank": 2})
    assert isinstance(method, Method)
    running = engine(model, method, Classify())
    for _ in range(3):
        running.train_step(ROWS)
    method.save(model.module, tmp_path / "adapter", str(masked))
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert set(settings["modules_to_save"]) >= {"classifier", "bert.pooler.dense"}
    plain = AutoModelForSequenceClassification.from_pretrained(masked, config=model.module.config, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with model.evaluating():
        for row, expected in zip(ROWS, model.class_logits(model.collate(ROWS))):
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
            torch.testing.assert_close(opened(input_ids=tokens).logits[0], expected, rtol=0, atol=1e-5)


def test_the_second_text_of_a_pair_is_marked_for_models_that_read_the_mark(masked: Path) -> None:
    model = load(masked)
    pairs = [("w5 w6", "w7"), ("w8", "w9 w10 w11")]
    rows = []
    for row in encode_labelled(model.tokenizer, pairs):
        assert row.second is not None
        tokens = np.array(row.ids, dtype=np.int32)
        rows.append(Example(tokens, np.zeros(len(tokens), np.float32), extras={"second": float(row.second)}))
    with model.evaluating():
        found = model.class_logits(model.collate(rows))
        for pair, expected in zip(pairs, found):
            own = model.module(**model.tokenizer(*pair, return_tensors="pt")).logits[0]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_run_learns_classes_and_is_measured_asked_and_exported(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"w{10 + i % 7} w{20 + i % 5}", "label": ("even", "odd")[i % 7 % 2]} for i in range(70)]
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = write_recipe(
        tmp_path,
        family_folder(family),
        objective={"kind": "classify", "class_weights": "balanced", "label_smoothing": 0.05},
        evaluate=[{"name": "again", "data": "rows.jsonl", "metric": "accuracy"}],
        eval_fraction=0.2,
        max_steps=60,
        batch_size=8,
        samples=1,
    )
    said = luthier(capsys, "train", recipe)
    assert said.code == 0, said.err
    assert "even 3" in said.err or "even 4" in said.err, "the classes are shown with their counts"
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["eval"]["after"]["again"]["value"] > 0.9
    assert report["data"]["classes"].keys() == {"even", "odd"}
    said = luthier(capsys, "eval", tmp_path / "run", "--data", tmp_path / "rows.jsonl", "--json")
    assert said.code == 0, said.out + said.err
    measured = said.json
    assert measured["accuracy"] == pytest.approx(report["eval"]["after"]["again"]["value"])
    exported = luthier(capsys, "export", tmp_path / "run", "--to", "hf", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert "AutoModelForSequenceClassification" in exported.out
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert opened.config.id2label == {0: "even", 1: "odd"}
    again = luthier(capsys, "eval", tmp_path / "out", "--data", tmp_path / "rows.jsonl", "--json").json
    assert again["loss"] == pytest.approx(measured["loss"], abs=1e-4)
    adapter = luthier(capsys, "export", tmp_path / "run", "--to", "peft", tmp_path / "adapter")
    assert adapter.code == 0, adapter.err


def test_chat_says_the_class_of_each_line(
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"w{10 + i}", "label": i % 2} for i in range(8)])
    names = {"kind": "classify", "names": {0: "no", 1: "yes"}}
    recipe = write_recipe(tmp_path, family_folder("llama"), objective=names, max_steps=1)
    assert luthier(capsys, "train", recipe).code == 0
    lines = iter(["w10 w11", "w12"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/exit"))
    said = luthier(capsys, "chat", tmp_path / "run")
    assert said.code == 0, said.err
    assert len([line for line in said.out.splitlines() if line.startswith(("no (", "yes ("))]) == 2
