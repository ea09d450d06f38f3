"""Tasks against what they agree with: lm-evaluation-harness, likelihoods made by hand, what a sandbox forbids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from luthier.core.component import component_class
from luthier.core.errors import DataError, RecipeError
from luthier.core.paths import locate
from luthier.data.spec import DataSpec
from luthier.evaluate.choices import Choices, read_choices, with_shots
from luthier.evaluate.likelihood import Splitter, likelihoods, shared_beginnings
from luthier.evaluate.sandbox import run_python
from luthier.evaluate.tasks.base import Setting, Task, TaskResult
from luthier.evaluate.tasks.code import _pass_at_k
from luthier.models.loaded import LoadedModel
from luthier.run.opened import open_target
from luthier.run.task_files import named_task, task_file
from luthier.train.microbatch import Cut
from recipes import write_rows

STARTER = Path(__file__).parents[2] / "src" / "luthier" / "starter"
QUESTIONS = [
    {"question": "The cat sat on the", "choices": ["mat", "green idea of a mat", "sky"], "answer": 0},
    {
        "question": "Tom had a red ball. He liked to",
        "choices": ["play with it", "eat", "the"],
        "answer": "play with it",
    },
    {"question": "Once upon a", "choices": ["time", "table"], "answer": "A"},
    {"question": "Lily was very sad because", "choices": ["her toy was lost", "of", "7"], "answer": 2},
    {"question": "It is ", "choices": ["hot", "a very big and long and old tree"], "answer": 1},
]


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return open_target("starter")[0]


def make(kind: str, **fields: object) -> Task:
    task = component_class("task", kind).model_validate({"kind": kind, **fields})
    assert isinstance(task, Task)
    return task


def rows(path: Path, items: list[dict]) -> str:
    return str(write_rows(path, items))


# ---------------------------------------------------------------------- likelihood


def test_a_likelihood_is_the_sum_of_the_models_own_log_probabilities(starter: LoadedModel):
    contexts, endings = ["Tom went to", "", "She said  "], [[" the park", " a shop"], ["The end."], ["hello"]]
    queries = Splitter(starter.tokenizer).queries(contexts, endings)
    found = likelihoods(starter, queries, greedy=True)
    for query, row in zip(queries, found):
        for ending, answer in zip(query.endings, row):
            ids = torch.tensor([[*query.context.tolist(), *ending.tolist()]])
            with torch.no_grad():
                logps = starter.module(input_ids=ids).logits[0].log_softmax(-1)
            before = logps[len(query.context) - 1 : -1]
            expected = before.gather(1, torch.tensor(ending.tolist())[:, None]).sum().item()
            assert answer.logp == pytest.approx(expected, abs=1e-3)
            assert answer.tokens == len(ending)
            assert answer.is_likeliest == bool((before.argmax(-1) == torch.tensor(ending.tolist())).all())


@pytest.mark.parametrize("packs", [True, False])
def test_likelihoods_do_not_depend_on_how_they_are_batched(starter: LoadedModel, packs: bool):
    queries = Splitter(starter.tokenizer).queries(
        [q["question"] for q in QUESTIONS], [[f" {c}" for c in q["choices"]] for q in QUESTIONS]
    )
    was, starter.packs = starter.packs, packs
    try:
        alone = [likelihoods(starter, [query], Cut(1, None))[0] for query in queries]
        together = likelihoods(starter, queries)
    finally:
        starter.packs = was
    assert [[a.logp for a in r] for r in alone] == [pytest.approx([a.logp for a in r], abs=1e-3) for r in together]


def test_what_endings_share_may_be_read_once_without_changing_their_difference(starter: LoadedModel):
    pairs = [("The cat sits on the mat.", "The cat sit on the mat."), ("Yes", "Yes"), ("A", "B c"), ("He he", "He")]
    queries = Splitter(starter.tokenizer).queries([""] * len(pairs), pairs)
    plain, shared = likelihoods(starter, queries), likelihoods(starter, shared_beginnings(queries))
    gaps = [[row[0].logp - row[1].logp for row in rows] for rows in (plain, shared)]
    assert gaps[1][:3] == pytest.approx(gaps[0][:3], abs=1e-3)
    assert all(len(ending) for query in shared_beginnings(queries) for ending in query.endings)


def test_our_scores_are_those_of_lm_evaluation_harness(starter: LoadedModel, tmp_path: Path):
    """Its own model class on the same file: likelihoods to 1e-3, acc and acc_norm the same."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "harness"
    folder.mkdir()
    plain = [q for q in QUESTIONS if q["question"].strip() == q["question"]]
    golds = [0, 0, 0, 2]
    data = rows(tmp_path / "q.jsonl", [{**q, "answer": g} for q, g in zip(plain, golds)])
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    from lm_eval.tasks import TaskManager

    theirs = simple_evaluate(
        HFLM(pretrained=str(STARTER), device="cpu", dtype="float32", batch_size=2),
        tasks=["mine"],
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    assert theirs is not None
    ours = make("multiple_choice", data=data).measure(starter)
    results = theirs["results"]["mine"]
    assert ours.details["acc"] == pytest.approx(results["acc,none"], abs=1e-9)
    assert ours.details["acc_norm"] == pytest.approx(results["acc_norm,none"], abs=1e-9)
    queries = Splitter(starter.tokenizer).queries(
        [q["question"] for q in plain], [[f" {c}" for c in q["choices"]] for q in plain]
    )
    mine = [[a.logp for a in row] for row in likelihoods(starter, queries)]
    samples = sorted(theirs["samples"]["mine"], key=lambda s: s["doc_id"])
    for row, sample in zip(mine, samples):
        assert row == pytest.approx([float(answer[0]) for answer in sample["filtered_resps"]], abs=1e-3)
    wrapped = make("lm_eval", task="mine", include=str(folder)).measure(starter)
    assert wrapped.score == pytest.approx(results["acc,none"], abs=1e-9)
    assert wrapped.n == len(plain)
    assert wrapped.chance == pytest.approx(np.mean([1 / len(q["choices"]) for q in plain]))
    with pytest.raises(DataError, match="acc_norm"):
        make("lm_eval", task="mine", include=str(folder), score="acc_nrm").measure(starter)


def test_a_harness_task_that_does_not_exist_is_answered_with_its_neighbour(monkeypatch: pytest.MonkeyPatch):
    known = type("Known", (), {"all_tasks": ["arc_easy", "hellaswag"]})  # the real index takes seconds to build
    monkeypatch.setattr("luthier.evaluate.tasks.lm_eval.LmEval._manager", lambda self: known)
    with pytest.raises(DataError, match='Did you mean "hellaswag"'):
        make("lm_eval", task="hellasvag").read()


# ---------------------------------------------------------------------- public files as they are

PUBLIC = [
    ("minimal_pairs", "blimp/blimp_67x200.jsonl.gz", "own", 0.5, 67),
    ("minimal_pairs", "crows_pairs/crows_pairs_anonymized.csv", "CrowS-Pairs", 0.5, 9),
    ("multiple_choice", "mmlu/test.jsonl.gz", "MMLU", 0.25, 57),
    ("multiple_choice", "truthfulqa/TruthfulQA.csv", "TruthfulQA", None, None),
    ("multiple_choice", "llm_adapters/boolq_test.jsonl.gz", "LLM-Adapters", 0.5, 0),
    ("multiple_choice", "llm_adapters/piqa_test.jsonl.gz", "LLM-Adapters", 0.5, 0),
    ("continuation", "lambada/lambada_openai.jsonl.gz", "own", None, 0),
]


@pytest.mark.parametrize(("kind", "file", "layout", "chance", "groups"), PUBLIC, ids=lambda value: str(value)[:30])
def test_a_public_file_is_measured_as_it_is(
    kind: str, file: str, layout: str, chance: float | None, groups: int | None, shared: Path, starter: LoadedModel
):
    path = shared / "data" / file
    task = named_task(str(path), Path)
    assert task.model_dump()["kind"] == kind
    assert task.read().layout == layout
    few = task.model_copy(update={"limit": 201 if groups == 67 else 30})
    result = few.measure(starter)
    assert result.n == few.limit
    assert result.interval[0] <= result.score <= result.interval[1]
    assert chance is None or result.chance == pytest.approx(chance)
    if groups == 67:
        assert len(result.groups) == 67
        assert sum(part.n for part in result.groups.values()) == result.n


def test_a_row_that_is_no_case_is_told_with_its_line(tmp_path: Path):
    path = rows(
        tmp_path / "q.jsonl", [QUESTIONS[0], {**QUESTIONS[0], "answer": "nobody"}, {**QUESTIONS[1], "choices": 3}]
    )
    with pytest.raises(DataError) as caught:
        make("multiple_choice", data=path).read()
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == ["2", "3"]
    assert "none of the 3 choices" in str(caught.value)


def test_columns_of_other_names_are_mapped(tmp_path: Path):
    path = rows(tmp_path / "p.jsonl", [{"richtig": "a b", "falsch": "b a"}])
    task = make("minimal_pairs", data={"path": path, "columns": {"good": "richtig", "bad": "falsch"}})
    assert len(task.read()) == 1
    with pytest.raises(DataError, match=r"columns: \{good: …, bad: …\}"):
        make("minimal_pairs", data=path).read()


def test_shots_are_other_questions_of_the_same_group(tmp_path: Path):
    listed = [{**QUESTIONS[i % 3], "group": "ab"[i % 2], "question": f"Question {i}"} for i in range(6)]
    cases = read_choices(DataSpec(path=rows(tmp_path / "q.jsonl", listed)), None)
    items = [item for item in cases.items if isinstance(item, Choices)]
    first = with_shots(items, 2)[0]
    assert first.context == "Question 2 time\n\nQuestion 4 play with it\n\nQuestion 0"
    assert first.gold == items[0].gold


# ---------------------------------------------------------------------- answers


def test_generated_answers_are_scored_against_every_reference(starter: LoadedModel, tmp_path: Path):
    asked = [{"prompt": f"Say {i}", "answer": "nothing like it"} for i in range(3)]
    plain = make("exact_match", data=rows(tmp_path / "a.jsonl", asked))
    from luthier.evaluate.answers import Exercise, answers_of

    exercises = [item for item in plain.read().items if isinstance(item, Exercise)]
    said = answers_of(starter, exercises, 12, None)
    known = [{**row, "references": [text]} for row, text in zip(asked, said)]
    path = rows(tmp_path / "b.jsonl", known)
    for kind in ("exact_match", "f1", "rouge", "chrf"):
        fields = {"data": path, "max_new_tokens": 12}
        assert make(kind, **fields).measure(starter).score == pytest.approx(1.0)
    assert plain.measure(starter).score == 0.0


def test_a_classifier_that_writes_is_asked_by_likelihood(starter: LoadedModel, tmp_path: Path):
    labelled = [{"text": f"Story {i}", "label": str(i % 2)} for i in range(8)]
    fields = {"data": rows(tmp_path / "l.jsonl", labelled), "names": {"0": "happy", "1": "xqzw"}}
    result = make("classification", **fields).measure(starter)
    assert result.score == 0.5  # the odd name is never the likelier one
    assert result.details["confusion"] == [[4, 0], [4, 0]]
    assert result.chance == 0.5
    with pytest.raises(DataError, match="no row has"):
        make("classification", **{**fields, "names": {"7": "x"}}).read()


def test_the_classification_of_a_classifier_is_that_of_its_head(family_folder, tmp_path: Path):
    from luthier.models.load import load_model

    model = load_model(str(family_folder("llama")), classes=["bad", "good"])
    labelled = [{"text": f"{word} w{i}", "label": word} for i, word in enumerate(["good", "bad"] * 6)]
    task = make("classification", data=rows(tmp_path / "l.jsonl", labelled))
    result = task.measure(model, setting=Setting(labels={"bad": "bad", "good": "good"}))
    confusion = np.array(result.details["confusion"])
    assert confusion.sum() == 12
    assert np.trace(confusion) / 12 == pytest.approx(result.score)
    assert make("multiple_choice", data="x").misfits("classes")[0].what.endswith("this one tells classes apart.")


def test_a_loss_is_that_of_training(starter: LoadedModel):
    from luthier.data.load import load_records
    from luthier.data.render import Renderer
    from luthier.evaluate.measure import held_out_loss

    spec = DataSpec(path="starter:quickstart_eval", limit=20)
    records = load_records(spec, objective="lm").records
    expected = held_out_loss(starter, Renderer(starter.tokenizer).render_all(records).store)
    result = make("loss", data=spec.model_dump()).measure(starter)
    assert result.score == pytest.approx(expected.value, rel=1e-5)
    assert result.details["tokens"] == expected.tokens


def test_the_better_answer_wins_and_ties_count_half(starter: LoadedModel, tmp_path: Path):
    path = rows(tmp_path / "a.jsonl", [{"prompt": "Say it", "answer": "x" * n} for n in (1, 5000)])
    result = make("judge", data=path, judge={"kind": "length", "at_most": 60, "slack": 5000}, max_new_tokens=8).measure(
        starter
    )
    assert result.metric == "win_rate"
    assert list(result.values) == [0.5, 1.0]


# ---------------------------------------------------------------------- code


def test_code_is_not_run_unless_it_is_allowed(tmp_path: Path):
    path = rows(tmp_path / "c.jsonl", [{"prompt": "def f():\n", "test": "def check(c): pass", "entry_point": "f"}])
    with pytest.raises(DataError, match="run_code: true"):
        make("code", data=path).read()
    assert len(make("code", data=path, run_code=True).read()) == 1


def test_the_solutions_of_humaneval_pass_and_wrong_ones_do_not(shared: Path):
    import gzip

    with gzip.open(shared / "data" / "humaneval" / "HumanEval.jsonl.gz") as stream:
        problems = [json.loads(line) for line in stream][:3]
    for problem in problems:
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        assert run_python(problem["prompt"] + problem["canonical_solution"] + "\n" + tests).passed
        assert not run_python(problem["prompt"] + "    return None\n" + tests).passed


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "x = bytearray(2**30)",
        "open('big', 'wb').write(b'x' * 2**22)",
        "import time; time.sleep(60)",
        "raise KeyError(1)",
    ],
)
def test_a_program_that_leaves_early_or_takes_too_much_has_not_passed(program: str):
    assert not run_python(program, seconds=1.0).passed


def test_a_program_sees_neither_the_environment_nor_the_users_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    program = "import os\nassert 'SECRET_TOKEN' not in os.environ\nassert os.listdir('.') == []\n"
    ran = run_python(program)
    assert ran.passed, ran.why


def test_pass_at_k_is_the_share_of_draws_with_a_passing_program():
    assert _pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert _pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert _pass_at_k(4, 3, 2) == 1.0


# ---------------------------------------------------------------------- files


def test_a_task_is_a_yaml_file_with_its_rows_beside_it(tmp_path: Path, starter: LoadedModel):
    rows(tmp_path / "mine.jsonl", QUESTIONS)
    file = tmp_path / "mine.yaml"
    file.write_text("kind: multiple_choice\nnormalized: true\ndata: mine.jsonl\n")
    task = task_file(file)
    assert task.label == "mine"
    result: TaskResult = task.measure(starter)
    assert result.n == len(QUESTIONS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: multiple_choise\ndata: a.jsonl\n", 'Did you mean "multiple_choice"'),
        ("data: a.jsonl\n", "does not say its kind"),
        ("kind: loss\ndata: a.jsonl\nlimt: 3\n", 'Did you mean "limit"'),
        ("kind: loss\ndata: a.jsonl\nlimit: 0\n", "at least 1"),
    ],
)
def test_a_broken_task_file_is_told_with_its_place(text: str, expected: str, tmp_path: Path):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        task_file(file)
    assert expected in str(caught.value)
    assert "t.yaml" in caught.value.problems[0].where


def test_a_word_that_names_no_task_is_answered_with_what_does(tmp_path: Path):
    with pytest.raises(RecipeError, match="lm_eval:NAME"):
        named_task("nothing.yaml", lambda path: locate(path, (tmp_path,)))
    other = rows(tmp_path / "x.jsonl", [{"colour": "red"}])
    with pytest.raises(RecipeError, match="KIND:"):
        named_task(other, Path)
