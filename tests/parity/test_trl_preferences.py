"""DPO and its family, KTO and the reward model against TRL: one step of its own code, and ours on the same rows.

Losses and gradients agree to 1e-5 (gradients: of the largest number in them). TRL computes padded rows in 32 bits, each
with its prompt; we packed ones, with the prompt computed once.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families import build, config, enlarge, tokenizer
from luthier.core.batch import Example
from luthier.models.causal import CausalModel, probe
from luthier.models.classifier import Classifier, probe_classifier
from luthier.objectives.base import Objective
from luthier.objectives.dpo import Dpo
from luthier.objectives.kto import Kto
from luthier.objectives.orpo import Orpo
from luthier.objectives.pairs import answer_logps
from luthier.objectives.reward import Reward
from luthier.objectives.simpo import Simpo

trl = pytest.importorskip("trl")
TOLERANCE = 1e-5
ROWS = [
    ("w5 w9 w11", " w20 w21 w22 w23", " w30 w31"),
    ("w7", " w8", " w40 w41 w42 w43 w44"),
    ("w3 w4 w20 w21 w30", " w33 w12", " w33 w50 w51"),
]


def _moved(seed: int) -> torch.nn.Module:
    """The tiny model with other weights: a reference that is not the policy."""
    module = build("llama")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=draw))
    return module


def _arguments(folder: Path, config: type, **options: object) -> Any:
    return config(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=len(ROWS) * (2 if "KTO" in config.__name__ else 1),
        max_steps=1,
        learning_rate=1e-30,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )


def _listen(trainer: Any, name: str) -> dict[str, Any]:
    """Run one step of a trainer, and return the inputs of its loss, the loss and its gradients."""
    seen: dict[str, Any] = {}
    original = getattr(trainer, name)

    def compute(model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        kept = {k: v.clone() if isinstance(v, Tensor) else copy.copy(v) for k, v in inputs.items()}
        loss = original(model, inputs, *rest, **named)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not seen:
            seen.update(inputs=kept, loss=float(value.detach()), gradients=_gradients(model, value))
        return loss

    setattr(trainer, name, compute)
    trainer.train()
    return seen


def _gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(named, grads) if g is not None}


def _pair(chosen: np.ndarray, rejected: np.ndarray, starts: tuple[int, int], **extras: float) -> Example:
    """Two rows as one example with two endings: what they share, up to the first judged token, stands once."""
    shared = min(*starts, len(chosen), len(rejected))
    assert (chosen[:shared] == rejected[:shared]).all()
    endings = (chosen[shared:], rejected[shared:])
    weights = [np.zeros(shared)]
    for ending, start in zip(endings, starts):
        weights.append((np.arange(len(ending)) >= start - shared).astype(float))
    tokens = np.concatenate([chosen[:shared], *endings]).astype(np.int32)
    return Example(tokens, np.concatenate(weights).astype(np.float32), "", extras, tuple(map(len, endings)))


def _model(module: torch.nn.Module) -> CausalModel:
    model = CausalModel(module, tokenizer(), "llama", "")  # type: ignore[arg-type]
    probe(model)
    assert model.packs
    return model


def _with_reference(examples: list[Example], reference: torch.nn.Module) -> list[Example]:
    model, found = _model(reference), []
    for example in examples:
        with model.evaluating():
            logps = answer_logps(model, model.collate([example])).numpy()
        extras = {**example.extras, "reference": logps}
        found.append(Example(example.tokens, example.weights, "", extras, example.branches))
    return found


def _compare(objective: Objective, examples: list[Example], loss: float, gradients: dict[str, Tensor]) -> None:
    model = _model(build("llama"))
    with model.evaluating():
        prepared = objective.prepare_step(model, examples, lambda rows: [list(rows)])
    batch = model.collate(list(prepared))
    ours = objective.loss_sum(model, batch).total / objective.count(batch)
    ours.backward()
    assert float(ours.detach()) == pytest.approx(loss, abs=TOLERANCE)
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 1e-4
    for name, parameter in model.module.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, name
            assert float((parameter.grad - gradients[name]).abs().max()) <= TOLERANCE * max(largest, 1.0), name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"loss_type": "sigmoid"}, {}),
        ({"loss_type": "sigmoid", "beta": 0.5}, {"beta": 0.5}),
        ({"loss_type": "hinge"}, {"loss": "hinge"}),
        ({"loss_type": "ipo"}, {"loss": "ipo"}),
        ({"loss_type": "robust", "label_smoothing": 0.2}, {"loss": "robust", "label_smoothing": 0.2}),
        ({"loss_type": "sigmoid_norm"}, {"length_normalized": True}),
    ],
    ids=str,
)
def test_dpo_has_trls_loss_and_gradient(theirs: dict[str, object], ours: dict[str, object], tmp_path: Path) -> None:
    seen, pairs = _trl_dpo(tmp_path, ROWS, **theirs)
    _compare(Dpo.model_validate({"kind": "dpo", **ours}), pairs, seen["loss"], seen["gradients"])


def _trl_dpo(folder: Path, rows: list[tuple[str, str, str]], **options: object) -> tuple[dict[str, Any], list[Example]]:
    """One step of TRL's trainer on (prompt, chosen, rejected), and what it was given in our form."""
    from datasets import Dataset

    trainer = trl.DPOTrainer(
        model=build("llama"),
        ref_model=_moved(1),
        args=_arguments(folder, trl.DPOConfig, **options),
        train_dataset=Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]),
        processing_class=tokenizer(),
    )
    seen = _listen(trainer, "_compute_loss")
    inputs, count = seen["inputs"], len(rows)
    ids = [row[m.bool()].numpy() for row, m in zip(inputs["input_ids"], inputs["attention_mask"])]
    starts = [int(m[a.bool()].argmax()) for m, a in zip(inputs["completion_mask"], inputs["attention_mask"])]
    pairs = [_pair(ids[i], ids[count + i], (starts[i], starts[count + i])) for i in range(count)]
    return seen, _with_reference(pairs, _moved(1))


def test_conservative_dpo_is_trls_loss_of_both_orders_by_their_shares(tmp_path: Path) -> None:
    """TRL's sigmoid does not read label_smoothing; its loss on turned pairs is what the other share costs."""
    share = 0.3
    right, pairs = _trl_dpo(tmp_path / "right", ROWS)
    wrong, _ = _trl_dpo(tmp_path / "wrong", [(p, r, c) for p, c, r in ROWS])
    loss = (1 - share) * right["loss"] + share * wrong["loss"]
    gradients = {n: (1 - share) * g + share * wrong["gradients"][n] for n, g in right["gradients"].items()}
    _compare(Dpo(label_smoothing=share), pairs, loss, gradients)


def test_the_chosen_answers_own_loss_is_trls_where_they_are_of_one_length(tmp_path: Path) -> None:
    """TRL means over a batch's tokens, which depends on how a step is cut; ours is the mean of answers' means."""
    rows = [(ROWS[0][0], " w20 w21", ROWS[0][2]), (ROWS[1][0], " w8 w9", ROWS[1][2]), ROWS[2]]
    seen, pairs = _trl_dpo(tmp_path, rows, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7])
    _compare(Dpo(sft_weight=0.7), pairs, seen["loss"], seen["gradients"])


def test_conservative_dpo_is_the_mixture_of_both_orders() -> None:
    model = _model(build("llama"))
    pair = _pair(np.array([5, 9, 20, 21]), np.array([5, 9, 30]), (2, 2), reference=-3.0)
    turned = _pair(np.array([5, 9, 30]), np.array([5, 9, 20, 21]), (2, 2), reference=-3.0)
    plain, smooth = Dpo(), Dpo(label_smoothing=0.3)
    right, wrong = (float(plain.loss_sum(model, model.collate([e])).total) for e in (pair, turned))
    assert float(smooth.loss_sum(model, model.collate([pair])).total) == pytest.approx(
        0.7 * right + 0.3 * wrong, abs=1e-6
    )


def _padded(rows: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
    """(ids, where the answer begins) as TRL's older trainers take them."""
    width = max(len(ids) for ids, _ in rows)
    made = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    made["labels"] = torch.full((len(rows), width), -100)
    for index, (ids, start) in enumerate(rows):
        made["input_ids"][index, : len(ids)] = torch.tensor(ids)
        made["attention_mask"][index, : len(ids)] = 1
        made["labels"][index, start : len(ids)] = torch.tensor(ids[start:])
    return made


PLAIN = [
    (np.array([5, 9, 11, 20, 21, 22, 23]), np.array([5, 9, 11, 30, 31]), 3),
    (np.array([7, 8]), np.array([7, 40, 41, 42, 43]), 1),
    (np.array([3, 4, 20, 33, 12]), np.array([3, 4, 20, 33, 50, 51]), 3),
]


def _batch() -> dict[str, Tensor]:
    chosen = _padded([(c, start) for c, _, start in PLAIN])
    rejected = _padded([(r, start) for _, r, start in PLAIN])
    return {f"chosen_{k}": v for k, v in chosen.items()} | {f"rejected_{k}": v for k, v in rejected.items()}


def _bare(kind: type, **settings: object) -> Any:
    """A trainer with the settings that its loss reads, and nothing else."""
    from accelerate import Accelerator

    trainer = object.__new__(kind)
    trainer.accelerator = Accelerator(cpu=True)  # type: ignore[attr-defined]
    common = {"is_encoder_decoder": False, "pad_token_id": 0, "aux_loss_enabled": False, "label_smoothing": 0.0}
    for name, value in {**common, **settings}.items():
        setattr(trainer, name, value)
    return trainer


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (0.7, 0.3)])
def test_simpo_has_trls_loss_and_gradient(beta: float, gamma: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0, "beta": beta, "simpo_gamma": gamma}
    trainer, module = _bare(CPOTrainer, **settings), build("llama")
    loss, _ = trainer.get_batch_loss_metrics(module, _batch())
    pairs = [_pair(c, r, (s, s)) for c, r, s in PLAIN]
    _compare(Simpo(beta=beta, gamma=gamma), pairs, float(loss.detach()), _gradients(module, loss))


def test_orpo_has_trls_odds_and_the_papers_likelihood() -> None:
    """TRL's likelihood counts the prompt too and means over the batch; the paper's is that of the answer."""
    from trl.experimental.orpo import ORPOTrainer

    trainer, module = _bare(ORPOTrainer, beta=0.1, padding_value=0), build("llama")
    chosen, rejected, *_ = trainer.concatenated_forward(module, _batch())
    losses, *_ = trainer.odds_ratio_loss(chosen, rejected)
    loss = -chosen.mean() - losses.mean()
    pairs = [_pair(c, r, (s, s)) for c, r, s in PLAIN]
    _compare(Orpo(), pairs, float(loss.detach()), _gradients(module, loss))


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": 1.3, "undesirable_weight": 0.6, "beta": 0.4}], ids=str)
def test_kto_has_trls_loss_and_gradient_with_its_kl(weights: dict[str, float], tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"prompt": p, "completion": c, "label": True} for p, c, _ in ROWS]
    rows += [{"prompt": p, "completion": r, "label": False} for p, _, r in ROWS]
    trainer = trl.KTOTrainer(
        model=build("llama"),
        ref_model=_moved(2),
        args=_arguments(tmp_path, trl.KTOConfig, **weights),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    seen = _listen(trainer, "_compute_loss")
    inputs = seen["inputs"]
    examples = []
    for i, label in enumerate(inputs["label"]):
        own = inputs["input_ids"][i][inputs["attention_mask"][i].bool()].numpy()
        other = inputs["KL_input_ids"][i][inputs["KL_attention_mask"][i].bool()].numpy()
        start = int(inputs["completion_mask"][i][inputs["attention_mask"][i].bool()].argmax())
        examples.append(_pair(own, other, (start, start), good=float(label)))
    objective = Kto.model_validate({"kind": "kto", **weights})
    _compare(objective, _with_reference(examples, _moved(2)), seen["loss"], seen["gradients"])


def _scorer() -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    settings = config("llama", id2label={0: "reward"}, label2id={"reward": 0})
    return enlarge(AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32))


@pytest.mark.parametrize(("margins", "center"), [(False, 0.0), (True, 0.0), (True, 0.05)])
def test_a_reward_model_has_trls_loss_and_gradient(margins: bool, center: float) -> None:
    from collections import defaultdict

    chosen, rejected = _padded([(c, 0) for c, _, _ in PLAIN]), _padded([(r, 0) for _, r, _ in PLAIN])
    width = max(chosen["input_ids"].shape[1], rejected["input_ids"].shape[1])
    module = _scorer()
    module.config.pad_token_id = 0

    def wide(name: str) -> Tensor:
        parts = [torch.nn.functional.pad(p[name], (0, width - p[name].shape[1])) for p in (chosen, rejected)]
        return torch.cat(parts)

    trainer = _bare(trl.RewardTrainer, _tp_size=1, _total_train_tokens=0)
    trainer.args = SimpleNamespace(center_rewards_coefficient=center or None)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    inputs: dict[str, object] = {"input_ids": wide("input_ids"), "attention_mask": wide("attention_mask")}
    margin = [0.5, 0.0, 1.25]
    if margins:
        inputs["margin"] = torch.tensor(margin)
    trainer.model = module.eval()
    loss = trainer.compute_loss(module, inputs)
    gradients = _gradients(module, loss)
    model = Classifier(_scorer(), tokenizer(), "llama", "")
    model.module.config.pad_token_id = 0
    probe_classifier(model)
    assert model.packs
    pairs = [_pair(c, r, (s, s), **({"margin": m} if margins else {})) for (c, r, s), m in zip(PLAIN, margin)]
    objective = Reward(center_rewards_coefficient=center)
    model.module.eval()
    batch = model.collate(pairs)
    ours = objective.loss_sum(model, batch).total / objective.count(batch)
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), abs=TOLERANCE)
    for name, parameter in model.module.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, name
            assert float((parameter.grad - gradients[name]).abs().max()) <= TOLERANCE, name
