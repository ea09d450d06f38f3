"""Methods that train parts of the model in place: full, layers, bitfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from families import FAMILIES, NAMES, build, examples
from luthier.core.errors import ModelError, RunError
from luthier.methods.base import Method, trainable
from luthier.methods.bitfit import BitFit
from luthier.methods.full import Full
from luthier.methods.layers import Layers
from luthier.models.layers import layer_groups
from luthier.models.load import load_model
from luthier.models.targets import linear_roles
from training import engine


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
        with pytest.raises(ModelError, match=r"(?s)no biases.*add_biases: true.*norms: true.*lora"):
            _trained(name, BitFit())
    assert _trained(name, BitFit(norms=True)) == biases | norms


def test_bitfit_on_gpt2_is_the_closed_form() -> None:
    model = build("gpt2")
    hidden, layers = model.config.n_embd, model.config.n_layer
    BitFit().apply(model)
    per_block = 3 * hidden + hidden + 4 * hidden + hidden + 2 * hidden  # c_attn, c_proj, c_fc, c_proj, two norms
    assert sum(p.numel() for p in trainable(model).values()) == layers * per_block + hidden


_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("sizes", "trained", "share"),
    [  # Ben Zaken et al. 2021: the biases are 0.09 % of the parameters of BERT-base, and 0.08 % of those of BERT-large
        ({}, 102_912, "0.09%"),
        (_LARGE, 272_384, "0.08%"),
    ],
    ids=["base", "large"],
)
def test_bitfit_on_bert_trains_what_its_paper_says(sizes: dict[str, int], trained: int, share: str) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**sizes))
    assert BitFit().count(model) == trained
    assert f"{trained / model.num_parameters():.2%}" == share


BIAS_FREE = ("llama", "qwen3", "mistral", "qwen2", "mixtral", "llama-tied")


@pytest.mark.parametrize("name", BIAS_FREE)
def test_added_biases_are_zeros_on_every_matrix_and_the_first_logits_are_the_base_models(name: str) -> None:
    model = build(name)
    tokens = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=tokens).logits
    had = {n for n, _ in model.named_parameters()}
    method, plain = BitFit(add_biases=True), build(name)
    method.apply(model)
    torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=0, atol=0)
    trained = trainable(model)
    assert set(trained) == {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert set(trained) >= {f"{n}.bias" for n in linear_roles(model)}
    assert all(not trained[n].any() for n in set(trained) - had)
    assert sum(p.numel() for p in trained.values()) == method.count(plain)
    assert model.get_output_embeddings().bias is None


@pytest.mark.parametrize("name", BIAS_FREE)
def test_added_biases_train_save_and_load_and_merge_where_the_config_can_say_so(
    name: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    method, model = BitFit(add_biases=True), load_model(str(family_folder(name)))
    running = engine(model, method)
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    module = model.module.eval()
    assert all(p.any() for p in trainable(module).values())
    tokens = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = module(input_ids=tokens).logits.detach()
    (tmp_path / "own").mkdir()
    method.save(module, tmp_path / "own", base=model.path)
    again = load_model(str(family_folder(name))).module
    method.apply(again)
    method.load(again, tmp_path / "own")
    assert torch.equal(again.eval()(input_ids=tokens).logits, expected)
    if not name.startswith("llama"):  # only Llama's config knows biases on all matrices
        with pytest.raises(RunError, match=r"cannot be merged.*no place for"):
            method.merge(again)
        return
    method.merge(again).save_pretrained(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert opened.config.attention_bias
    assert opened.config.mlp_bias
    torch.testing.assert_close(opened(input_ids=tokens).logits, expected, rtol=0, atol=1e-5)


def test_adding_biases_where_there_are_some_already_is_an_error_and_exclude_leaves_blocks_out() -> None:
    with pytest.raises(ModelError, match=r"(?s)has a bias already.*remove it"):
        _trained("gpt2", BitFit(add_biases=True))
    kept = _trained("llama", BitFit(add_biases=True, norms=True, exclude=("model.layers.1", "model.norm.weight")))
    assert kept
    assert all(n.startswith("model.layers.0.") for n in kept)
    with pytest.raises(ModelError, match=r"(?s)model\.layers\.7.*method\.exclude|matches no parameter"):
        _trained("llama", BitFit(norms=True, exclude=("model.layers.7",)))


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
