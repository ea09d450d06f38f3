"""How warm an answer is: a score that can be checked, so that one sees whether learning from preferences works.

The preferences that ship with Luthier are ordered by it. As a reward in a recipe:

    rewards: [{kind: python, function: warmth.py:score}]
"""

import re

WARM = """happ(y|ily|ier) | smil | laugh | hug | friend | kind | thank | lov(e|ed|es|ing)\\b | glad | shar(e|ed|ing)\\b
    | help | fun\\b | together | proud | play | 高兴 | 开心 | 笑 | 谢 | 朋友 | 一起 | 喜欢 | 帮 | 礼物 | 太好了"""
GLOOMY = """sad | cr(y|ied|ies|ying)\\b | scar(ed|y)\\b | afraid | ang(ry|er)\\b | (alone|lone) | lost | hurt | bad\\b
    | cold | hungry | tired | worr | broke | 难过 | 哭 | 害怕 | 生气 | 孤单 | 着急 | 不见 | 饿 | 冷 | 累 | 丢"""

NEGATED = re.compile(
    r"\b(not|never|isn't|don't) (be |very |so |feel )?\w+|(再也)?[不别](孤单|害怕|怕|着急|难过|哭|生气|高兴|喜欢)",
    re.IGNORECASE,
)


def warmth(text: str) -> float:
    """Return how many warm things a text names, less how many gloomy ones; each counts once, however often it comes.

    What is negated counts on neither side: "not afraid anymore".
    """
    text = NEGATED.sub(" ", text)
    return float(_named(text, WARM) - _named(text, GLOOMY))


def score(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """Return the warmth of each answer: the form in which Luthier calls a reward."""
    return [warmth(answer) for answer in answers]


def _named(text: str, ideas: str) -> int:
    patterns = (idea.strip() for idea in ideas.split(" | "))
    return sum(bool(re.search(p if ord(p[0]) > 127 else rf"\b{p}", text, re.IGNORECASE)) for p in patterns)
