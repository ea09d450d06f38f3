"""The report of a run: one page that opens anywhere, without a network, made from the run's folder alone.

The page must stay below 1 MB whatever the run was: curves are thinned in `plots`, and texts have a budget here; what is
left out is said, with the file that has it.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from luthier import __version__
from luthier.core.rundir import RunDir, StageDir, write_atomic
from luthier.run import numbers
from luthier.run.plots import Chart, Series, histogram, line_chart, smooth
from luthier.run.summary import Comparison, Curve, RunSummary, StageSummary, mapping, read_run

_TEXT_CHARACTERS = 3_000
_SAMPLE_BYTES = 250_000
_SAMPLES_OPEN = 4
_LOG_LINES = 200
_LONG_TEXT = 40_000
_DATA_COUNTS = {
    "rows": "Rows read",
    "held_out_rows": "Held out",
    "examples": "Sequences trained on",
    "dropped": "Dropped",
    "truncated": "Truncated",
    "windows": "Cut into windows",
}
_AUDIT_WORDS = {
    "trained": "Tensors declared trainable",
    "trained_unchanged": "… of them unmoved",
    "frozen": "Tensors declared frozen",
    "frozen_changed": "… of them changed",
}


@dataclass(frozen=True)
class Fact:
    """A label and a value, with a remark below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Passage:
    """A piece of text from a data set or a model, with its language where the script tells it."""

    text: str
    left_out: int = 0

    @property
    def language(self) -> str:
        return language_of(self.text)


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers to it."""

    prompt: Passage
    reference: Passage | None
    before: Passage | None
    after: Passage | None

    def matches(self, answer: Passage | None) -> bool:
        """Tell whether an answer is the reference, apart from space around it."""
        return bool(answer and self.reference and answer.text.strip() == self.reference.text.strip())


@dataclass(frozen=True)
class Bars:
    """The widths of the two bars of a comparison, in percent of the column."""

    before: float
    after: float


@dataclass(frozen=True)
class StageView:
    """What the page shows of one stage."""

    name: str
    rows: list[tuple[Comparison, Bars]]
    samples: list[Sample]
    samples_left_out: int
    charts: list[Markup]
    log: str


@dataclass(frozen=True)
class Audit:
    """What was declared trainable and what moved."""

    is_clean: bool | None
    facts: list[Fact]
    lists: list[tuple[str, list[str]]] = field(default_factory=list)


def write_report(run: RunDir) -> Path:
    """Write `report.html` of a run, finished or not, and return its path. Writing it again gives the same bytes."""
    summary = read_run(run)
    stages = [_stage_view(s) for s in summary.stages]
    environment = Environment(
        loader=PackageLoader("luthier.run", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        run=summary,
        version=__version__,
        chips=[c for c in summary.comparisons if c.verdict],
        tiles=_tiles(summary),
        stages=stages,
        samples_open=_SAMPLES_OPEN,
        warnings=_warnings(summary),
        data=_data_facts(summary),
        tokens=_token_shares(summary),
        lengths=_length_histogram(summary),
        memory=_memory_facts(summary),
        audit=_audit(summary),
        machine=_environment_facts(summary.environment),
        recipe=_read_text(run.recipe),
        resolved=_cut(yaml.safe_dump(dict(summary.recipe), allow_unicode=True, sort_keys=False)) if summary.recipe else "",
    )
    write_atomic(run.report_page, page)
    return run.report_page


def language_of(text: str) -> str:
    """Return a `lang` by script, so that a browser picks the right shapes for Chinese, Japanese or Korean; else ''."""
    names = [unicodedata.name(c, "") for c in text[:400] if ord(c) > 0x2E7F]
    if any(n.startswith(("HIRAGANA", "KATAKANA")) for n in names):
        return "ja"
    if any(n.startswith("HANGUL") for n in names):
        return "ko"
    return "zh-Hans" if any(n.startswith("CJK") for n in names) else ""


def _tiles(run: RunSummary) -> list[Fact]:
    report = run.report
    tiles = []
    share = run.trainable_share
    if share is not None:
        trainable, total = (numbers.count(_float(report, k) or 0) for k in ("trainable_parameters", "total_parameters"))
        tiles.append(Fact("Trained", numbers.percent(share), f"{trainable} of {total} parameters"))
    seconds = _float(report, "train_seconds")
    if seconds is None and run.stages and "step_seconds" in run.stages[-1].curves:
        seconds = float(np.sum([s.curves["step_seconds"].values.sum() for s in run.stages if "step_seconds" in s.curves]))
    if seconds is not None:
        setup = _float(report, "setup_seconds")
        tiles.append(Fact("Training time", numbers.duration(seconds), f"+ {numbers.duration(setup)} to set up" if setup else ""))
    epoch = run.stages[-1].curves.get("epoch") if run.stages else None
    epochs = f"{epoch.last:.3g} epochs" if epoch is not None and epoch.last != 1 else "1 epoch"
    note = ", ".join(part for part in (epochs if epoch is not None else "", _choice(report)) if part)
    tiles.append(Fact("Steps", numbers.count(_float(report, "steps") or run.last_step), note))
    tokens = _float(report, "tokens_total")
    if tokens:
        rate = _float(report, "tokens_per_second") or (tokens / seconds if seconds else None)
        tiles.append(Fact("Tokens", numbers.count(tokens), f"{numbers.count(rate)} per second" if rate else ""))
    peak = _float(report, "peak_bytes")
    if peak:
        predicted = _float(run.plan, "peak_bytes")
        tiles.append(Fact("Peak memory", numbers.byte_size(peak), f"{numbers.byte_size(predicted)} planned" if predicted else ""))
    return tiles


def _choice(report: Mapping[str, object]) -> str:
    """Tell when the result is not simply the last step."""
    best = _float(report, "best_step")
    chosen = best if best and f"{best:06.0f}" in str(report.get("final_checkpoint")) and best != report.get("steps") else None
    parts = ["stopped early"] if report.get("stopped_early") else []
    return ", ".join([*parts, f"kept step {numbers.count(chosen)}"] if chosen else parts)


def _stage_view(stage: StageSummary) -> StageView:
    samples, left_out = _samples(stage.folder)
    return StageView(
        name=stage.name,
        rows=[(c, _bars(c)) for c in stage.comparisons],
        samples=samples,
        samples_left_out=left_out,
        charts=[c for c in _charts(stage.curves) if c],
        log=_tail(stage.folder.log),
    )


def _bars(row: Comparison) -> Bars:
    values = [v if v is not None and np.isfinite(v) else 0.0 for v in (row.before, row.after)]
    full = 1.0 if row.is_share else max(*values, 1e-12)
    before, after = (round(100 * min(1.0, max(0.0, v / full)), 1) for v in values)
    return Bars(before, after)


def _charts(curves: Mapping[str, Curve]) -> Iterable[Markup]:
    marks = _epoch_marks(curves.get("epoch"))
    known = {"step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "step_seconds"}
    if "loss" in curves:
        yield line_chart(Chart("Loss", _loss_series(curves), unit="nats per token", marks=marks))
    if "learning_rate" in curves:
        yield line_chart(
            Chart("Learning rate", (_plain("learning rate", curves["learning_rate"]),), scale="linear", from_zero=True)
        )
    if "grad_norm" in curves:
        yield line_chart(Chart("Gradient norm", _with_smooth(curves["grad_norm"]), unit="before clipping"))
    speed = _speed(curves)
    if speed is not None:
        yield line_chart(Chart("Speed", _with_smooth(speed), unit="tokens/s", text=numbers.count, from_zero=True))
    for key, curve in curves.items():
        if key in known or len(set(curve.values[:1000])) < 2:
            continue
        words = key.replace("_", " ")
        title = words[:1].upper() + words[1:] if len(words) > 3 else words.upper()
        if key.endswith("_bytes"):
            unit = 1024.0 ** max(0, math.floor(math.log(max(curve.values.max(), 1), 1024)))
            chart = Chart(title.replace("bytes", "memory"), (_plain("memory", curve),), text=numbers.byte_size, tick_unit=unit)
            yield line_chart(replace(chart, from_zero=True))
        else:
            yield line_chart(Chart(title, _with_smooth(curve)))


def _loss_series(curves: Mapping[str, Curve]) -> tuple[Series, ...]:
    if "eval_loss" not in curves:
        return _with_smooth(curves["loss"])
    series = _with_smooth(curves["loss"], "training, ")
    held = curves["eval_loss"]
    lines = (Series("held-out", held.steps, held.values, "line", "second"),) if len(held.steps) > 1 else ()
    return (*series, *lines, Series("held-out", held.steps, held.values, "dots", "second"))


def _with_smooth(curve: Curve, prefix: str = "") -> tuple[Series, ...]:
    """Return the raw curve drawn faintly under a smooth one (about 2% of the run); a short one alone."""
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    if len(values) < 20:
        return (Series(f"{prefix}each step", steps, values),)
    window = max(5, len(values) // 80) | 1
    return Series(f"{prefix}each step", steps, values, "faint"), Series(f"{prefix}smoothed", steps, smooth(values, window))


def _plain(name: str, curve: Curve) -> Series:
    return Series(name, curve.steps, curve.values)


def _speed(curves: Mapping[str, Curve]) -> Curve | None:
    tokens, seconds = curves.get("tokens"), curves.get("step_seconds")
    if tokens is None or seconds is None or len(tokens.values) != len(seconds.values):
        return None
    counts = tokens.values
    # A column that only ever grows over many steps is a running total, not a count for each step.
    if len(counts) > 5 and np.all(np.diff(counts) > 0) and counts[-1] > 4 * counts[0]:
        counts = np.diff(counts, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Curve(tokens.steps, counts / seconds.values)


def _epoch_marks(epoch: Curve | None) -> tuple[tuple[float, str], ...]:
    if epoch is None or epoch.last < 1.5 or epoch.last > 12:
        return ()
    whole = np.floor(epoch.values[:-1] + 1e-9)
    ends = np.flatnonzero(np.diff(whole, prepend=whole[:1]) > 0)
    return tuple((float(epoch.steps[i]), f"epoch {int(whole[i])} ends") for i in ends)


def _samples(stage: StageDir) -> tuple[list[Sample], int]:
    """Return the samples that fit into the page's budget, and how many more the file has."""
    found: list[Sample] = []
    left_out, used = 0, 0
    for row in _rows(stage.samples):
        sample = Sample(
            _passage(row.get("prompt")) or Passage(""),
            *(_passage(row.get(key)) for key in ("reference", "before", "after")),
        )
        used += sum(len(p.text.encode()) for p in (sample.prompt, sample.reference, sample.before, sample.after) if p)
        if used > _SAMPLE_BYTES:
            left_out += 1
        else:
            found.append(sample)
    return found, left_out


def _rows(path: Path) -> Iterable[Mapping[str, object]]:
    for line in _read(path).splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return
        if isinstance(row, Mapping):
            yield row


def _passage(value: object) -> Passage | None:
    if value is None:
        return None
    if isinstance(value, list):
        turns = [mapping(m) for m in value]
        value = "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in turns)
    text = str(value)
    return Passage(text[:_TEXT_CHARACTERS], max(0, len(text) - _TEXT_CHARACTERS))


def _warnings(run: RunSummary) -> list[str]:
    said = run.report.get("warnings")
    warnings = [str(w) for w in said] if isinstance(said, list) else []
    return warnings + [f"{name} is torn and was left out of this page." for name in run.unreadable]


def _data_facts(run: RunSummary) -> list[Fact]:
    data = mapping(run.report.get("data"))
    facts = []
    files = data.get("files")
    if isinstance(files, list | tuple):
        names = [str(mapping(f).get("path", f)) for f in files]
        facts.append(Fact("Files", ", ".join(names[:6]), f"and {len(names) - 6} more" if len(names) > 6 else ""))
    if data.get("format"):
        facts.append(Fact("Format", str(data["format"])))
    notes = {"dropped": "rows not trained on", "truncated": "cut at max_length"}
    for key, label in _DATA_COUNTS.items():
        value = _float(data, key)
        if value is not None:
            facts.append(Fact(label, numbers.count(value), notes.get(key, "") if value else ""))
    ends, examples = _float(data, "end_tokens_trained"), _float(data, "examples")
    if ends is not None:
        short = examples is not None and ends < examples
        note = "some answers never learn to stop" if short else "every answer learns to stop"
        value = f"{numbers.count(ends)} of {numbers.count(examples)}" if examples else numbers.count(ends)
        facts.append(Fact("End of answer trained", value, note if examples else ""))
    return facts


def _token_shares(run: RunSummary) -> list[Fact]:
    """Return the tokens trained on and those only read, with their shares as notes; empty when unknown."""
    data = mapping(run.report.get("data"))
    tokens, trained = _float(data, "tokens"), _float(data, "trained_tokens")
    if not tokens or trained is None:
        return []
    return [
        Fact("trained on", numbers.count(trained), f"{100 * trained / tokens:.1f}%"),
        Fact("read only, as context", numbers.count(tokens - trained), f"{100 * (1 - trained / tokens):.1f}%"),
    ]


def _length_histogram(run: RunSummary) -> Markup:
    lengths = mapping(mapping(run.report.get("data")).get("lengths"))
    edges, counts = lengths.get("edges"), lengths.get("counts")
    if isinstance(edges, list) and isinstance(counts, list) and len(edges) == len(counts) + 1:
        return histogram("Length of the examples", edges, counts, unit="tokens")
    return Markup("")


def _memory_facts(run: RunSummary) -> list[Fact]:
    for source in (run.report, run.plan):
        parts = mapping(source.get("memory") or source.get("memory_parts") or source.get("parts"))
        sizes = {str(k).replace("_", " "): float(v) for k, v in parts.items() if _is_number(v) and v > 0}
        if sizes:
            whole = sum(sizes.values())
            return [Fact(k, numbers.byte_size(v), f"{100 * v / whole:.1f}%") for k, v in sizes.items()]
    return []


def _audit(run: RunSummary) -> Audit | None:
    found = mapping(run.report.get("audit"))
    clean = run.report.get("frozen_unchanged")
    if not found and clean is None:
        return None
    facts, lists = [], []
    for key, value in found.items():
        label = _AUDIT_WORDS.get(key, key.replace("_", " ").capitalize())
        if _is_number(value):
            facts.append(Fact(label, numbers.count(float(value))))
        elif isinstance(value, list):
            facts.append(Fact(label, numbers.count(len(value))))
            if value:
                lists.append((label.removeprefix("… of them ").capitalize(), [str(v) for v in value[:200]]))
    return Audit(clean if isinstance(clean, bool) else None, facts, lists)


def _environment_facts(environment: Mapping[str, object]) -> list[Fact]:
    """Return the machine and the libraries, flat: an inner mapping gives one line."""
    facts = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{k} {_plain_value(v)}" for k, v in value.items() if v not in (None, ""))
        elif isinstance(value, list):
            text = "; ".join(
                ", ".join(str(_plain_value(v)) for v in item.values()) if isinstance(item, Mapping) else str(item) for item in value
            )
        else:
            text = numbers.byte_size(float(value)) if str(key).endswith("_bytes") and _is_number(value) else str(_plain_value(value))
        if text and value is not None:
            facts.append(Fact(str(key).removesuffix("_bytes").replace("_", " "), text))
    return facts


def _plain_value(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _float(source: Mapping[str, object], key: str) -> float | None:
    value = source.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_text(path: Path) -> str:
    return _cut(_read(path))


def _cut(text: str) -> str:
    rest = len(text) - _LONG_TEXT
    return text if rest <= 0 else f"{text[:_LONG_TEXT]}\n… {rest:,} more characters"


def _tail(path: Path) -> str:
    lines = _read(path).splitlines()
    return "\n".join(line[:300] for line in lines[-_LOG_LINES:])
