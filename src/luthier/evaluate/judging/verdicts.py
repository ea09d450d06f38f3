"""Verdicts on answers: pairs asked in both orders, single answers scored, or a local number for each.

A judge that is shown two answers tends to prefer a place, mostly the first (Zheng et al. 2023, arXiv:2306.05685). So
each pair is asked twice with the places changed; a pair counts when the same answer wins both times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from luthier.evaluate.judging.rows import Task
from luthier.rewards.base import Scorer
from luthier.rewards.judging.judge import Judge, each
from luthier.rewards.judging.questions import Comparison, Scoring, Winner

CHUNK = 64
Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""


@dataclass
class Outcome:
    """What judging gave.

    Attributes:
        rows: what is written, in the order of the data.
        kept: pairs with a winner, or answers with a score.
        ties: pairs that are equally good.
        disagreed: pairs on which the two orders contradict each other.
        undecided: pairs or answers on which no verdict could be read.
        open: pairs or answers that the endpoint did not answer; the next run asks them.
        first_won, verdicts: how often the answer shown first won, of verdicts that named a winner.
        fault: what the endpoint did last, where it did not answer.
    """

    rows: list[Mapping[str, object]] = field(default_factory=list)
    kept: int = 0
    ties: int = 0
    disagreed: int = 0
    undecided: int = 0
    open: int = 0
    first_won: int = 0
    verdicts: int = 0
    fault: str = ""

    @property
    def first_share(self) -> float | None:
        """How often the first place won. Every pair is asked in both orders, so without a bias it is one half."""
        return self.first_won / self.verdicts if self.verdicts else None


def compare(judge: Judge, tasks: Sequence[Task], rubric: str, workers: int, progress: Progress) -> Outcome:
    """Ask for every two answers of a row which is better, in both orders.

    Raises:
        UserError: the endpoint refuses.
        NoAnswer: it has fallen silent. What it answered is in the journal.
    """
    pairs = [(task, i, j) for task in tasks for i, j in itertools.combinations(range(len(task.answers)), 2)]

    def ask(pair: tuple[Task, int, int]) -> tuple[Winner | None, Winner | None]:
        task, i, j = pair
        first = judge.verdict(Comparison(rubric, task.prompt, task.answers[i], task.answers[j]))
        if first is None:
            return None, None
        return first, judge.verdict(Comparison(rubric, task.prompt, task.answers[j], task.answers[i]))

    outcome, won = Outcome(), dict[int, tuple[int, int]]()
    with closing(each(pairs, ask, workers, judge.chat.stop)) as found:
        for count, done in enumerate(found, 1):
            winner = None
            if done.result is None:
                outcome.open, outcome.fault = outcome.open + 1, str(done.fault)
            else:
                winner = _settle(outcome, *done.result)
            if winner is not None:
                _, i, j = pairs[done.index]
                won[done.index] = (i, j) if winner == "first" else (j, i)
            progress(count, len(pairs))
    for index in sorted(won):
        task, (better, worse) = pairs[index][0], won[index]
        outcome.rows.append({**task.given, "chosen": task.written[better], "rejected": task.written[worse]})
    outcome.kept = len(outcome.rows)
    return outcome


def _settle(outcome: Outcome, straight: Winner | None, swapped: Winner | None) -> Winner | None:
    """Count the two verdicts on a pair and return the winner that they agree on."""
    named = [v for v in (straight, swapped) if v in ("first", "second")]
    outcome.verdicts += len(named)
    outcome.first_won += named.count("first")
    if straight is None or swapped is None:
        outcome.undecided += 1
        return None
    if straight == swapped == "tie":
        outcome.ties += 1
        return None
    if straight == "tie" or swapped == "tie" or straight == swapped:
        outcome.disagreed += 1
        return None
    return straight


def score(
    judge: Judge, tasks: Sequence[Task], rubric: str, scale: tuple[float, float], workers: int, progress: Progress
) -> Outcome:
    """Ask for a score of every answer.

    Raises:
        UserError, NoAnswer: as for `compare`.
    """
    answers = [(task, i) for task in tasks for i in range(len(task.answers))]
    outcome, scores = Outcome(), dict[int, float]()

    def ask(item: tuple[Task, int]) -> tuple[float | None]:
        task, i = item
        return (judge.verdict(Scoring(rubric, task.prompt, task.answers[i], *scale)),)

    with closing(each(answers, ask, workers, judge.chat.stop)) as found:
        for count, done in enumerate(found, 1):
            if done.result is None:
                outcome.open, outcome.fault = outcome.open + 1, str(done.fault)
            elif done.result[0] is None:
                outcome.undecided += 1
            else:
                scores[done.index] = done.result[0]
            progress(count, len(answers))
    for index in sorted(scores):
        task, i = answers[index]
        outcome.rows.append({**task.given, "answer": task.written[i], "score": scores[index]})
    outcome.kept = len(outcome.rows)
    return outcome


def by_reward(
    scorer: Scorer, tasks: Sequence[Task], progress: Progress, margin: float = 0.0, compares: bool = True
) -> Outcome:
    """Let a reward give every answer a number; of two answers the higher one is better.

    Args:
        margin: pairs that are no further apart than this are ties.
        compares: write preferences for rows of several answers; otherwise the scores of all answers.
    """
    outcome, total = Outcome(), sum(len(task.answers) for task in tasks)
    items = [(task, i) for task in tasks for i in range(len(task.answers))]
    numbers: list[float] = []
    for start in range(0, total, CHUNK):
        part = items[start : start + CHUNK]
        rows = [task.row for task, _ in part]
        asked = [task.asked for task, _ in part]
        numbers += scorer([task.prompt for task, _ in part], [task.answers[i] for task, i in part], rows, asked)
        progress(len(numbers), total)
    given = iter(numbers)
    for task in tasks:
        scores = [next(given) for _ in task.answers]
        if not compares:
            outcome.rows += [{**task.given, "answer": w, "score": s} for w, s in zip(task.written, scores)]
            continue
        for i, j in itertools.combinations(range(len(scores)), 2):
            if abs(scores[i] - scores[j]) <= margin:
                outcome.ties += 1
                continue
            better, worse = (i, j) if scores[i] > scores[j] else (j, i)
            sides = {"chosen": task.written[better], "rejected": task.written[worse]}
            numbers_ = {"score_chosen": scores[better], "score_rejected": scores[worse]}
            outcome.rows.append({**task.given, **sides, **numbers_})
    outcome.kept = len(outcome.rows)
    return outcome
