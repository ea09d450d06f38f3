"""What a person sees while a run works: facts at the start, a bar with loss, speed and time left, the table at the end.

Everything goes to stderr, so that stdout stays free for `--json`. Without a terminal the bar becomes a line every few
seconds. The run folder's log.txt gets the same lines, and one for each evaluation.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from luthier.core.errors import Problem, visible
from luthier.evaluate.tasks.base import SHARES as SCORES

LINE_SECONDS = 10.0
LOWER_IS_BETTER = {"loss", "mse", "mae", "calibration_error"}
SHARES = SCORES | {"micro_f1"}


def _standard_error() -> Console:
    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())


@dataclass
class Screen:
    """The terminal of one run.

    Attributes:
        log: the file that gets the same lines, once `keep_log` has named it.
    """

    console: Console = field(default_factory=_standard_error)
    quiet: bool = False
    log: Path | None = None
    _earlier: list[str] = field(default_factory=list)

    def keep_log(self, path: Path) -> None:
        """Append to a file from now on, beginning with what was said before."""
        self.log = path
        earlier, self._earlier = self._earlier, []
        self._append([time.strftime("%Y-%m-%d %H:%M:%S"), *earlier])

    def fact(self, label: str, text: str) -> None:
        """Show one line of the header."""
        self._line(label, text, "bold")

    def note(self, text: str) -> None:
        """Show something that happened and needs no action."""
        self._line("note", text, "yellow")

    def warn(self, problem: Problem) -> None:
        """Show a warning, or a note, with its place and remedy."""
        place = f"{problem.where}: " if problem.where else ""
        remedy = f" → {problem.remedy}" if problem.remedy else ""
        self._line(problem.severity, place + problem.what + remedy, "yellow")

    def record(self, label: str, text: str) -> None:
        """Write a line into the log alone."""
        self._append([f"{label:>12}  {text}"])

    def _line(self, label: str, text: str, style: str) -> None:
        text = visible(text)
        if not self.quiet:
            self.console.print(f"[{style}]{escape(label):>12}[/]  {escape(text)}")
        self.record(label, text)

    def _append(self, lines: Sequence[str]) -> None:
        if self.log is None:
            self._earlier += lines
            return
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            # The log is a copy: a full disk is for what matters, the checkpoints, to run into.
            self.console.print(f"[yellow]{'note':>12}[/]  {escape(f'log.txt cannot be written ({error.strerror})')}")
            self.log, self._earlier = None, []

    def comparison(
        self, before: Mapping[str, Mapping], after: Mapping[str, Mapping], changes: Mapping[str, Mapping] | None = None
    ) -> None:
        """Show every measure before and after, with its direction, its intervals and what is near chance.

        Args:
            changes: of the measures whose cases are known, the difference on the same cases with its interval.
        """
        if self.quiet or not after:
            return
        table = Table(title="Before and after", title_justify="left", title_style="bold", box=None, padding=(0, 2))
        for name in ("measure", "before", "after", "change", "95 %", "n"):
            table.add_column(name, justify="left" if name == "measure" else "right", no_wrap=name != "measure")
        for name, now in after.items():
            was = before.get(name, {}).get("value", math.nan)
            table.add_row(name, *_compare(now, was, (changes or {}).get(name)), f"{now['n']:,}")
        self.console.print()
        self.console.print(table)
        for name, now in after.items():
            if now.get("near_chance"):
                chance = f"{float(now['chance']):.0%}"
                self.console.print(f"{'note':>12}  {escape(name)} is near chance ({chance}): its interval holds it")

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
                self.console.print(f"[{style}]{label:>12}[/]  {escape(visible(_one_line(row.get(key) or '')))}")

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
            # On a narrow terminal the numbers come first: a line that does not fit is cut at its end.
            is_wide = self.screen.console.width >= 110
            self.progress = Progress(
                TextColumn("[bold]{task.description:>12}[/] "),
                *([BarColumn(bar_width=32)] if is_wide else []),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                *([TimeElapsedColumn()] if is_wide else []),
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
            self.progress.update(self.task, total=self.total, completed=self.done, facts=facts)
        elif not self.screen.quiet and (time.monotonic() - self.last_line > LINE_SECONDS or self.done == self.total):
            self.last_line = time.monotonic()
            self.screen.console.print(f"{'training':>12}  step {self.done}/{self.total}  {facts}")
        if "eval_loss" in metrics or self.done == self.total:
            self.screen.record("training", f"step {self.done}/{self.total}  {facts}")

    def _facts(self, metrics: Mapping[str, float]) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        left = (self.total - self.done) * self.seconds / max(self.steps_here, 1)
        held = f"  held-out {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
        return f"loss {self.loss:.4f}{held}  {rate:,.0f} tokens/s  ETA {_clock(left)}"


def _compare(now: Mapping, was: float, change: Mapping | None) -> tuple[str, str, str, str]:
    """Return before, after, the change and its interval; a change that may be chance is not coloured."""
    metric, value = str(now["metric"]), float(now["value"])
    is_share = metric in SHARES
    better = value > was if now.get("higher_is_better", metric not in LOWER_IS_BETTER) else value < was

    def shown(number: float) -> str:
        return f"{number:.1%}" if is_share else f"{number:.4f}"

    def moved(number: float) -> str:
        return f"{100 * number:+.1f}" if is_share else f"{number:+.4f}"

    interval, certain = "", value != was
    if change is not None:
        interval = " to ".join(map(moved, change["interval"]))
        certain = change["verdict"] != "unchanged"
    colour = "dim" if not certain else "green" if better else "red"
    text = f"{moved(value - was)} points" if is_share else moved(value - was)
    return shown(was), shown(value), f"[{colour}]{text}[/]", interval


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _one_line(text: str, limit: int = 300) -> str:
    flat = " ⏎ ".join(line for line in text.strip().splitlines() if line.strip())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
