"""From a recipe to a stage that can train: tokenizer, reference, method, engine, and where it stood when it stopped."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.core.errors import RecipeError
from luthier.core.rundir import StageDir, write_atomic, write_json
from luthier.data.stream import Steps
from luthier.models.files import ModelFacts, local_folder
from luthier.models.load import load_config, load_tokenizer
from luthier.models.shapes import count_parameters
from luthier.run.allowance import steps_for_tokens, warmup_of
from luthier.run.begin import go_on_from
from luthier.run.datasets import Rendering, StageData
from luthier.run.examine import Examined, longest_sequence, misfits
from luthier.run.general_rows import replayed, restraints_of, summary
from luthier.run.mixing import mixed_in_words, stream_of
from luthier.run.online import updates_of
from luthier.run.opened import with_chosen_method
from luthier.run.pacing import measured_rows, paced
from luthier.run.screen import Screen
from luthier.run.stage_run import Progress, StageRun, tell
from luthier.train.audit import digests
from luthier.train.checkpoint import load_checkpoint, require_base
from luthier.train.engine import Engine, Settings
from luthier.train.features import keep_features
from luthier.train.frozen_cache import drop_frozen_states, keep_frozen_states
from luthier.train.microbatch import Cut, auto_cut
from luthier.train.probe import StageProbe
from luthier.train.reference_logps import keep_reference_logps
from luthier.train.restraints import needs_start

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe

PROBE_STEPS = 64
"""A method that looks at the data before it starts sees at most the rows of so many steps."""

VALUE = "reward"
"""What the one output of a reward model is called."""

NUMBER = "score"
"""What the one output of a regression is called."""


def open_tokenizer(recipe: Recipe, found: Examined) -> Rendering:
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
    longest = longest_sequence(recipe.model_copy(update={"max_length": None}), facts)
    return Rendering(
        recipe,
        tokenizer,
        longest_sequence(recipe, facts),
        facts.context_length,
        found.classes,
        found.numbers,
        longest,
        facts.config,
    )


def keep_reference(recipe: Recipe, folder: StageDir, data: StageData, model: LoadedModel, screen: Screen) -> float:
    """Let the model that the stage starts from say how likely every answer is, where the objective asks for it.

    Returns:
        CPU seconds that it took.
    """
    if not recipe.objective.needs_reference:
        return 0.0
    started_cpu = time.process_time()
    count = keep_reference_logps(model, data.stores, folder.reference, model.fingerprint, _cut(recipe, model))
    screen.fact("reference", f"log-probabilities of {count:,} answers under the model at the start, computed once")
    return time.process_time() - started_cpu


def measure_rows(recipe: Recipe, folder: StageDir, data: StageData, model: LoadedModel) -> None:
    """Find out how hard each row is, where the recipe has a curriculum; the model is still the base."""
    data.hardness = measured_rows(recipe, folder, data.sets, model, _cut(recipe, model))


def name_classes(recipe: Recipe, folder: StageDir, data: StageData) -> list[str] | None:
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


def choose_method(recipe: Recipe, folder: StageDir, data: StageData, model: LoadedModel) -> Recipe:
    """Return the recipe with its method as decided from the data; decided once, and read back by a resumed run."""
    if folder.method.is_file():
        return with_chosen_method(recipe, folder.method)
    stream = stream_of(recipe, data.sizes)
    rows = [data.train[int(i)] for step in range(min(PROBE_STEPS, stream.steps_per_epoch)) for i in stream.rows(step)]
    probe = StageProbe(model, recipe.objective, rows, recipe.batch_size, _cut(recipe, model))
    method = recipe.method.choose(probe)
    write_json(folder.method, method.model_dump())
    return recipe.model_copy(update={"method": method})


def assemble(recipe: Recipe, folder: StageDir, screen: Screen, data: StageData, model: LoadedModel) -> StageRun:
    import torch

    stream = stream_of(recipe, data.sizes)
    updates = updates_of(recipe.objective)
    total = total_steps(recipe, stream, data)
    stream = paced(recipe, stream, data, total // updates, screen)
    torch.manual_seed(recipe.seed)
    recipe.method.prepare(model.module)
    if go_on_from(model, recipe.method, folder):
        screen.fact("going on", "with what the earlier stage trained")
    scale = data.numbers.scale if data.numbers is not None else 1.0
    cut = _cut(recipe, model)
    if recipe.method.keeps_features:
        parts = [data.train, data.held_out, *(task.examples for task in (*data.tasks, *data.watched, *data.general))]
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
            warmup_steps=warmup_of(recipe, total),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            gradient_checkpointing=recipe.gradient_checkpointing is True,
            output_scale=scale,
            keep_reference=recipe.objective.compares_with_start or needs_start(recipe.regularizers),
        ),
        cut=cut,
        regularizers=restraints_of(recipe, folder, model, data.general),
    )
    if data.general:
        data.summary["general"] = summary(recipe, data.general, total)
    mixed = mixed_in_words(recipe, stream, total // updates)
    if mixed:
        screen.fact("mixture", mixed)
    if recipe.method.in_words():
        screen.fact("chosen", recipe.method.in_words())
    moved, whole = count_parameters(model.module, only_trained=True), count_parameters(model.module)
    screen.fact("method", f"{recipe.method.title}: {moved:,} of {whole:,} parameters are trained ({moved / whole:.2%})")
    dtype = "bfloat16" if model.autocast is not None else "float32"
    how = "packed without padding" if model.packs else "padded"
    where = _place(model.device.type)
    allowed = recipe.allowance
    in_seconds = allowed is not None and allowed.unit == "seconds"
    length = f"{recipe.max_steps} of training in steps" if in_seconds else f"{total:,} steps"
    screen.fact("computing", f"{dtype} on {where}, sequences {how}, {length} of {recipe.batch_size}")
    for note in model.notes:
        screen.note(note)
    return StageRun(recipe, folder, screen, data, model, engine, stream)


def total_steps(recipe: Recipe, stream: Steps, data: StageData) -> int:
    """Return the optimizer steps of the run; where seconds are counted, a first guess of one epoch."""
    updates, allowed = updates_of(recipe.objective), recipe.allowance
    if allowed is not None and allowed.unit == "tokens":
        return steps_for_tokens(allowed.amount, _step_sizes(recipe, stream, data))
    epochs = recipe.epochs if allowed is None else 1
    # Steps are the optimizer's; a set of answers is always gone through to its end.
    batches = None if recipe.step_limit is None else -(-recipe.step_limit // updates)
    return stream.total_steps(epochs, batches) * updates


def _step_sizes(recipe: Recipe, stream: Steps, data: StageData) -> Iterator[int]:
    """Yield the tokens of one step after the other, without an end."""
    for step in itertools.count():
        own = sum(len(data.train[int(row)]) for row in stream.rows(step))
        yield own + sum(map(len, replayed(recipe, data.general, step)))


def _place(device: str) -> str:
    """Return where a model computes; small models leave processor cores to others."""
    import torch

    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device == "cpu" else device


def _cut(recipe: Recipe, model: LoadedModel) -> Cut:
    if recipe.micro_batch_size == "auto":
        return auto_cut(model.module.config.get_text_config(), model.device.type)
    return Cut(recipe.micro_batch_size, None)


def frozen_bits(stage: StageRun) -> dict[str, str]:
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


def go_back(stage: StageRun) -> None:
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


def keep_frozen(stage: StageRun) -> None:
    """Where rows come again, let blocks below everything trained run once for each of them."""
    settings = stage.engine.settings
    has_more = not stage.recipe.method.keeps_features  # otherwise nothing of the model runs but the head
    has_more = has_more and stage.asking is None  # what is answered never comes again
    has_more = has_more and not stage.recipe.objective.own_answers[0]
    has_more = has_more and not any(part.is_noisy for part in stage.recipe.regularizers)
    if stage.recipe.cache_frozen and has_more and settings.total_steps > settings.steps_per_epoch:
        tasks = [task.examples for task in stage.data.tasks if task.metric == "loss"]
        others = [rows.examples for rows in (*stage.data.general, *stage.data.watched)]
        rows = [stage.data.train, stage.data.held_out, *tasks, *others]
        said = keep_frozen_states(stage.engine, stage.folder.frozen_states, rows)
        if said:
            stage.screen.fact("frozen part", said)


def drop_frozen(stage: StageRun) -> None:
    said = drop_frozen_states(stage.engine)
    if said:
        tell(stage, said)
