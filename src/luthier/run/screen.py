"""What a person sees while a run works: facts at the start, a bar with loss, speed and time left, the table at the end.

Everything goes to stderr, so that stdout stays free for `--json`. Without a terminal the bar becomes a line every few
seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from luthier.core.errors import Problem

LINE_SECONDS = 10.0
LOWER_IS_BETTER = {"loss"}


@dataclass
class Screen:
    """The terminal of one run."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    quiet: bool = False

    def fact(self, label: str, text: str) -> None:
        """Show one line of the header."""
        if not self.quiet:
            self.console.print(f"[bold]{escape(label):>12}[/]  {escape(text)}")

    def note(self, text: str) -> None:
        """Show something that happened and needs no action."""
        if not self.quiet:
            self.console.print(f"[yellow]{'note':>12}[/]  {escape(text)}")

    def warn(self, problem: Problem) -> None:
        """Show a warning with its place and remedy."""
        if not self.quiet:
            place = f"{problem.where}: " if problem.where else ""
            remedy = f" → {problem.remedy}" if problem.remedy else ""
            self.console.print(f"[yellow]{'warning':>12}[/]  {escape(place + problem.what + remedy)}")

    def comparison(self, before: Mapping[str, Mapping], after: Mapping[str, Mapping]) -> None:
        """Show every measure before and after, with its direction."""
        if self.quiet or not after:
            return
        table = Table(title="Before and after", title_justify="left", title_style="bold", box=None, padding=(0, 2))
        for name in ("measure", "before", "after", "change", "n"):
            table.add_column(name, justify="left" if name == "measure" else "right", style=None)
        for name, now in after.items():
            was = before.get(name, {}).get("value", math.nan)
            table.add_row(name, *_compare(str(now["metric"]), was, float(now["value"])), f"{now['n']:,}")
        self.console.print()
        self.console.print(table)

    def samples(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Show sample answers before and after."""
        if self.quiet or not rows:
            return
        for row in rows:
            self.console.print()
            for label, key, style in (
                ("prompt", "prompt", "dim"),
                ("reference", "reference", "dim"),
                ("before", "before", "red"),
                ("after", "after", "green"),
            ):
                self.console.print(f"[{style}]{label:>12}[/]  {escape(_one_line(row.get(key) or ''))}")

    def training(self, total_steps: int, done_steps: int = 0) -> TrainingBar:
        """Return the bar of a training loop, a context manager."""
        return TrainingBar(self, total_steps, done_steps)


class TrainingBar:
    """Loss, tokens per second and time left, updated once a step."""

    def __init__(self, screen: Screen, total_steps: int, done_steps: int) -> None:
        self.screen, self.total, self.done = screen, total_steps, done_steps
        self.seconds = self.tokens = 0.0
        self.steps_here = 0
        self.loss: float | None = None
        self.last_line = time.monotonic()
        self.progress: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> TrainingBar:
        if not self.screen.quiet and self.screen.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description:>12}[/] "),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                console=self.screen.console,
            )
            self.task = self.progress.add_task("training", total=self.total, completed=self.done, facts="")
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Take in one step's row of metrics."""
        self.done = int(metrics["step"])
        self.steps_here += 1
        self.seconds += metrics["step_seconds"]
        self.tokens += metrics["tokens"]
        # A moving average: single steps are too noisy to read.
        self.loss = metrics["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * metrics["loss"]
        facts = self._facts(metrics)
        if self.progress is not None:
            self.progress.update(self.task, completed=self.done, facts=facts)
        elif not self.screen.quiet and (time.monotonic() - self.last_line > LINE_SECONDS or self.done == self.total):
            self.last_line = time.monotonic()
            self.screen.console.print(f"{'training':>12}  step {self.done}/{self.total}  {facts}")

    def _facts(self, metrics: Mapping[str, float]) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        left = (self.total - self.done) * self.seconds / max(self.steps_here, 1)
        held = f"  held-out {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
        return f"loss {self.loss:.4f}{held}  {rate:,.0f} tokens/s  ETA {_clock(left)}"


def _compare(metric: str, was: float, now: float) -> tuple[str, str, str]:
    lower = metric in LOWER_IS_BETTER
    if metric == "exact_match":
        shown, change = (lambda v: f"{v:.1%}"), f"{100 * (now - was):+.1f} points"
    else:
        shown, change = (lambda v: f"{v:.4f}"), f"{now - was:+.4f}"
    colour = "green" if (now < was) == lower and now != was else "red" if now != was else "dim"
    return shown(was), shown(now), f"[{colour}]{change}[/]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _one_line(text: str, limit: int = 300) -> str:
    flat = " ⏎ ".join(line for line in text.strip().splitlines() if line.strip())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
