"""What a rule of advice is: a situation, points for methods, and the reason with its number and its source.

A rule never says "take this method". It adds points or forbids, and says why; the sum decides (`advise/rank.py`). So
every choice and every rejection can be explained by the rules that spoke, and a rule can be added without reading the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from luthier.advise.situation import Situation

GROUPS: Mapping[str, tuple[str, ...]] = {
    "whole model": ("full", "ulmfit"),
    "low rank": ("lora", "lora_plus", "adalora", "qlora"),
    "adapters": ("adapter", "pfeiffer", "parallel"),
    "tiny": ("ia3", "bitfit", "hadamard", "compacter"),
    "soft prompts": ("prompt", "p_tuning"),
    "deep prompts": ("prefix", "p_tuning_v2"),
    "heads": ("feature_extraction", "dense_head"),
}
"""Words by which rules name several methods at once."""
EVERY: Mapping[str, float] = dict.fromkeys(
    (
        *("lora", "full", "qlora", "lora_plus", "feature_extraction", "prefix", "ia3", "bitfit", "adapter", "pfeiffer"),
        *("parallel", "layers", "moe", "p_tuning_v2", "prompt", "p_tuning", "dense_head", "adalora", "compacter"),
        *("hadamard", "ulmfit", "hybrid"),
    ),
    0.0,
)
"""Every method that advice ranks, in the order in which equal ones are named: the simplest and best known first."""
PLANNER = "planner"
MACHINE = "machine"
SOURCES: Mapping[str, tuple[str, str]] = {
    PLANNER: ("the planner's arithmetic (luthier plan)", "规划器的计算（luthier plan）"),
    MACHINE: ("this machine", "本机"),
}

Holds = Callable[[Situation, str], bool]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        points: by method or group; what is named later wins.
        holds: whether the rule speaks of a method in a situation.
        when: the situation in words (English, Chinese), for the table in the manual.
        why: the reason (English, Chinese); may use the names of `facts.facts_of`, such as {rows} or {need}.
        source: a paper with its arXiv number, "planner" or "machine".
        forbids: the methods are out, whatever else speaks for them.
    """

    name: str
    points: Mapping[str, float]
    holds: Holds
    when: tuple[str, str]
    why: tuple[str, str]
    source: str
    forbids: bool = False
    table: Mapping[str, float] = field(init=False)
    """Points by method, groups unfolded."""

    def __post_init__(self) -> None:
        unfolded: dict[str, float] = {}
        for word, points in self.points.items():
            unfolded |= dict.fromkeys(GROUPS.get(word, (word,)), points)
        object.__setattr__(self, "table", unfolded)


@dataclass(frozen=True)
class Reason:
    """A rule that spoke of a method, with the numbers of the situation.

    Attributes:
        text: English and Chinese.
        source: English and Chinese.
    """

    rule: str
    points: float
    text: tuple[str, str]
    source: tuple[str, str]
    forbids: bool = False


def always(_: Situation, __: str) -> bool:
    """Hold in every situation."""
    return True


def source_words(source: str) -> tuple[str, str]:
    """Return a source in English and Chinese; papers are named the same in both."""
    return SOURCES.get(source, (source, source))
