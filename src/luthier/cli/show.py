"""`luthier show RUN`: how a run stands or went, from its folder: works while it runs, and after a crash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.cli.layout import Cell, print_facts, print_heading, print_table
from luthier.cli.messages import print_json, stdout
from luthier.core.rundir import RunDir
from luthier.run.numbers import byte_size, count, duration, number, percent
from luthier.run.report import read_samples, write_report
from luthier.run.summary import Comparison, Curve, RunSummary, State, as_float, mapping, read_run

if TYPE_CHECKING:
    from rich.console import Console

_STATE_STYLE: dict[State, str] = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red"}
_VERDICT_STYLE = {"better": "green", "worse": "red", "unchanged": "dim", "": "dim"}
_BARS = "▁▂▃▄▅▆▇█"
_SAMPLES = 2
_SAMPLE_CHARACTERS = 240


def run(run: Path, json: bool = False) -> None:
    """Print what the folder of a run says.

    Raises:
        RunError: there is no run in that folder.
    """
    summary = read_run(RunDir.open(run))
    if summary.state != "finished" or not summary.run.report_page.exists():
        # A killed run had no time to write its page, and that of a running one is old.
        write_report(summary.run)
    if json:
        print_json(as_dict(summary))
        return
    console = stdout()
    _print_head(console, summary)
    _print_comparisons(console, summary.comparisons)
    _print_last(console, summary)
    _print_samples(console, summary)
    _print_paths(console, summary)


def as_dict(summary: RunSummary) -> dict[str, object]:
    """Return the same for programs."""
    return {
        "run": summary.name,
        "state": summary.state,
        "step": summary.last_step,
        "total_steps": summary.total_steps,
        "resume": f"luthier resume {summary.run.path}" if summary.remedy else None,
        "model": summary.model,
        "method": summary.method,
        "objective": summary.objective,
        "trainable_share": summary.trainable_share,
        "comparisons": [
            {
                "name": row.name,
                "metric": row.metric,
                "higher_is_better": row.higher_is_better,
                "before": row.before,
                "after": row.after,
                "n": row.n,
                "verdict": row.verdict or None,
            }
            for row in summary.comparisons
        ],
        "last": {key: _last(curve) for key, curve in _curves(summary).items()},
        "paths": {name: str(path) for name, path in _paths(summary).items()},
        "warnings": summary.warnings,
        "error": summary.report.get("error"),
    }


def _last(curve: Curve) -> dict[str, float | None]:
    """Return a curve's last point; JSON knows no infinity, so what is not finite becomes null."""
    return {"step": int(curve.steps[-1]), "value": curve.last if math.isfinite(curve.last) else None}


def _print_head(console: Console, summary: RunSummary) -> None:
    console.print()
    console.print(summary.name, style="bold", end="  ")
    console.print(summary.status_text, style=_STATE_STYLE[summary.state])
    share = summary.trainable_share
    trained = f"{summary.method}, {percent(share)} of the parameters" if share is not None else summary.method
    facts: list[tuple[str, Cell]] = [
        ("model", summary.model_name),
        ("method", trained),
        ("objective", summary.objective),
    ]
    data = mapping(summary.report.get("data"))
    tokens, learnt = as_float(data.get("tokens")), as_float(data.get("trained_tokens"))
    if tokens and learnt is not None:
        sequences = count(as_float(data.get("examples")) or 0)
        facts.append(("data", f"{sequences} sequences, {count(tokens)} tokens, {percent(learnt / tokens)} trained on"))
    facts.append(("training", ", ".join(_effort(summary))))
    print_facts(console, [fact for fact in facts if fact[1]])
    error = summary.report.get("error")
    if error and summary.state == "failed":
        console.print(f"\n{error}", style="red")
    for warning in summary.warnings:
        console.print(f"\nwarning: {warning}", style="yellow")
    if summary.remedy:
        console.print(f"\n{summary.remedy.replace('`', '')}", style="yellow")


def _effort(summary: RunSummary) -> list[str]:
    report = summary.report
    seconds, tokens = summary.train_seconds, as_float(report.get("tokens_total"))
    rate, peak = as_float(report.get("tokens_per_second")), as_float(report.get("peak_bytes"))
    return [
        text
        for text in (
            duration(seconds) if seconds is not None else "",
            f"{count(tokens)} tokens" if tokens else "",
            f"{count(rate)} tokens/s" if rate else "",
            f"peak {byte_size(peak)}" if peak else "",
        )
        if text
    ]


def _print_comparisons(console: Console, rows: list[Comparison]) -> None:
    if not rows:
        return
    print_heading(console, "Before and after")
    cells: list[list[Cell]] = [
        [
            row.label,
            row.text(row.before),
            (row.text(row.after), "bold"),
            row.change,
            (row.verdict, _VERDICT_STYLE[row.verdict]),
            f"{row.n:,}" if row.n is not None else "",
            (f"{row.metric.replace('_', ' ')} ({row.direction.partition(' ')[0]})", "dim"),
        ]
        for row in rows
    ]
    print_table(
        console, ["measure", "before", "after", "change", "", "rows", "metric (better is)"], cells, right=(1, 2, 3, 5)
    )


def _print_last(console: Console, summary: RunSummary) -> None:
    curves = _curves(summary)
    if not curves:
        return
    print_heading(console, f"Step {count(summary.last_step)}")
    shown = [key for key in curves if key not in ("tokens", "epoch", "step_seconds")]
    rows: list[list[Cell]] = [
        [
            (key.replace("_", " "), "dim"),
            (number(curves[key].last), "bold"),
            (sparkline(curves[key]), "cyan"),
            (f"from {number(float(curves[key].values[0]))}" if len(curves[key].values) > 1 else "", "dim"),
        ]
        for key in shown
    ]
    print_table(console, ["", "", "", ""], rows, right=(1,))


def _print_samples(console: Console, summary: RunSummary) -> None:
    if not summary.stages:
        return
    for sample in read_samples(summary.stages[-1].folder)[0][:_SAMPLES]:
        answers = (("prompt", sample.prompt), ("before", sample.before), ("after", sample.after))
        facts: list[tuple[str, Cell]] = [
            (label, (_one_line(passage.text) or "(empty)", "bold" if label == "after" else ""))
            for label, passage in answers
            if passage is not None
        ]
        console.print()
        print_facts(console, facts)


def _print_paths(console: Console, summary: RunSummary) -> None:
    print_heading(console, "Files")
    print_facts(console, [(name, str(path)) for name, path in _paths(summary).items()])


def _paths(summary: RunSummary) -> dict[str, Path]:
    run, stage = summary.run, summary.stages[-1] if summary.stages else None
    found = {"report": run.report_page, "preview": run.examples_page}
    if stage is not None:
        found["metrics"] = stage.folder.metrics
        checkpoint = summary.report.get("final_checkpoint")
        if isinstance(checkpoint, str):
            found["checkpoint"] = run.path / checkpoint
        elif stage.checkpoint_step is not None:
            found["checkpoint"] = stage.folder.checkpoint(stage.checkpoint_step)
    return {name: path for name, path in found.items() if path.exists()}


def _curves(summary: RunSummary) -> Mapping[str, Curve]:
    return summary.stages[-1].curves if summary.stages else {}


def sparkline(curve: Curve, width: int = 32) -> str:
    """Return a curve in block characters, each the mean of its stretch; empty for a single point."""
    finite = curve.values[np.isfinite(curve.values)]
    if len(finite) < 2:
        return ""
    means = [float(part.mean()) for part in np.array_split(finite, min(width, len(finite)))]
    low, high = min(means), max(means)
    if math.isclose(low, high):
        return _BARS[3] * len(means)
    return "".join(_BARS[round((v - low) / (high - low) * (len(_BARS) - 1))] for v in means)


def _one_line(text: str) -> str:
    flat = " ⏎ ".join(line.strip() for line in text.splitlines() if line.strip())
    return flat if len(flat) <= _SAMPLE_CHARACTERS else flat[: _SAMPLE_CHARACTERS - 1] + "…"
