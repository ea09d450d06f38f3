"""One stage of a run, top to bottom: tokenizer → examples → model → method → engine → loop → what came of it.

Rows that cannot be trained on are told before the weights are loaded. Everything that a resumed run needs is on disk
from the start: metrics.jsonl is cut back to the last checkpoint, and goes on from there as if nothing had happened.
"""

from __future__ import annotations

import json
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from luthier.core.errors import Interrupted, RecipeError
from luthier.core.rundir import RunDir, StageDir, write_atomic, write_json
from luthier.data.store import ExampleStore
from luthier.data.stream import Stream
from luthier.evaluate.classes import class_scores, predict_texts
from luthier.evaluate.measure import Score, answer, exact_match, held_out_loss
from luthier.evaluate.numbers import number_scores, rate_texts
from luthier.evaluate.preferences import calibration_error, preference_scores, reward_differences, reward_texts
from luthier.models.files import ModelFacts, local_folder
from luthier.models.load import load_config, load_tokenizer
from luthier.models.shapes import count_parameters
from luthier.run.begin import go_on_from, lay_under, read_beginning
from luthier.run.datasets import Rendering, StageData, announce, render_stage
from luthier.run.examine import Examined, longest_sequence, misfits
from luthier.run.general_rows import own_rows, replayed, restraints_of, summary
from luthier.run.online import Asking, open_asking, updates_of
from luthier.run.opened import load_for, with_chosen_method
from luthier.run.screen import Screen
from luthier.run.teacher import open_teacher
from luthier.train.audit import Audit, audit, digests
from luthier.train.checkpoint import device_peak_bytes, load_checkpoint, require_base, save_checkpoint
from luthier.train.engine import Engine, Settings
from luthier.train.features import keep_features
from luthier.train.frozen_cache import drop_frozen_states, keep_frozen_states
from luthier.train.hooks.trackers import Tracker, make_trackers
from luthier.train.microbatch import Cut, auto_cut
from luthier.train.on_policy import with_own_answers
from luthier.train.probe import StageProbe
from luthier.train.reference_logps import keep_reference_logps
from luthier.train.restraints import needs_start

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe

HELD_OUT = "held-out loss"
VALUE = "reward"
"""What the one output of a reward model is called."""
NUMBER = "score"
"""What the one output of a regression is called."""
MOST_STEPS_BETWEEN_SAVES = 500
PROBE_STEPS = 64
"""A method that looks at the data before it starts sees at most the rows of so many steps."""


@dataclass
class Progress:
    """Where a stage stands; all of it goes into a checkpoint and comes back from it."""

    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0
    first_step_cpu_seconds: float = 0.0
    tokens_total: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0


@dataclass
class StageRun:
    """The parts of a stage at work."""

    recipe: Recipe
    folder: StageDir
    screen: Screen
    data: StageData
    model: LoadedModel
    engine: Engine
    stream: Stream
    progress: Progress = field(default_factory=Progress)
    trackers: list[Tracker] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    asking: Asking | None = None

    @property
    def updates(self) -> int:
        """Optimizer steps that follow on one batch of rows."""
        return updates_of(self.recipe.objective)


def run_stage(recipe: Recipe, found: Examined, run: RunDir, folder: StageDir, screen: Screen) -> dict[str, object]:
    """Train one stage, or go on with it, and return its part of the report.

    Args:
        recipe: with absolute paths.
        found: what was read of the recipe's model and data; its rows are given up when they are rendered.

    Raises:
        LuthierError: as each part says; the folder then holds everything up to the last checkpoint.
    """
    with ExitStack() as opened:
        return _run_stage(recipe, found, run, folder, screen, opened)


def _run_stage(
    recipe: Recipe, found: Examined, run: RunDir, folder: StageDir, screen: Screen, opened: ExitStack
) -> dict[str, object]:
    """Run the stage; what has to be closed however it ends is put into `opened`."""
    started, started_cpu = time.monotonic(), time.process_time()
    announce(recipe, found, run, screen)
    rendering = _open_tokenizer(recipe, found)
    data = render_stage(rendering, found, run, screen)
    asking = open_asking(recipe, folder, data.asked)
    if asking is not None:
        opened.callback(asking.scorer.close)
    found.release_rows()
    several = data.classes is not None and data.classes.is_multi
    model = load_for(recipe, rendering.tokenizer, _class_names(recipe, folder, data), several)
    model.packs = model.packs and recipe.packing
    lay_under(model, folder)
    open_teacher(recipe, model, screen)
    goes_on = read_beginning(folder).goes_on is not None
    reference_cpu = 0.0
    if not goes_on:
        reference_cpu = _keep_reference(recipe, folder, data, model, screen)
    recipe = _choose(recipe, folder, data, model)
    stage = _assemble(recipe, folder, screen, data, model)
    if goes_on:  # the reference is the adapter as the earlier stage left it
        reference_cpu = _keep_reference(recipe, folder, data, model, screen)
    stage.asking = asking
    before_bits = _frozen_bits(stage)
    _resume(stage)
    _keep_frozen_states(stage)
    setup = {"setup_seconds": time.monotonic() - started, "setup_cpu_seconds": time.process_time() - started_cpu}
    setup["reference_cpu_seconds"] = reference_cpu  # a part of the setup
    results, samples = _measured_before(stage)
    with warnings.catch_warnings():
        # A tracker says by a warning that it is given up; here `_tell_faults` says so where the user looks.
        warnings.filterwarnings("ignore", message=".* failed and is left out", category=RuntimeWarning)
        stage.trackers = make_trackers(recipe.log_to, folder, recipe.dump())
        try:
            _loop(stage)
        finally:
            for tracker in stage.trackers:
                tracker.close()
            _tell_faults(stage)
    chosen = _settle(stage)
    results["after"], after_answers = _measure(stage)
    _drop_frozen_states(stage)
    write_json(folder.eval, results)
    samples = [{**row, "after": text} for row, text in zip(samples, after_answers)]
    _write_lines(folder, samples)
    outcome = audit(model.module, before_bits)
    screen.comparison(results["before"], results["after"])
    screen.samples(samples)
    return {**setup, **_report(stage, outcome, results), "final_checkpoint": chosen}


# ---------------------------------------------------------------------- assembling


def _open_tokenizer(recipe: Recipe, found: Examined) -> Rendering:
    """Load the tokenizer, and for a model of the hub the config, which could not be examined before."""
    spec = recipe.model
    where = str(local_folder(spec.path, recipe.base) or spec.path)
    tokenizer = load_tokenizer(where, spec.revision, spec.trust_remote_code)
    facts = found.model
    if not facts.config:
        config = load_config(where, spec.revision, spec.trust_remote_code).to_dict()
        facts = ModelFacts(None, config, has_template=bool(tokenizer.chat_template))
        wrong = misfits(recipe, facts, found.data)
        if wrong:
            raise RecipeError(*wrong)
    return Rendering(
        recipe, tokenizer, longest_sequence(recipe, facts), facts.context_length, found.classes, found.numbers
    )


def _keep_reference(recipe: Recipe, folder: StageDir, data: StageData, model: LoadedModel, screen: Screen) -> float:
    """Let the model that the stage starts from say how likely every answer is, where the objective asks for it.

    Returns:
        CPU seconds that it took.
    """
    if not recipe.objective.needs_reference:
        return 0.0
    started_cpu = time.process_time()
    stores = [part for part in (data.train, data.held_out) if isinstance(part, ExampleStore)]
    count = keep_reference_logps(model, stores, folder.reference, model.fingerprint, _cut(recipe, model))
    screen.fact("reference", f"log-probabilities of {count:,} answers under the model at the start, computed once")
    return time.process_time() - started_cpu


def _class_names(recipe: Recipe, folder: StageDir, data: StageData) -> list[str] | None:
    """Return the names of a classifier's classes, after writing them down for whoever opens the run."""
    if recipe.objective.head == "value":
        name = VALUE if data.numbers is None else NUMBER
        write_json(folder.labels, {"labels": [name], "names": [name]})
        return [name]
    if data.classes is None:
        return None
    several = {"multi_label": True} if data.classes.is_multi else {}
    write_json(folder.labels, {"labels": data.classes.labels, "names": data.classes.names, **several})
    return list(data.classes.names)


def _choose(recipe: Recipe, folder: StageDir, data: StageData, model: LoadedModel) -> Recipe:
    """Return the recipe with its method as decided from the data; decided once, and read back by a resumed run."""
    if folder.method.is_file():
        return with_chosen_method(recipe, folder.method)
    stream = Stream(len(data.train), own_rows(recipe), recipe.seed)
    rows = [data.train[int(i)] for step in range(min(PROBE_STEPS, stream.steps_per_epoch)) for i in stream.rows(step)]
    probe = StageProbe(model, recipe.objective, rows, recipe.batch_size, _cut(recipe, model))
    method = recipe.method.choose(probe)
    write_json(folder.method, method.model_dump())
    return recipe.model_copy(update={"method": method})


def _assemble(recipe: Recipe, folder: StageDir, screen: Screen, data: StageData, model: LoadedModel) -> StageRun:
    import torch

    stream = Stream(len(data.train), own_rows(recipe), recipe.seed)
    updates = updates_of(recipe.objective)
    # Steps are the optimizer's; a set of answers is always gone through to its end.
    batches = None if recipe.max_steps is None else -(-recipe.max_steps // updates)
    total = stream.total_steps(recipe.epochs, batches) * updates
    warmup = recipe.warmup_steps if recipe.warmup_steps is not None else round(recipe.warmup_ratio * total)
    torch.manual_seed(recipe.seed)
    recipe.method.prepare(model.module)
    if go_on_from(model, recipe.method, folder):
        screen.fact("going on", "with what the earlier stage trained")
    scale = data.numbers.scale if data.numbers is not None else 1.0
    cut = _cut(recipe, model)
    if recipe.method.keeps_features:
        parts = [data.train, data.held_out, *(task.examples for task in (*data.tasks, *data.general))]
        count = keep_features(model, parts, folder.features, cut)
        screen.fact("features", f"of {count:,} sequences, computed once: {folder.features}")
    engine = Engine(
        model,
        recipe.method,
        recipe.objective,
        recipe.optimizer,
        recipe.schedule,
        Settings(
            total_steps=total,
            steps_per_epoch=stream.steps_per_epoch * updates,
            learning_rate=recipe.resolved().learning_rate or 0.0,
            warmup_steps=warmup,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            gradient_checkpointing=recipe.gradient_checkpointing,
            output_scale=scale,
            keep_reference=recipe.objective.compares_with_start or needs_start(recipe.regularizers),
        ),
        cut=cut,
        regularizers=restraints_of(recipe, folder, model, data.general),
    )
    if data.general:
        data.summary["general"] = summary(recipe, data.general, total)
    if recipe.method.in_words():
        screen.fact("chosen", recipe.method.in_words())
    moved, whole = count_parameters(model.module, only_trained=True), count_parameters(model.module)
    screen.fact("method", f"{recipe.method.title}: {moved:,} of {whole:,} parameters are trained ({moved / whole:.2%})")
    dtype = "bfloat16" if model.autocast is not None else "float32"
    how = "packed without padding" if model.packs else "padded"
    where = _place(model.device.type)
    screen.fact("computing", f"{dtype} on {where}, sequences {how}, {total:,} steps of {recipe.batch_size}")
    for note in model.notes:
        screen.note(note)
    return StageRun(recipe, folder, screen, data, model, engine, stream)


def _place(device: str) -> str:
    """Return where a model computes; small models leave processor cores to others."""
    import torch

    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device == "cpu" else device


def _cut(recipe: Recipe, model: LoadedModel) -> Cut:
    if recipe.micro_batch_size == "auto":
        return auto_cut(model.module.config.get_text_config(), model.device.type)
    return Cut(recipe.micro_batch_size, None)


def _frozen_bits(stage: StageRun) -> dict[str, str]:
    """Return the hashes of all tensors at the very start of the stage, also when this is a resumed one.

    Raises:
        RunError: the base model is not the one that the run was started with.
    """
    file = stage.folder.path / "tensors.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        require_base(kept["base_fingerprint"], stage.model)
        return kept["tensors"]
    bits = digests(stage.model.module)
    write_json(file, {"base_fingerprint": stage.model.fingerprint, "tensors": bits})
    return bits


def _resume(stage: StageRun) -> None:
    """Go back to the last complete checkpoint, if there is one, and cut the metrics back to it."""
    complete = stage.folder.complete_checkpoints()
    rows = list(stage.folder.read_metrics())
    if complete:
        state = load_checkpoint(stage.engine, complete[-1])
        stage.progress = Progress(**state["progress"])  # type: ignore[arg-type]
        stage.screen.fact("resuming", f"from step {stage.engine.step} of {stage.engine.settings.total_steps}")
    kept = [row for row in rows if row["step"] <= stage.engine.step]
    if stage.folder.metrics.exists():
        write_atomic(stage.folder.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def _keep_frozen_states(stage: StageRun) -> None:
    """Where rows come again, let blocks below everything trained run once for each of them."""
    settings = stage.engine.settings
    has_more = not stage.recipe.method.keeps_features  # otherwise nothing of the model runs but the head
    has_more = has_more and stage.asking is None  # what is answered never comes again
    has_more = has_more and not stage.recipe.objective.own_answers[0]
    has_more = has_more and not any(part.is_noisy for part in stage.recipe.regularizers)
    if stage.recipe.cache_frozen and has_more and settings.total_steps > settings.steps_per_epoch:
        tasks = [task.examples for task in stage.data.tasks if task.metric == "loss"]
        rows = [stage.data.train, stage.data.held_out, *tasks, *(g.examples for g in stage.data.general)]
        said = keep_frozen_states(stage.engine, stage.folder.frozen_states, rows)
        if said:
            stage.screen.fact("frozen part", said)


def _drop_frozen_states(stage: StageRun) -> None:
    said = drop_frozen_states(stage.engine)
    if said:
        _tell(stage, said)


# ---------------------------------------------------------------------- the loop


def _loop(stage: StageRun) -> None:
    engine, recipe = stage.engine, stage.recipe
    total = engine.settings.total_steps
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    with (
        stage.folder.metrics.open("a", encoding="utf-8") as metrics,
        stage.screen.training(total, engine.step) as bar,
        _interruptible() as stop,
    ):
        while engine.step < total and not _stopped_early(stage):
            row = _one_step(stage)
            saved = False
            if _is_due(stage, recipe.eval_steps) and stage.data.held_out:
                measured = _measured_now(stage)
                row |= {f"eval_{name}": value for name, value in measured.items()}
                _note_evaluation(stage, measured["loss"] if "loss" in measured else -measured["reward"])
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            for tracker in stage.trackers:
                tracker.log(engine.step, row)
            _tell_faults(stage)
            bar.update(row)
            while engine.events:
                _tell(stage, engine.events.pop(0))
            if engine.step < total and (_is_due(stage, recipe.save_steps) or _is_new_best(stage)):
                _save(stage)
                saved = True
            if stop.requested and engine.step < total:
                if not saved:
                    _save(stage)
                raise Interrupted(f"Stopped after step {engine.step} of {total}; everything is saved.")


def _tell_faults(stage: StageRun) -> None:
    """Say which trackers were given up, and drop them."""
    for tracker in stage.trackers:
        if tracker.fault is not None:
            _tell(stage, f"{tracker.name} is left out from here on ({tracker.fault}); metrics.jsonl has everything")
    stage.trackers = [tracker for tracker in stage.trackers if tracker.fault is None]


def _tell(stage: StageRun, event: str) -> None:
    stage.screen.note(event)
    stage.events.append(event)


def _one_step(stage: StageRun) -> dict[str, float]:
    engine, progress = stage.engine, stage.progress
    wall, cpu = time.monotonic(), time.process_time()
    rows = stage.stream.rows(engine.step // stage.updates)
    examples = [stage.data.train[int(i)] for i in rows]
    others = replayed(stage.recipe, stage.data.general, engine.step // stage.updates)
    examples = with_own_answers(engine, examples, others)
    result = engine.train_step(examples) if stage.asking is None else stage.asking.iterate(engine, examples)
    seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    progress.train_seconds += seconds
    progress.train_cpu_seconds += cpu_seconds
    progress.tokens_total += int(result["tokens"])
    if engine.step == stage.updates:
        progress.first_step_cpu_seconds = cpu_seconds
    epoch = engine.step / engine.settings.steps_per_epoch
    return {"step": result.pop("step"), "epoch": round(epoch, 6), **result, "step_seconds": round(seconds, 6)}


def _is_due(stage: StageRun, every: int | None) -> bool:
    """Return whether a save or an evaluation is due after this step: as asked, else each epoch, or 500 steps."""
    engine = stage.engine
    every = every or min(engine.settings.steps_per_epoch, MOST_STEPS_BETWEEN_SAVES)
    return engine.step % every < stage.updates or engine.step == engine.settings.total_steps


def _measured_now(stage: StageRun) -> dict[str, float]:
    """Return what is measured on held-out rows while training goes on."""
    if stage.asking is not None:
        return stage.asking.measure(stage.engine, stage.data.held_out)
    return stage.engine.measure(stage.data.held_out)[0]


def _note_evaluation(stage: StageRun, loss: float) -> None:
    progress = stage.progress
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, stage.engine.step
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1


def _is_new_best(stage: StageRun) -> bool:
    return stage.recipe.resolved().final_checkpoint == "best" and stage.progress.best_step == stage.engine.step


def _stopped_early(stage: StageRun) -> bool:
    patience = stage.recipe.early_stopping
    return patience is not None and stage.progress.evaluations_without_gain >= patience


def _save(stage: StageRun, resumable: bool = True) -> None:
    extra: dict[str, object] = {"progress": vars(stage.progress)}
    if stage.recipe.resolved().final_checkpoint == "best":
        extra["best_step"] = stage.progress.best_step
    save_checkpoint(stage.engine, stage.folder, extra, stage.recipe.keep_checkpoints, resumable)


class _Stop:
    requested = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish that is granted after the step; the second one acts at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            before[name] = signal.signal(name, ask)
        except ValueError:  # not in the main thread: a program that embeds the run handles its own signals
            break
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


# ---------------------------------------------------------------------- before, after, and the end


def _measured_before(stage: StageRun) -> tuple[dict[str, dict], list[dict[str, str]]]:
    """Return the measures and samples of the untrained model; a resumed run finds them on disk."""
    if stage.folder.eval.is_file() and stage.folder.samples.is_file():
        results = json.loads(stage.folder.eval.read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in stage.folder.samples.read_text(encoding="utf-8").splitlines()]
        return {"before": results["before"]}, samples
    scores, answers = _measure(stage)
    samples = [
        {"prompt": s.prompt, "reference": s.reference, "before": text} for s, text in zip(stage.data.samples, answers)
    ]
    _write_lines(stage.folder, samples)
    write_json(stage.folder.eval, {"before": scores})
    return {"before": scores}, samples


def _measure(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return every measure by name, and the sample answers."""
    if stage.data.classes is not None:
        return _measure_classes(stage)
    if stage.data.numbers is not None:
        return _measure_numbers(stage)
    if stage.recipe.objective.data_form in ("preference", "rated"):
        return _measure_preferences(stage)
    if stage.asking is not None:
        scores = stage.asking.scores(stage.engine, stage.data.held_out) if stage.data.held_out else {}
        rest, answers = _measure_language(stage, held_out=False)
        return {**scores, **rest}, answers
    return _measure_language(stage)


def _measure_preferences(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return how often the better answer wins on held-out rows and tasks, and what the model says of the samples."""
    engine, data, model = stage.engine, stage.data, stage.model
    scores_numbers = stage.recipe.objective.head == "value"
    parts = {"held-out": data.held_out} if data.held_out else {}
    parts |= {task.name: task.examples for task in data.tasks if scores_numbers}
    scores: dict[str, dict] = {}
    for name, examples in parts.items():
        measured, _ = engine.measure(examples)
        found = preference_scores(measured, len(examples))
        if scores_numbers:
            error = calibration_error(reward_differences(model, examples, engine.cut))
            found["calibration error"] = Score("calibration_error", error, len(examples))
        scores |= {f"{name} {metric}": score.as_dict() for metric, score in found.items()}
    if scores_numbers:
        return scores, reward_texts(model, (data.held_out or data.train)[: len(data.samples)])
    rest, answers = _measure_language(stage, held_out=False)
    return {**scores, **rest}, answers


def _measure_language(stage: StageRun, held_out: bool = True) -> tuple[dict[str, dict], list[str]]:
    """Return the loss on held-out rows, the tasks, and answers to the samples."""
    scores: dict[str, dict] = {}
    if stage.data.held_out and held_out:
        scores[HELD_OUT] = held_out_loss(stage.model, stage.data.held_out, stage.engine.cut).as_dict()
    for task in stage.data.tasks:
        if task.metric == "loss":
            score = held_out_loss(stage.model, task.examples, stage.engine.cut)
        else:
            score, _ = exact_match(stage.model, task.records)
        scores[task.name] = score.as_dict()
    answers = answer(stage.model, [s.record for s in stage.data.samples], max_new_tokens=64)
    return scores, answers


def _measure_numbers(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return errors and correlations on the held-out rows, the tasks' squared errors, and what samples are given."""
    model, data, cut = stage.model, stage.data, stage.engine.cut
    scores: dict[str, dict] = {}
    if data.held_out:
        found = number_scores(model, data.held_out, cut)
        scores |= {f"held-out {name}": score.as_dict() for name, score in found.items()}
    for task in data.tasks:
        scores[task.name] = number_scores(model, task.examples, cut)["MSE"].as_dict()
    shown = [sample.record for sample in data.samples]
    return scores, rate_texts(model, shown) if shown else []


def _measure_classes(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return loss, accuracy and macro-F1 on the held-out rows, the tasks, and the classes of the samples."""
    scores: dict[str, dict] = {}
    model, data = stage.model, stage.data
    if data.held_out:
        for name, score in class_scores(model, data.held_out, stage.engine.cut).items():
            scores[f"held-out {name}"] = score.as_dict()
    for task in data.tasks:
        scores[task.name] = class_scores(model, task.examples, stage.engine.cut)[task.metric].as_dict()
    names = data.classes.names if data.classes is not None else ()
    shown = [sample.record for sample in data.samples]
    return scores, predict_texts(model, shown).named(names) if shown else []


def _settle(stage: StageRun) -> str:
    """Save the last state, put the best one in place if that was asked for, and return the final checkpoint's name."""
    engine, progress = stage.engine, stage.progress
    engine.optimizer.zero_grad(set_to_none=True)
    engine.optimizer.state.clear()  # a finished run needs no moments; this frees them before the last save
    if not (stage.folder.checkpoint(engine.step) / "DONE").is_file():
        _save(stage, resumable=False)
    wanted = engine.step
    if stage.recipe.resolved().final_checkpoint == "best" and progress.best_step is not None:
        wanted = progress.best_step
    final = stage.folder.checkpoint(wanted)
    if wanted != engine.step:
        engine.method.load(stage.model.module, final)
        stage.screen.fact("best", f"step {wanted}, held-out loss {progress.best_loss:.4f}: this is the result")
    run = stage.folder.path if RunDir(stage.folder.path).is_stage else stage.folder.path.parent
    return str(final.relative_to(run))


def _report(stage: StageRun, outcome: Audit, results: dict[str, dict]) -> dict[str, object]:
    module, progress, rows = stage.model.module, stage.progress, list(stage.folder.read_metrics())
    if outcome.frozen_changed:
        stage.screen.note(f"FREEZE AUDIT FAILED: {', '.join(outcome.frozen_changed[:5])} changed although frozen.")
    return {
        "trainable_parameters": count_parameters(module, only_trained=True),
        "total_parameters": count_parameters(module),
        "peak_bytes": device_peak_bytes(),
        "frozen_unchanged": not outcome.frozen_changed,
        "audit": outcome.as_dict(),
        "unmergeable": stage.recipe.method.why_unmergeable(module),
        "method_report": stage.recipe.method.report(module, stage.engine.method_state),
        "steps": stage.engine.step,
        "stopped_early": stage.engine.step < stage.engine.settings.total_steps,
        "tokens_total": progress.tokens_total,
        "train_seconds": progress.train_seconds,
        "train_cpu_seconds": progress.train_cpu_seconds,
        "first_step_cpu_seconds": progress.first_step_cpu_seconds,
        "tokens_per_second": progress.tokens_total / max(progress.train_seconds, 1e-9),
        "loss_first": rows[0]["loss"] if rows else None,
        "loss_last": rows[-1]["loss"] if rows else None,
        "best_step": progress.best_step,
        "eval": results,
        "data": stage.data.summary,
        "warnings": [*stage.model.notes, *stage.data.warnings, *stage.events],
    }


def _write_lines(folder: StageDir, rows: Sequence[dict[str, str]]) -> None:
    write_atomic(folder.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
