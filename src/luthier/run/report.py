"""The report of a run: one page that opens anywhere, without a network, made from the run's folder alone.

The page must stay below 1 MB whatever the run was: curves are thinned in `plots`, and texts have a budget here; what is
left out is said, with the file that has it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from luthier import __version__
from luthier.core.rundir import RunDir, StageDir, write_atomic
from luthier.run import facts
from luthier.run.charts import charts
from luthier.run.kept import KeptView, kept_view
from luthier.run.summary import Comparison, RunSummary, StageSummary, mapping, read_mapping, read_run

_TEXT_CHARACTERS = 3_000
_SAMPLE_BYTES = 250_000
_SAMPLES_OPEN = 4
_LOG_LINES = 200
_LONG_TEXT = 40_000


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
    kept: KeptView | None = None


def write_report(run: RunDir) -> Path:
    """Write `report.html` of a run, finished or not, and return its path. Writing it again gives the same bytes."""
    summary = read_run(run)
    templates = Environment(
        loader=PackageLoader("luthier.run", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(
        run=summary,
        version=__version__,
        chips=[c for c in summary.comparisons if c.verdict],
        tiles=facts.tiles(summary),
        stages=[_stage_view(s, _part_of(s, summary)) for s in summary.stages],
        samples_open=_SAMPLES_OPEN,
        warnings=summary.warnings,
        data=facts.data_facts(summary),
        tokens=facts.token_shares(summary),
        lengths=facts.length_histogram(summary),
        memory=facts.memory_parts(summary),
        audit=facts.audit(summary),
        machine=facts.environment_facts(summary.environment),
        recipe=_cut(_brief_yaml(facts.recipe_in_short(summary.recipe))),
        resolved=_cut(_yaml(dict(summary.recipe))) if summary.recipe else "",
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


def _part_of(stage: StageSummary, run: RunSummary) -> Mapping[str, object]:
    """Return the report of a stage: its own where it is one of several, else the run's."""
    own = RunDir(stage.folder.path).report
    return read_mapping(own, []) if own.is_file() else run.report


def _stage_view(stage: StageSummary, report: Mapping[str, object]) -> StageView:
    samples, left_out = read_samples(stage.folder)
    return StageView(
        name=stage.name,
        rows=[(c, _bars(c)) for c in stage.comparisons],
        samples=samples,
        samples_left_out=left_out,
        charts=[c for c in charts(stage.curves) if c],
        log=_tail(stage.folder.log),
        kept=kept_view(stage, report),
    )


def _bars(row: Comparison) -> Bars:
    values = [v if v is not None and np.isfinite(v) else 0.0 for v in (row.before, row.after)]
    full = 1.0 if row.is_share else max(*values, 1e-12)
    before, after = (round(100 * min(1.0, max(0.0, v / full)), 1) for v in values)
    return Bars(before, after)


def read_samples(stage: StageDir) -> tuple[list[Sample], int]:
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


def _rows(path: Path) -> Iterator[Mapping[str, object]]:
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
    text = str(value).strip("\n")
    return Passage(text[:_TEXT_CHARACTERS], max(0, len(text) - _TEXT_CHARACTERS))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _brief_yaml(recipe: Mapping[str, object]) -> str:
    """Return YAML in which what is nested stands on one line, as people write it."""
    lines = []
    for key, value in recipe.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            lines += [f"{key}:", *(f"  - {_one_line(item)}" for item in value)]
        else:
            lines.append(f"{key}: {_one_line(value)}")
    return "\n".join(lines)


def _one_line(value: object) -> str:
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").rstrip()


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False)


def _cut(text: str) -> str:
    rest = len(text) - _LONG_TEXT
    return text if rest <= 0 else f"{text[:_LONG_TEXT]}\n… {rest:,} more characters"


def _tail(path: Path) -> str:
    lines = _read(path).splitlines()
    return "\n".join(line[:300] for line in lines[-_LOG_LINES:])
