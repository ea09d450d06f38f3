"""The laws of methods: one suite over every registered method and every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import ENCODERS, FAMILIES, NAMES, config, examples
from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import RunError
from luthier.methods import base as method_base
from luthier.methods.base import Method, trainable
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.train.audit import audit, digests
from training import engine

METHODS = list(kinds("method"))
CORE = ("llama", "qwen2", "qwen3", "gpt2", "mixtral")
"""Every kind runs on these; the kinds that others are made of run on every family."""
ON_EVERY_FAMILY = ("full", "lora", "layers", "bitfit")
OPTIONS: dict[str, dict[str, object]] = {
    "hybrid": {"parts": [{"kind": "layers", "blocks": [-1]}, {"kind": "lora", "targets": ["*.0.*"]}]},
    "adalora": {"initial_rank": 4, "rank": 2},
    "lora": {"rank": 3, "alpha": 7.5},
    "layers": {"blocks": [-1], "norms": True},
    "moe": {"upcycle": {"experts": 3}, "router_aux_loss": 0.01},
    "prefix": {"tokens": 5, "projection": True, "projection_size": 12},
    "p_tuning_v2": {"tokens": 3},
    "p_tuning": {"tokens": 4, "encoder_size": 24},
    "prompt": {"tokens": 6},
}
STEPS = 2
TOKENS = torch.randint(3, 60, (2, 23), generator=torch.Generator().manual_seed(5))


def method_for(kind: str, family: str) -> Method:
    """A method with options that every family allows."""
    options = OPTIONS.get(kind, {})
    if kind == "bitfit" and not (FAMILIES | ENCODERS)[family].has_biases:
        options = {"norms": True}
    if kind == "moe" and family == "mixtral":
        options = {"train": "all", "experts": [0, 3], "rank": 3}
    return component_class("method", kind).model_validate({"kind": kind, **options})  # type: ignore[return-value]


def refusals(kind: str, family: str) -> list[str]:
    """Why a kind refuses a family, as its `problems` say it from the config."""
    method = method_for(kind, family)
    facts = StageFacts(method=method, objective=Sft(), model_config=config(family).to_dict())
    return [problem.what for problem in method.problems(facts) if problem.severity == "error"]


PAIRS = [
    (kind, family)
    for kind in METHODS
    for family in (NAMES if kind in ON_EVERY_FAMILY else CORE)
    if not refusals(kind, family)
]


def logits(module: PreTrainedModel) -> Tensor:
    was_training = module.training
    module.eval()
    with torch.no_grad():
        out = module(input_ids=TOKENS, use_cache=False).logits
    module.train(was_training)
    return out


def bits(module: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all tensors under the names they have in the plain model."""
    return {n.replace(".base_layer.", "."): p.detach().clone() for n, p in module.named_parameters()}


@dataclass
class Journey:
    """One method on one family, from the base model through a few steps to a saved folder."""

    family: str
    base_folder: Path
    method: Method
    module: PreTrainedModel
    base_logits: Tensor
    applied_logits: Tensor
    trained_logits: Tensor
    base: dict[str, Tensor]
    declared: set[str]
    hashes: dict[str, str]
    saved: Path


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def journey(
    request: pytest.FixtureRequest, family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Journey:
    kind, family = request.param
    method = method_for(kind, family)
    model = load_model(str(family_folder(family)), base_bits=method.base_bits)
    base, base_logits = bits(model.module), logits(model.module)
    running = engine(model, method)
    applied_logits = logits(model.module)
    if method.changes_architecture:
        base = bits(model.module)
    declared, hashes = set(trainable(model.module)), digests(model.module)
    for step in range(STEPS):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    saved = tmp_path_factory.mktemp(f"{kind}-{family}")
    method.save(model.module, saved, base=model.path)
    return Journey(
        family=family,
        base_folder=family_folder(family),
        method=method,
        module=model.module,
        base_logits=base_logits,
        applied_logits=applied_logits,
        trained_logits=logits(model.module),
        base=base,
        declared=declared,
        hashes=hashes,
        saved=saved,
    )


def _fresh(journey: Journey) -> PreTrainedModel:
    module = load_model(str(journey.base_folder), base_bits=journey.method.base_bits).module
    journey.method.prepare(module)
    return module


def test_before_the_first_step_it_is_the_base_model(journey: Journey) -> None:
    if journey.method.differs_at_start:
        pytest.skip(journey.method.differs_at_start)
    if journey.method.sums_in_another_order:
        torch.testing.assert_close(journey.applied_logits, journey.base_logits, rtol=0, atol=1e-5)
    elif hasattr(journey.module, "peft_config"):
        # A fused product adds a zero to every weight, and sums in another order.
        torch.testing.assert_close(journey.applied_logits, journey.base_logits, rtol=0, atol=1e-6)
    else:
        assert torch.equal(journey.applied_logits, journey.base_logits)


def test_a_few_steps_change_the_model(journey: Journey) -> None:
    assert (journey.trained_logits - journey.base_logits).abs().max() > 1e-3


def test_only_declared_tensors_move_and_every_one_of_them_does(journey: Journey) -> None:
    now = bits(journey.module)
    moved = {n for n, before in journey.base.items() if not torch.equal(before, now[n])}
    assert moved == journey.declared & journey.base.keys()
    outcome = audit(journey.module, journey.hashes)
    assert outcome.passed
    assert outcome.frozen_changed == outcome.trained_unchanged == ()
    assert outcome.trained == len(journey.declared) > 0


def test_the_closed_form_counts_what_is_trained(journey: Journey) -> None:
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config(journey.family))
    trained = sum(p.numel() for p in trainable(journey.module).values())
    assert journey.method.count(plain) == trained


def test_packed_and_padded_give_the_same_loss_and_gradient(
    journey: Journey, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(journey.family)), base_bits=journey.method.base_bits)
    if not model.packs:
        return
    torch.manual_seed(1)
    journey.method.prepare(model.module)
    journey.method.load(model.module, journey.saved)
    found = []
    for model.packs in (True, False):
        batch = model.collate(examples([9, 14, 5, 20], seed=3))
        model.module.zero_grad()
        loss = model.nll_sum(batch)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainable(model.module).items() if p.grad is not None}))
    (packed, packed_grads), (padded, padded_grads) = found
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-4)
    assert packed_grads.keys() == padded_grads.keys()
    for name, grad in packed_grads.items():
        torch.testing.assert_close(grad, padded_grads[name], rtol=1e-3, atol=2e-4, msg=name)


def test_saved_and_loaded_into_a_fresh_model_it_gives_the_same_logits(journey: Journey) -> None:
    module = _fresh(journey)
    journey.method.load(module, journey.saved)
    assert torch.equal(logits(module), journey.trained_logits)
    trained = trainable(journey.module)
    assert all(torch.equal(p, trained[n]) for n, p in trainable(module).items())


def test_its_state_dict_carries_exactly_what_is_trained(journey: Journey) -> None:
    state = journey.method.state_dict(journey.module)
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in trainable(journey.module).values())
    module = _fresh(journey)
    journey.method.load_state_dict(module, {n: t.clone() for n, t in state.items()})
    assert torch.equal(logits(module), journey.trained_logits)


def test_a_state_dict_with_a_missing_or_misshapen_tensor_is_refused_and_changes_nothing(journey: Journey) -> None:
    module = _fresh(journey)
    before = logits(module)
    state = {n: t.clone() for n, t in journey.method.state_dict(journey.module).items()}
    name, tensor = next(iter(state.items()))
    for broken in (
        {n: t for n, t in state.items() if n != name},
        {**state, "of.another.model": tensor},
        {**state, name: torch.zeros(*tensor.shape, 2)},
    ):
        with pytest.raises(RunError, match=r"missing|unexpected|other shape"):
            journey.method.load_state_dict(module, broken)
    torch.testing.assert_close(logits(module), before, rtol=0, atol=0)


def test_merged_it_is_a_plain_model_that_any_tool_opens(journey: Journey, tmp_path: Path) -> None:
    module = _fresh(journey)
    journey.method.load(module, journey.saved)
    module.eval()
    if journey.method.why_unmergeable(module):
        with pytest.raises(RunError, match="merge"):
            journey.method.merge(module)
        return
    merged = journey.method.merge(module)
    torch.testing.assert_close(logits(merged), journey.trained_logits, rtol=0, atol=1e-5)
    assert {n for n, _ in merged.named_parameters()} == journey.base.keys()
    assert not any("peft" in type(m).__module__ or "luthier" in type(m).__module__ for m in merged.modules())
    merged.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(reloaded), journey.trained_logits, rtol=0, atol=1e-5)
    if journey.method.changes_architecture:
        return
    config = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((journey.base_folder / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "transformers_version"} == {
        k: v for k, v in original.items() if k != "transformers_version"
    }


def test_the_head_is_tied_afterwards_where_it_was_before(journey: Journey) -> None:
    fresh = load_model(str(journey.base_folder)).module
    tied = fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight
    assert (journey.module.get_output_embeddings().weight is journey.module.get_input_embeddings().weight) == tied


def test_a_saved_folder_says_on_what_model_it_opens(journey: Journey) -> None:
    cards = [journey.saved / n for n in ("adapter_config.json", method_base.CARD) if (journey.saved / n).is_file()]
    if not cards:  # a complete model needs no other
        assert (journey.saved / "config.json").is_file()
        return
    (card,) = (json.loads(p.read_text()) for p in cards)
    assert card.get("base_model_name_or_path", card.get("base_model")) == str(journey.base_folder)


IN_PEFT = ("lora", "lora_plus", "adalora", "ia3", "prefix", "p_tuning_v2", "p_tuning", "prompt")
"""Kinds that PEFT has: it opens their folders."""


@pytest.mark.parametrize("journey", [pair for pair in PAIRS if pair[0] in IN_PEFT], ids="-".join, indirect=True)
def test_peft_opens_the_saved_folder_with_the_same_logits(journey: Journey) -> None:
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(journey.base_folder, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(journey.saved))
    found = logits(opened)[:, -TOKENS.shape[1] :]  # type: ignore[arg-type]  # PEFT shows virtual tokens' logits too
    torch.testing.assert_close(found, journey.trained_logits, rtol=0, atol=1e-5)
    assert (journey.trained_logits - journey.base_logits).abs().max() > 1e-3  # an adapter without effect would pass
