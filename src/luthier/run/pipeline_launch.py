"""Run the stages of a pipeline one after the other, in one folder, and go on where it was stopped.

    runs/NAME/  recipe.yaml  pipeline.json  report.json  report.html
      00-sft/   what a run of one stage holds; start.json: what it takes over; model/: for later stages
      01-dpo/   …

Each stage's folder is a run of its own: `luthier chat runs/NAME/00-sft` talks to what that stage made, `luthier chat
runs/NAME` to the last one. A finished stage is never done again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from luthier.core.errors import GateFailure, Interrupted, LuthierError, Problem, RunError
from luthier.core.rundir import RunDir, StageDir, final_checkpoint, read_json, write_atomic, write_json
from luthier.run.begin import Beginning, read_beginning, write_beginning
from luthier.run.draft import Draft
from luthier.run.examine import examine
from luthier.run.gates import failed_gate
from luthier.run.launch import carry_out, disk_faults, locked, place_for, taken, write_first_files
from luthier.run.mistakes import pipeline_mistakes
from luthier.run.opened import kept_recipe
from luthier.run.pipeline import (
    ExaminedPipeline,
    Pipeline,
    PlannedStage,
    base_model,
    read_pipeline,
    stage_recipe,
)
from luthier.run.report import write_report
from luthier.run.screen import Screen

MODEL = "model"
"""In a stage's folder: its result as a plain model, written when a later stage starts from it."""


def start_pipeline(found: ExaminedPipeline, screen: Screen) -> RunDir:
    """Run the stages of a pipeline that was examined, in a new folder.

    Raises:
        UserError: with everything that is wrong, the folder's place included.
        GateFailure: a stage did not pass its gate.
    """
    path = place_for(found.pipeline.run, found.pipeline.name)
    pipeline = found.require(*taken(path))
    run = RunDir(path)
    with disk_faults(path):
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(run.recipe, pipeline.path.read_text(encoding="utf-8"))
        drafts = [
            {
                "name": stage.name,
                "source": stage.source,
                "keys": stage.keys.model_dump(mode="json"),
                "values": _absolute(stage.draft),
            }
            for stage in pipeline.stages
        ]
        write_json(run.pipeline, {"file": str(pipeline.path), "stages": drafts})
    screen.fact("run", str(path))
    for note in pipeline_mistakes(found):
        screen.warn(note)
    try:
        return _carry_out(_kept(run), run, screen)
    except LuthierError as error:
        if not any(True for stage in run.stages() for _ in stage.read_metrics()) and not isinstance(error, Interrupted):
            shutil.rmtree(path, ignore_errors=True)
        raise


def resume_pipeline(path: Path, screen: Screen) -> RunDir:
    """Go on with a pipeline: finished stages stay as they are, the one at work goes on from its last checkpoint.

    Raises:
        RunError: it is finished already, or at work in another process.
    """
    run = RunDir(path)
    if run.report.is_file() and read_json(run.report).get("status") == "finished":
        remedy = f"see it with `luthier show {path}`"
        raise RunError(Problem("This run is finished; there is nothing to resume.", str(path), remedy))
    screen.fact("run", str(path))
    return _carry_out(_kept(run), run, screen)


def _absolute(draft: Draft) -> dict[str, object]:
    """Return a stage's values with the absolute paths that they mean now, `stage:NAME` as it stands."""
    from luthier.run.config import parse_draft

    recipe, _ = parse_draft(draft)
    assert recipe is not None, "it was examined"
    located = recipe.located()
    values = dict(draft.values)
    for key in ("data", "eval_data", "evaluate", "forgetting", "method", "objective", "regularizers"):
        if key in values:
            values[key] = located.model_dump(mode="json", include={key})[key]
    values["model"] = base_model(recipe)
    return values


def _kept(run: RunDir) -> Pipeline:
    """Return the pipeline that a folder was begun with."""
    kept = read_json(run.pipeline)
    listed = kept.get("stages")
    assert isinstance(listed, list)
    from luthier.run.pipeline import StageKeys

    stages = [
        PlannedStage(
            index,
            str(stage["name"]),
            StageKeys.model_validate(stage["keys"]),
            Draft.of_mapping(stage["values"]),
            stage["source"],
        )
        for index, stage in enumerate(listed)
    ]
    return Pipeline(Path(str(kept["file"])), stages)


def _carry_out(pipeline: Pipeline, run: RunDir, screen: Screen) -> RunDir:
    with locked(run):
        for stage in pipeline.stages:
            folder = RunDir(run.path / f"{stage.index:02d}-{stage.name}")
            if _status(folder) != "finished":
                screen.fact("stage", f"{stage.index + 1} of {len(pipeline.stages)}: {stage.name}")
                try:
                    _one_stage(pipeline, stage, run, folder, screen)
                except GateFailure:
                    pass  # it is finished; what becomes of the line is decided below, as for one that is resumed
                except LuthierError as error:
                    state = "interrupted" if isinstance(error, Interrupted) else "failed"
                    _write_report(pipeline, run, state)
                    raise
            _write_report(pipeline, run, "running")
            _pass_gate(pipeline, stage, run, folder)
        _write_report(pipeline, run, "finished")
        screen.fact("report", str(run.report_page))
    return run


def _one_stage(pipeline: Pipeline, stage: PlannedStage, run: RunDir, folder: RunDir, screen: Screen) -> None:
    if folder.resolved.is_file():
        found = examine(kept_recipe(folder))
        carry_out(found.require(), found, folder, screen)
        return
    places = {other.name: run.path / f"{other.index:02d}-{other.name}" for other in pipeline.stages[: stage.index]}
    model, beginning = _beginning(pipeline, stage, run, screen)
    found = examine(stage_recipe(stage, model, {name: path.resolve() for name, path in places.items()}))
    recipe = found.require().located()
    with disk_faults(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        if beginning != Beginning():
            write_beginning(StageDir(folder.path), beginning)
        write_first_files(recipe, folder)
    carry_out(recipe, found, folder, screen)


def _beginning(pipeline: Pipeline, stage: PlannedStage, run: RunDir, screen: Screen) -> tuple[object, Beginning]:
    """Return the model a stage starts from, and what it takes over besides."""
    if stage.source is None:
        return stage.draft.values["model"], Beginning()
    earlier = pipeline.stages[stage.source]
    source = RunDir(run.path / f"{earlier.index:02d}-{earlier.name}")
    kept = read_json(source.resolved)["recipe"]
    assert isinstance(kept, dict)
    if stage.keys.adapter == "merge":
        return {
            **kept["model"],
            "path": str(_written_out(source, screen).resolve()),
            "from_scratch": False,
        }, Beginning()
    before, checkpoint = read_beginning(StageDir(source.path)), final_checkpoint(source)
    if stage.keys.adapter == "continue":
        return kept["model"], replace(before, goes_on=checkpoint)
    return kept["model"], Beginning((*before.under, checkpoint))


def _written_out(source: RunDir, screen: Screen) -> Path:
    """Return the folder that holds a finished stage's result as a plain model, writing it if it is not there."""
    from luthier.export.folders import export_hf
    from luthier.run.opened import open_run

    out = source.path / MODEL
    if not out.is_dir():
        opened = open_run(source.path)
        export_hf(opened.model, opened.recipe.method, out, opened.recipe.model.trust_remote_code)
        screen.fact("written out", f"{out}: what the next stage starts from")
    return out


def _pass_gate(pipeline: Pipeline, stage: PlannedStage, run: RunDir, folder: RunDir) -> None:
    """Stop the line where a stage did not come to what its gate asks for.

    Raises:
        GateFailure: it did not.
    """
    faults = failed_gate(folder)
    if faults:
        said = f"The gate of stage {stage.name} was not passed: {'; '.join(faults)}."
        _write_report(pipeline, run, "failed", said)
        raise GateFailure(f"{said} Everything up to it is saved in {run.path}.")


def _status(folder: RunDir) -> str:
    return str(read_json(folder.report).get("status")) if folder.report.is_file() else ""


def _write_report(pipeline: Pipeline, run: RunDir, status: str, error: str = "") -> None:
    """Write what all stages came to: the last one's report, and a part for each."""
    parts, last = [], {}
    for stage in pipeline.stages:
        folder = RunDir(run.path / f"{stage.index:02d}-{stage.name}")
        if not folder.report.is_file():
            parts.append({"name": stage.name, "status": "waiting"})
            continue
        last = read_json(folder.report)
        kept = (
            "status",
            "method",
            "objective",
            "model",
            "steps",
            "loss_first",
            "loss_last",
            "eval",
            "final_checkpoint",
            "forgetting",
            "gate",
        )
        said = {key: last[key] for key in kept if key in last}
        if "final_checkpoint" in said:
            said["final_checkpoint"] = f"{folder.path.name}/{said['final_checkpoint']}"
        parts.append({"name": stage.name, "folder": folder.path.name, **said})
        last = {**last, **{k: v for k, v in said.items() if k == "final_checkpoint"}}
    whole = {**last, "run": run.path.name, "status": status, "stages": parts}
    write_json(run.report, {**whole, "error": error} if error else whole)
    write_report(run)


__all__ = ["read_pipeline", "resume_pipeline", "start_pipeline"]
