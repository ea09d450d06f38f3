"""`luthier eval RUN_OR_MODEL --data FILE`: mean negative log-likelihood per supervised token on any file."""

from __future__ import annotations

import json as json_module
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import ModelError, Problem
from luthier.data.load import load_records
from luthier.data.records import Text
from luthier.data.spec import DataSpec

if TYPE_CHECKING:
    from luthier.models.causal import CausalModel
    from luthier.run.config import Recipe


def run(
    target: str,
    data: Path | None = None,
    json: bool = False,
    limit: int | None = None,
    max_length: int | None = None,
    train_on: Literal["assistant", "all", "last"] | None = None,
    chat_template: str | None = None,
) -> None:
    """Measure a run or a model on `data`, or on what the run's recipe held out."""
    if data is None:
        raise ModelError(Problem("There is nothing to measure on.", where="--data", remedy="give --data FILE"))
    # As for training: the rows are checked before the model is loaded.
    records = load_records(DataSpec(path=str(data), limit=limit), objective="lm")
    model, recipe = _open(target)

    from luthier.data.render import Renderer
    from luthier.evaluate.measure import held_out_loss

    is_text = any(isinstance(r, Text) for r in records.records)
    context = model.context_length or 2048
    renderer = Renderer(
        model.tokenizer,
        objective_kind="lm" if is_text or (recipe is not None and recipe.objective.kind == "lm") else "sft",
        train_on=train_on or (recipe.train_on if recipe is not None else "assistant"),
        max_length=max_length or (recipe.max_length if recipe is not None else None) or min(context, 2048),
        # A measurement goes on where training would stop and ask; what was cut or left out is counted below.
        on_overlong="drop" if recipe is not None and recipe.on_overlong == "drop" else "truncate",
        chat_template=chat_template,
    )
    rendered = renderer.render_all(records.records)
    score = held_out_loss(model, rendered.store)
    result = {
        "loss": score.value,
        "tokens": score.tokens,
        "perplexity": math.exp(min(score.value, 700)),
        "rows": len(records),
        "sequences": score.n,
        "dropped": rendered.counts.get("dropped", 0),
        "truncated": rendered.counts.get("truncated", 0),
        "format": records.format,
        "model": target,
    }
    if json:
        print(json_module.dumps(result))
        return
    print(f"{target} on {data} ({records.format}, {len(records):,} rows)")
    print(
        f"  loss {score.value:.4f} nats per supervised token, perplexity {result['perplexity']:.2f}, "
        f"{score.tokens:,} tokens"
    )
    if result["dropped"] or result["truncated"]:
        print(f"  left out: {result['dropped']} rows dropped, {result['truncated']} truncated at the maximum length")


def _open(target: str) -> tuple[CausalModel, Recipe | None]:
    """Return the model of a run folder, or any model by folder, hub id or `starter`."""
    if (Path(target) / "resolved.json").is_file():
        from luthier.run.opened import open_run

        opened = open_run(Path(target))
        return opened.model, opened.recipe
    from luthier.models.load import load_model

    return load_model(target), None
