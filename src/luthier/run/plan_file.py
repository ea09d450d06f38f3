"""A run's plan.json: predicted when the stage starts, completed with what was measured when it ends.

Memory on a CPU is the resident set above what the process had when its libraries were imported and no weights were
read; on a GPU what torch has allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.advise.overhead import overhead_of
from luthier.core.errors import LuthierError
from luthier.core.rundir import RunDir, read_json, write_json
from luthier.run.environment import cpu_model, total_memory
from luthier.run.numbers import byte_size, duration
from luthier.run.planning import Plan, Target, as_json, look_at, plan_stage, settle_checkpointing

if TYPE_CHECKING:
    from luthier.run.config import Recipe
    from luthier.run.datasets import StageData
    from luthier.run.screen import Screen
    from luthier.run.stage_run import Progress

_USE_PEFT = frozenset(
    {"lora", "lora_plus", "qlora", "adalora", "ia3", "prompt", "p_tuning", "prefix", "p_tuning_v2", "hybrid"}
)


@dataclass(frozen=True)
class Planned:
    """What was said at the start.

    Attributes:
        baseline_bytes: of the process before the model was loaded.
        plan: None where no plan could be made, with the reason in the file.
    """

    run: RunDir
    recipe: Recipe
    plan: Plan | None
    baseline_bytes: int


def plan_run(recipe: Recipe, config: Mapping[str, object], data: StageData, run: RunDir, screen: Screen) -> Planned:
    """Plan a stage before its model is loaded, write plan.json and say it in one line.

    A resumed run keeps what was decided; a plan that cannot be made stops nothing.
    """
    decided = _decided(run)
    if decided is not None:
        recipe = recipe.model_copy(update={"gradient_checkpointing": decided})
    import_libraries(recipe, config)
    try:
        target = this_machine(config)
        load = load_of(recipe, data, config, target.device)
        chosen, why = settle_checkpointing(recipe, config, load, target)
        if why:
            screen.fact("checkpointing", why)
        recipe = recipe.model_copy(update={"gradient_checkpointing": chosen})
        plan = plan_stage(recipe, config, load, target, head=_head_parameters(recipe, config, data))
    except LuthierError as error:
        screen.note(f"no plan: {error}")
        recipe = recipe.model_copy(update={"gradient_checkpointing": recipe.gradient_checkpointing is True})
        return Planned(run, recipe, None, resident_bytes())
    kept = read_json(run.plan) if run.plan.is_file() else {}
    write_json(run.plan, {**as_json(plan), **({"measured": kept["measured"]} if "measured" in kept else {})})
    screen.fact("plan", plan.in_words())
    return Planned(run, recipe, plan, resident_bytes())


def note_measured(planned: Planned, peak_bytes: int, progress: Progress, steps: int, screen: Screen) -> None:
    """Complete plan.json with what a finished stage needed and took, and say how far the plan was from it."""
    if planned.plan is None:
        return
    plan, on_gpu = planned.plan, planned.plan.parts and _has_gpu()
    peak = peak_bytes if on_gpu else max(peak_bytes - planned.baseline_bytes, 0)
    measured = {
        "peak_bytes": peak,
        "baseline_bytes": 0 if on_gpu else planned.baseline_bytes,
        "process_peak_bytes": peak_bytes,
        "steps": steps,
        "seconds": progress.train_seconds,
        "cpu_seconds": progress.train_cpu_seconds,
        "tokens": progress.tokens_total,
        "peak_ratio": plan.peak_bytes / peak if peak else None,
        "seconds_ratio": plan.seconds / progress.train_seconds if plan.seconds and progress.train_seconds else None,
    }
    write_json(planned.run.plan, {**read_json(planned.run.plan), "measured": measured})
    time = (
        "" if plan.seconds is None else f"; time {duration(plan.seconds)}, measured {duration(progress.train_seconds)}"
    )
    screen.fact("against plan", f"peak {byte_size(plan.peak_bytes)}, measured {byte_size(peak)}{time}")


def load_of(recipe: Recipe, data: StageData, config: Mapping[str, object], device: str):
    """Return the load of a stage whose rows are rendered."""
    from luthier.run.assemble import total_steps
    from luthier.run.mixing import stream_of
    from luthier.run.planning import LOOKED_AT

    stream = stream_of(recipe, data.sizes)
    steps = total_steps(recipe, stream, data)
    rows = [[int(i) for i in stream.rows(step)] for step in range(min(steps, LOOKED_AT))]
    return look_at(recipe, data.train, rows, steps, config, device)


def this_machine(config: Mapping[str, object], probe: bool = False) -> Target:
    """Return the device that this process would train on, with its speed as it was measured before.

    Args:
        probe: measure the speed now (five seconds) where it is not known yet.
    """
    import torch

    from luthier.advise.cards import CARDS, UTILISATION
    from luthier.advise.probe import kept_speed, measure
    from luthier.advise.speed import Speed
    from luthier.run.planning import shape_for

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        card = next((c for name, c in CARDS.items() if name.replace("-", " ").split("-")[0] in found.name), None)
        speed = None if card is None else Speed(UTILISATION * card.flops, 0.0, card.watts)
        return Target("cuda", found.total_memory, found.name, speed, overhead_of("cuda"))
    shape, name, threads = shape_for(config), cpu_model(), torch.get_num_threads()
    speed = kept_speed(shape, name, 1)
    if speed is None and probe:
        speed = measure(shape, name, 1)
    return Target("cpu", total_memory() or 0, name or "this machine", _on(speed, threads), overhead_of("cpu"))


def _on(speed, threads: int):
    """Return the speed of several threads; the second core of two gains about 0.8 of the first."""
    from dataclasses import replace

    return None if speed is None else replace(speed, flops=speed.flops * (1 + 0.8 * (threads - 1)))


def import_libraries(recipe: Recipe, config: Mapping[str, object]) -> None:
    """Import what the stage will import anyway, so that its memory is not taken for the model's."""
    import importlib

    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    import luthier.models.load  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from luthier.models.quantized import has_bitsandbytes, import_bitsandbytes, require_bitsandbytes

    kind = str(config.get("model_type"))
    family = AutoModelForCausalLM if recipe.objective.head == "tokens" else AutoModelForSequenceClassification
    if kind in CONFIG_MAPPING:
        known = family._model_mapping  # type: ignore[attr-defined]
        if CONFIG_MAPPING[kind] in known:
            known[CONFIG_MAPPING[kind]]
    if recipe.method.kind_name in _USE_PEFT:
        import_bitsandbytes()
        importlib.import_module("luthier.methods.modules.peft_files")
    if has_bitsandbytes() and (recipe.method.base_bits or "8bit" in str(recipe.optimizer.model_dump()["kind"])):
        require_bitsandbytes()


def resident_bytes() -> int:
    """Return the memory that this process has in RAM; the highest so far where the system does not say."""
    try:
        with open("/proc/self/status", encoding="utf-8") as stream:
            line = next(line for line in stream if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        from luthier.train.checkpoint import device_peak_bytes

        return device_peak_bytes()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _head_parameters(recipe: Recipe, config: Mapping[str, object], data: StageData) -> int:
    """Return the parameters of a classifier's head: one row and one number for each class."""
    if recipe.objective.head == "tokens":
        return 0
    hidden = config.get("hidden_size") or config.get("n_embd") or 0
    classes = len(data.classes.names) if data.classes is not None else 1
    return classes * (int(str(hidden)) + 1)


def _decided(run: RunDir) -> bool | None:
    if not run.plan.is_file():
        return None
    try:
        kept = read_json(run.plan).get("gradient_checkpointing")
    except LuthierError:
        return None
    return kept if isinstance(kept, bool) else None
