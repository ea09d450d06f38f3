"""The laws of the engine: exact resumption, one result however a step is cut, and no step on bad numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from families import examples
from laws.test_methods import method_for, refusals
from luthier.core.batch import Batch, Example
from luthier.core.component import component_class, kinds
from luthier.core.errors import FreezeError, NonFiniteError, OutOfMemoryError
from luthier.core.rundir import StageDir
from luthier.data.stream import Stream
from luthier.methods.base import Method
from luthier.methods.full import Full
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.objectives.base import LanguageModel, LossSum
from luthier.objectives.sft import Sft
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from luthier.train.microbatch import Cut
from training import engine

DATA = examples([9, 14, 5, 20, 3, 12, 7, 16, 11, 4, 8], seed=1)  # 11 rows in steps of 4: epochs end in a short step
STREAM = Stream(len(DATA), batch_size=4, seed=7)
STEPS = 10
RESUMED_ON = ("gpt2-dropout", "gpt-neox", "mixtral")

Start = Callable[..., Engine]


@pytest.fixture
def start(family_folder: Callable[[str], Path]) -> Start:
    def build(family: str = "llama", method: Method | None = None, **options: object) -> Engine:
        method = method or Full()
        return engine(load_model(str(family_folder(family)), base_bits=method.base_bits), method, **options)  # type: ignore[arg-type]

    return build


def _method(kind: str, family: str) -> Method:
    """The laws' method, with dropout where that is to be had."""
    if kind == "lora":
        return component_class("method", kind).model_validate({"rank": 3, "dropout": 0.2})  # type: ignore[return-value]
    return method_for(kind, family)


def _rows(step: int) -> list[Example]:
    return [DATA[i] for i in STREAM.rows(step)]


def _run(running: Engine, until: int = STEPS) -> list[dict[str, float]]:
    return [running.train_step(_rows(running.step)) for _ in range(running.step, until)]


def _tensors(running: Engine) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in running.model.module.named_parameters()}


def _moments(running: Engine) -> dict[str, Tensor]:
    names = {p: n for n, p in running.model.module.named_parameters()}
    return {f"{k}/{names[p]}": v for p, s in running.optimizer.state.items() for k, v in s.items()}


def _assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if tolerance:
            assert (ours[name] - tensor).abs().max() <= tolerance, name
        else:
            assert torch.equal(ours[name], tensor), name


# ---------------------------------------------------------------------- resumption


@pytest.mark.parametrize(
    ("kind", "family"), [(k, f) for k in kinds("method") for f in RESUMED_ON if not refusals(k, f)]
)
def test_ten_steps_are_five_and_a_restart_and_five_bit_for_bit(
    kind: str, family: str, start: Start, tmp_path: Path
) -> None:
    cut = Cut(sequences=3)
    whole = start(family, _method(kind, family), cut=cut, weight_decay=0.1)
    metrics = _run(whole)

    first = start(family, _method(kind, family), cut=cut, weight_decay=0.1)
    before = _run(first, until=5)
    folder = save_checkpoint(first, StageDir(tmp_path), extra={}, keep=2)
    torch.manual_seed(12345)  # a new process has other random numbers
    second = start(family, _method(kind, family), cut=Cut(), weight_decay=0.1)
    load_checkpoint(second, folder)
    assert second.step == 5
    assert second.cut == cut
    after = _run(second)

    assert before + after == metrics
    _assert_equal(_tensors(second), _tensors(whole))
    _assert_equal(_moments(second), _moments(whole))


def test_dropout_is_at_work_in_the_test_above(start: Start) -> None:
    losses = [start(f).train_step(_rows(0))["loss"] for f in ("gpt2", "gpt2-dropout")]
    assert losses[0] != losses[1]
    assert start("gpt2-dropout", seed=1).train_step(_rows(0))["loss"] != losses[1]


def test_dropout_differs_from_step_to_step_and_from_micro_batch_to_micro_batch(start: Start) -> None:
    row = DATA[3]
    running = start("gpt2-dropout", cut=Cut(sequences=1), learning_rate=1e-30)  # the weights stay
    once, again = (float(running.forward_backward([row]).loss) for _ in range(2))
    assert once == again
    assert float(running.forward_backward([row, row]).loss) != once
    losses = {running.train_step([row])["loss"] for _ in range(4)}
    assert len(losses) == 4


# ---------------------------------------------------------------------- how a step is cut


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_accumulation_equals_one_large_batch(family: str, start: Start) -> None:
    cuts = (Cut(tokens=None), Cut(sequences=1), Cut(sequences=3), Cut(tokens=20))
    runs = [start(family, cut=cut, eps=1e-3) for cut in cuts]
    losses = [[m["loss"] for m in _run(running, until=5)] for running in runs]
    for running, loss in zip(runs[1:], losses[1:]):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        _assert_equal(_tensors(running), _tensors(runs[0]), tolerance=5e-6)


def test_a_step_is_the_mean_over_its_trained_tokens_not_the_mean_of_its_micro_batches(start: Start) -> None:
    running = start(cut=Cut(sequences=1))
    rows = _rows(0)
    sums = running.forward_backward(rows)
    model = running.model
    with model.evaluating():
        parts = [(float(model.nll_sum(model.collate([r]))), r.count) for r in rows]
    total, count = (sum(p[i] for p in parts) for i in (0, 1))
    assert float(sums.loss) == pytest.approx(total / count, rel=1e-6)
    assert sums.count == pytest.approx(count)
    assert sums.tokens == sum(len(r) for r in rows)
    assert sums.sources == tuple(r.source for r in rows)
    assert abs(total / count - sum(t / c for t, c in parts) / len(parts)) > 1e-3  # the other mean is another number


def test_gradient_checkpointing_trains_the_same(start: Start) -> None:
    for method in (Full(), Lora(rank=3)):
        plain, saving = start(method=method), start(method=method, gradient_checkpointing=True)
        assert saving.model.module.is_gradient_checkpointing
        losses = [[m["loss"] for m in _run(running, until=4)] for running in (plain, saving)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        _assert_equal(_tensors(saving), _tensors(plain), tolerance=1e-5)


# ---------------------------------------------------------------------- out of memory


OUT_OF_MEMORY = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "host": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:122] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


class _FailInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, total: Tensor, error: BaseException):  # type: ignore[override]
        ctx.error = error
        return total.clone()

    @staticmethod
    def backward(ctx, *_: Tensor):  # type: ignore[override]
        raise ctx.error


@dataclass
class Cramped:
    """An objective for which memory ends at `most` sequences; short ones still fit, so that a step fails half-way."""

    is_plain_nll = False
    looks_ahead = False

    most: int
    error: BaseException
    at_backward: bool = False

    def count(self, batch: Batch) -> float:
        return batch.count

    def build_state(self, model: LanguageModel) -> None:
        return None

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        total = model.nll_sum(batch)
        if len(batch.lengths) > self.most and max(batch.lengths) > 12:
            if not self.at_backward:
                raise self.error
            total = _FailInBackward.apply(total, self.error)
        return LossSum(total)


@pytest.mark.parametrize("at_backward", [False, True])
@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_when_memory_ends_the_step_is_cut_finer_and_gives_the_same(kind: str, at_backward: bool, start: Start) -> None:
    rows = sorted(DATA, key=len)  # the short ones have left their gradients when the long ones fail
    undisturbed = start(cut=Cut(sequences=6), eps=1e-3)
    cramped = start(cut=Cut(sequences=6), eps=1e-3, objective=Cramped(2, OUT_OF_MEMORY[kind], at_backward))
    for _ in range(3):
        ours, theirs = cramped.train_step(rows), undisturbed.train_step(rows)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    _assert_equal(_tensors(cramped), _tensors(undisturbed), tolerance=1e-6)
    assert cramped.cut.sequences == 1  # 6, 3, 1
    assert len(cramped.events) == 2
    assert "3 sequences per micro-batch instead of 6" in cramped.events[0]
    assert undisturbed.events == []


def test_a_single_sequence_that_does_not_fit_ends_the_run_with_what_to_do(start: Start) -> None:
    running = start(objective=Cramped(0, OUT_OF_MEMORY["host"]))
    before = _tensors(running)
    with pytest.raises(OutOfMemoryError, match=r"step 1.*20 tokens.*gradient_checkpointing: true.*max_length"):
        running.train_step(DATA[:4])
    _assert_equal(_tensors(running), before)
    assert all(p.grad is None for p in running.model.module.parameters())


def test_any_other_error_is_not_taken_for_lack_of_memory(start: Start) -> None:
    running = start(objective=Cramped(0, RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        running.train_step(DATA[:4])
    assert running.events == []


# ---------------------------------------------------------------------- numbers that are none


@dataclass
class Spoilt:
    """An objective that multiplies the loss."""

    is_plain_nll = False
    looks_ahead = False

    factor: float

    def count(self, batch: Batch) -> float:
        return batch.count

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        return LossSum(model.nll_sum(batch) * self.factor)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change_and_names_the_rows(
    factor: float, start: Start
) -> None:
    running = start()
    _run(running, until=2)
    before, moments = _tensors(running), {n: t.clone() for n, t in _moments(running).items()}
    running.objective = Spoilt(factor)  # type: ignore[assignment]
    rows = _rows(2)
    with pytest.raises(NonFiniteError) as caught:
        running.train_step(rows)
    assert "Step 3" in str(caught.value)
    assert all(row.source in str(caught.value) for row in rows)
    assert running.step == 2
    _assert_equal(_tensors(running), before)
    _assert_equal(_moments(running), moments)
    assert all(p.grad is None for p in running.model.module.parameters())


def test_a_gradient_that_is_no_number_stops_too_although_the_loss_is_one(start: Start) -> None:
    running = start(max_grad_norm=None)
    before = _tensors(running)
    weight = running.model.module.get_input_embeddings().weight
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        running.train_step(_rows(0))
    _assert_equal(_tensors(running), before)


# ---------------------------------------------------------------------- the update


def _gradients_at_update(running: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    step = running.optimizer.step

    def watched() -> None:
        seen.extend(p.grad.clone() for p in running.model.module.parameters() if p.grad is not None)
        step()

    monkeypatch.setattr(running.optimizer, "step", watched)
    return seen


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().pow(2).sum()) for t in tensors))


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, clipped, loose = start(max_grad_norm=None), start(max_grad_norm=0.1), start(max_grad_norm=1e6)
    gradients = [_gradients_at_update(running, monkeypatch) for running in (free, clipped, loose)]
    norms = [running.train_step(_rows(0))["grad_norm"] for running in (free, clipped, loose)]
    assert norms[0] == norms[1] == norms[2] == pytest.approx(_norm(gradients[0]), rel=1e-6)
    assert norms[0] > 0.2
    assert _norm(gradients[1]) == pytest.approx(0.1, rel=1e-4)
    for raw, cut, same in zip(*gradients):
        torch.testing.assert_close(cut, raw * (0.1 / norms[0]), rtol=1e-4, atol=1e-8)
        assert torch.equal(raw, same)


def test_the_rate_of_each_step_is_the_schedules(start: Start) -> None:
    running = start(total_steps=4, learning_rate=0.02, warmup_steps=1)
    rates = [m["learning_rate"] for m in _run(running, until=4)]
    assert rates == pytest.approx([0.01, 0.02, 0.02 * 0.75, 0.02 * 0.25])
    assert [g["lr"] for g in running.optimizer.param_groups] == [rates[-1]] * len(running.optimizer.param_groups)


def test_matrices_decay_and_vectors_do_not(start: Start) -> None:
    running = start("gpt2", weight_decay=0.5, total_steps=1, warmup_steps=0, learning_rate=0.1)
    plain = start("gpt2", weight_decay=0.0, total_steps=1, warmup_steps=0, learning_rate=0.1)
    before = _tensors(plain)
    for each in (running, plain):
        each.train_step(_rows(0))
    ours, theirs = _tensors(running), _tensors(plain)
    for name, start_value in before.items():
        expected = theirs[name] - (0.1 * 0.5 * start_value if start_value.ndim > 1 else 0)
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6)


def test_one_step_equals_torchs_plain_adamw(start: Start) -> None:
    running = start(learning_rate=1e-2, warmup_steps=0, max_grad_norm=None, weight_decay=0.0)
    twin = start()
    plain = torch.optim.AdamW(twin.model.module.parameters(), lr=1e-2, weight_decay=0.0, fused=False, foreach=False)
    for step in range(3):
        plain.param_groups[0]["lr"] = running.learning_rate()
        running.train_step(_rows(step))
        twin.forward_backward(_rows(step))
        plain.step()
        plain.zero_grad()
    _assert_equal(_tensors(running), _tensors(twin), tolerance=1e-6)


def test_a_trainable_tensor_outside_the_computation_is_found_at_the_first_step(start: Start) -> None:
    running = start(method=Lora(rank=2))
    running.model.module.forgotten = nn.Parameter(torch.zeros(3))
    adrift = Engine(
        running.model, running.method, running.objective, running.optimizer_config, running.schedule, running.settings
    )
    with pytest.raises(FreezeError, match=r"1 of \d+ trainable tensors got no gradient.*forgotten"):
        adrift.train_step(_rows(0))


# ---------------------------------------------------------------------- evaluation and reference


def test_evaluation_leaves_the_training_as_it_was(start: Start) -> None:
    watched, undisturbed = start("gpt2-dropout"), start("gpt2-dropout")
    evaluations = []
    for step in range(5):
        random_state = torch.get_rng_state()
        evaluations.append(watched.evaluate(DATA))
        assert torch.equal(torch.get_rng_state(), random_state)
        assert watched.model.module.training
        assert watched.train_step(_rows(step)) == undisturbed.train_step(_rows(step))
    _assert_equal(_tensors(watched), _tensors(undisturbed))
    _assert_equal(_moments(watched), _moments(undisturbed))
    assert evaluations[-1][0] < evaluations[0][0]


def test_evaluation_is_the_mean_over_tokens_without_dropout_however_cut(start: Start) -> None:
    calm, wild = start("gpt2"), start("gpt2-dropout")
    expected, count = calm.evaluate(DATA)
    assert count == pytest.approx(sum(e.count for e in DATA))
    for cut in (Cut(sequences=1), Cut(sequences=4), Cut(tokens=15)):
        wild.cut = cut
        assert wild.evaluate(DATA)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in kinds("method") if not refusals(kind, "qwen2")])
def test_reference_is_the_initial_model_and_what_was_trained_comes_back(kind: str, start: Start) -> None:
    running = start("qwen2", _method(kind, "qwen2"), keep_reference=True)
    initial = running.evaluate(DATA)
    _run(running, until=4)
    trained, tensors = running.evaluate(DATA), _tensors(running)
    with running.reference():
        assert running.evaluate(DATA) == initial
    assert running.evaluate(DATA) == trained != initial
    with pytest.raises(KeyError), running.reference():
        raise KeyError("something in the loop")
    _assert_equal(_tensors(running), tensors)
    _run(running, until=6)


def test_the_objective_of_the_engine_may_log_sums_of_its_own(start: Start) -> None:
    class Telling:
        is_plain_nll = False
        looks_ahead = False

        def count(self, batch: Batch) -> float:
            return Sft().count(batch)

        def build_state(self, model: LanguageModel) -> None:
            return None

        def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
            return LossSum(model.nll_sum(batch), {"weight": batch.weights_M.sum()})

    running = start(objective=Telling(), cut=Cut(sequences=1))
    assert running.train_step(_rows(0))["weight"] == pytest.approx(1.0)
