"""`luthier judge DATA --out FILE`: preferences, scores or revisions by an AI judge, a local model or a function.

What an endpoint answers is in a journal beside the output before it counts. The output is made from it at the end, so
the same command after a crash, or after Ctrl-C, goes on and pays for nothing twice.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import Failure, Interrupted, Problem, RunError, UserError
from luthier.core.rundir import RunDir, final_checkpoint, write_atomic

if TYPE_CHECKING:
    from luthier.evaluate.judging.constitution import Revised
    from luthier.evaluate.judging.rows import Columns, Tasks
    from luthier.evaluate.judging.verdicts import Outcome, Progress
    from luthier.models.loaded import LoadedModel
    from luthier.rewards.base import Reward
    from luthier.rewards.judging.endpoint import Address
    from luthier.rewards.judging.judge import Judge

LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Writer:
    """Who writes the answers, where the rows are prompts."""

    target: str
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Rows:
    """What is judged: a file, or runs, and where prompt and answers stand."""

    data: Sequence[str]
    prompt: str | None
    answers: str | None
    limit: int | None
    writer: Writer | None = None


@dataclass(frozen=True)
class Judges:
    """Who judges, and by what."""

    address: Address | None
    local: str | None
    reward: str | None
    rubric: Path | None
    constitution: Path | None


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


def run(rows: Rows, judges: Judges, task: Task, out: Path, force: bool, as_json: bool) -> None:
    """Judge the rows and write what comes of it."""
    _require_one_judge(judges, task, rows.writer)
    journal = journal_of(out)
    files = [out, answers_file(out)] if judges.constitution is not None else [out]
    asks = judges.address is not None or judges.constitution is not None
    _require_free(files, journal, force or ((asks or rows.writer is not None) and journal.is_file()))
    tasks = _read(rows, task.scores, judges.constitution is not None)
    if rows.writer is not None:
        tasks = _sampled(tasks, rows.writer, journal, 1 if task.scores or judges.constitution is not None else 2)
    for problem in tasks.warnings:
        stderr().print(f"note: {problem}")
    if not tasks.tasks:
        what = "There is nothing to judge: the answers of every row are the same, or empty."
        raise UserError(Problem(what, ", ".join(rows.data)))
    if asks:
        result = _ask(tasks, judges, task, out)
    else:
        result = _measure(tasks, judges, task, out)
    _show(result, tasks, as_json)
    open_ = result["open"]
    if isinstance(open_, int) and open_:
        again = "What was answered is kept: run the same command again to ask for the rest"
        raise Failure(f"{open_} rows are open, because the judge did not answer. {result['fault']} {again}.")


def scale_of(text: str) -> tuple[float, float]:
    """Return the worst and the best score of an option such as `1,10`.

    Raises:
        UserError: it is no such pair.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not -1e9 < low < high < 1e9:
        raise UserError(Problem(f'--scale "{text}" is no scale.', "luthier judge", "write e.g. --scale 1,10"))
    return low, high


def journal_of(out: Path) -> Path:
    """Return where the answers of an endpoint are kept."""
    return out.with_name(out.name + ".journal")


def answers_file(out: Path) -> Path:
    """Return where a constitution's revisions are written as rows to copy, beside its preferences."""
    return out.with_name(f"{out.stem}.sft{out.suffix or '.jsonl'}")


# ---------------------------------------------------------------------- what is asked for


def _require_one_judge(judges: Judges, task: Task, writer: Writer | None) -> None:
    chosen = [
        name
        for name, value in (("--endpoint", judges.address), ("--judge", judges.local), ("--reward", judges.reward))
        if value is not None
    ]
    problems = []
    if not chosen:
        what, remedy = "There is no judge.", "name one: --endpoint URL --model NAME, --judge MODEL, or --reward REWARD"
        problems.append(Problem(what, "luthier judge", remedy))
    if len(chosen) > 1:
        problems.append(Problem(f"There are several judges: {', '.join(chosen)}.", "luthier judge", "name one of them"))
    if judges.address is not None and not judges.address.model:
        problems.append(Problem("The endpoint's model is not named.", "luthier judge", "name it: --model NAME"))
    if judges.address is not None and judges.address.timeout <= 0:
        problems.append(Problem("--timeout has to be more than 0.", "luthier judge", "write e.g. --timeout 60"))
    if judges.address is not None and judges.address.per_minute is not None and judges.address.per_minute <= 0:
        problems.append(Problem("--rate has to be more than 0.", "luthier judge", "write e.g. --rate 60"))
    if writer is not None and writer.samples == 1 and not (task.scores or judges.constitution is not None):
        problems.append(Problem("One answer cannot be compared.", "luthier judge", "write --samples 2, or --score"))
    idle = []
    if judges.constitution is not None:
        idle += ["--rubric"] if judges.rubric is not None else []
        idle += ["--score"] if task.scores else []
        if judges.reward is not None:
            what = "A reward gives numbers and cannot rewrite answers."
            problems.append(Problem(what, "luthier judge", "use --endpoint or --judge with --constitution"))
    elif task.rounds != 1:
        idle.append("--rounds")
    if judges.reward is not None and judges.rubric is not None:
        idle.append("--rubric")
    if judges.address is None and any(task.prices):
        idle.append("--price-in and --price-out")
    if judges.address is not None and task.margin:
        idle.append("--margin")
    problems += [Problem(f"{name} has no effect here.", "luthier judge", "leave it out") for name in idle]
    if problems:
        raise UserError(*problems)


def _require_free(files: Sequence[Path], journal: Path, may: bool) -> None:
    """Refuse to write over a file that this command has not written."""
    taken = [path for path in files if path.exists()]
    if taken and not may:
        what = f"There is a file already, and no journal ({journal.name}) that it was made from."
        raise RunError(Problem(what, str(taken[0]), "choose another --out, or write over it with --force"))


def _read(rows: Rows, scores: bool, rewrites: bool) -> Tasks:
    """Read the rows of a file, or the samples of runs."""
    from luthier.evaluate.judging.rows import Columns, read_tasks, tasks_of
    from luthier.run.opened import is_run

    names = tuple(name.strip() for name in (rows.answers or "").split(",") if name.strip())
    columns = Columns(rows.prompt, names)
    least = 0 if rewrites or rows.writer is not None else 1 if scores else 2
    if rows.writer is None and all(is_run(name) for name in rows.data) and len(rows.data) <= 2:
        return tasks_of(_samples(rows.data)[: rows.limit], " and ".join(rows.data), columns)
    if len(rows.data) != 1:
        what = f"{len(rows.data)} names were given. Two are for the samples of two runs."
        raise UserError(Problem(what, "luthier judge", "name one file, or one or two runs"))
    if least == 2:
        least = _compared(Path(rows.data[0]), columns)
    return read_tasks(Path(rows.data[0]), columns, rows.limit, least)


def _sampled(tasks: Tasks, writer: Writer, journal: Path, least: int) -> Tasks:
    """Let a model answer the prompts; rows with fewer different answers than `least` are left out."""
    from luthier.evaluate.judging.sampling import with_samples
    from luthier.rewards.judging.journal import Journal
    from luthier.run.opened import open_target
    from luthier.train.generate import Sampling

    sampling = Sampling(writer.max_new_tokens, writer.temperature, seed=writer.seed)
    kept = Journal(journal)
    try:
        model, _ = open_target(writer.target)
        _require_words(model, writer.target, "answer")
        identity = _identity(writer.target, model)
        with _progress(None, None, "answering") as progress:
            made = with_samples(model, identity, tasks.tasks, writer.samples, sampling, kept, progress)
    finally:
        kept.close()
    good = tuple(task for task in made if len(task.answers) >= least)
    why = f"prompt from {tasks.why.partition(';')[0].removeprefix('prompt from ')}; answers of {writer.target}"
    return replace(tasks, tasks=good, why=why, alike=len(made) - len(good))


def _identity(target: str, model: LoadedModel) -> str:
    """Return what tells a model apart from others, and a run from itself after more training."""
    from luthier.run.opened import is_run

    if not is_run(target):
        return model.fingerprint
    checkpoint = final_checkpoint(RunDir(Path(target)))
    return f"{model.fingerprint} {checkpoint} {(checkpoint / 'DONE').stat().st_mtime_ns}"


def _require_words(model: LoadedModel, name: str, verb: str) -> None:
    if "ForSequenceClassification" in type(model.module).__name__:
        what = f"The model gives numbers or classes, and cannot {verb}."
        raise UserError(Problem(what, name, "name a model that writes"))


def _compared(path: Path, columns: Columns) -> int:
    """Return 1 where the rows have one answer each, which are scored, and 2 where there is more to compare."""
    from luthier.evaluate.judging.rows import read_tasks

    first = read_tasks(path, columns, limit=1, answers=1)
    return 1 if first.tasks and len(first.tasks[0].answers) == 1 else 2


def _samples(runs: Sequence[str]) -> list[dict[str, object]]:
    """Return the samples of a run before and after training, or of two runs after training, side by side.

    Raises:
        RunError: a run has no samples, or two have none in common.
    """
    found = [_samples_of(RunDir.open(Path(name))) for name in runs]
    if len(found) == 1:
        return [{"prompt": s["prompt"], "before": s["before"], "after": s["after"]} for s in found[0]]
    theirs = {str(s["prompt"]): s["after"] for s in found[1]}
    both = [
        {"prompt": s["prompt"], "a": s["after"], "b": theirs[p]} for s in found[0] if (p := str(s["prompt"])) in theirs
    ]
    if not both:
        what = "The two runs have no sample with the same prompt."
        raise RunError(Problem(what, " and ".join(runs), "train them with the same held-out rows and samples"))
    return both


def _samples_of(run: RunDir) -> list[dict[str, object]]:
    files = [stage.samples for stage in run.stages() if stage.samples.is_file()]
    rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()] if files else []
    rows = [row for row in rows if {"prompt", "before", "after"} <= row.keys()]
    if not rows:
        what = "The run has no samples of before and after."
        raise RunError(Problem(what, str(run.path), "let it train to its end with samples: 50, or judge a file"))
    return rows


# ---------------------------------------------------------------------- judging


def _ask(tasks: Tasks, judges: Judges, task: Task, out: Path) -> dict[str, object]:
    """Ask an endpoint, or for revisions a local model, and write what comes of it."""
    from luthier.evaluate.judging.constitution import revise
    from luthier.evaluate.judging.verdicts import compare, score
    from luthier.rewards.judging.questions import default_rubric
    from luthier.rewards.judging.rubrics import read_principles, read_rubric

    principles = read_principles(judges.constitution) if judges.constitution is not None else []
    said = " ".join(t.prompt for t in tasks.tasks[:20])
    rubric = read_rubric(judges.rubric) if judges.rubric is not None else default_rubric(said)
    judge = _open_judge(judges, task, journal_of(out))
    workers = task.concurrency if judges.address is not None else 1
    compares = not task.scores and any(len(t.answers) > 1 for t in tasks.tasks)
    try:
        with _kept(judge, out), _progress(judge, task) as progress:
            if principles:
                revised = revise(judge, tasks.tasks, principles, task.rounds, workers, progress)
                return _written_revisions(revised, judge, task, out)
            if compares:
                outcome = compare(judge, tasks.tasks, rubric, workers, progress)
            else:
                outcome = score(judge, tasks.tasks, rubric, task.scale, workers, progress)
        return _written(outcome, judge, task, out, compares)
    finally:
        judge.close()


def _open_judge(judges: Judges, task: Task, journal: Path) -> Judge:
    from luthier.rewards.judging.endpoint import Endpoint
    from luthier.rewards.judging.journal import Journal
    from luthier.rewards.judging.judge import Judge

    if judges.address is not None:
        endpoint = Endpoint(judges.address)
        return Judge(endpoint, judges.address.model, judges.address.temperature, Journal(journal))
    from luthier.evaluate.judging.local_chat import LocalChat
    from luthier.run.opened import open_target

    assert judges.local is not None, "one judge is named"
    kept = Journal(journal)
    try:
        model, _ = open_target(judges.local)
        _require_words(model, judges.local, "rewrite answers")
    except UserError:
        kept.close()
        raise
    return Judge(LocalChat(model, task.max_tokens), _identity(judges.local, model), 0.0, kept)


def _measure(tasks: Tasks, judges: Judges, task: Task, out: Path) -> dict[str, object]:
    """Let a local judge give numbers, and write what comes of them."""
    from luthier.evaluate.judging.verdicts import by_reward
    from luthier.rewards.base import Place
    from luthier.run.opened import open_target

    place = Place(Path.cwd(), lambda name: open_target(name)[0], out.with_name(out.name + ".cache"))
    compares = not task.scores and any(len(t.answers) > 1 for t in tasks.tasks)
    with _local_reward(judges).open(place) as scorer, _progress(None, task) as progress:
        outcome = by_reward(scorer, tasks.tasks, progress, task.margin, compares)
    return _written(outcome, None, task, out, compares)


def _local_reward(judges: Judges) -> Reward:
    """Return the reward that judges: one that was named, a reward model, or a language model's log-probabilities."""
    import yaml
    from pydantic import BaseModel, ValidationError

    from luthier.rewards.base import AnyReward
    from luthier.run.opened import target_labels

    class Named(BaseModel):
        reward: AnyReward

    if judges.local is not None:
        values: dict[str, object] = {"kind": "logprob", "path": judges.local}
        if judges.rubric is not None:
            values["rubric"] = str(judges.rubric)
        elif len(target_labels(judges.local) or ()) == 1:
            values["kind"] = "model"
        return Named.model_validate({"reward": values}).reward
    text = judges.reward or ""
    try:
        value = yaml.safe_load(text) if text.lstrip().startswith("{") else text
        return Named.model_validate({"reward": value}).reward
    except (yaml.YAMLError, ValidationError) as error:
        said = [e["msg"] for e in error.errors()] if isinstance(error, ValidationError) else ["it is no mapping"]
        from luthier.core.component import kinds

        remedy = f"write file.py:function, or {{kind: …}} with one of: {', '.join(kinds('reward'))}"
        raise UserError(
            Problem(f'--reward "{text}" is no reward: {"; ".join(said)}.', "luthier judge", remedy)
        ) from error


@contextmanager
def _kept(judge: Judge, out: Path) -> Iterator[None]:
    """Tell who interrupts, or meets a silent endpoint, that nothing is lost."""
    from luthier.rewards.judging.endpoint import NoAnswer

    kept = f"in {shlex.quote(str(journal_of(out)))}; the same command goes on from there"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {len(judge.journal):,} answers are kept {kept}.") from None
    except NoAnswer as error:
        raise NoAnswer(f"{error} {len(judge.journal):,} answers are kept {kept}.") from error


@contextmanager
def _progress(judge: Judge | None, task: Task | None, word: str = "judging") -> Iterator[Progress]:
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


# ---------------------------------------------------------------------- what comes of it


def _written(outcome: Outcome, judge: Judge | None, task: Task, out: Path, compares: bool) -> dict[str, object]:
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


def _written_revisions(revised: Revised, judge: Judge, task: Task, out: Path) -> dict[str, object]:
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


def _show(result: Mapping[str, object], tasks: Tasks, as_json: bool) -> None:
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
