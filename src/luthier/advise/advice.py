"""Advice: from a situation to the ranked methods, the stages, the remarks and the recipes; as JSON and as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.advise.facts import count, size
from luthier.advise.line import Step, line
from luthier.advise.needs import with_needs
from luthier.advise.notes import Note, notes, runs_today, where
from luthier.advise.rank import Ranked, rank
from luthier.advise.recipes import Written, recipes, text_of, today
from luthier.advise.rules.base import Reason
from luthier.advise.situation import Situation, Where

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Advice:
    """What is advised, and all that speaks for and against it.

    Attributes:
        methods: all of them, the best first.
        choice: the first, or None where nothing fits.
        steps: the stages, those whose data are missing included.
        where: where the training belongs.
        recipes: what can be run; values as YAML would have them.
    """

    situation: Situation
    methods: tuple[Ranked, ...]
    choice: Ranked | None
    steps: tuple[Step, ...]
    where: Where
    notes: tuple[Note, ...]
    recipes: tuple[Written, ...]


def advise(situation: Situation, folder: Path | None = None) -> Advice:
    """Return the advice for a situation.

    Args:
        folder: where the recipes will be written; paths of data are given from there.
    """
    s = with_needs(situation)
    methods = rank(s)
    first = methods[0]
    choice = None if first.forbidden else first
    steps = line(s, first.method)
    written: tuple[Written, ...] = ()
    if choice is not None and s.data and all(data.rows for data in s.data):
        written = recipes(s, choice.method, steps, folder)
        alone = next((m.method for m in methods if not m.forbidden and s.fits(m.method)), None)
        if written and alone is not None and not s.fits(choice.method):
            written += today(s, alone, line(s, alone), folder)
    return Advice(s, methods, choice, steps, where(s), notes(s, first), written)


def as_dict(advice: Advice, language: Language, paths: Mapping[str, Path]) -> dict[str, object]:
    """Return the advice for programs. `paths`: of the recipes that were written, by name."""
    pick = 0 if language == "en" else 1
    s = advice.situation
    return {
        "choice": _choice(advice),
        "methods": [_method(s, ranked, index, pick) for index, ranked in enumerate(advice.methods, start=1)],
        "stages": [_step(step, pick) for step in advice.steps],
        "notes": [{"name": n.name, "text": n.text[pick], "source": n.source[pick]} for n in advice.notes],
        "situation": _situation(s),
        "assumed": [words[pick] for words in s.assumed],
        "recipes": [
            {
                "name": written.name,
                "what": written.why[pick],
                "path": str(paths[written.name]) if written.name in paths else None,
                "values": written.values,
            }
            for written in advice.recipes
        ],
    }


def write(advice: Advice, folder: Path, language: Language) -> dict[str, Path]:
    """Write the recipes and return their paths by name; the caller has made sure that none is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for written in advice.recipes:
        path = folder / written.name
        path.write_text(text_of(written.values, _head(advice, written, path, language)), encoding="utf-8")
        paths[written.name] = path
    return paths


def _head(advice: Advice, written: Written, path: Path, language: Language) -> tuple[str, ...]:
    pick = 0 if language == "en" else 1
    assert advice.choice is not None
    decisive = advice.choice.decisive
    lines = [f"{written.why[pick]}: luthier check {path}, luthier train {path}" if pick else ""]
    if not pick:
        lines = [f"By luthier advise: {written.why[0]}. Check it with: luthier check {path}"]
        lines += [f"Train with it: luthier train {path}"]
    lines += [f"{decisive.text[pick]} ({decisive.source[pick]})"]
    for step in advice.steps:
        lines += [f"{step.objective}: {step.why[pick]} ({step.source})"]
        if step.missing is not None:
            lines += [f"{step.objective}: {'first needed' if not pick else '还缺'}: {step.missing[pick]}"]
    for note in advice.notes:
        if note.name in ("federated", "not built yet", "one device", "the deadline"):
            lines += [f"{note.text[pick]} ({note.source[pick]})"]
    return tuple(lines)


def _choice(advice: Advice) -> dict[str, object] | None:
    if advice.choice is None:
        return None
    return {
        "method": advice.choice.method,
        "stages": [step.objective for step in advice.steps],
        "where": advice.where,
        "runs_today": runs_today(advice.where) and advice.situation.fits(advice.choice.method),
    }


def _method(s: Situation, ranked: Ranked, place: int, pick: int) -> dict[str, object]:
    need = s.needs[ranked.method]
    return {
        "rank": place,
        "method": ranked.method,
        "verdict": ranked.verdict,
        "points": ranked.points,
        "fits": s.fits(ranked.method),
        "fits_sharded": s.fits_sharded(ranked.method),
        "peak_bytes": need.peak_bytes,
        "memory": dict(need.parts),
        "trainable_parameters": need.trained,
        "file_bytes": need.file_bytes,
        "hours": round(need.hours, 3),
        "decisive": _reason(ranked.decisive, pick),
        "reasons": [_reason(reason, pick) for reason in ranked.reasons],
        "tied_with": list(ranked.tied_with),
    }


def _reason(reason: Reason, pick: int) -> dict[str, object]:
    return {
        "rule": reason.rule,
        "points": reason.points,
        "forbids": reason.forbids,
        "text": reason.text[pick],
        "source": reason.source[pick],
    }


def _step(step: Step, pick: int) -> dict[str, object]:
    return {
        "objective": step.objective,
        "data": [data.path for data in step.data],
        "why": step.why[pick],
        "source": step.source,
        "missing": step.missing[pick] if step.missing is not None else None,
    }


def _situation(s: Situation) -> dict[str, object]:
    model, machine, wishes = s.model, s.machine, s.wishes
    return {
        "model": {
            "name": model.name,
            "parameters": model.parameters,
            "active_parameters": model.active,
            "family": model.config.get("model_type"),
            "known_by": model.known_by,
            "is_encoder": model.is_encoder,
            "is_mixture": model.is_mixture,
            "has_biases": model.has_biases,
            "is_instructed": model.talks,
            "context_length": model.context,
        },
        "data": [
            {
                "path": data.path,
                "form": data.form,
                "format": data.format,
                "rows": data.rows,
                "good_rows": data.good_rows,
                "unreadable": data.unreadable,
                "median_tokens": data.median_tokens,
                "longest_tokens": data.longest_tokens,
                "languages": {name: round(share, 3) for name, share in data.languages.items()},
                "duplicates": round(data.duplicates, 4),
                "classes": data.classes,
            }
            for data in s.data
        ],
        "machine": {
            "kind": machine.kind,
            "devices": machine.devices,
            "device_bytes": machine.device_bytes,
            "known_by": machine.known_by,
        },
        "purposes": sorted(wishes.purposes),
        "private": wishes.private,
        "on_device": wishes.on_device,
        "deadline_hours": wishes.hours,
        "variants": wishes.variants,
        "quality": wishes.quality,
    }


def model_words(s: Situation) -> str:
    """Return the model in a line."""
    model = s.model
    kind = "encoder" if model.is_encoder else "mixture of experts" if model.is_mixture else "decoder"
    return f"{model.name}: {count(model.parameters)} parameters, {model.config.get('model_type')} ({kind})"


def machine_words(s: Situation) -> str:
    """Return the machine in a line."""
    machine = s.machine
    each = f"{machine.devices} × " if machine.devices > 1 else ""
    return f"{each}{size(machine.device_bytes)} {'GPU' if machine.kind == 'gpu' else 'CPU memory'}"
