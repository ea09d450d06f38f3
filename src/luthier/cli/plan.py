"""`luthier plan RECIPE|MODEL`: memory, steps, operations, hours and energy before anything is loaded."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.layout import print_facts, print_table
from luthier.cli.messages import print_json, stdout
from luthier.core.errors import Problem, UserError
from luthier.run.config import require_recipe
from luthier.run.draft import Draft, read_draft
from luthier.run.numbers import byte_size, count, duration, percent

if TYPE_CHECKING:
    from luthier.run.parameters import Counted, MethodCounts
    from luthier.run.planning import Plan

_RECIPE_ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Hardware:
    """For what a plan is made, as the command line says it; this machine where it says nothing.

    Attributes:
        gpu: cards or sizes, separated by commas.
        placement: how several devices share the work; offload: what lies in the host's memory.
        mixed: 16-bit weights and gradients beside float32 masters.
    """

    gpu: str | None = None
    devices: int = 1
    placement: str | None = None
    offload: str = "none"
    mixed: bool = False


def run(
    target: str,
    overrides: Sequence[str] = (),
    params: bool = False,
    json: bool = False,
    hardware: Hardware | None = None,
    what_fits: bool = False,
) -> None:
    """Print what a recipe would need and take, what it would train, or what fits which card.

    Raises:
        UserError: with everything wrong with the recipe, the config, or what the method is asked to train.
    """
    is_recipe = Path(target).suffix in _RECIPE_ENDINGS or Path(target).is_file()
    if what_fits:
        _what_fits(target, (hardware or Hardware()).gpu or "24GB,48GB,80GB", json)
        return
    if not is_recipe and not params:
        remedy = f"write luthier plan {target} --what-fits for memory, or --params for the parameters that are trained"
        raise UserError(Problem("A model alone is no plan.", target, remedy))
    if not is_recipe and overrides:
        remedy = "give a recipe, or leave them out to see every method with its default settings"
        raise UserError(Problem("A model has no keys to change.", str(overrides[0]), remedy))
    if not params:
        _plan(target, overrides, hardware or Hardware(), json)
        return
    # Imports torch, which a recipe that is wrong must not wait for.
    if is_recipe:
        draft = read_draft(Path(target), overrides)
        require_recipe(draft)
        from luthier.run.parameters import count_recipe

        _show_recipe(count_recipe(draft), json)
        return
    from luthier.run.parameters import count_methods

    _show_methods(count_methods(target), json)


def require_target(target: str | None) -> str:
    """Return what is to be planned.

    Raises:
        UserError: nothing was named.
    """
    if target is None:
        raise UserError(Problem("There is nothing to plan.", "luthier plan", "write luthier plan recipe.yaml"))
    return target


def _plan(target: str, overrides: Sequence[str], hardware: Hardware, as_json: bool) -> None:
    """Print a recipe's plan, stage by stage where it has stages."""
    from luthier.run.pipeline import has_stages, read_pipeline

    drafts: list[tuple[str, Draft]]
    if has_stages(Path(target)):
        pipeline = read_pipeline(Path(target), overrides)
        drafts = [(stage.name, stage.draft) for stage in pipeline.stages]
    else:
        drafts = [("", read_draft(Path(target), overrides))]
        require_recipe(drafts[0][1])
    from luthier.run.plan_recipe import plan_recipe, targets_of

    plans: list[tuple[str, Plan]] = []
    for name, draft in drafts:
        plans += [(name, plan_recipe(draft, place)) for place in targets_of(*astuple(hardware))]
    from luthier.run.planning import as_json as values

    if as_json:
        written = [{**({"stage": name} if name else {}), **values(plan)} for name, plan in plans]
        seconds = [plan.seconds for _, plan in plans]
        whole = {
            "peak_bytes": max(plan.peak_bytes for _, plan in plans),
            "seconds": sum(s for s in seconds if s is not None) if all(s is not None for s in seconds) else None,
            "flops": sum(plan.flops for _, plan in plans),
        }
        print_json(written[0] if len(written) == 1 else {**whole, "plans": written})
        return
    for name, plan in plans:
        _show_plan(name, plan)


def _show_plan(name: str, plan: Plan) -> None:
    console = stdout()
    if name:
        console.print(f"\n{name}", style="bold")
    share = plan.trainable_parameters / max(plan.total_parameters, 1)
    time = "unknown: the card has no name that the table knows" if "any card" in plan.device else "not measured yet"
    facts = [
        ("model", plan.model),
        ("method", f"{plan.method}: {plan.trainable_parameters:,} of {plan.total_parameters:,} ({percent(share)})"),
        ("on", f"{plan.devices} × {plan.device}, {plan.placement}" if plan.devices > 1 else plan.device),
        ("peak memory", f"{byte_size(plan.peak_bytes)} on each device, beside the process itself"),
        *((name.replace("_", " "), byte_size(size)) for name, size in plan.parts.items()),
        *((f"host: {name}", byte_size(size)) for name, size in plan.host.items()),
        ("micro-batch", f"{plan.micro_batch_tokens:,} tokens in {plan.micro_batch_sequences:,} sequences"),
        ("steps", f"{plan.steps:,} of {plan.tokens_per_step:,.0f} tokens, {count(plan.tokens)} in all"),
        ("operations", f"{plan.flops:.3g}"),
        ("time", time if plan.seconds is None else duration(plan.seconds)),
    ]
    if plan.energy_kwh is not None:
        facts.append(("energy", f"{plan.energy_kwh:.3g} kWh at the board's limit"))
    facts.append(("on disk", f"{byte_size(plan.adapter_bytes)} for what is trained"))
    facts.append(("federated", f"{byte_size(plan.round_bytes)} up and down for each client and round"))
    print_facts(console, facts)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)


def _what_fits(target: str, gpus: str, as_json: bool) -> None:
    """Print which method fits which card, and what has to be offloaded, with the sums."""
    from luthier.advise.cards import card_of
    from luthier.advise.fits import what_fits
    from luthier.models.files import inspect_model, local_folder
    from luthier.run.planning import shape_for

    path = Path(target)
    if path.is_file():
        config = json_module.loads(path.read_text(encoding="utf-8"))
    else:
        folder = local_folder(target, None)
        config = inspect_model(str(folder or target), None, from_scratch=True)[0].config
    if not config:
        raise UserError(Problem("There is no config.json.", target, "give a model's folder, or the config itself"))
    shape = shape_for(config)
    rows = [row for name in gpus.split(",") for row in what_fits(shape, *card_of(name.strip()))]
    if as_json:
        print_json({"total_parameters": shape.total_parameters, "rows": [asdict(row) for row in rows]})
        return
    console = stdout()
    console.print(f"{target}: {shape.total_parameters:,} parameters; 2,048 tokens at a time, activations recomputed")
    console.print()
    table = [
        ((r.card, "bold"), r.method, "yes" if r.fits else "no", byte_size(r.peak_bytes), r.how, r.sum) for r in rows
    ]
    print_table(console, ["card", "method", "fits", "needs", "how", "arithmetic"], table, right=(3,))


def calibrate(runs: Sequence[Path], json: bool, forget: bool = False) -> None:
    """Fit this machine's overhead to finished runs, keep and show it; or forget it.

    Raises:
        UserError: a folder without a measured plan.
    """
    from luthier.advise.overhead import calibration_file

    if forget:
        calibration_file().unlink(missing_ok=True)
        stdout().print(f"{calibration_file()} is gone; the terms that ship are used again.", markup=False)
        return
    from luthier.run.calibrate import calibrate as fit

    found = fit(runs)
    if json:
        print_json(found)
        return
    for device, terms in found.items():
        facts = [(str(k).replace("_", " "), str(v)) for k, v in dict(terms).items()]  # type: ignore[call-overload]
        stdout().print(device, style="bold")
        print_facts(stdout(), facts)
    stdout().print(f"kept in {calibration_file()}; delete it, or luthier plan --forget, to be rid of it", markup=False)


def _show_recipe(counted: Counted, as_json: bool) -> None:
    share = counted.trainable_parameters / counted.total_parameters
    if as_json:
        print_json({**asdict(counted), "trainable_share": share})
        return
    facts = [
        ("model", f"{counted.model}: {counted.architecture}"),
        ("method", counted.method),
        ("trained", f"{counted.trainable_parameters:,} parameters, {percent(share)}"),
        ("in all", f"{counted.total_parameters:,} parameters"),
    ]
    print_facts(stdout(), facts)


def _show_methods(counts: MethodCounts, as_json: bool) -> None:
    if as_json:
        rows = [{k: v for k, v in asdict(m).items() if v not in (None, "", {})} for m in counts.methods]
        print_json({**asdict(counts), "methods": rows})
        return
    console = stdout()
    console.print(f"{counts.model}: {counts.architecture}, {counts.total_parameters:,} parameters")
    console.print()
    rows = []
    for method in counts.methods:
        settings = ", ".join(f"{k}: {json_module.dumps(v)}" for k, v in method.settings.items())
        if method.trainable_parameters is None:
            rows.append(((method.kind, "bold cyan"), "–", "", (method.refused, "yellow")))
            continue
        share = percent(method.trainable_parameters / counts.total_parameters)
        rows.append(((method.kind, "bold cyan"), f"{method.trainable_parameters:,}", share, settings))
    print_table(console, ["method", "trained parameters", "of the base", ""], rows, right=(1, 2))
