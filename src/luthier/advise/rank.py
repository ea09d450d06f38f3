"""Rank the methods: add up what the rules say, and keep every word of it.

Deterministic: points are sums over fixed rules; equal sums are put in a fixed order (the simpler and better known
first), and said to be equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.advise.facts import facts_of
from luthier.advise.rules import RULES
from luthier.advise.rules.base import EVERY, Reason, Rule, source_words
from luthier.advise.situation import Situation

NEAR = 4.0
"""Points below the first within which a method is still worth a thought."""
Verdict = Literal["chosen", "possible", "rejected"]


@dataclass(frozen=True)
class Ranked:
    """A method in its place.

    Attributes:
        reasons: what speaks for it or against it, the weightiest first.
        verdict: chosen, possible (near the first), or rejected.
        decisive: the reason that sets it apart: for the first from the second, for the others from the first.
        tied_with: methods with the same points.
    """

    method: str
    points: float
    reasons: tuple[Reason, ...]
    verdict: Verdict
    decisive: Reason
    tied_with: tuple[str, ...] = ()

    @property
    def forbidden(self) -> bool:
        return any(reason.forbids for reason in self.reasons)


def rank(s: Situation) -> tuple[Ranked, ...]:
    """Return every method, the best first; what cannot be used stands last, the nearest to fitting first."""
    spoken = {method: tuple(_reasons(s, method)) for method in EVERY}
    points = {method: sum(reason.points for reason in reasons) for method, reasons in spoken.items()}
    order = list(EVERY)

    def place(method: str) -> tuple[int, float, int]:
        out = [reason for reason in spoken[method] if reason.forbids]
        only_memory = all(reason.rule == "does not fit" for reason in out)
        near = s.needs[method].peak_bytes if out and only_memory else -points[method]
        return (0 if not out else 1 if only_memory else 2, near, order.index(method))

    listed = sorted(EVERY, key=place)
    return tuple(_ranked(s, method, listed, spoken, points) for method in listed)


def _reasons(s: Situation, method: str) -> list[Reason]:
    facts = facts_of(s, method)
    found = [_reason(rule, method, facts) for rule in RULES if method in rule.table and rule.holds(s, method)]
    return sorted(found, key=lambda reason: (not reason.forbids, -abs(reason.points)))


def _reason(rule: Rule, method: str, facts: dict[str, str]) -> Reason:
    english, chinese = (text.format_map(facts) for text in rule.why)
    return Reason(rule.name, rule.table[method], (english, chinese), source_words(rule.source), rule.forbids)


def _ranked(
    s: Situation,
    method: str,
    listed: list[str],
    spoken: dict[str, tuple[Reason, ...]],
    points: dict[str, float],
) -> Ranked:
    first, is_out = listed[0], any(reason.forbids for reason in spoken[method])
    verdict: Verdict = "rejected"
    if not is_out:
        verdict = "chosen" if method == first else "possible" if points[method] >= points[first] - NEAR else "rejected"
    other = listed[1] if method == first else first
    tied = tuple(m for m in listed if m != method and points[m] == points[method] and verdict != "rejected")
    tied = tuple(m for m in tied if not any(reason.forbids for reason in spoken[m]))
    return Ranked(method, points[method], spoken[method], verdict, _decisive(method, other, spoken), tied)


def _decisive(method: str, other: str, spoken: dict[str, tuple[Reason, ...]]) -> Reason:
    """Return the reason of a method whose points differ most from what the same rule gives the other one.

    Where the other one owes its lead to a rule that is silent on this method, that rule's reason is the decisive one.
    """
    mine, theirs = ({r.rule: r for r in spoken[m] if not r.rule.startswith("standing")} for m in (method, other))
    barred = next((reason for reason in spoken[method] if reason.forbids), None)
    if barred is not None:
        return barred

    def apart(rule: str) -> float:
        own, others = mine.get(rule), theirs.get(rule)
        return abs((own.points if own else 0.0) - (others.points if others else 0.0))

    rules = sorted({*mine, *theirs}, key=lambda rule: (-apart(rule), rule not in mine, rule))
    if not rules or apart(rules[0]) == 0:
        return next(reason for reason in spoken[method] if reason.rule.startswith("standing"))
    return mine.get(rules[0]) or theirs[rules[0]]
