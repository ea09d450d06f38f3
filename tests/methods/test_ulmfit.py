"""ULMFiT against the formulas of Howard & Ruder 2018: rates, unfreezing, pooling, and the three stages end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from families import CLASSES, FAMILIES, build, build_classifier, labelled_examples
from luthier.core.batch import collate
from luthier.methods.base import head_parameters, trainable
from luthier.methods.ulmfit import Ulmfit
from luthier.models.classifier import Classifier
from luthier.models.layers import layer_groups
from luthier.models.load import load_model
from luthier.models.pooling import pool, pooled_head
from luthier.objectives.classify import Classify
from luthier.run.config import parse_recipe
from recipes import luthier, write_recipe, write_rows
from training import engine


def _scales(method: Ulmfit, module: torch.nn.Module) -> dict[str, float]:
    names = {id(p): n for n, p in module.named_parameters()}
    groups = method.param_groups(module, 0.1)  # type: ignore[arg-type]
    return {names[id(p)]: float(g["lr_scale"]) for g in groups for p in g["params"]}  # type: ignore[arg-type, union-attr]


def test_each_layer_group_learns_at_the_rate_of_the_one_above_divided_by_2_6() -> None:
    method, module = Ulmfit(), build("llama", num_hidden_layers=3)
    method.prepare(module)
    scales, groups = _scales(method, module), layer_groups(module)
    expected = [groups.embeddings, *groups.blocks, groups.head]
    expected[-2] = [*expected[-2], *groups.final]
    for steps_down, names in enumerate(reversed(expected)):
        assert [scales[n] for n in names] == pytest.approx([2.6**-steps_down] * len(names))
    assert scales.keys() == trainable(module).keys()


def test_deep_models_are_put_into_as_many_groups_as_asked() -> None:
    module = build("llama-tied", num_hidden_layers=8)
    assert len(set(_scales(Ulmfit(), module).values())) == 4  # embeddings (and the tied head), three groups of blocks
    assert len(set(_scales(Ulmfit(groups=8), module).values())) == 9
    assert set(_scales(Ulmfit(decay=1.0), module).values()) == {1.0}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_classifier_is_unfrozen_one_group_in_each_epoch_from_the_top(family: str) -> None:
    method, module = Ulmfit(), build_classifier(family)
    method.prepare(module)
    everything, head = set(trainable(module)), set(head_parameters(module))
    state = method.init_state(module, total_steps=40, steps_per_epoch=5)
    blocks = layer_groups(module).blocks
    free = []
    for step in range(20):
        method.before_step(module, state, step)
        free.append(set(trainable(module)))
        method.after_step(module, state, step + 1)
        assert set(trainable(module)) == everything
    assert free[0] == free[4] == head
    assert free[5] >= head | set(blocks[1])
    assert not free[5] & set(blocks[0])
    assert free[10] >= head | set(blocks[0]) | set(blocks[1])
    assert free[15] == everything


def test_a_short_run_unfreezes_faster_so_that_every_group_is_trained() -> None:
    method, module = Ulmfit(), build_classifier("llama")
    method.prepare(module)
    state = method.init_state(module, total_steps=8, steps_per_epoch=8)
    method.before_step(module, state, 6)
    assert all(p.requires_grad for p in module.parameters())


def test_a_language_model_is_trained_all_at_once_as_in_the_paper() -> None:
    module = build("llama")
    assert Ulmfit().init_state(module, 10, 5) == {}
    Ulmfit().prepare(module)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("packed", [True, False])
def test_concat_pooling_is_the_last_state_the_maximum_and_the_mean(packed: bool) -> None:
    rows = labelled_examples([4, 1, 7])
    batch = collate(rows, packed=packed)
    hidden = torch.randn(batch.tokens.numel(), 6)
    found = pool(hidden, batch, "concat")
    start = 0
    for index, row in enumerate(rows):
        first = start if packed else index * batch.tokens.shape[1]
        states = hidden[first : first + len(row)]
        expected = torch.cat([states[-1], states.max(0).values, states.mean(0)])
        torch.testing.assert_close(found[index], expected)
        start += len(row)


def test_without_concat_pooling_the_result_is_a_plain_folder(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(str(family_folder("llama")), classes=CLASSES)
    method = Ulmfit(concat_pooling=False)
    running = engine(model, method, Classify())
    running.train_step(labelled_examples([5, 8]))
    method.save(model.module, tmp_path, model.path)
    assert pooled_head(model.module) is None
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {str(i): n for i, n in enumerate(CLASSES)}


def test_the_schedule_is_the_methods_own_unless_another_is_asked_for() -> None:
    values = {"model": "starter", "method": "ulmfit", "data": "starter:stories", "objective": "lm"}
    assert parse_recipe(values).schedule.model_dump()["kind"] == "slanted_triangular"
    assert "warmup_ratio" not in parse_recipe(values).dump()
    assert parse_recipe({**values, "schedule": "linear"}).schedule.model_dump()["kind"] == "linear"
    assert parse_recipe({**values, "method": "full"}).schedule.model_dump()["kind"] == "cosine"


def test_the_three_stages_follow_each_other_by_naming_the_run_before(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = family_folder("llama")
    texts = [{"text": f"w{3 + i % 9} w{4 + i % 7} w{5 + i % 5} w6 w7"} for i in range(24)]
    write_rows(tmp_path / "texts.jsonl", texts)
    rows = [{**row, "label": ("even", "odd")[i % 2]} for i, row in enumerate(texts)]
    write_rows(tmp_path / "labelled.jsonl", rows)
    common = {"method": "ulmfit", "samples": 0}
    second = write_recipe(tmp_path / "a", base, objective="lm", data="../texts.jsonl", **common)
    assert luthier(capsys, "train", second).code == 0
    third = write_recipe(tmp_path / "b", tmp_path / "a/run", objective="classify", data="../labelled.jsonl", **common)
    said = luthier(capsys, "train", third)
    assert said.code == 0, said.err
    tensors = json.loads((tmp_path / "b/run/00-classify/tensors.json").read_text())
    assert tensors["base_fingerprint"] != ""
    measured = luthier(capsys, "eval", tmp_path / "b/run", "--data", tmp_path / "labelled.jsonl", "--json")
    assert measured.json["classes"] == ["even", "odd"]
    assert 0 <= measured.json["accuracy"] <= 1
    refused = luthier(capsys, "export", tmp_path / "b/run", "--to", "hf", tmp_path / "out")
    assert refused.code == 2
    assert "concat_pooling" in refused.err or "own head" in refused.err


def test_a_run_whose_method_keeps_an_adapter_is_no_start_and_says_to_export_it(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_recipe(tmp_path / "a", family_folder("llama"), method="lora", max_steps=1, samples=0)
    assert luthier(capsys, "train", first).code == 0
    said = luthier(capsys, "train", write_recipe(tmp_path / "b", tmp_path / "a/run", method="lora"))
    assert said.code == 2
    assert "luthier export" in said.err


def test_every_family_has_its_groups() -> None:
    for family in (name for name in FAMILIES if name != "gpt2-dropout"):
        module = build(family)
        assert _scales(Ulmfit(), module).keys() == dict(module.named_parameters()).keys(), family


def test_berts_pooler_rests_where_the_head_pools_by_itself() -> None:
    module = build_classifier("bert")
    Ulmfit().prepare(module)
    rest = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert rest == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert isinstance(Classifier(module, None, "", "").classes, list)  # type: ignore[arg-type]
