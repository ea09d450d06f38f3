"""The freeze audit notices a single bit."""

from __future__ import annotations

import pytest
import torch

from families import build
from luthier.methods.base import train_only
from luthier.train.audit import audit, digests

FROZEN, TRAINED = "model.layers.0.mlp.up_proj.weight", ["model.norm.weight", "lm_head.weight"]


@pytest.fixture
def module() -> torch.nn.Module:
    model = build("llama")
    train_only(model, TRAINED)
    return model


def _nudge(module: torch.nn.Module, name: str, by: float = 1.0) -> None:
    with torch.no_grad():
        module.get_parameter(name).view(-1)[7].add_(by)


def test_untouched_models_have_no_change_but_do_not_pass_because_nothing_was_trained(module: torch.nn.Module) -> None:
    outcome = audit(module, digests(module))
    assert outcome.frozen_changed == ()
    assert set(outcome.trained_unchanged) == set(TRAINED)
    assert not outcome.passed


def test_what_moved_as_declared_passes(module: torch.nn.Module) -> None:
    before = digests(module)
    for name in TRAINED:
        _nudge(module, name)
    outcome = audit(module, before)
    assert outcome.passed
    assert outcome.frozen_changed == outcome.trained_unchanged == ()
    assert outcome.trained == 2
    assert outcome.frozen == len(list(module.parameters())) - 2
    assert outcome.as_dict()["passed"] is True


@pytest.mark.parametrize("by", [1.0, 1e-7])
def test_a_frozen_tensor_that_moved_is_named(module: torch.nn.Module, by: float) -> None:
    before = digests(module)
    _nudge(module, FROZEN, by)
    _nudge(module, TRAINED[0])
    outcome = audit(module, before)
    assert outcome.frozen_changed == (FROZEN,)
    assert not outcome.passed


def test_a_sign_of_zero_counts_as_a_changed_bit(module: torch.nn.Module) -> None:
    with torch.no_grad():
        module.get_parameter(FROZEN).view(-1)[0] = 0.0
    before = digests(module)
    with torch.no_grad():
        module.get_parameter(FROZEN).view(-1)[0] = -0.0
    assert audit(module, before).frozen_changed == (FROZEN,)


def test_a_trained_tensor_that_stayed_is_named_and_one_of_two_is_no_failure(module: torch.nn.Module) -> None:
    before = digests(module)
    _nudge(module, TRAINED[0])
    outcome = audit(module, before)
    assert outcome.trained_unchanged == (TRAINED[1],)
    assert outcome.passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_can_be_hashed(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(3, 2, dtype=dtype).requires_grad_(False)
    before = digests(layer)
    layer.bias.data = layer.bias.data * 2
    assert audit(layer, before).frozen_changed == ("bias",)
