"""The laws of methods once more, for classifiers: every kind that has a meaning there, on decoders and an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from families import CLASSES, config, labelled_examples
from laws.test_methods import METHODS, method_for
from luthier.core.component import StageFacts
from luthier.core.errors import RunError
from luthier.methods.base import Method, head_parameters, trainable
from luthier.models.classifier import Classifier
from luthier.models.load import load_model
from luthier.models.pooling import pooled_head
from luthier.objectives.classify import Classify
from luthier.train.audit import audit, digests
from training import engine

FAMILIES = ("llama", "qwen2", "gpt2", "bert")
STEPS = 5
"""As many as ULMFiT needs to set every layer group free."""
TOKENS = torch.randint(3, 60, (2, 23), generator=torch.Generator().manual_seed(5))
ROWS = labelled_examples([9, 14, 5, 20], seed=3)


def refusals(kind: str, family: str) -> list[str]:
    """Why a kind refuses a classifier of a family, as its `problems` say it from the config."""
    method = method_for(kind, family)
    facts = StageFacts(method=method, objective=Classify(), model_config=config(family).to_dict())
    return [problem.what for problem in method.problems(facts) if problem.severity == "error"]


PAIRS = [(kind, family) for kind in METHODS for family in FAMILIES if not refusals(kind, family)]


def load(folder: Path, method: Method) -> Classifier:
    model = load_model(str(folder), base_bits=method.base_bits, classes=CLASSES)
    assert isinstance(model, Classifier)
    return model


def logits(model: Classifier) -> Tensor:
    with model.evaluating():
        return model.class_logits(model.collate(ROWS))


def bits(module: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all tensors under the names they have in the plain model."""
    return {n.replace(".base_layer.", "."): p.detach().clone() for n, p in module.named_parameters()}


@dataclass
class Journey:
    """One method on one classifier, from the base model through a few steps to a saved folder."""

    family: str
    base_folder: Path
    method: Method
    model: Classifier
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
    model = load(family_folder(family), method)
    base, base_logits = bits(model.module), logits(model)
    running = engine(model, method, Classify())
    applied_logits = logits(model)
    declared, hashes = set(trainable(model.module)), digests(model.module)
    for step in range(STEPS):
        running.train_step(labelled_examples([9, 14, 5, 20], seed=step))
        assert set(trainable(model.module)) == declared, "between steps everything declared is trainable"
    saved = tmp_path_factory.mktemp(f"{kind}-{family}")
    method.save(model.module, saved, base=model.path)
    return Journey(
        family=family,
        base_folder=family_folder(family),
        method=method,
        model=model,
        base_logits=base_logits,
        applied_logits=applied_logits,
        trained_logits=logits(model),
        base=base,
        declared=declared,
        hashes=hashes,
        saved=saved,
    )


def _fresh(journey: Journey) -> Classifier:
    model = load(journey.base_folder, journey.method)
    torch.manual_seed(0)
    journey.method.prepare(model.module)
    return model


def test_before_the_first_step_it_is_the_base_model(journey: Journey) -> None:
    if journey.method.differs_at_start or pooled_head(journey.model.module) is not None:
        return  # a head of its own has other logits from the start
    torch.testing.assert_close(journey.applied_logits, journey.base_logits, rtol=0, atol=1e-5)


def test_only_declared_tensors_and_the_head_move(journey: Journey) -> None:
    now = bits(journey.model.module)
    moved = {n for n, before in journey.base.items() if n in now and not torch.equal(before, now[n])}
    assert moved == journey.declared & journey.base.keys() & now.keys()
    outcome = audit(journey.model.module, journey.hashes)
    assert outcome.passed
    assert outcome.frozen_changed == outcome.trained_unchanged == ()
    assert outcome.trained == len(journey.declared) > 0


def test_the_whole_head_is_trained_with_every_method(journey: Journey) -> None:
    head = set(head_parameters(journey.model.module))
    assert head
    assert head <= set(trainable(journey.model.module))


def test_the_closed_form_counts_what_is_trained_besides_the_head(journey: Journey) -> None:
    names = dict(enumerate(CLASSES))
    with torch.device("meta"):
        plain = AutoModelForSequenceClassification.from_config(config(journey.family, id2label=names))
    head = set(head_parameters(plain))
    own = sum(p.numel() for n, p in plain.named_parameters() if n in head)
    trained = sum(p.numel() for p in trainable(journey.model.module).values())
    assert journey.method.count(plain) + own == trained


def test_packed_and_padded_give_the_same_loss_and_gradient(journey: Journey) -> None:
    model = _fresh(journey)
    if not model.packs:
        assert journey.family == "bert"
        return
    journey.method.load(model.module, journey.saved)
    model.module.eval()
    found = []
    for model.packs in (True, False):
        model.module.zero_grad()
        loss = Classify().loss_sum(model, model.collate(ROWS)).total
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainable(model.module).items() if p.grad is not None}))
    (packed, packed_grads), (padded, padded_grads) = found
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-4)
    assert packed_grads.keys() == padded_grads.keys()
    for name, grad in packed_grads.items():
        torch.testing.assert_close(grad, padded_grads[name], rtol=1e-3, atol=2e-4, msg=name)


def test_saved_and_loaded_into_a_fresh_model_it_gives_the_same_logits(journey: Journey) -> None:
    model = _fresh(journey)
    journey.method.load(model.module, journey.saved)
    assert torch.equal(logits(model), journey.trained_logits)


def test_merged_it_is_a_plain_model_that_transformers_opens_with_the_names_of_the_classes(
    journey: Journey, tmp_path: Path
) -> None:
    model = _fresh(journey)
    journey.method.load(model.module, journey.saved)
    if journey.method.unmergeable or pooled_head(model.module) is not None:
        with pytest.raises(RunError, match="merge"):
            journey.method.merge(model.module)
        return
    model.module.eval()
    try:
        merged = journey.method.merge(model.module)
    except RunError as refusal:
        if "cannot be merged" not in str(refusal):
            raise
        return  # a family that has no place for what was trained, as the refusal says
    merged.save_pretrained(tmp_path)
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert reloaded.config.id2label == dict(enumerate(CLASSES))
    with torch.no_grad():
        for row, expected in zip(ROWS, journey.trained_logits):
            tokens = torch.from_numpy(row.tokens.astype("int64"))[None]
            torch.testing.assert_close(reloaded.eval()(input_ids=tokens).logits[0], expected, rtol=0, atol=2e-5)
        padded = model.collate(ROWS) if not model.packs else None
        if padded is not None:
            whole = reloaded(input_ids=padded.tokens, attention_mask=padded.attention_mask).logits
            torch.testing.assert_close(whole, journey.trained_logits, rtol=0, atol=2e-5)
