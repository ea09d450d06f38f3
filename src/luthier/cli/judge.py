"""`luthier judge DATA --out FILE`: preferences, scores or revisions by an AI judge, a local model or a function.

What an endpoint answers is in a journal beside the output before it counts. The output is made from it at the end, so
the same command after a crash, or after Ctrl-C, goes on and pays for nothing twice.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.judging_result import Task, answers_file, progress_of, show_result, write_outcome, write_revisions
from luthier.cli.judging_rows import Rows, Writer, identity_of, read_rows, require_words, with_samples_of
from luthier.cli.messages import stderr
from luthier.core.errors import Failure, Interrupted, Problem, RunError, UserError

if TYPE_CHECKING:
    from luthier.evaluate.judging.rows import Tasks
    from luthier.rewards.base import Reward
    from luthier.rewards.judging.endpoint import Address
    from luthier.rewards.judging.judge import Judge


@dataclass(frozen=True)
class Judges:
    """Who judges, and by what."""

    address: Address | None
    local: str | None
    reward: str | None
    rubric: Path | None
    constitution: Path | None


def run(rows: Rows, judges: Judges, task: Task, out: Path, force: bool, as_json: bool) -> None:
    """Judge the rows and write what comes of it."""
    _require_one_judge(judges, task, rows.writer)
    journal = journal_of(out)
    files = [out, answers_file(out)] if judges.constitution is not None else [out]
    asks = judges.address is not None or judges.constitution is not None
    _require_free(files, journal, force or ((asks or rows.writer is not None) and journal.is_file()))
    tasks = read_rows(rows, task.scores, judges.constitution is not None)
    if rows.writer is not None:
        tasks = with_samples_of(tasks, rows.writer, journal, 1 if task.scores or judges.constitution is not None else 2)
    for problem in tasks.warnings:
        stderr().print(f"note: {problem}")
    if not tasks.tasks:
        what = "There is nothing to judge: the answers of every row are the same, or empty."
        raise UserError(Problem(what, ", ".join(rows.data)))
    if asks:
        result = _ask(tasks, judges, task, out)
    else:
        result = _measure(tasks, judges, task, out)
    show_result(result, tasks, as_json)
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
        with _kept(judge, out), progress_of(judge, task) as progress:
            if principles:
                revised = revise(judge, tasks.tasks, principles, task.rounds, workers, progress)
                return write_revisions(revised, judge, task, out)
            if compares:
                outcome = compare(judge, tasks.tasks, rubric, workers, progress)
            else:
                outcome = score(judge, tasks.tasks, rubric, task.scale, workers, progress)
        return write_outcome(outcome, judge, task, out, compares)
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
        require_words(model, judges.local, "rewrite answers")
    except UserError:
        kept.close()
        raise
    return Judge(LocalChat(model, task.max_tokens), identity_of(judges.local, model), 0.0, kept)


def _measure(tasks: Tasks, judges: Judges, task: Task, out: Path) -> dict[str, object]:
    """Let a local judge give numbers, and write what comes of them."""
    from luthier.evaluate.judging.verdicts import by_reward
    from luthier.rewards.base import Place
    from luthier.run.opened import open_target

    place = Place(Path.cwd(), lambda name: open_target(name)[0], out.with_name(out.name + ".cache"))
    compares = not task.scores and any(len(t.answers) > 1 for t in tasks.tasks)
    with _local_reward(judges).open(place) as scorer, progress_of(None, task) as progress:
        outcome = by_reward(scorer, tasks.tasks, progress, task.margin, compares)
    return write_outcome(outcome, None, task, out, compares)


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
