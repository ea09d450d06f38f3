"""The engine: forward and backward over a step, one optimizer update, evaluation. The only place with
`.backward()`.

A step's loss is a sum over its micro-batches divided by the count of the whole step, known before the first forward
pass. Randomness (dropout) comes from (seed, step, micro-batch), so a resumed run draws the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.batch import Batch, Example
from luthier.core.errors import FreezeError, NonFiniteError, OutOfMemoryError
from luthier.core.heap import TIMES, TIMES_RECOMPUTED, release_between
from luthier.methods.base import Method, trainable
from luthier.models.layers import block_modules, hidden_size
from luthier.models.leaner import make_checkpointable
from luthier.models.loaded import LoadedModel
from luthier.models.output_scale import scaled_groups
from luthier.objectives.base import Objective
from luthier.train.microbatch import Cut, is_out_of_memory
from luthier.train.restraints import Restraint, restraints

if TYPE_CHECKING:
    from luthier.optim.base import Optimizer
    from luthier.optim.schedules import Schedule


@dataclass(frozen=True)
class Settings:
    """The numbers of a training run, all derived: nothing is None that the loop would have to guess."""

    total_steps: int
    learning_rate: float
    steps_per_epoch: int = 1
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    seed: int = 0
    gradient_checkpointing: bool = False
    keep_reference: bool = False
    output_scale: float = 1.0
    """Size of the numbers that a head of one output is to give; its rate is multiplied by it."""


def add_gradients(model: LoadedModel, objective: Objective, batches: Sequence[Batch]) -> None:
    """Add the gradient of the batches' mean loss to every parameter that wants one."""
    count = sum(objective.count(batch) for batch in batches)
    for batch in batches:
        (objective.loss_sum(model, batch).total / count).backward()


@dataclass
class StepSums:
    """What a forward-backward pass over one step left: sums on the device, and counts on the host."""

    loss: Tensor
    metrics: dict[str, Tensor]
    count: float
    tokens: int
    sources: tuple[str, ...]


@dataclass
class Engine:
    """A model in training.

    Attributes:
        step: optimizer steps done so far.
        cut: how a step is cut into micro-batches; shrinks when memory runs out.
        events: what the user should hear of (a halved micro-batch, …), in order.
        regularizers: what is added to the objective; those that compare with the start need Settings.keep_reference.
    """

    model: LoadedModel
    method: Method
    objective: Objective
    optimizer_config: Optimizer
    schedule: Schedule
    settings: Settings
    cut: Cut = field(default_factory=Cut)
    step: int = 0
    events: list[str] = field(default_factory=list)
    regularizers: Sequence[Restraint] = ()

    def __post_init__(self) -> None:
        module = self.model.module
        groups = self.method.param_groups(module, self.settings.weight_decay)
        groups = scaled_groups(groups, module, self.settings.output_scale)
        self.objective_state = self.objective.build_state(self.model)
        if self.objective_state is not None:
            # What starts from nothing takes the method's own step; comparing answers wants smaller ones.
            own = {"params": list(self.objective_state.parameters()), "weight_decay": 0.0}
            groups = [*groups, {**own, "lr_scale": 1.0 / self.objective.learning_rate_factor}]
        self.optimizer = self.optimizer_config.build(groups, self.settings.learning_rate)
        self._scales = [float(g.get("lr_scale", 1.0)) for g in self.optimizer.param_groups]
        self._trained = self.trained()
        self.method_state = self.method.init_state(module, self.settings.total_steps, self.settings.steps_per_epoch)
        self._initial = (
            {n: p.detach().clone() for n, p in self._trained.items()} if self.settings.keep_reference else None
        )
        self._restraints = restraints(self.regularizers, self._initial)
        if self.settings.gradient_checkpointing:
            # Reentrant checkpointing loses the gradients of adapters below frozen embeddings.
            module.gradient_checkpointing_enable({"use_reentrant": False})
            # Only reentrant checkpointing needs inputs that want gradients; with them frozen blocks run backward too.
            module.disable_input_require_grads()
            make_checkpointable(module)
        if self.model.device.type == "cpu":
            times = TIMES_RECOMPUTED if self.settings.gradient_checkpointing else TIMES
            release_between(block_modules(module), hidden_size(module), times)
        module.train()

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return everything that the optimizer moves, by name: the method's tensors and the objective's own."""
        own = {} if self.objective_state is None else dict(self.objective_state.named_parameters())
        return {**trainable(self.model.module), **{f"objective.{name}": p for name, p in own.items()}}

    # ------------------------------------------------------------------ the four verbs of a training loop

    def train_step(self, examples: Sequence[Example]) -> dict[str, float]:
        """Run one whole optimizer step and return its metrics.

        Raises:
            NonFiniteError: loss or gradient is not finite; the weights have not changed.
            OutOfMemoryError: not even one sequence fits.
        """
        sums = self.forward_backward(examples)
        rate = self.learning_rate()
        norm = self.optim_step(sums)
        metrics = {name: float(total) / sums.count for name, total in sums.metrics.items()}
        return {
            "step": self.step,
            "loss": float(sums.loss),
            **metrics,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": sums.tokens,
        }

    def forward_backward(self, examples: Sequence[Example]) -> StepSums:
        """Accumulate the gradient of the step's mean loss; on lack of memory, cut finer and begin the step again."""
        self.method.before_step(self.model.module, self.method_state, self.step)
        examples = self.prepared(examples)
        while True:
            groups = self._groups(examples)
            try:
                return self._accumulate(groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block the failed pass's tensors are no longer held by the traceback.
            self._cut_finer(max(map(len, groups)), max(map(len, examples)))

    def optim_step(self, sums: StepSums) -> float:
        """Clip, check, update, and return the gradient norm before clipping."""
        parameters = list(self._trained.values())
        limit = self.settings.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
        if not (math.isfinite(norm) and math.isfinite(float(sums.loss))):
            raise self._non_finite(sums, norm)
        if self.step == 0:
            self._require_gradients()
        rate = self.learning_rate()
        for group, scale in zip(self.optimizer.param_groups, self._scales):
            group["lr"] = rate * scale
        self._update()
        self.step += 1
        self.method.after_step(self.model.module, self.method_state, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def evaluate(self, examples: Sequence[Example]) -> tuple[float, float]:
        """Return (mean loss, count) over examples, without touching the training state."""
        measured, count = self.measure(examples)
        return measured["loss"], count

    def measure(self, examples: Sequence[Example]) -> tuple[dict[str, float], float]:
        """Return (the mean loss and what else the objective logs, count) over examples; nothing is trained."""
        examples = self.prepared(examples)
        while True:
            groups = self._groups(examples)
            try:
                return self._means(groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._cut_finer(max(map(len, groups)), max(map(len, examples)))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Run the body with the trained tensors at their initial values: the reference model, whatever the method."""
        assert self._initial is not None, "the engine was built without keep_reference"
        now = {n: p.detach().clone() for n, p in self._trained.items()}
        try:
            self._put(self._initial)
            yield
        finally:
            self._put(now)

    # ------------------------------------------------------------------ inside a step

    def learning_rate(self) -> float:
        """Return the rate that the next update uses."""
        s = self.settings
        return s.learning_rate * self.schedule.factor(self.step, s.total_steps, s.warmup_steps)

    def _accumulate(self, groups: list[list[Example]]) -> StepSums:
        batches = [self.model.collate(group) for group in groups]
        count = sum(self.objective.count(batch) for batch in batches)
        assert count > 0, "a step without a single trained token; the renderer refuses such rows"
        positions = max(sum(batch.count for batch in batches), 1e-12)
        loss = torch.zeros((), dtype=torch.float64, device=self.model.device)
        metrics: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            start = self._restraints.beliefs(self.model, batch, self.reference)
            torch.manual_seed(zlib.crc32(f"{self.settings.seed}/{self.step}/{index}".encode()))
            self.model.upstream = 1.0 / count if self.objective.is_plain_nll else None
            with self._restraints.disturbing(self.model, batch):
                result = self.objective.loss_sum(self.model, batch)
                held = list(self._restraints.of_batch(self.model, batch, start))
            self.model.upstream = None
            total = result.total
            penalty = self.method.penalty(self.model.module, batch)
            if penalty is not None:
                # Weighed like the batch's mean loss, so that a step's penalty is the mean over its micro-batches.
                total = total + penalty * self.objective.count(batch)
            mean = total / count
            for _, strength, value in held:  # no part of the loss that is shown; their values stand beside it
                mean = mean + strength * value / positions
            mean.backward()
            loss += total.detach().double()
            for name, _, value in held:
                metrics[name] = metrics.get(name, 0.0) + value.detach() * (count / positions)
            for name, value in result.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach()
        for name, strength, value in self._restraints.of_weights(self.model, self._trained):
            (strength * value).backward()
            metrics[name] = value.detach() * count
        return StepSums(
            loss=loss / count,
            metrics=metrics,
            count=count,
            tokens=sum(b.real_tokens for b in batches),
            sources=tuple(s for b in batches for s in b.sources),
        )

    def _groups(self, examples: Sequence[Example]) -> list[list[Example]]:
        return self.cut.apply(examples, padded=not self.model.packs)

    def prepared(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Let the objective look at the whole step before its first gradient; on lack of memory, cut finer."""
        if not self.objective.looks_ahead:
            return examples
        while True:
            try:
                with self.model.evaluating():
                    return self.objective.prepare_step(self.model, examples, self._groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._cut_finer(max(map(len, self._groups(examples))), max(map(len, examples)))

    def _means(self, groups: list[list[Example]]) -> tuple[dict[str, float], float]:
        sums: dict[str, float] = {"loss": 0.0}
        count = 0.0
        with self.model.evaluating():
            for group in groups:
                batch = self.model.collate(group)
                result = self.objective.loss_sum(self.model, batch)
                sums["loss"] += float(result.total.double())
                for name, value in result.metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                count += self.objective.count(batch)
        return {name: total / max(count, 1e-12) for name, total in sums.items()}, count

    def _update(self) -> None:
        """Let the optimizer move the weights. Half an update cannot be taken back, so lack of memory ends the run."""
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"Out of memory in the optimizer at step {self.step + 1}: its moments need 8 bytes for each trained "
                "parameter. Train fewer weights (method: lora), or set optimizer: adamw_8bit."
            ) from error

    def _cut_finer(self, largest: int, longest: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finer = self.cut.halved(largest)
        if finer is None:
            raise OutOfMemoryError(
                f"Out of memory at step {self.step + 1} with a single sequence (the longest has {longest} tokens). "
                "Set gradient_checkpointing: true, lower max_length, or train fewer weights (method: lora)."
            )
        self.cut = finer
        self.events.append(
            f"Out of memory at step {self.step + 1}: going on with {finer.sequences} sequences per micro-batch instead "
            f"of {largest}. The step's sequences and their order stay the same; dropout, if any, is drawn anew."
        )

    def _require_gradients(self) -> None:
        without = [n for n, p in self._trained.items() if p.grad is None]
        if without and (self.method.freezes_most or len(without) == len(self._trained)):
            shown = ", ".join(without[:3])
            raise FreezeError(
                f"{len(without)} of {len(self._trained)} trainable tensors got no gradient in the first step: {shown}. "
                "They are not part of the model's computation, so training would leave them as they are."
            )

    def _non_finite(self, sums: StepSums, norm: float) -> NonFiniteError:
        self.optimizer.zero_grad(set_to_none=True)
        rows = ", ".join(sums.sources[:8]) + (", …" if len(sums.sources) > 8 else "")
        return NonFiniteError(
            f"Step {self.step + 1}: loss {float(sums.loss)}, gradient norm {norm}. Stopped before the weights changed. "
            f"Rows of this step: {rows}. Lower learning_rate, or use dtype: float32; the last checkpoint is good."
        )

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[name])
