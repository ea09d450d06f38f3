"""What a stage will need and take, from its recipe, its rows and its model's config: memory, steps, operations, time.

The same function plans for `luthier plan`, which loads nothing, and at the start of every run, which writes plan.json
and completes it with what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from luthier.advise.activations import Pass
from luthier.advise.memory import Job, Offload, Placement, pass_of, plan_memory
from luthier.advise.overhead import NONE, Overhead
from luthier.advise.reach import Reach, reach_of
from luthier.advise.shape import ModelShape, has_closed_form, shape_of
from luthier.advise.speed import Speed, Work, bytes_per_step, flops_per_step
from luthier.core.batch import Example
from luthier.objectives.rollouts import Online
from luthier.run.numbers import byte_size, duration
from luthier.train.microbatch import Cut, auto_cut

if TYPE_CHECKING:
    from luthier.run.config import Recipe

LOOKED_AT = 400
"""Steps whose micro-batches are looked at for the largest one."""
ROOM = 0.9
"""The share of a device's memory that a plan may fill before activations are computed again."""


@dataclass(frozen=True)
class Target:
    """Where a plan is for.

    Attributes:
        memory_bytes: of one device, 0 where it is not known.
        speed: None where only the memory is known.
        named: what it is called; overhead: its libraries and allocator.
    """

    device: Literal["cpu", "cuda"]
    memory_bytes: int
    named: str
    speed: Speed | None = None
    overhead: Overhead = NONE
    devices: int = 1
    placement: Placement = "single"
    offload: Offload = "none"
    mixed: bool = False


@dataclass(frozen=True)
class Load:
    """A stage's rows as memory and time depend on them.

    Attributes:
        tokens: of the largest micro-batch, padding included; supervised, sequences, longest: of the same one.
        mean_tokens, mean_supervised: of a step, over all its micro-batches.
        micro_batches: of a step, at most; steps: of the stage; assumed: what was not known and what stands for it.
    """

    tokens: int
    supervised: int
    sequences: int
    longest: int
    mean_tokens: float
    mean_supervised: float
    mean_sequences: float
    micro_batches: int
    steps: int
    assumed: str = ""


@dataclass(frozen=True)
class Plan:
    """What a stage will need and take. Bytes are of one device, beside what the process itself has."""

    model: str
    method: str
    objective: str
    device: str
    devices: int
    placement: str
    trainable_parameters: int
    total_parameters: int
    peak_bytes: int
    parts: dict[str, int]
    phases: dict[str, int]
    host: dict[str, int]
    gradient_checkpointing: bool
    micro_batch_tokens: int
    micro_batch_sequences: int
    tokens_per_step: float
    steps: int
    tokens: float
    flops: float
    seconds: float | None
    energy_kwh: float | None
    adapter_bytes: int
    round_bytes: int
    fit: dict[str, int | float | str]
    notes: list[str] = field(default_factory=list)

    def in_words(self) -> str:
        """Return the plan in one line."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name.replace('_', ' ')} {byte_size(size)}" for name, size in largest)
        time = "" if self.seconds is None else f"; {duration(self.seconds)} in {self.steps:,} steps"
        return f"peak memory {byte_size(self.peak_bytes)} beside the process ({parts}){time}"


def plan_stage(
    recipe: Recipe,
    config: Mapping[str, object],
    load: Load,
    target: Target,
    trained: int | None = None,
    head: int = 0,
) -> Plan:
    """Return the plan of a stage.

    Args:
        config: the model's config.json.
        trained: parameters that are trained, where they were counted; else by closed form.
        head: parameters of a classifier's new head, where `trained` is not given.
    """
    shape = shape_for(config)
    job = job_of(recipe, load, target, trained, head)
    memory = plan_memory(shape, job)
    reach = reach_of(job.method, job.settings, shape)
    one = pass_of(shape, job)
    mean = replace(
        one,
        tokens=max(round(load.mean_tokens), 1),
        supervised=round(load.mean_supervised),
        sequences=max(round(load.mean_sequences), 1),
    )
    flops = flops_per_step(shape, reach, mean, reference=recipe.objective.needs_reference)
    flops *= _forward_share(recipe, reach, shape)
    trained_all = memory.trainable_parameters
    work = _work(flops, shape, reach, mean, load, job, target)
    terms = target.overhead
    seconds = None
    if work is not None:
        seconds = terms.start_seconds + terms.products * work.product_seconds + terms.passes * work.pass_seconds
    saved = 4 * memory.total_parameters if recipe.method.in_place and reach.matrices else 4 * trained_all
    watts = target.speed.watts if target.speed is not None else 0.0
    return Plan(
        model=recipe.model.path,
        method=recipe.method.kind_name,
        objective=str(recipe.objective.model_dump()["kind"]),
        device=target.named,
        devices=target.devices,
        placement=target.placement,
        trainable_parameters=trained_all,
        total_parameters=memory.total_parameters,
        peak_bytes=memory.peak_bytes,
        parts=memory.parts,
        phases=memory.phases,
        host=memory.host,
        gradient_checkpointing=job.gradient_checkpointing,
        micro_batch_tokens=load.tokens,
        micro_batch_sequences=load.sequences,
        tokens_per_step=load.mean_tokens * target.devices,
        steps=load.steps,
        tokens=load.mean_tokens * load.steps * target.devices,
        flops=flops * load.steps * target.devices,
        seconds=seconds,
        energy_kwh=None if seconds is None or not watts else seconds * watts * target.devices / 3.6e6,
        adapter_bytes=saved,
        round_bytes=2 * 4 * trained_all,
        fit={
            "resident": memory.resident_bytes,
            "moving": memory.peak_bytes - memory.resident_bytes - memory.parts.get("overhead", 0),
            "kept": memory.kept_bytes,
            "holes": memory.holes,
            "product_seconds": 0.0 if work is None else work.product_seconds,
            "pass_seconds": 0.0 if work is None else work.pass_seconds,
        },
        notes=[load.assumed] if load.assumed else [],
    )


def settle_checkpointing(recipe: Recipe, config: Mapping[str, object], load: Load, target: Target) -> tuple[bool, str]:
    """Return whether activations are to be computed again, and why, where the recipe leaves it to the plan."""
    if recipe.gradient_checkpointing != "auto":
        return recipe.gradient_checkpointing, ""
    plain = recipe.model_copy(update={"gradient_checkpointing": False})
    again = recipe.model_copy(update={"gradient_checkpointing": True})
    needed = plan_stage(plain, config, load, target).peak_bytes
    room = round(ROOM * target.memory_bytes)
    if not target.memory_bytes or needed <= room:
        return False, f"off: {byte_size(needed)} fit into {byte_size(target.memory_bytes)}"
    if [p for p in again.component_problems(config) if p.severity == "error"]:
        return False, "off: the method cannot do with it"
    less = plan_stage(again, config, load, target).peak_bytes
    return (
        True,
        f"on: {byte_size(needed)} would not fit into {byte_size(target.memory_bytes)}, {byte_size(less)} with it",
    )


def job_of(recipe: Recipe, load: Load, target: Target, trained: int | None, head: int) -> Job:
    """Return the memory model's job of a recipe."""
    dtype = recipe.dtype
    if dtype == "auto":
        dtype = "bfloat16" if target.device == "cuda" else "float32"
    rollouts, length = _rollouts(recipe, load)
    held = {str(part.model_dump()["kind"]) for part in recipe.regularizers}
    compares = recipe.objective.compares_with_start or bool(held & {"l2_sp", "kl"})
    bits = recipe.method.base_bits
    return Job(
        method=recipe.method.kind_name,
        settings=_settings(recipe),
        objective=str(recipe.objective.model_dump()["kind"]),
        trainable_parameters=trained,
        head_parameters=head,
        tokens=load.tokens + load.sequences * recipe.method.reserved_positions,
        supervised=load.supervised,
        sequences=load.sequences,
        longest=load.longest,
        micro_batches=load.micro_batches,
        dtype=dtype,
        bits=bits,
        double_quantization=recipe.method.base_quantization[1],
        optimizer=str(recipe.optimizer.model_dump()["kind"]),
        gradient_checkpointing=recipe.gradient_checkpointing is True,
        mixed=target.mixed,
        devices=target.devices,
        placement=target.placement,
        offload=target.offload,
        device=target.device,
        overhead=target.overhead,
        rollout_sequences=rollouts,
        rollout_tokens=length,
        copies=1 if compares else 0,
    )


def shape_for(config: Mapping[str, object]) -> ModelShape:
    """Return a model's shape: in closed form, or read off the model built without memory.

    Raises:
        ModelError: no model can be built from the config.
    """
    if has_closed_form(config):
        return shape_of(config)
    from luthier.run.built_shape import built_shape

    return built_shape(config)


def look_at(
    recipe: Recipe,
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    steps: int,
    config: Mapping[str, object],
    device: str,
) -> Load:
    """Return a stage's load: the largest micro-batch among its first steps, and the mean of a step.

    Args:
        rows: which examples make each of the first steps.
    """
    cut = cut_of(recipe, config, device)
    largest: list[Example] = []
    most, tokens, supervised, sequences, micro, padded = 0, 0, 0, 0, 1, not recipe.packing
    for chosen in rows[:LOOKED_AT]:
        groups = cut.apply([examples[int(i)] for i in chosen], padded=padded)
        micro = max(micro, len(groups))
        for group in groups:
            size = _size(group, padded)
            tokens += size
            supervised += sum(e.trained_tokens for e in group)
            sequences += sum(e.sequences for e in group)
            if size > most:
                most, largest = size, group
    seen = max(len(rows[:LOOKED_AT]), 1)
    return Load(
        tokens=most,
        supervised=sum(e.trained_tokens for e in largest),
        sequences=sum(e.sequences for e in largest),
        longest=max((e.longest for e in largest), default=0),
        mean_tokens=tokens / seen,
        mean_supervised=supervised / seen,
        mean_sequences=sequences / seen,
        micro_batches=micro,
        steps=steps,
    )


def assumed_load(recipe: Recipe, longest: int, config: Mapping[str, object], device: str, why: str) -> Load:
    """Return the load of rows that are all as long as they may be, where there are none to look at."""
    import numpy as np

    row = Example(np.zeros(longest, dtype=np.int32), np.ones(longest, dtype=np.float32))
    steps = recipe.step_limit or 1
    found = look_at(recipe, [row], [[0] * recipe.batch_size], steps, config, device)
    told = f"every row is taken to be {longest:,} tokens long ({why})"
    if recipe.step_limit is None:
        told += "; for one step, as the number of rows is not known"
    return replace(found, assumed=told)


def cut_of(recipe: Recipe, config: Mapping[str, object], device: str) -> Cut:
    """Return how a step is cut into micro-batches."""
    if recipe.micro_batch_size != "auto":
        return Cut(recipe.micro_batch_size, None)
    text = config.get("text_config")
    return auto_cut(_Names(text if isinstance(text, Mapping) else config), device)  # type: ignore[arg-type]


_OTHER_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}


class _Names:
    """A config.json by attributes, as transformers gives it."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> object:
        value = self._values.get(name, self._values.get(_OTHER_NAMES.get(name, name)))
        if value is None:
            raise AttributeError(name)
        return value


def _size(group: Sequence[Example], padded: bool) -> int:
    if padded:
        return max(e.longest for e in group) * sum(e.sequences for e in group)
    return sum(len(e) for e in group)


def _settings(recipe: Recipe) -> dict[str, object]:
    settings = recipe.method.model_dump()
    start = getattr(recipe.method, "start_rank", None)
    if isinstance(start, int):  # AdaLoRA's first rank, which it derives
        settings["initial_rank"] = start
    return settings


def _rollouts(recipe: Recipe, load: Load) -> tuple[int, int]:
    """Return how many answers are written at once, and how long they and their prompts become."""
    if not isinstance(recipe.objective, Online):
        return 0, 0
    return recipe.batch_size * recipe.objective.answers, load.longest + recipe.objective.drawing.max_new_tokens


def _forward_share(recipe: Recipe, reach: Reach, shape: ModelShape) -> float:
    """Return the share of the operations that are left where frozen blocks run once for all epochs."""
    if not recipe.cache_frozen or recipe.epochs <= 1 or reach.first_block == 0 or recipe.method.keeps_features:
        return 1.0
    return 1.0 - (1 - 1 / recipe.epochs) * reach.first_block / max(3 * shape.layers - 2 * reach.first_block, 1)


def _work(
    flops: float, shape: ModelShape, reach: Reach, mean: Pass, load: Load, job: Job, target: Target
) -> Work | None:
    """Return the seconds of all steps, as products and as passes over memory; None where no speed is known."""
    if target.speed is None or not target.speed.flops:
        return None
    passes = bytes_per_step(shape, reach, mean, load.micro_batches, job.base_bits) if target.speed.bandwidth else 0.0
    one = Work(flops / target.speed.flops, passes / (target.speed.bandwidth or 1.0))
    return Work(one.product_seconds * load.steps, one.pass_seconds * load.steps)


def as_json(plan: Plan) -> dict[str, object]:
    """Return a plan as plan.json and `--json` have it; `memory` is what the report shows."""
    values = asdict(plan)
    return {**values, "memory": plan.parts, "hours": None if plan.seconds is None else plan.seconds / 3600}
