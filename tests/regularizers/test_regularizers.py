"""Regularizers: closed forms, gradients, and the laws that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from families import build, build_classifier, examples, labelled_examples, tokenizer
from luthier.core.batch import Example
from luthier.core.component import kinds
from luthier.core.rundir import StageDir
from luthier.methods.base import Method, trainable
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.models.causal import CausalModel, probe
from luthier.models.classifier import Classifier, probe_classifier
from luthier.models.load import load_model
from luthier.objectives.classify import Classify
from luthier.objectives.simpo import Simpo
from luthier.regularizers.base import Regularizer
from luthier.regularizers.ewc import Ewc
from luthier.regularizers.kl import Kl
from luthier.regularizers.l2_sp import L2Sp
from luthier.regularizers.neftune import Neftune, _lengths
from luthier.regularizers.replay import Replay
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from luthier.train.fisher import fisher
from luthier.train.microbatch import Cut
from luthier.train.restraints import Restraint
from training import engine

ROWS = examples([9, 14, 5, 20, 3, 12], seed=1)
OTHERS = examples([8, 6, 11], seed=2)
WEIGHTED = {"l2_sp": L2Sp(weight=0.3), "kl": Kl(weight=0.7), "ewc": Ewc(data="rows.jsonl", weight=5.0)}  # type: ignore[arg-type]

Start = Callable[..., Engine]


def causal(family: str = "llama") -> CausalModel:
    model = CausalModel(build(family), tokenizer(), family, "")
    probe(model)
    return model


def importance(model: CausalModel, method: Method) -> Mapping[str, Tensor]:
    """Made-up numbers for every tensor that the method trains."""
    draw = torch.Generator().manual_seed(5)
    return {n: torch.rand(p.shape, generator=draw) for n, p in trainable(model.module).items()}


def running(part: Regularizer | None, method: Method | None = None, family: str = "llama", **options: object) -> Engine:
    model, method = causal(family), method or Full()
    options = {"keep_reference": True, "max_grad_norm": None, "learning_rate": 3e-3, "warmup_steps": 0, **options}
    made = engine(model, method, regularizers=[], **options)  # type: ignore[arg-type]
    if part is None:
        return made
    held = Restraint(part, importance(model, method) if isinstance(part, Ewc) else {})
    return replace(made, regularizers=[held])


def gradients(run: Engine, rows: list = ROWS) -> tuple[dict[str, Tensor], dict[str, float]]:
    sums = run.forward_backward(rows)
    found = {n: p.grad.clone() for n, p in run.trained().items() if p.grad is not None}
    run.optimizer.zero_grad(set_to_none=True)
    return found, {name: float(value) / sums.count for name, value in sums.metrics.items()}


def moved(part: Regularizer | None, method: Method | None = None, **options: object) -> Engine:
    """An engine whose weights are no longer where training started."""
    made = running(part, method, **options)
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in made.trained().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return made


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("method", [Full(), Lora(rank=3)], ids=["full", "lora"])
def test_l2_sp_is_half_the_squared_distance_and_draws_back_along_it(method: Method) -> None:
    part = L2Sp(weight=0.3)
    made = moved(part, method)
    ours, metrics = gradients(made)
    without, _ = gradients(moved(None, method))
    away = {n: p.detach() - made._initial[n] for n, p in made.trained().items()}  # type: ignore[index]
    assert metrics["l2_sp"] == pytest.approx(0.5 * sum(float(d.square().sum()) for d in away.values()), rel=1e-5)
    for name, gradient in without.items():
        torch.testing.assert_close(ours[name], gradient + 0.3 * away[name], rtol=1e-5, atol=1e-6)


def test_ewc_weighs_each_number_by_its_importance() -> None:
    made = moved(WEIGHTED["ewc"])
    ours, metrics = gradients(made)
    without, _ = gradients(moved(None))
    fisher_of = made.regularizers[0].importance
    away = {n: p.detach() - made._initial[n] for n, p in made.trained().items()}  # type: ignore[index]
    expected = 0.5 * sum(float((fisher_of[n] * d.square()).sum()) for n, d in away.items())
    assert metrics["ewc"] == pytest.approx(expected, rel=1e-5)
    for name, gradient in without.items():
        torch.testing.assert_close(ours[name], gradient + 5.0 * fisher_of[name] * away[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=3)], ids=["full", "lora"])
def test_kl_to_the_base_is_the_exact_one_of_both_models_logits(method: Method, direction: str) -> None:
    part = Kl.model_validate({"weight": 0.7, "direction": direction})
    made = moved(part, method)
    base = causal()  # the same seed: the weights that training started from
    ours, metrics = gradients(made)
    without, _ = gradients(moved(None, method))
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in ROWS:
        tokens = torch.tensor(row.tokens, dtype=torch.long)[None]
        w = torch.tensor(row.weights[1:])
        q = made.model.module(input_ids=tokens).logits[0, :-1].double().log_softmax(-1)
        with torch.no_grad():
            p = base.module(input_ids=tokens).logits[0, :-1].double().log_softmax(-1)
        one, other = (q, p) if direction == "reverse" else (p, q)
        total = total + (w * (one.exp() * (one - other)).sum(-1)).sum()
        weight += float(w.sum())
    assert metrics["kl_to_base"] == pytest.approx(float(total.detach()) / weight, rel=1e-4)
    (0.7 * total / weight).backward()  # some layers put their gradient into place themselves
    for name, parameter in made.trained().items():
        expected = without[name] + parameter.grad
        assert (ours[name] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("name", WEIGHTED)
def test_at_the_start_nothing_is_added(name: str) -> None:
    ours, metrics = gradients(running(WEIGHTED[name]))
    without, _ = gradients(running(None))
    assert metrics[WEIGHTED[name].metric] == pytest.approx(0.0, abs=1e-6)
    for key, gradient in without.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-5, atol=1e-6)


def test_the_loss_that_is_shown_stays_the_objectives_own() -> None:
    alone = float(moved(None).forward_backward(ROWS).loss)
    for part in WEIGHTED.values():
        assert float(moved(part).forward_backward(ROWS).loss) == pytest.approx(alone, rel=1e-6)


def test_fisher_is_what_all_answers_together_give() -> None:
    model = causal()
    names = ["model.norm.weight", "model.layers.0.self_attn.o_proj.weight"]
    chosen = {n: p for n, p in model.module.named_parameters() if n in names}
    [row] = examples([4], seed=3)
    row.weights[:] = (0, 0, 0, 1)
    tokens = torch.tensor(row.tokens, dtype=torch.long)[None]
    logps = model.module(input_ids=tokens).logits[0, 2].log_softmax(-1)
    exact = {name: torch.zeros_like(p) for name, p in chosen.items()}
    for logp in logps:
        for name, g in zip(names, torch.autograd.grad(logp, [chosen[n] for n in names], retain_graph=True)):
            exact[name] += logp.detach().exp() * g.square()
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    draws = [fisher(model, chosen, [row] * 20, seed) for seed in range(20)]
    for name in names:
        mean = torch.stack([d[name] for d in draws]).mean(0)
        assert float(mean.sum()) == pytest.approx(float(exact[name].sum()), rel=0.15)
        assert torch.corrcoef(torch.stack([mean.flatten(), exact[name].flatten()]))[0, 1] > 0.9
    assert all(p.grad is None for p in chosen.values())


def test_a_new_head_has_no_start_to_go_back_to() -> None:
    model = Classifier(build_classifier("llama"), tokenizer(), "llama", "")
    probe_classifier(model)
    made = engine(model, Full(), Classify(), regularizers=[Restraint(L2Sp())], keep_reference=True)  # type: ignore[arg-type]
    with torch.no_grad():
        model.module.score.weight.add_(1.0)
    _, metrics = gradients(made, labelled_examples([5, 7]))
    assert metrics["l2_sp"] == 0


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(name: str, family: str) -> None:
    whole, metrics = gradients(moved(WEIGHTED[name], family=family))
    for cut in (Cut(sequences=1), Cut(sequences=4)):
        found, same = gradients(moved(WEIGHTED[name], family=family, cut=cut))
        assert same == pytest.approx(metrics, rel=1e-4)
        for key, gradient in whole.items():
            assert (found[key] - gradient).abs().max() < 2e-5 * max(1.0, float(gradient.abs().max())), key


@pytest.mark.parametrize("name", [*WEIGHTED, "neftune"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=3, dropout=0.2)], ids=["full", "lora"])
def test_ten_steps_are_five_and_a_restart_and_five_bit_for_bit(
    name: str, method: Method, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    part = WEIGHTED.get(name, Neftune(alpha=8.0))

    def start() -> Engine:
        model = load_model(str(family_folder("gpt2-dropout")))
        made = engine(model, method, keep_reference=True, cut=Cut(sequences=2))  # type: ignore[arg-type]
        held = Restraint(part, importance(model, method) if isinstance(part, Ewc) else {})  # type: ignore[arg-type]
        return replace(made, regularizers=[held])

    whole = start()
    metrics = [whole.train_step(ROWS) for _ in range(10)]
    first = start()
    before = [first.train_step(ROWS) for _ in range(5)]
    folder = save_checkpoint(first, StageDir(tmp_path), extra={}, keep=2)
    torch.manual_seed(12345)
    second = start()
    load_checkpoint(second, folder)
    assert before + [second.train_step(ROWS) for _ in range(5)] == metrics
    for (key, one), (_, other) in zip(second.trained().items(), whole.trained().items()):
        assert torch.equal(one, other), key


def test_every_regularizer_is_tried_here() -> None:
    assert kinds("regularizer").keys() == {*WEIGHTED, "neftune", "replay"}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_model_that_is_held_moves_less(name: str) -> None:
    strong = WEIGHTED[name].model_copy(update={"weight": 50.0})

    def distance(part: Regularizer | None) -> float:
        made = running(part)
        for _ in range(10):
            made.train_step(ROWS)
        return sum(float((p.detach() - made._initial[n]).square().sum()) for n, p in made.trained().items())  # type: ignore[index]

    assert distance(strong) < 0.8 * distance(None)


# ---------------------------------------------------------------------- noise


def noise(made: Engine, rows: list, part: Neftune) -> Tensor:
    """What the regularizer adds to the embeddings of a batch, (N, H)."""
    batch = made.model.collate(rows)
    seen: list[Tensor] = []
    layer = made.model.module.get_input_embeddings()
    with part.disturbing(made.model, batch):
        handle = layer.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
        made.model.hidden(batch)  # type: ignore[attr-defined]
        handle.remove()
    plain = layer(batch.tokens)
    return (seen[0] - plain.detach()).reshape(-1, plain.shape[-1])


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_noise_is_uniform_and_scaled_by_the_length_of_each_sequence(family: str) -> None:
    made, part = running(None, family=family), Neftune(alpha=5.0)
    torch.manual_seed(0)
    rows = [row for row in ROWS for _ in range(30)]
    found = noise(made, rows, part)
    length_N = _lengths(made.model.collate(rows))
    for length in {len(row) for row in ROWS}:
        bound = 5.0 / math.sqrt(length * found.shape[-1])
        own = found[length_N == length]
        assert float(own.abs().max()) <= bound * 1.001
        assert float(own.abs().max()) > 0.95 * bound
        assert abs(float(own.mean())) < 0.1 * bound
        assert float(own.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_noise_is_there_in_training_and_never_in_a_measurement() -> None:
    part = Neftune(alpha=20.0)
    noisy, quiet = running(part), running(None)
    assert noisy.evaluate(ROWS) == quiet.evaluate(ROWS)
    assert float(noisy.forward_backward(ROWS).loss) != float(quiet.forward_backward(ROWS).loss)
    noisy.optimizer.zero_grad(set_to_none=True)
    assert noisy.evaluate(ROWS) == quiet.evaluate(ROWS)


def test_noise_is_a_function_of_seed_step_and_micro_batch() -> None:
    def losses(seed: int) -> list[float]:
        made = running(Neftune(alpha=20.0), seed=seed, learning_rate=1e-30)
        return [made.train_step([ROWS[0], ROWS[0]])["loss"] for _ in range(3)]

    assert losses(0) == losses(0)
    assert len({*losses(0), *losses(1)}) == 6


# ---------------------------------------------------------------------- replay


@pytest.mark.parametrize(("share", "batch", "expected"), [(0.25, 8, 2), (0.01, 8, 1), (0.9, 4, 3), (0.1, 64, 6)])
def test_replay_takes_its_share_of_a_step_and_never_all_of_it(share: float, batch: int, expected: int) -> None:
    assert Replay(data="x", share=share).rows_per_step(batch) == expected  # type: ignore[arg-type]


# ---------------------------------------------------------------------- with other objectives


def pairs() -> list[Example]:
    draw = np.random.default_rng(4)
    found = []
    for prompt, chosen, rejected in ((4, 5, 3), (2, 3, 6), (5, 2, 2)):
        size = prompt + chosen + rejected
        weights = np.ones(size, dtype=np.float32)
        weights[:prompt] = 0.0
        tokens = draw.integers(3, 60, size).astype(np.int32)
        found.append(Example(tokens, weights, "p.jsonl:1", branches=(chosen, rejected)))
    return found


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_kl_is_per_token_under_an_objective_that_counts_pairs(family: str) -> None:
    part = Kl(weight=0.7)
    rows = pairs()
    found = []
    for cut in (Cut(), Cut(sequences=1)):
        made = moved(part, family=family, cut=cut, objective=Simpo())
        found.append(gradients(made, rows))
    whole, metrics = found[0]
    without, _ = gradients(moved(None, family=family, objective=Simpo()), rows)
    # The same number as under an objective over the same tokens.
    assert metrics["kl_to_base"] == pytest.approx(
        gradients(moved(part, family=family), rows)[1]["kl_to_base"], rel=1e-4
    )
    assert found[1][1]["kl_to_base"] == pytest.approx(metrics["kl_to_base"], rel=1e-4)
    added = 0.0
    for key, gradient in whole.items():
        assert (found[1][0][key] - gradient).abs().max() < 2e-5 * max(1.0, float(gradient.abs().max())), key
        added += float((gradient - without[key]).abs().sum())
    assert added > 1.0
