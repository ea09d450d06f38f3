"""Constitutional data (Bai et al. 2022, arXiv:2212.08073): an answer, a critique by a principle, a revision.

Two kinds of rows come of it: prompt → revision, to be learnt by copying (sft), and revision preferred over the first
answer, to be learnt by comparing (dpo, reward). Which principle a row gets is drawn from its content and the round, so
it is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from luthier.data.records import conversation
from luthier.evaluate.judging.rows import Task
from luthier.evaluate.judging.verdicts import Progress
from luthier.rewards.judging.judge import Judge, each
from luthier.rewards.judging.questions import Critique, Revision, spoken


@dataclass
class Revised:
    """What revising gave.

    Attributes:
        preferences: {prompt, chosen: the revision, rejected: the first answer}.
        answers: {prompt, answer: the revision}.
        unchanged: revisions that equal their first answer; they make no preference.
        undecided: rows for which the model said nothing.
        open: rows that the endpoint did not answer; the next run asks them.
        fault: what the endpoint did last, where it did not answer.
    """

    preferences: list[Mapping[str, object]] = field(default_factory=list)
    answers: list[Mapping[str, object]] = field(default_factory=list)
    unchanged: int = 0
    undecided: int = 0
    open: int = 0
    fault: str = ""


@dataclass(frozen=True)
class _Asked:
    """A prompt as it stands, for a first answer."""

    turns: Sequence[Mapping[str, str]]

    def messages(self) -> list[dict[str, str]]:
        return [dict(turn) for turn in self.turns]

    def read(self, text: str) -> str | None:
        return spoken(text) or None


def revise(
    judge: Judge, tasks: Sequence[Task], principles: Sequence[str], rounds: int, workers: int, progress: Progress
) -> Revised:
    """Let every answer be criticised and rewritten; rows without an answer get one first.

    Raises:
        UserError: the endpoint refuses.
        NoAnswer: it has fallen silent. What it answered is in the journal.
    """

    def work(task: Task) -> tuple[str | None, str | None]:
        first = task.answers[0] if task.answers else judge.verdict(_Asked(_turns(task)))
        revision = first
        for number in range(rounds):
            if revision is None:
                break
            critique = Critique(principle_of(principles, task.prompt, number), task.prompt, revision)
            said = judge.verdict(critique)
            revision = None if said is None else judge.verdict(Revision(critique, said))
        return first, revision

    outcome, made = Revised(), dict[int, tuple[str, str]]()
    with closing(each(tasks, work, workers, judge.chat.stop)) as found:
        for count, done in enumerate(found, 1):
            if done.result is None:
                outcome.open, outcome.fault = outcome.open + 1, str(done.fault)
            elif done.result[0] is None or done.result[1] is None:
                outcome.undecided += 1
            else:
                made[done.index] = (done.result[0], done.result[1])
            progress(count, len(tasks))
    for index in sorted(made):
        given, (first, revision) = tasks[index].given, made[index]
        outcome.answers.append({**given, "answer": revision})
        if first.strip() == revision.strip():
            outcome.unchanged += 1
        else:
            outcome.preferences.append({**given, "chosen": revision, "rejected": first})
    return outcome


def principle_of(principles: Sequence[str], prompt: str, number: int) -> str:
    """Return the principle of a round: over many rows each comes about as often, and the rounds of a row differ."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return principles[(int.from_bytes(digest[:8], "big") + number) % len(principles)]


def _turns(task: Task) -> list[dict[str, str]]:
    turns = [{"role": m.role, "content": m.content} for m in conversation(task.asked).messages]
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
