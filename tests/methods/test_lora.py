"""LoRA: its size in closed form, its equation, PEFT's files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from families import NAMES, build
from luthier.core.errors import ModelError
from luthier.methods.base import trainable
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.models.targets import is_linear, match_linear


def _sides(module: torch.nn.Module) -> tuple[int, int]:
    """The inputs and outputs of a linear module; GPT-2 stores its matrices transposed."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, torch.nn.Linear) else (rows, columns)


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_rank_times_inputs_plus_outputs(name: str, targets: str) -> None:
    model = build(name)
    modules = dict(model.named_modules())
    expected = sum(3 * sum(_sides(modules[n])) for n in match_linear(model, targets))
    Lora(rank=3, targets=targets).apply(model)
    assert sum(p.numel() for p in trainable(model).values()) == expected > 0


def test_the_count_follows_from_the_config_alone() -> None:
    model = build("llama")
    c, rank = model.config, 5
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = 2 * (c.hidden_size + queries) + 2 * (c.hidden_size + keys)
    feed_forward = 3 * (c.hidden_size + c.intermediate_size)
    Lora(rank=rank).apply(model)
    counted = sum(p.numel() for p in trainable(model).values())
    assert counted == rank * c.num_hidden_layers * (attention + feed_forward)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_chosen_modules_are_adapted(name: str) -> None:
    for targets in ("attention", "o", "all-linear"):
        model = build(name)
        expected = match_linear(model, targets)
        Lora(rank=2, targets=targets).apply(model)
        assert [n for n, m in model.named_modules() if isinstance(m, LoraLayer)] == expected
        assert {n.split(".lora_")[0] for n in trainable(model)} == set(expected)
        assert all(".lora_A." in n or ".lora_B." in n for n in trainable(model))


def test_b_starts_at_zero_a_does_not_and_the_seed_decides() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = build("llama")
        torch.manual_seed(seed)
        Lora(rank=4).apply(model)
        drawn.append(trainable(model))
    assert all(not p.any() for n, p in drawn[0].items() if ".lora_B." in n)
    assert all(p.any() for n, p in drawn[0].items() if ".lora_A." in n)
    name = next(iter(drawn[0]))
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize(("rank", "alpha"), [(1, 16.0), (4, 2.0), (8, 7.5)])
def test_a_layer_computes_the_equation_on_its_card(rank: int, alpha: float) -> None:
    model = build("qwen2")
    Lora(rank=rank, alpha=alpha, targets="q").apply(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(50, layer.in_features)
    base = layer.get_base_layer()
    expected = x @ base.weight.t() + base.bias + (alpha / rank) * x @ a.t() @ b.t()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_update_alone_and_only_in_training() -> None:
    model = build("llama")
    Lora(rank=4, dropout=0.5, targets="q").apply(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.randn(50, layer.in_features)
    model.train()
    assert torch.equal(layer(x), layer.get_base_layer()(x))  # B is zero: the frozen path has no dropout
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    assert not torch.equal(layer(x), layer(x))
    model.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_saved_files_are_pefts(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(str(family_folder("llama")))
    Lora(rank=3, alpha=6.5, dropout=0.1, targets=("q", "down")).apply(model.module)
    Lora(rank=3, alpha=6.5, dropout=0.1, targets=("q", "down")).save(model.module, tmp_path, base="some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 3
    assert config["lora_alpha"] == 6.5
    assert config["lora_dropout"] == 0.1
    assert config["base_model_name_or_path"] == "some/base"
    assert config["inference_mode"] is True
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in keys
    assert len(keys) == 2 * 2 * 2
    assert model.module.peft_config["default"].inference_mode is False  # training goes on after a save


def test_names_that_do_not_mean_the_same_everywhere_are_written_in_full(tmp_path: Path) -> None:
    model = build("llama")
    method = Lora(rank=2, targets="model.layers.1.self_attn.q_proj")
    method.apply(model)
    method.save(model, tmp_path, base="b")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_gpt2_is_saved_as_transposed_and_others_are_not(tmp_path: Path) -> None:
    for name, transposed in (("gpt2", True), ("llama", False)):
        model = build(name)
        Lora().apply(model)
        assert model.peft_config["default"].fan_in_fan_out is transposed


def test_training_values_are_float32_beside_a_base_in_sixteen_bits() -> None:
    model = build("llama").bfloat16()
    Lora().apply(model)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_an_unknown_target_lists_what_exists() -> None:
    with pytest.raises(ModelError, match=r"(?s)q_porj.*q_proj.*roles here.*all-linear"):
        Lora(targets="q_porj").apply(build("llama"))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}], ids=str)
def test_numbers_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Lora(**bad)  # type: ignore[arg-type]


def test_a_rank_as_large_as_the_matrix_works() -> None:
    model = build("llama")
    Lora(rank=64, targets="k").apply(model)
    assert math.prod(next(iter(trainable(model).values())).shape) == 64 * 32
    assert any(is_linear(m) for m in model.modules())
