"""What `luthier judge` shows while it works, what it writes, and what it says at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.rundir import write_atomic

if TYPE_CHECKING:
    from luthier.evaluate.judging.constitution import Revised
    from luthier.evaluate.judging.rows import Tasks
    from luthier.evaluate.judging.verdicts import Outcome, Progress
    from luthier.rewards.judging.judge import Judge

LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Task:
    """What is asked of the judge."""

    scores: bool
    scale: tuple[float, float]
    margin: float
    rounds: int
    concurrency: int
    max_tokens: int
    prices: tuple[float, float]


def answers_file(out: Path) -> Path:
    """Return where a constitution's revisions are written as rows to copy, beside its preferences."""
    return out.with_name(f"{out.stem}.sft{out.suffix or '.jsonl'}")


@contextmanager
def progress_of(judge: Judge | None, task: Task | None, word: str = "judging") -> Iterator[Progress]:
    """Show how far judging is: a bar with the time left on a terminal, elsewhere a line every few seconds."""
    console = stderr()
    if not console.is_terminal:
        last = [time.monotonic()]

        def line(done: int, total: int) -> None:
            if time.monotonic() - last[0] >= LINE_SECONDS:
                last[0] = time.monotonic()
                console.print(f"{done:,} of {total:,}{_spent(judge, task)}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(word),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task(word, total=None, spent="")
        yield lambda done, total: bar.update(shown, completed=done, total=total, spent=_spent(judge, task).lstrip(", "))


def _spent(judge: Judge | None, task: Task | None) -> str:
    if judge is None or task is None:
        return ""
    cost = _cost(judge.tally.new_in, judge.tally.new_out, task)
    return f", {judge.tally.new_in + judge.tally.new_out:,} tokens" + (f", {cost:.2f}" if cost else "")


def _cost(tokens_in: int, tokens_out: int, task: Task) -> float:
    return (tokens_in * task.prices[0] + tokens_out * task.prices[1]) / 1e6


def write_outcome(outcome: Outcome, judge: Judge | None, task: Task, out: Path, compares: bool) -> dict[str, object]:
    """Write preferences or scores, and return what is said of them."""
    _write(out, outcome.rows)
    result: dict[str, object] = {
        "out": str(out),
        "kept": outcome.kept,
        "undecided": outcome.undecided,
        "open": outcome.open,
        "fault": outcome.fault,
    }
    if compares:
        result |= {"ties": outcome.ties}
    if compares and judge is not None:
        result |= {"disagreed": outcome.disagreed, "first_share": outcome.first_share}
    return result | _costs(judge, task)


def write_revisions(revised: Revised, judge: Judge, task: Task, out: Path) -> dict[str, object]:
    """Write a constitution's rows to compare and to copy, and return what is said of them."""
    _write(out, revised.preferences)
    _write(answers_file(out), revised.answers)
    return {
        "out": str(out),
        "answers_out": str(answers_file(out)),
        "kept": len(revised.preferences),
        "answers": len(revised.answers),
        "unchanged": revised.unchanged,
        "undecided": revised.undecided,
        "open": revised.open,
        "fault": revised.fault,
    } | _costs(judge, task)


def _costs(judge: Judge | None, task: Task) -> dict[str, object]:
    if judge is None:
        return {}
    tally = judge.tally
    return {
        "requests": tally.asked,
        "from_journal": tally.known,
        "asked_again": tally.again,
        "retried": getattr(judge.chat, "retried", 0),
        "tokens_in": tally.tokens_in,
        "tokens_out": tally.tokens_out,
        "cost": _cost(tally.tokens_in, tally.tokens_out, task),
        "cost_now": _cost(tally.new_in, tally.new_out, task),
        "notes": list(getattr(judge.chat, "notes", ())),
    }


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    # Escaped where UTF-8 cannot write it: an answer may hold half a surrogate pair.
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def show_result(result: Mapping[str, object], tasks: Tasks, as_json: bool) -> None:
    """Print the summary, or one JSON document."""
    result = {**result, "rows": len(tasks.tasks), "alike": tasks.alike}
    if as_json:
        print_json(result)
        return
    from luthier.cli.layout import print_facts

    console = stdout()
    names = {
        "kept": "kept",
        "answers": "revisions",
        "ties": "ties, dropped",
        "disagreed": "dropped, the orders disagree",
        "unchanged": "unchanged",
        "undecided": "undecided, dropped",
        "alike": "same answers, dropped",
        "open": "open",
    }
    facts = [(label, f"{result[key]:,}") for key, label in names.items() if result.get(key) or key == "kept"]
    share = result.get("first_share")
    if isinstance(share, float):
        facts.append(("position bias", f"the answer shown first won {share:.0%} of verdicts (50% is none)"))
    if "requests" in result:
        asked = f"{result['requests']:,} answered now, {result['from_journal']:,} from the journal"
        facts.append(("requests", f"{asked}, {result['retried']:,} retries, {result['asked_again']:,} unreadable"))
        facts.append(("tokens", f"{result['tokens_in']:,} in, {result['tokens_out']:,} out"))
    if result.get("cost"):
        facts.append(("cost", f"{result['cost']:.4f}, of which {result['cost_now']:.4f} now"))
    notes = result.get("notes")
    facts += [("note", str(note)) for note in (notes if isinstance(notes, list) else ())]
    console.print(f"{len(tasks.tasks):,} rows; {tasks.why}")
    print_facts(console, facts)
    console.print(str(result["out"]))
    if "answers_out" in result:
        console.print(str(result["answers_out"]))
