"""`luthier merge A B … --out DIR`: several adapters of one base made into one, and what that did to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.cli.layout import print_table
from luthier.cli.messages import print_json, stdout
from luthier.core.errors import Problem, RunError
from luthier.run.numbers import number, setting

if TYPE_CHECKING:
    from luthier.export.adapters import Combination
    from luthier.export.merging import Merge
    from luthier.models.loaded import LoadedModel


def run(
    adapters: Sequence[str],
    out: Path,
    weights: str | None = None,
    method: Literal["linear", "cat", "ties", "dare_linear", "dare_ties"] = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
    json: bool = False,
    ignore_gate: bool = False,
) -> None:
    """Merge adapters and print how far the result is from each.

    Raises:
        UserError: fewer than two, wrong weights, adapters that do not go together, or a run that failed its gate.
    """
    shares = _weights(weights, len(adapters))
    ignored = _gates(adapters, ignore_gate)
    # PEFT's name for the exact sum, which is what linear means here.
    combination: Combination = "linear" if method == "cat" else method
    base, folders = _open(adapters)
    from luthier.export.merging import merge_adapters

    done = merge_adapters(base, folders, shares, out, combination, density=density, rank=rank, seed=seed)
    if json:
        print_json({"out": str(out), **asdict(done), **({"gate_ignored": ignored} if ignored else {})})
        return
    for fault in ignored:
        stdout().print(f"merged although a gate was not passed: {fault}", markup=False)
    _show(done, out)


def _weights(typed: str | None, count: int) -> list[float]:
    if count < 2:
        raise RunError(Problem("There is nothing to merge with.", "luthier merge", "name at least two adapters"))
    if typed is None:
        return [1 / count] * count
    try:
        shares = [float(part) for part in typed.split(",")]
    except ValueError as error:
        remedy = "separate numbers by commas, e.g. --weights 0.7,0.3"
        raise RunError(Problem(f'These are no numbers: "{typed}".', "--weights", remedy)) from error
    if len(shares) != count:
        remedy = "give one number for each adapter"
        raise RunError(Problem(f"There are {count} adapters and {len(shares)} weights.", "--weights", remedy))
    return shares


def _gates(adapters: Sequence[str], ignores: bool) -> list[str]:
    """Return what runs did not pass and is to be ignored."""
    from luthier.core.rundir import RunDir
    from luthier.run.gates import require_gate
    from luthier.run.opened import is_run

    runs = (RunDir.open(Path(target)) for target in adapters if is_run(target))
    return [fault for run in runs for fault in require_gate(run, "merge", ignores)]


def _open(adapters: Sequence[str]) -> tuple[LoadedModel, dict[str, Path]]:
    """Return the base model of the first adapter, and all folders by a name for each."""
    from luthier.core.rundir import RunDir, read_json
    from luthier.export.adapters import CONFIG
    from luthier.run.config import require_recipe
    from luthier.run.opened import final_checkpoint, is_run, kept_recipe, load_for

    folders: dict[str, Path] = {}
    missing = []
    for target in adapters:
        path = Path(target)
        folder = final_checkpoint(RunDir.open(path)) if is_run(target) else path
        if not (folder / CONFIG).is_file():
            remedy = "give a run of a LoRA method, one of its checkpoints, or a folder that PEFT wrote"
            missing.append(Problem(f"There is no adapter here (no {CONFIG}).", target, remedy))
        name = path.resolve().name.replace(".", "_")
        while name in folders:
            name += "_"
        folders[name] = folder
    if missing:
        raise RunError(*missing)
    if is_run(adapters[0]):
        from luthier.models.load import load_tokenizer

        folder = next(iter(folders.values()))
        return load_for(
            require_recipe(kept_recipe(RunDir.open(Path(adapters[0])))), load_tokenizer(str(folder))
        ), folders
    from luthier.models.load import load_model

    named = read_json(next(iter(folders.values())) / CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise RunError(Problem("The adapter does not say which model it opens on.", adapters[0], "name a run first"))
    return load_model(named, dtype="float32"), folders


def _show(done: Merge, out: Path) -> None:
    console = stdout()
    console.print(f"{out}: {done.method}, rank {done.rank}, opened again and compared")
    console.print()
    rows = [
        (p.name, setting(p.weight), number(p.distance, 3), number(p.cosine, 3), number(p.kl, 3)) for p in done.parents
    ]
    print_table(console, ["adapter", "weight", "distance", "cosine", "KL (nats)"], rows, right=(1, 2, 3, 4))
    console.print()
    console.print(f"distance from the weighted sum of the updates: {number(done.from_sum, 3)}")
    console.print(f"KL of the base against the merged: {number(done.kl_from_base, 3)} nats")
    console.print(f'open it       PeftModel.from_pretrained(base, "{out}")')
