"""What a task's result says: intervals that hold what they promise, and differences on the same cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.evaluate.intervals import chrf_of, difference_of, drawn, interval_of, macro_f1_of, mean_of, score_of
from luthier.evaluate.tasks.base import TaskResult, paired, result_of
from luthier.evaluate.texts import bleu_score, bleu_statistics, chrf_statistics, rouge_scores, token_f1

ANSWERS = ["the cat sat on the mat", "a dog ran away", "nothing", "It is 5 o'clock, isn't it?"]
REFERENCES = ["the cat sat on a mat", "the dog ran off quickly", "something else", "it's 5 o'clock."]
CHINESE = ["今天天气很好", "我喜欢读书。", "床前明月光"]
CHINESE_REFERENCES = ["今天天气不错", "我很喜欢看书。", "床前明月光"]


def weighted(values: list[float]) -> np.ndarray:
    return np.stack([np.array(values, dtype=float), np.ones(len(values))], 1)


def test_every_resample_draws_as_many_cases_as_there_are():
    counts = np.concatenate(list(drawn(37)))
    assert counts.shape == (1000, 37)
    assert (counts.sum(1) == 37).all()


def test_a_resample_is_the_same_however_it_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch):
    whole = np.concatenate(list(drawn(29)))
    monkeypatch.setattr("luthier.evaluate.intervals._CHUNK", 29 * 7)
    assert np.array_equal(np.concatenate(list(drawn(29))), whole)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_for_many_cases():
    values = np.random.default_rng(3).normal(2.0, 1.5, 4000)
    low, high = interval_of(weighted(list(values)), "mean")
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_an_interval_holds_the_true_share_about_nineteen_times_in_twenty():
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        low, high = interval_of(weighted(list((random.random(150) < 0.7).astype(float))), "mean")
        held += low <= 0.7 <= high
    assert 180 <= held <= 199


def test_cases_that_are_all_right_have_an_interval_below_one():
    low, high = interval_of(weighted([1.0] * 20), "mean")
    assert 0.8 < low < 0.9
    assert high == 1.0


def test_a_paired_difference_is_known_better_than_two_scores_are():
    random = np.random.default_rng(1)
    before = (random.random(300) < 0.5).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:20]] = 1.0
    one, other = (result_of("task", "accuracy", values) for values in (before, after))
    found = paired(one, other)
    assert found.change == pytest.approx(20 / 300)
    assert found.verdict == "better"
    assert one.interval[1] > other.interval[0]  # the two intervals overlap; that of the difference leaves out 0


def test_the_same_result_twice_is_unchanged():
    result = result_of("task", "loss", [1.0, 2.0, 0.5], higher_is_better=False)
    assert paired(result, result).as_dict() == {"change": 0.0, "interval": [0.0, 0.0], "verdict": "unchanged"}


def test_a_lower_loss_is_better():
    before = result_of("task", "loss", np.linspace(2, 3, 50), higher_is_better=False)
    after = result_of("task", "loss", np.linspace(1.5, 2.4, 50), higher_is_better=False)
    assert paired(before, after).verdict == "better"


def test_results_of_other_cases_are_not_compared():
    with pytest.raises(ValueError, match="not the same cases"):
        paired(result_of("a", "accuracy", [1.0, 0.0]), result_of("a", "accuracy", [1.0]))


def test_near_chance_is_called_so_for_the_whole_and_for_groups():
    random = np.random.default_rng(2)
    guessed, known = (random.random(200) < 0.5).astype(float), (random.random(200) < 0.9).astype(float)
    groups = ["guessed"] * 200 + ["known"] * 200
    result = result_of("t", "accuracy", np.concatenate([guessed, known]), chances=np.full(400, 0.5), groups=groups)
    assert not result.is_near_chance
    assert result.near_chance_groups == ["guessed"]
    assert result.as_dict()["near_chance"] is False


def test_a_result_survives_json_with_its_cases():
    result = result_of(
        "t", "accuracy", [1.0, 0.0, 1.0], chances=np.full(3, 0.25), groups=["a", "b", "a"], details={"k": 1}
    )
    kept = json.loads(json.dumps(result.as_dict(with_cases=True)))
    again = TaskResult.from_dict("t", kept)
    assert again.as_dict(with_cases=True) == result.as_dict(with_cases=True)
    assert paired(result, again).change == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_macro_f1_of_sums_is_that_of_scikit_learn(pairs: list[tuple[int, int]]):
    from sklearn.metrics import f1_score

    said, meant = np.array(pairs).T
    rows = np.zeros((len(pairs), 12))
    for row, (s, m) in zip(rows, pairs):
        row[3 * s] += s == m
        row[3 * s + 1] += 1
        row[3 * m + 2] += 1
    assert macro_f1_of(rows.sum(0, keepdims=True))[0] == pytest.approx(f1_score(meant, said, average="macro"))


@pytest.mark.parametrize(
    ("answers", "references", "tokenize"), [(ANSWERS, REFERENCES, "13a"), (CHINESE, CHINESE_REFERENCES, "zh")]
)
def test_bleu_is_that_of_sacrebleu(answers: list[str], references: list[str], tokenize: str):
    import sacrebleu

    ours = score_of(bleu_statistics(answers, [[r] for r in references]), "bleu")
    theirs = sacrebleu.corpus_bleu(answers, [references], tokenize=tokenize).score
    assert 100 * ours == pytest.approx(theirs, abs=1e-9)
    assert ours > 0.05


@pytest.mark.parametrize(("answers", "references"), [(ANSWERS, REFERENCES), (CHINESE, CHINESE_REFERENCES)])
def test_chrf_is_that_of_sacrebleu(answers: list[str], references: list[str]):
    import sacrebleu

    ours = score_of(chrf_statistics(answers, [[r] for r in references]), "chrf")
    assert 100 * ours == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-9)


def test_of_several_references_the_best_counts_as_in_sacrebleu():
    import sacrebleu

    rows = [[r, a] for a, r in zip(ANSWERS, reversed(REFERENCES))]
    streams = [list(column) for column in zip(*rows)]
    assert score_of(chrf_statistics(ANSWERS, rows), "chrf") == pytest.approx(1.0)
    assert 100 * score_of(bleu_statistics(ANSWERS, rows), "bleu") == pytest.approx(
        sacrebleu.corpus_bleu(ANSWERS, streams).score
    )


def test_rouge_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    ours = rouge_scores(ANSWERS, [[r] for r in REFERENCES])
    for kind, values in ours.items():
        theirs = [scorer.score(r, a)[kind].fmeasure for a, r in zip(ANSWERS, REFERENCES)]
        assert list(values) == theirs


def test_rouge_of_chinese_counts_characters():
    found = rouge_scores(["今天天气很好"], [["今天天气不错"]])
    assert found["rouge1"][0] == pytest.approx(4 / 6)
    assert found["rougeL"][0] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat.", "a cat", 1.0),
        ("Paris, France", "Paris", 2 / 3),
        ("", "", 1.0),
        ("", "Paris", 0.0),
        ("北京市。", "北京", 0.8),
        ("不知道", "北京", 0.0),
    ],
)
def test_token_f1_is_squads_and_takes_chinese_by_characters(answer: str, reference: str, expected: float):
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_the_interval_of_bleu_comes_from_the_same_formula():
    statistics = bleu_statistics(ANSWERS * 5, [[r] for r in REFERENCES * 5])
    low, high = interval_of(statistics, "bleu")
    assert low < bleu_score(statistics.sum(0)) < high


def test_a_difference_of_ratios_weighs_cases_by_their_tokens():
    before = np.array([[10.0, 5.0], [2.0, 1.0]])
    after = np.array([[5.0, 5.0], [2.0, 1.0]])
    change, _ = difference_of(before, after, "mean")
    assert change == pytest.approx(7 / 6 - 2)
    assert mean_of(before.sum(0, keepdims=True))[0] == 2.0
    assert chrf_of(np.zeros((1, 18)))[0] == 0.0
