"""Scores of texts against references: token F1, ROUGE, BLEU, chrF; Chinese by characters."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from luthier.core.errors import MissingExtra

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
ORDERS = 6
"""Character n-grams of chrF, from 1 to this length."""


def is_chinese(character: str) -> bool:
    """Return whether a character is written without spaces around words: Chinese characters and Japanese kana."""
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff"


def spaced(ending: str) -> str:
    """Return a text as it goes on from another: behind a blank, but for languages that write none."""
    return ending if is_chinese(ending[:1] or " ") else f" {ending}"


def has_chinese(texts: Sequence[str]) -> bool:
    """Return whether most letters of texts are Chinese characters."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return 2 * sum(map(is_chinese, letters)) > len(letters)


def squad_tokens(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them: lower case, without articles and punctuation; Chinese
    characters each for itself (as in CMRC 2018)."""
    plain = "".join(" " if _is_mark(c) else c for c in text.casefold() if c not in _PUNCTUATION)
    plain = _ARTICLES.sub(" ", "".join(f" {c} " if is_chinese(c) else c for c in plain))
    return plain.split()


def _is_mark(character: str) -> bool:
    """Return whether a character beyond ASCII is punctuation, such as 。 or “."""
    return ord(character) > 127 and unicodedata.category(character).startswith("P")


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that two texts share (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    said, meant = squad_tokens(answer), squad_tokens(reference)
    if not said or not meant:
        return float(said == meant)
    common = sum((Counter(said) & Counter(meant)).values())
    return 2 * common / (len(said) + len(meant))


def require_bleu() -> None:
    """Raise where BLEU cannot be counted.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    if find_spec("sacrebleu") is None:
        raise MissingExtra("sacrebleu", "evaluate", "The task bleu")


def require_rouge() -> None:
    """Raise where ROUGE cannot be counted.

    Raises:
        MissingExtra: rouge-score is not installed.
    """
    if find_spec("rouge_score") is None:
        raise MissingExtra("rouge-score", "evaluate", "The task rouge")


def bleu_statistics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (N, 10): length of answer and reference, then matching n-grams and n-grams of length 1 to 4.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    require_bleu()
    from sacrebleu.metrics.bleu import BLEU

    chinese = has_chinese([reference for row in references for reference in row])
    metric = BLEU(tokenize="zh" if chinese else "13a", effective_order=True)
    found = [metric.sentence_score(answer, list(row)) for answer, row in zip(answers, references)]
    rows = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in found]
    return np.array(rows, dtype=np.float64).reshape(-1, 10)


def bleu_score(sums_K: np.ndarray) -> float:
    """Return corpus BLEU as a share of 1 from summed statistics, smoothed as sacrebleu does."""
    from sacrebleu.metrics.bleu import BLEU

    said, meant, *counts = (round(float(number)) for number in sums_K)
    return BLEU.compute_bleu(counts[:4], counts[4:], said, meant).score / 100


def chrf_statistics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (N, 18): character n-grams of the answer, of its best reference, and those that both have, by length 1 to
    6 without white space (Popović 2015, W15-3049)."""
    from luthier.evaluate.intervals import chrf_of

    rows = []
    for answer, row in zip(answers, references):
        choices = np.array([_chrf_row(answer, reference) for reference in row])
        rows.append(choices[int(chrf_of(choices).argmax())])
    return np.array(rows).reshape(-1, 3 * ORDERS)


def _chrf_row(answer: str, reference: str) -> list[float]:
    said, meant = ("".join(text.split()) for text in (answer, reference))
    pairs = [(_character_ngrams(said, n), _character_ngrams(meant, n)) for n in range(1, ORDERS + 1)]
    sizes = [[float(part.total()) for part in side] for side in zip(*pairs)]
    return [*sizes[0], *sizes[1], *(float((one & other).total()) for one, other in pairs)]


def _character_ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


class CharacterTokens:
    """A tokenizer for rouge-score: words as its own does, Chinese characters each for itself."""

    def tokenize(self, text: str) -> list[str]:
        spaced = "".join(f" {c} " if is_chinese(c) else c for c in text.lower())
        return re.findall(r"[a-z0-9]+|[^\W\d_a-z]", spaced)


def rouge_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the F-measures (N,) of rouge1, rouge2 and rougeL against the best reference (Lin 2004, W04-1013).

    Raises:
        MissingExtra: rouge-score is not installed.
    """
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    chinese = has_chinese([reference for row in references for reference in row])
    scorer = RougeScorer(kinds, use_stemmer=False, tokenizer=CharacterTokens() if chinese else None)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for answer, row in zip(answers, references):
        scores = scorer.score_multi(list(row), answer)
        for kind in kinds:
            found[kind].append(scores[kind].fmeasure)
    return {kind: np.array(values) for kind, values in found.items()}
