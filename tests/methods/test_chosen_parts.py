"""Methods that train parts of the model in place: full, layers, bitfit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from families import FAMILIES, NAMES, build
from luthier.core.errors import ModelError
from luthier.methods.base import Method, trainable
from luthier.methods.bitfit import BitFit
from luthier.methods.full import Full
from luthier.methods.layers import Layers
from luthier.models.layers import layer_groups


def _trained(name: str, method: Method) -> set[str]:
    model = build(name)
    method.apply(model)
    return set(trainable(model))


def _blocks(name: str, *indices: int) -> set[str]:
    blocks = layer_groups(build(name)).blocks
    return {n for i in indices for n in blocks[i]}


@pytest.mark.parametrize("name", NAMES)
def test_full_trains_every_parameter(name: str) -> None:
    model = build(name)
    Full().apply(model)
    assert set(trainable(model)) == {n for n, _ in model.named_parameters()}
    assert sum(p.numel() for p in trainable(model).values()) == model.num_parameters()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({"last": 1}, (-1,)),
        ({"first": 1}, (0,)),
        ({"first": 1, "last": 1}, (0, 1)),
        ({"blocks": (0,)}, (0,)),
        ({"blocks": (-1, 1)}, (1,)),
        ({"last": 2}, (0, 1)),
    ],
    ids=str,
)
def test_layers_picks_exactly_the_named_blocks(name: str, options: dict[str, object], indices: tuple[int, ...]) -> None:
    assert _trained(name, Layers(**options)) == _blocks(name, *indices)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_layers_picks_embeddings_norms_and_head_as_groups(name: str) -> None:
    groups = layer_groups(build(name))
    assert _trained(name, Layers(embeddings=True)) == set(groups.embeddings)
    assert _trained(name, Layers(norms=True)) == set(groups.norms)
    if groups.is_tied:
        with pytest.raises(ModelError, match=r"(?s)shares its weight.*embeddings: true"):
            _trained(name, Layers(head=True))
    else:
        assert _trained(name, Layers(head=True)) == set(groups.head)


def test_parts_add_up_and_a_part_named_twice_counts_once() -> None:
    groups = layer_groups(build("llama"))
    method = Layers(last=1, norms=True, head=True, patterns=("model.layers.0.mlp.down_proj", "model.norm.weight"))
    expected = {*groups.blocks[1], *groups.norms, *groups.head, "model.layers.0.mlp.down_proj.weight"}
    assert _trained("llama", method) == expected


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"(?s)model\.layers\.9.*method\.patterns.*look like|method\.patterns"):
        _trained("llama", Layers(last=1, patterns=("model.layers.9",)))


@pytest.mark.parametrize(
    "method", [Layers(blocks=(0, 7)), Layers(blocks=(-3,)), Layers(last=3), Layers(first=9)], ids=repr
)
def test_blocks_that_the_model_does_not_have_are_an_error_also_when_only_the_model_knows(method: Layers) -> None:
    # Of a hub model the config may not be known before it is loaded, so that `problems` cannot say it.
    with pytest.raises(ModelError, match=r"has 2 blocks|no block"):
        _trained("llama", method)


def test_nothing_chosen_is_an_error() -> None:
    with pytest.raises(ModelError, match="train nothing"):
        _trained("llama", Layers())


@pytest.mark.parametrize("name", NAMES)
def test_bitfit_trains_the_biases_and_nothing_else_or_says_what_to_do(name: str) -> None:
    model = build(name)
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias") or "_bias" in n.rpartition(".")[2]}
    norms = set(layer_groups(model).norms)
    if FAMILIES[name].has_biases:
        assert biases
        assert _trained(name, BitFit()) == biases
    else:
        assert not biases
        with pytest.raises(ModelError, match=r"(?s)no biases.*norms: true.*lora"):
            _trained(name, BitFit())
    assert _trained(name, BitFit(norms=True)) == biases | norms


def test_bitfit_on_gpt2_is_the_closed_form() -> None:
    model = build("gpt2")
    hidden, layers = model.config.n_embd, model.config.n_layer
    BitFit().apply(model)
    per_block = 3 * hidden + hidden + 4 * hidden + hidden + 2 * hidden  # c_attn, c_proj, c_fc, c_proj, two norms
    assert sum(p.numel() for p in trainable(model).values()) == layers * per_block + hidden


def test_what_is_trained_becomes_float32_and_what_is_frozen_stays() -> None:
    model = build("llama").bfloat16()
    Layers(last=1).apply(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("method", [Full(), Layers(last=1, norms=True), BitFit()], ids=lambda m: m.kind)
def test_optimizer_groups_hold_each_trained_tensor_once_and_only_matrices_decay(method: Method) -> None:
    model = build("gpt2")
    method.apply(model)
    groups = method.param_groups(model, weight_decay=0.3)
    listed = [id(p) for g in groups for p in g["params"]]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(id(p) for p in trainable(model).values())
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}  # type: ignore[attr-defined]


def test_applying_twice_changes_nothing() -> None:
    model = build("llama")
    method = Layers(last=1)
    method.apply(model)
    first = set(trainable(model))
    method.apply(model)
    assert set(trainable(model)) == first
    assert not any(isinstance(m, nn.Identity) for m in model.modules())
