"""`luthier label RUN [RUN] --out FILE`: a person compares answers on a page, and preference data come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import Problem, RunError, UserError
from luthier.serve.label.journal import Journal
from luthier.serve.label.pairs import Pair, make_pair, read_pairs, write_pairs
from luthier.serve.label.results import tally, write_results
from luthier.serve.label.server import Desk, kept_token, serve


@dataclass(frozen=True)
class Sampled:
    """How answers are drawn where none are given."""

    limit: int = 50
    temperature: float = 0.8
    max_new_tokens: int = 128
    seed: int = 0


def run(
    targets: Sequence[str],
    out: Path,
    port: int = 7870,
    data: str | None = None,
    sampled: Sampled | None = None,
    json: bool = False,
) -> None:
    """Make the pairs, or find those that were made before, and serve the page until Ctrl-C.

    Raises:
        UserError: there is nothing to compare, or the port or the files are taken.
    """
    kept = out.with_name(out.name + ".pairs.jsonl")
    if out.exists() and not kept.exists():
        what = "There is a file already that this command has not made."
        raise RunError(Problem(what, str(out), "choose another --out"))
    if kept.is_file():
        pairs = read_pairs(kept)
        stderr().print(f"{len(pairs):,} pairs, as they were made before ({kept})")
    else:
        pairs = _make(targets, data, sampled or Sampled())
        write_pairs(kept, pairs)
    journal = Journal(out.with_name(out.name + ".judgements.jsonl"))
    desk = Desk(pairs, journal, out, kept_token(out.with_name(f".{out.name}.token")))
    write_results(out, pairs, journal.people)
    try:
        serve(desk, port, _tell)
    except OSError as error:
        what = f"The port {port} cannot be used: {error.strerror}."
        raise UserError(Problem(what, "luthier label", "choose another with --port")) from error
    finally:
        journal.close()
    told = tally(pairs, journal.people)
    if json:
        print_json({"out": str(out), **told.as_dict()})
        return
    agreed = "" if told.agreement is None else f", agreement {told.agreement:.0%} on {told.shared:,} pairs"
    agreed += "" if told.alpha is None else f" (alpha {told.alpha:.2f})"
    stdout().print(f"{out}: {told.written:,} preferences of {told.judged:,} judged pairs, {told.ties:,} ties{agreed}")
    if told.written:
        stdout().print(f"train on them: luthier train RECIPE objective=dpo data={out}")


def _tell(address: str) -> None:
    console = stdout()
    console.print(address, soft_wrap=True, markup=False, highlight=False)
    console.print("open it in a browser on this machine; Ctrl-C ends it, and everything is saved at once", style="dim")


def _make(targets: Sequence[str], data: str | None, sampled: Sampled) -> list[Pair]:
    """Return pairs of answers: those that the data hold, or drawn from one or two models.

    Raises:
        UserError: there is nothing to compare.
    """
    if not targets and data is None:
        remedy = "name one or two runs, or data with two answers to each prompt: --data FILE"
        raise UserError(Problem("There is nothing to compare.", "luthier label", remedy))
    if len(targets) > 2:
        raise UserError(Problem(f"{len(targets)} runs were named.", "luthier label", "name one or two"))
    pairs = _sampled(targets, data, sampled) if targets else _given(str(data), sampled.limit)
    if not pairs:
        what = "There is no prompt with two different answers."
        raise UserError(Problem(what, data or " ".join(targets), "raise --temperature, or give other prompts"))
    return list({pair.id: pair for pair in pairs}.values())


def _given(data: str, limit: int) -> list[Pair]:
    from luthier.data.spec import resolve_path
    from luthier.evaluate.judging.rows import read_tasks

    tasks = read_tasks(resolve_path(data), limit=limit, answers=2).tasks
    return [make_pair(t.given, t.prompt, t.answers[0], t.answers[1]) for t in tasks if len(set(t.answers)) > 1]


def _sampled(targets: Sequence[str], data: str | None, sampled: Sampled) -> list[Pair]:
    """Return one answer of each of two models, or two of one, to the same prompts."""
    from luthier.data.spec import resolve_path
    from luthier.evaluate.judging.rows import Columns, read_tasks, tasks_of
    from luthier.evaluate.judging.sampling import with_samples
    from luthier.rewards.judging.journal import Journal as Kept
    from luthier.run.opened import open_target
    from luthier.train.generate import Sampling

    if data is None:
        tasks = tasks_of(_prompts_of(targets[0])[: sampled.limit], targets[0], Columns(), answers=0).tasks
    else:
        tasks = read_tasks(resolve_path(data), limit=sampled.limit, answers=0).tasks
    each = 2 if len(targets) == 1 else 1
    drawn = []
    for index, target in enumerate(targets):
        model, _ = open_target(target)
        sampling = Sampling(sampled.max_new_tokens, sampled.temperature, seed=sampled.seed + 7919 * index)
        bare = [replace(task, answers=(), written=()) for task in tasks]
        drawn.append(with_samples(model, target, bare, each, sampling, Kept(None), _progress))
    pairs = []
    for made in zip(*drawn):
        answers = [answer for task in made for answer in task.answers]
        if len(answers) >= 2 and answers[0] != answers[1]:
            pairs.append(make_pair(made[0].given, made[0].prompt, answers[0], answers[1]))
    return pairs


def _progress(done: int, total: int) -> None:
    stderr().print(f"answers to {done:,} of {total:,} prompts", style="dim")


def _prompts_of(target: str) -> list[dict[str, object]]:
    """Return rows with the prompts a run is asked: those held out of its training, else those it was trained on.

    Raises:
        UserError: the target is a model without data, or its data ask nothing.
    """
    from luthier.core.rundir import RunDir
    from luthier.data.records import Conversation, PromptAnswer, conversation, prompt_of
    from luthier.run.examine import examine
    from luthier.run.opened import is_run, kept_recipe

    if not is_run(target):
        raise UserError(Problem("A model has no prompts of its own.", target, "name them: --data FILE"))
    found = examine(kept_recipe(RunDir.open(Path(target))))
    rows: list[dict[str, object]] = []
    for record in found.held_records or found.train_records:
        asked = prompt_of(record)
        if isinstance(asked, PromptAnswer) and not (asked.system or asked.history):
            rows.append({"prompt": "\n".join(part for part in (asked.prompt, asked.context) if part)})
        elif isinstance(asked, Conversation | PromptAnswer):
            said = [m for m in conversation(asked).messages if m.role != "assistant" or m.content]
            rows.append({"prompt": [{"role": m.role, "content": m.content} for m in said]})
    if not rows:
        raise UserError(Problem("The run's data hold no prompts.", target, "name some: --data FILE"))
    return rows
