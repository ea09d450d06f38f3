"""Minimal pairs: two sentences that differ in one point, of which the model finds one likelier.

BLiMP (Warstadt et al. 2020, arXiv:1912.00582): how often that is the grammatical one. CrowS-Pairs (Nangia et al. 2020,
arXiv:2010.00133): how often it is the stereotyped one; of a causal model the whole sentence's likelihood is compared,
as lm-evaluation-harness does, instead of the masked model's pseudo-likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.evaluate.cases import Values
    from luthier.models.loaded import LoadedModel

STEREOTYPES = "CrowS-Pairs"


@dataclass(frozen=True)
class Pair:
    """Two sentences; counted is how often the first is likelier. `source` is `file:line`."""

    first: str
    second: str
    group: str
    source: str


class MinimalPairs(Task):
    """Pairs of sentences, of which the model should find the first likelier."""

    kind: Literal["minimal_pairs"] = "minimal_pairs"

    data: DataSpec
    """The pairs: {good, bad} and a group if there is one. Files of BLiMP and CrowS-Pairs are recognised as they are; of
    the latter the share of pairs is counted whose stereotyped sentence is likelier, for which 50 % is no preference."""

    title: ClassVar[str] = "Minimal pairs"
    summary: ClassVar[str] = "The share of pairs whose good sentence is likelier than the bad one."
    paper: ClassVar[str] = (
        "Warstadt et al. 2020, BLiMP, arXiv:1912.00582; Nangia et al. 2020, CrowS-Pairs, arXiv:2010.00133"
    )
    metric: ClassVar[str] = "accuracy"
    zh: ClassVar[dict[str, str]] = {
        "title": "最小对",
        "summary": "好句比坏句更可能的句对比例。",
        "data": "句对：{good, bad}，可带分组。BLiMP 与 CrowS-Pairs 的文件可直接识别；后者统计刻板印象句更可能的句对比例，50% 表示没有偏好。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.cases import Layout, read_cases

        layouts = (
            Layout(STEREOTYPES, (("sent_more",), ("sent_less",)), _crows, '{"sent_more": "…", "sent_less": "…"}'),
            Layout(
                "BLiMP", (("sentence_good",), ("sentence_bad",)), _blimp, '{"sentence_good": "…", "sentence_bad": …}'
            ),
            Layout("own", (("good",), ("bad",)), _plain, '{"good": "…", "bad": "…"}'),
        )
        cases = read_cases(self.data, layouts, "minimal pairs")
        alike = sum(isinstance(pair, Pair) and pair.first == pair.second for pair in cases.items)
        if alike:
            note = f"{alike} pairs are the same sentence twice; each counts one half"
            cases = replace(cases, notes=(*cases.notes, note))
        return self.chosen(cases)

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.likelihood import Splitter, likelihoods, shared_beginnings

        pairs = [item for item in cases.items if isinstance(item, Pair)]
        splitter = Splitter(model.tokenizer)
        queries = splitter.queries([""] * len(pairs), [(pair.first, pair.second) for pair in pairs])
        found = likelihoods(model, shared_beginnings(queries), setting.cut, setting.max_length)
        gaps = np.array([first.logp - second.logp for first, second in found])
        values = (gaps > 0) + 0.5 * (gaps == 0)
        stereotypes = cases.layout == STEREOTYPES
        return result_of(
            self.label,
            "stereotype" if stereotypes else self.metric,
            values,
            higher_is_better=not stereotypes,
            chances=np.full(len(pairs), 0.5),
            groups=[pair.group for pair in pairs],
            details={"mean_difference": float(gaps.mean())},
        )


def _crows(values: Values, source: str) -> Pair:
    return _pair(values, source, "sent_more", "sent_less", "bias_type")


def _blimp(values: Values, source: str) -> Pair:
    return _pair(values, source, "sentence_good", "sentence_bad", "UID")


def _plain(values: Values, source: str) -> Pair:
    return _pair(values, source, "good", "bad", "group")


def _pair(values: Values, source: str, first: str, second: str, group: str) -> Pair:
    from luthier.evaluate.cases import group_in, text_in

    one, other = text_in(values, first), text_in(values, second)
    return Pair(one, other, group_in(values, group, "uid", "UID", "paradigm", "category", "phenomenon"), source)
