"""The facts of the report page: what a run's folder says, as labels and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from markupsafe import Markup
from pydantic import BaseModel

from luthier.core.component import kinds
from luthier.run import numbers
from luthier.run.config import Recipe
from luthier.run.plots import histogram
from luthier.run.summary import RunSummary, as_float, mapping

_MOST_NAMES = 200
_DATA_COUNTS = {
    "rows": ("Rows", ""),
    "held_out_rows": ("Held out", "never trained on"),
    "examples": ("Sequences trained on", ""),
    "dropped": ("Dropped", "rows not trained on"),
    "truncated": ("Truncated", "cut at max_length"),
    "windows": ("Windows", "pieces that long texts were cut into"),
    "unknown_tokens": ("Unknown tokens", "the tokenizer has no word for them"),
    "lost_characters": ("Lost characters", "the tokenizer leaves them out"),
}
_AUDIT_WORDS = {
    "trained": ("Tensors declared trainable", ""),
    "trained_unchanged": ("Trainable, yet unmoved", "no gradient, or one too small to change a bit"),
    "frozen": ("Tensors declared frozen", ""),
    "frozen_changed": ("Frozen, yet changed", "must be none"),
}


@dataclass(frozen=True)
class Fact:
    """A label and a value, with a remark below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """What was declared trainable and what moved; `names` are the tensors behind a fact that is not zero."""

    is_clean: bool | None
    has_frozen: bool
    facts: list[Fact]
    names: list[tuple[str, list[str]]]


def tiles(run: RunSummary) -> list[Fact]:
    """Return the figures that stand at the top of the page."""
    report = run.report
    seconds, tokens = run.train_seconds, as_float(report.get("tokens_total"))
    found = []
    if run.trainable_share is not None:
        trained, total = (numbers.count(as_float(report[k]) or 0) for k in ("trainable_parameters", "total_parameters"))
        found.append(Fact("Trained", numbers.percent(run.trainable_share), f"{trained} of {total} parameters"))
    if seconds is not None:
        setup = as_float(report.get("setup_seconds"))
        found.append(Fact("Training time", numbers.duration(seconds), _note("+ {} to set up", setup, numbers.duration)))
    found.append(Fact("Steps", numbers.count(as_float(report.get("steps")) or run.last_step), _about_steps(run)))
    if tokens:
        rate = as_float(report.get("tokens_per_second")) or (tokens / seconds if seconds else None)
        found.append(Fact("Tokens", numbers.count(tokens), _note("{} per second", rate, numbers.count)))
    peak, planned = (as_float(source.get("peak_bytes")) for source in (report, run.plan))
    if peak:
        found.append(Fact("Peak memory", numbers.byte_size(peak), _note("{} planned", planned, numbers.byte_size)))
    return found


def data_facts(run: RunSummary) -> list[Fact]:
    """Return what was read, left out and learnt from."""
    data = mapping(run.report.get("data"))
    facts = []
    files = data.get("files")
    if isinstance(files, list) and files:
        names = [PurePath(str(f)).name for f in files]
        more = f"and {len(names) - 6} more" if len(names) > 6 else ""
        facts.append(Fact("Files" if len(names) > 1 else "File", ", ".join(names[:6]), more))
    if data.get("format"):
        facts.append(Fact("Format", str(data["format"])))
    for key, (label, note) in _DATA_COUNTS.items():
        value = as_float(data.get(key))
        if value is not None and (value or key in ("rows", "examples", "dropped", "truncated")):
            facts.append(Fact(label, numbers.count(value), note if value else ""))
    longest, median = as_float(data.get("longest")), as_float(data.get("median_length"))
    if longest is not None and median is not None:
        facts.append(Fact("Length", f"{numbers.count(median)} tokens", f"the median; the longest has {longest:,.0f}"))
    ends = as_float(data.get("end_tokens_trained"))
    if ends is not None:
        note = "every answer learns to stop" if ends >= 1 else "the others never learn where to stop"
        facts.append(Fact("End of answer trained", f"{numbers.percent(ends)} of the rows", note))
    return facts


def token_shares(run: RunSummary) -> list[Fact]:
    """Return the tokens trained on and those only read, with their shares as notes; empty when unknown."""
    data = mapping(run.report.get("data"))
    tokens, trained = as_float(data.get("tokens")), as_float(data.get("trained_tokens"))
    if not tokens or trained is None:
        return []
    return [
        Fact("trained on", numbers.count(trained), f"{100 * trained / tokens:.1f}%"),
        Fact("read only, as context", numbers.count(tokens - trained), f"{100 * (1 - trained / tokens):.1f}%"),
    ]


def length_histogram(run: RunSummary) -> Markup:
    """Return the plot of `data.lengths` ({edges, counts}) of report.json, if it is there."""
    lengths = mapping(mapping(run.report.get("data")).get("lengths"))
    edges, counts = lengths.get("edges"), lengths.get("counts")
    if isinstance(edges, list) and isinstance(counts, list) and len(edges) == len(counts) + 1:
        return histogram("Length of the sequences", edges, counts, unit="tokens")
    return Markup("")


def memory_parts(run: RunSummary) -> list[Fact]:
    """Return the parts of the memory (`memory` in report.json or plan.json), with their shares as notes."""
    for source in (run.report, run.plan):
        sizes = {str(k).replace("_", " "): as_float(v) or 0.0 for k, v in mapping(source.get("memory")).items()}
        whole = sum(sizes.values())
        if whole > 0:
            return [Fact(k, numbers.byte_size(v), f"{100 * v / whole:.1f}%") for k, v in sizes.items() if v > 0]
    return []


def audit(run: RunSummary) -> Audit | None:
    """Return the outcome of the freeze audit; None before there is one."""
    found, clean = mapping(run.report.get("audit")), run.report.get("frozen_unchanged")
    if not found and clean is None:
        return None
    facts, names = [], []
    for key, (label, note) in _AUDIT_WORDS.items():
        value = found.get(key)
        listed = [str(v) for v in value] if isinstance(value, list) else []
        size = len(listed) if isinstance(value, list) else as_float(value)
        if size is not None:
            facts.append(Fact(label, numbers.count(size), note if size else ""))
        if listed:
            names.append((label, listed[:_MOST_NAMES]))
    return Audit(clean if isinstance(clean, bool) else None, found.get("frozen") != 0, facts, names)


def environment_facts(environment: Mapping[str, object]) -> list[Fact]:
    """Return the machine and the libraries, flat: what is nested becomes one line."""
    lines = ((key, _one_line(key, value)) for key, value in environment.items())
    return [Fact(key.removesuffix("_bytes").replace("_", " "), text) for key, text in lines if text]


def _one_line(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_one_line(str(k), v)}" for k, v in value.items() if v not in (None, ""))
    if isinstance(value, list):
        inner = (
            ", ".join(_one_line(str(k), x) for k, x in v.items()) if isinstance(v, Mapping) else str(v) for v in value
        )
        return "; ".join(text for text in inner if text)
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = as_float(value)
    return numbers.byte_size(size) if key.endswith("_bytes") and size is not None else str(value)


def _about_steps(run: RunSummary) -> str:
    """Return the epochs, and whether the result is not simply the last step."""
    epoch = run.stages[-1].curves.get("epoch") if run.stages else None
    said = [] if epoch is None else ["1 epoch" if epoch.last == 1 else f"{epoch.last:.3g} epochs"]
    if run.report.get("stopped_early"):
        said.append("stopped early")
    if run.kept_step is not None:
        said.append(f"kept step {numbers.count(run.kept_step)}")
    return ", ".join(said)


def _note(template: str, value: float | None, text: numbers.Text) -> str:
    return template.format(text(value)) if value else ""


def recipe_in_short(recipe: Mapping[str, object]) -> dict[str, object]:
    """Return what a recipe says beyond the defaults, as a person would have written it."""
    usual = _defaults(Recipe)
    short = {key: _short_form(key, value) for key, value in recipe.items()}
    return {key: value for key, value in short.items() if key not in usual or value != usual[key]}


def _short_form(key: str, value: object) -> object:
    """Return `lora` for a component with nothing but its kind, a path for a model or data with nothing but that."""
    if isinstance(value, list):
        return [_short_form(key, item) for item in value]
    if not isinstance(value, Mapping):
        return value
    component = kinds(key).get(str(value.get("kind")))
    if component is not None:
        usual = _defaults(component)
        said = {k: v for k, v in value.items() if k == "kind" or v != usual.get(k)}
    else:
        said = {k: _short_form(k, v) for k, v in value.items() if v is not False and v not in (None, [], {}, "auto")}
    return next(iter(said.values())) if list(said) in (["path"], ["kind"]) else said


def _defaults(model: type[BaseModel]) -> dict[str, object]:
    """Return the defaults of a model's fields as JSON has them; required fields have none."""
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    values = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
