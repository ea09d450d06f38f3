"""Packed = padded = one sequence at a time, for every family, in logits and in gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from families import FAMILIES, NAMES, WINDOW, build, config, enlarge, examples, tokenizer
from luthier.core.batch import Example, collate
from luthier.core.errors import ModelError
from luthier.models.attention import segmented_attention
from luthier.models.causal import CausalModel, probe
from luthier.models.layers import layer_groups
from luthier.models.load import load_model

LENGTHS = [9, 1, 33, 4, 2 * WINDOW, 17]
PACKING = [name for name in NAMES if FAMILIES[name].packs]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> CausalModel:
    return load_model(str(family_folder(request.param)))


@pytest.fixture(params=PACKING)
def packing_model(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> CausalModel:
    return load_model(str(family_folder(request.param)))


def _own_logps(model: CausalModel, examples: list[Example]) -> Tensor:
    """What the transformers model itself gives, one sequence at a time, from its full logits."""
    parts = []
    for example in examples:
        tokens = torch.tensor(example.tokens, dtype=torch.long)[None]
        logps_TV = model.module(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
        here = torch.tensor(example.weights[1:].nonzero()[0])
        parts.append(logps_TV[here, tokens[0, 1:][here]])
    return torch.cat(parts)


def _gradients(model: CausalModel, loss: Tensor) -> dict[str, Tensor]:
    model.module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _own_gradients(model: CausalModel, rows: list[Example]) -> dict[str, Tensor]:
    """The gradients of a model straight from transformers, which nothing of ours has touched."""
    plain = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32) if model.path else model.module
    untouched = replace(model, module=plain.eval())
    return _gradients(untouched, -(_own_logps(untouched, rows) * collate(rows).weights_M).sum())


def _assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 1e-5 * max(largest, 1.0), name


def test_the_loader_finds_out_which_families_pack_and_says_so(
    model: CausalModel, request: pytest.FixtureRequest
) -> None:
    family = FAMILIES[request.node.callspec.params["model"]]
    assert model.packs == family.packs
    assert model.plain_head
    assert model.collate(examples([3, 4])).is_packed == family.packs
    assert any("padded instead of packed" in note for note in model.notes) == (not family.packs)


def test_log_probabilities_equal_the_models_own_logits_however_batched(model: CausalModel) -> None:
    rows = examples(LENGTHS)
    with torch.no_grad():
        own = _own_logps(model, rows)
        for packed in (True, False) if model.packs else (False,):
            ours = model.logps(collate(rows, packed=packed, pad_id=model.pad_id))
            torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)


def test_gradients_equal_those_of_one_sequence_at_a_time_however_batched(model: CausalModel) -> None:
    rows = examples(LENGTHS)
    own = _own_gradients(model, rows)
    for packed in (True, False) if model.packs else (False,):
        batch = collate(rows, packed=packed, pad_id=model.pad_id)
        _assert_same_gradients(_gradients(model, model.nll_sum(batch)), own)


def test_gradient_checkpointing_runs_each_block_twice_and_changes_no_gradient(model: CausalModel) -> None:
    rows = examples(LENGTHS)
    own = _own_gradients(model, rows)
    model.module.gradient_checkpointing_enable({"use_reentrant": False})
    model.module.train()
    # These configs have no dropout, so that training mode computes the same.
    calls: list[None] = []
    in_first_block = layer_groups(model.module).blocks[0][0].rpartition(".")[0]
    model.module.get_submodule(in_first_block).register_forward_hook(lambda *_: calls.append(None))
    ours = _gradients(model, model.nll_sum(model.collate(rows)))
    assert len(calls) == 2
    _assert_same_gradients(ours, own)


def test_changing_one_sequence_leaves_the_others_as_they_are(packing_model: CausalModel) -> None:
    rows = examples(LENGTHS)
    changed = [*rows]
    changed[2] = replace(rows[2], tokens=(rows[2].tokens[::-1] + 7) % 60)
    with torch.no_grad():
        before, after = (packing_model.hidden(collate(r)).split(LENGTHS) for r in (rows, changed))
    assert not torch.equal(before[2], after[2])
    for index in (0, 1, 3, 4, 5):
        if (
            "mixtral" in packing_model.name
        ):  # experts see other numbers of tokens, so products are summed in another order
            torch.testing.assert_close(before[index], after[index], rtol=0, atol=1e-6)
        else:
            assert torch.equal(before[index], after[index])


def test_sequences_that_saw_each_other_would_be_noticed(packing_model: CausalModel) -> None:
    # Guards the tests above: with these weights, one long sequence is far from six short ones.
    rows = examples(LENGTHS)
    packed = collate(rows)
    total = sum(LENGTHS)
    run_together = replace(packed, cumulative_P1=torch.tensor([0, total], dtype=torch.int32), pieces=(total,))
    with torch.no_grad():
        apart, together = (packing_model.logps(batch) for batch in (packed, run_together))
    assert (apart - together).abs().max() > 0.02


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_sliding_window_shorter_than_the_sequence_matters(name: str, family_folder: Callable[[str], Path]) -> None:
    # Guards the equalities above: the window is at work in them.
    rows = examples(LENGTHS)
    found = []
    for window in (WINDOW, 50):
        wide = CausalModel(build(name, sliding_window=window), tokenizer(), name, "")
        probe(wide)
        with torch.no_grad():
            found.append(wide.logps(collate(rows)))
    assert (found[0] - found[1]).abs().max() > 0.02


def test_soft_caps_matter_in_attention_and_logits() -> None:
    rows = examples(LENGTHS)
    found = []
    for caps in ({}, {"attn_logit_softcapping": None}, {"final_logit_softcapping": None}):
        other = CausalModel(build("gemma2", **caps), tokenizer(), "gemma2", "")
        probe(other)
        with torch.no_grad():
            found.append(other.logps(collate(rows)))
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert (found[0] - found[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [n for n in NAMES if not FAMILIES[n].packs])
def test_a_family_that_cannot_pack_is_found_out_even_with_next_to_no_attention(name: str) -> None:
    torch.manual_seed(0)
    fresh = CausalModel(AutoModelForCausalLM.from_config(config(name)).eval(), tokenizer(), name, "")  # std 0.02
    probe(fresh)
    assert not fresh.packs


class _OddHead(nn.Linear):
    """A head that is no plain matrix."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(torch.sin(hidden))


def _with_odd_head(name: str, hook: bool) -> CausalModel:
    module = build(name)
    old = module.get_output_embeddings()
    if hook:  # an ordinary nn.Linear whose result something changes
        old.register_forward_hook(lambda _, args, out: out * 1.5)
    else:
        odd = _OddHead(old.in_features, old.out_features, bias=False)
        odd.weight = old.weight
        module.set_output_embeddings(odd)
    return CausalModel(module, tokenizer(), name, "")


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("name", ["llama", "cohere", "granite", "gemma2"])
def test_a_head_that_is_no_plain_matrix_falls_back_to_its_own_projection(name: str, hook: bool) -> None:
    model = _with_odd_head(name, hook)
    probe(model)
    rows = examples(LENGTHS)
    assert model.head.project is not None
    assert any("no plain matrix" in note for note in model.notes) == hook
    with torch.no_grad():
        torch.testing.assert_close(model.logps(collate(rows)), _own_logps(model, rows), rtol=0, atol=1e-5)
    _assert_same_gradients(_gradients(model, model.nll_sum(collate(rows))), _own_gradients(model, rows))


def test_logits_that_cannot_be_had_from_hidden_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalModel(build("llama"), tokenizer(), "my-model", "")
    forward = model.module.forward

    def odd(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 3
        return out

    monkeypatch.setattr(model.module, "forward", odd)
    with pytest.raises(ModelError, match=r"(?s)my-model.*LlamaForCausalLM"):
        probe(model)


def test_sixteen_bits_pack_and_stay_near_float32(family_folder: Callable[[str], Path]) -> None:
    folder = str(family_folder("llama"))
    full, half = load_model(folder, dtype="float32"), load_model(folder, dtype="bfloat16", frozen_in_16_bits=True)
    assert half.packs
    assert half.module.dtype == half.autocast == torch.bfloat16
    rows = examples(LENGTHS)
    with torch.no_grad():
        difference = (full.logps(collate(rows)) - half.logps(collate(rows))).abs()
    assert 1e-4 < difference.max() < 0.3  # 8 bits of mantissa through two blocks


def test_a_sequence_alone_in_a_packed_row_is_the_padded_one(packing_model: CausalModel) -> None:
    for row in examples([1, 2, WINDOW, WINDOW + 1]):
        with torch.no_grad():
            alone = packing_model.hidden(collate([row], packed=True))
            padded = packing_model.hidden(collate([row], packed=False))
        torch.testing.assert_close(alone, padded, rtol=0, atol=1e-5)


def test_packed_attention_refuses_a_window_that_only_the_mask_knows() -> None:
    class Layer(nn.Module):
        config = config("mistral")

    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind(0)
    borders = torch.tensor([0, 6], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="window"):
        segmented_attention(Layer(), q, k, v, None, cu_seq_lens_q=borders)
    out, _ = segmented_attention(Layer(), q, k, v, None, cu_seq_lens_q=borders, sliding_window=None)
    assert out.shape == (1, 6, 2, 4)


def test_the_enlarged_weights_are_the_same_each_time() -> None:
    first, second = (enlarge(AutoModelForCausalLM.from_config(config("llama"))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
