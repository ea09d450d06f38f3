"""A plan from a recipe alone: its rows are rendered if they and the tokenizer are there, the weights are not read."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

from luthier.advise.cards import UTILISATION, card_of
from luthier.advise.memory import Offload, Placement
from luthier.advise.overhead import SHIPPED
from luthier.advise.speed import Speed
from luthier.core.errors import LuthierError, ModelError, Problem, UserError
from luthier.core.rundir import RunDir
from luthier.models.files import inspect_model
from luthier.run.config import Recipe, require_recipe
from luthier.run.datasets import StageData, render_stage
from luthier.run.draft import Draft
from luthier.run.examine import DEFAULT_MAX_LENGTH, examine
from luthier.run.plan_file import load_of, this_machine
from luthier.run.planning import Load, Plan, Target, assumed_load, plan_stage, settle_checkpointing
from luthier.run.screen import Screen

PLACEMENTS = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")


def targets_of(
    gpu: str | None, devices: int = 1, placement: str | None = None, offload: str = "none", mixed: bool = False
) -> list[Target | None]:
    """Return what a command line asks to plan for: several cards, or None for this machine.

    Raises:
        UserError: an unknown card, placement or part to offload.
    """
    if placement is not None and placement not in PLACEMENTS:
        raise UserError(
            Problem(f'There is no placement "{placement}".', "--placement", f"one of {', '.join(PLACEMENTS)}")
        )
    if offload not in ("none", "optimizer", "all"):
        raise UserError(Problem(f'"{offload}" cannot be offloaded.', "--offload", "one of none, optimizer, all"))
    if gpu is None:
        if devices > 1 or placement or offload != "none":
            remedy = "say which: --gpu A100-80GB"
            raise UserError(Problem("Several devices or offloading are planned for a named card.", "--gpu", remedy))
        return [None]
    found: list[Target | None] = []
    for name in gpu.split(","):
        several, card = card_of(name)
        number = max(devices, several)
        speed = Speed(UTILISATION * card.flops, 0.0, card.watts) if card.flops else None
        found.append(
            Target(
                "cuda",
                card.memory_bytes,
                card.name,
                speed,
                SHIPPED["cuda"],
                number,
                cast("Placement", placement or ("ddp" if number > 1 else "single")),
                cast("Offload", offload),
                mixed,
            )
        )
    return found


def plan_recipe(draft: Draft, target: Target | None) -> Plan:
    """Return the plan of a recipe for a card, or for this machine, whose speed is then measured if it is not known.

    Raises:
        UserError: the recipe or the config is wrong.
    """
    from luthier.run.parameters import count_recipe

    recipe = require_recipe(draft)
    facts, problems = inspect_model(recipe.model.path, recipe.base, revision=recipe.model.revision, from_scratch=True)
    config = dict(facts.config) or _hub_config(recipe)
    if not config:
        raise ModelError(problems[0])
    place = target or this_machine(config, probe=True)
    load = _load(draft, recipe, config, place.device)
    if place.devices > 1:  # each device has its share of a step
        share = max(1, round(recipe.batch_size / place.devices)) / recipe.batch_size
        load = replace(
            load,
            mean_tokens=load.mean_tokens * share,
            mean_supervised=load.mean_supervised * share,
            mean_sequences=load.mean_sequences * share,
            micro_batches=max(1, round(load.micro_batches * share)),
        )
    chosen, _ = settle_checkpointing(recipe, config, load, place)
    recipe = recipe.model_copy(update={"gradient_checkpointing": chosen})
    return plan_stage(recipe, config, load, place, trained=count_recipe(draft).trainable_parameters)


def _hub_config(recipe: Recipe) -> dict[str, object]:
    from luthier.models.load import load_config

    spec = recipe.model
    return load_config(spec.path, spec.revision, spec.trust_remote_code).to_dict()


def _load(draft: Draft, recipe: Recipe, config: dict[str, object], device: str) -> Load:
    """Return the load of the recipe's rows, or of rows as long as they may be where they cannot be rendered."""
    try:
        return load_of(recipe, _rendered(draft), config, device)
    except LuthierError as error:
        context = config.get("max_position_embeddings") or config.get("n_positions")
        longest = recipe.max_length or min(DEFAULT_MAX_LENGTH, int(str(context or DEFAULT_MAX_LENGTH)))
        why = str(error).strip().splitlines()[0][:160]
        return assumed_load(recipe, longest, config, device, why)


def _rendered(draft: Draft) -> StageData:
    from luthier.run.assemble import open_tokenizer

    found = examine(draft)
    recipe = found.require()
    with tempfile.TemporaryDirectory() as folder:
        return render_stage(open_tokenizer(recipe, found), found, RunDir(Path(folder)), Screen(quiet=True))
