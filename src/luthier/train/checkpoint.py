"""Checkpoints: the method's tensors, the optimizer's moments, and where the run stands. safetensors and JSON only.

A checkpoint is written beside its place, synced, and renamed; DONE is the last file in it. Nothing about random
numbers or data order is stored, because both are functions of (seed, step).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import Problem, RunError
from luthier.core.rundir import STATE, StageDir, disk_fault, read_json, settle_files, sync
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.train.engine import Engine

OPTIMIZER = "optimizer.safetensors"
METHOD_STATE = "method_state.safetensors"
OBJECTIVE_STATE = "objective_state.safetensors"


def save_checkpoint(
    engine: Engine, stage: StageDir, extra: dict[str, object], keep: int, resumable: bool = True
) -> Path:
    """Write the checkpoint of the current step and delete the oldest beyond `keep` (none that may be wanted).

    Args:
        extra: what the loop wants back on resume (best evaluation so far, …); the checkpoints of `extra["best_step"]`
            and `extra["kept_step"]` stay on disk.
        resumable: False leaves the optimizer's moments out, for a finished run.

    Raises:
        RunError: the disk is full or read-only; what was half-written is removed.
    """
    final = stage.checkpoint(engine.step)
    beside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        engine.method.save(engine.model.module, beside, base=engine.model.path)
        engine.model.tokenizer.save_pretrained(beside)
        if resumable:
            _save_optimizer(engine, beside / OPTIMIZER)
            _save_method_state(engine, beside / METHOD_STATE)
            _save_objective_state(engine, beside / OBJECTIVE_STATE)
        state = {
            "step": engine.step,
            "cut": {"sequences": engine.cut.sequences, "tokens": engine.cut.tokens},
            "base_fingerprint": engine.model.fingerprint,
            "resumable": resumable,
            **extra,
        }
        (beside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        settle_files(beside)
        (beside / "DONE").touch()
        sync(beside / "DONE")
        sync(beside)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        sync(final.parent)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        fault = disk_fault(final, error)
        if fault is None:
            raise
        raise fault from error
    _delete_old(stage, keep, (extra.get("best_step"), extra.get("kept_step")))
    return final


def load_checkpoint(engine: Engine, folder: Path) -> dict[str, object]:
    """Put a checkpoint into an engine that was built as for the start of the run; return its state.

    Raises:
        RunError: the checkpoint belongs to another base model or cannot be resumed.
    """
    state: dict[str, Any] = read_json(folder / STATE)
    require_base(state["base_fingerprint"], engine.model)
    engine.method.load(engine.model.module, folder)
    if (folder / OPTIMIZER).is_file():
        _load_optimizer(engine, folder / OPTIMIZER)
    elif state["resumable"]:
        # Going on without the moments would look like a resumed run and be another one.
        remedy = "delete this checkpoint's folder; the one before it is used then"
        raise RunError(Problem(f"The checkpoint lacks {OPTIMIZER}.", str(folder), remedy))
    _load_method_state(engine, folder / METHOD_STATE)
    _load_objective_state(engine, folder / OBJECTIVE_STATE)
    engine.step = state["step"]
    engine.cut = Cut(**state["cut"])
    return state


def require_base(fingerprint: str, model: LoadedModel) -> None:
    """Make sure that a model is the one whose fingerprint was written down.

    Raises:
        RunError: its weights are others.
    """
    if fingerprint != model.fingerprint:
        raise RunError(
            Problem(
                "The base model's weights are not those the run was started with.",
                where=model.path,
                remedy="put the original model back, or start a new run",
            )
        )


def _save_optimizer(engine: Engine, path: Path) -> None:
    from safetensors.torch import save_file

    names = {id(p): n for n, p in engine.trained().items()}
    state = {
        f"{key}/{names[id(parameter)]}": value
        for parameter, values in engine.optimizer.state.items()
        for key, value in values.items()
    }
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for full, value in state.items():
        if isinstance(value, Tensor):
            kept = value.contiguous().cpu()
            # Some states share a table, and safetensors refuses tensors that lie in one place.
            tensors[full] = kept.clone() if kept.data_ptr() in places else kept
            places.add(kept.data_ptr())
    numbers = {full: value for full, value in state.items() if isinstance(value, int | float)}
    save_file(tensors, path, metadata={"numbers": json.dumps(numbers)})


def _load_optimizer(engine: Engine, path: Path) -> None:
    from safetensors import safe_open

    parameters = engine.trained()
    with safe_open(path, framework="pt") as file:
        for full, value in json.loads((file.metadata() or {}).get("numbers", "{}")).items():
            key, _, name = full.partition("/")
            engine.optimizer.state[parameters[name]][key] = value
        for full in file.keys():  # noqa: SIM118 — safe_open is no mapping
            key, _, name = full.partition("/")
            parameter = parameters[name]
            value = file.get_tensor(full)
            # The step counter stays where the fused kernel wants it; moments go beside their parameter.
            engine.optimizer.state[parameter][key] = value.to(parameter.device)


def _save_method_state(engine: Engine, path: Path) -> None:
    from safetensors.torch import save_file

    if engine.method_state:
        save_file({n: t.detach().contiguous().cpu() for n, t in engine.method_state.items()}, path)


def _load_method_state(engine: Engine, path: Path) -> None:
    from luthier.methods.base import read_tensors

    if engine.method_state and path.parent.is_dir() and path.is_file():
        for name, value in read_tensors(path).items():
            engine.method_state[name] = value.to(engine.model.device)


def _save_objective_state(engine: Engine, path: Path) -> None:
    from safetensors.torch import save_file

    if engine.objective_state is not None:
        save_file({n: t.contiguous().cpu() for n, t in engine.objective_state.state_dict().items()}, path)


def _load_objective_state(engine: Engine, path: Path) -> None:
    from luthier.methods.base import read_tensors

    if engine.objective_state is not None and path.is_file():
        engine.objective_state.load_state_dict(read_tensors(path))


def _delete_old(stage: StageDir, keep: int, wanted: Sequence[object]) -> None:
    complete = stage.complete_checkpoints()
    protected = {stage.checkpoint(step).name for step in wanted if isinstance(step, int)}
    for folder in complete[: max(len(complete) - keep, 0)]:
        if folder.name not in protected:
            # Renamed first: a reader must never find a folder that has DONE and half of its files.
            going = folder.with_name(f".{folder.name}.old")
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)


def device_peak_bytes() -> int:
    """Return the highest memory this process has held: resident set on a CPU, allocated by torch on a GPU."""
    import resource
    import sys

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
