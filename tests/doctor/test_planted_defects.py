"""Thirty known defects of fifteen kinds among five thousand real rows: nearly all are found, and little else."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from luthier.data.spec import DataSpec
from luthier.doctor.examine import Diagnosis, examine

Row = dict[str, object]
LONG = (
    "The committee met in the old town hall on a rainy evening. Its members spoke at length about the new bridge. "
    "They agreed that the plan was sound, and that work should begin in the spring. The treasurer then explained that "
)


def plain(question: str, answer: str) -> Row:
    return {"instruction": question, "input": "", "output": answer}


def defects(rows: list[Row]) -> list[tuple[str, Row]]:
    """Two of each kind: (kind that may be named, row)."""
    twin, other, near, near2 = rows[100], rows[700], rows[1500], rows[2500]
    changed = str(near["output"]).split()
    changed2 = str(near2["output"]).split()
    leak = "The answer is forty-two."
    return [
        ("duplicate", dict(twin)),
        ("duplicate", dict(other)),
        ("near_duplicate", {**near, "output": " ".join([*changed[:-1], "indeed"])}),
        ("near_duplicate", {**near2, "output": " ".join([*changed2, "So it is."])}),
        ("empty_answer", plain("What is the capital of Norway?", "   ")),
        ("empty_answer", plain("Name three rivers of Spain.", "")),
        ("truncated_answer", plain("Report on the meeting of the committee.", LONG + "the costs would be shared by")),
        ("truncated_answer", plain("Show me a loop in Python.", "Here is one:\n```python\nfor i in range(3):\n    pr")),
        ("encoding", plain("Where did you eat?", "We sat in a small cafÃ© by the river and it was trÃ¨s bon.")),
        ("encoding", plain("讲一个故事。", "从前有锟斤拷一座山，山上有座庙。")),
        ("personal_data", plain("How do I reach her?", "Write to maria.lindqvist84@hotmail.se or ring her.")),
        ("personal_data", plain("他的身份证号是多少？", "他的身份证号是11010519491231002X。")),
        ("personal_data", plain("Which card was used?", "It was charged to 4539 1488 0343 6467 in May.")),
        ("refusal", plain("Write a poem on autumn.", "I'm sorry, but as an AI language model I cannot write poems.")),
        ("refusal", plain("推荐一本好书。", "作为一个人工智能语言模型，我没有个人喜好，无法推荐。")),
        (
            "copied_answer",
            plain("Why is the sky blue on a clear day in summer?", "Why is the sky blue on a clear day in summer?"),
        ),
        ("copied_answer", plain(LONG, LONG)),
        ("template", plain("Greet me.", "<|im_start|>assistant\nHello there, friend!<|im_end|>")),
        ("template", plain("Add two and two.", "[INST] Add two and two. [/INST] It is four.")),
        (
            "language",
            plain(
                "Please describe how a bicycle stays upright when it moves.",
                "自行车在运动时依靠车轮的陀螺效应以及骑车人不断的细小转向来保持平衡，速度越快就越稳定。",
            ),
        ),
        (
            "language",
            plain(
                "请介绍一下长城的历史，它是什么时候修建的？",
                "It was built over many centuries by several dynasties to guard the north.",
            ),
        ),
        ("repetition", plain("Describe the sea.", "The sea is wide and deep. " * 9)),
        ("repetition", plain("Count sheep.", "one sheep, " * 30)),
        ("placeholder", plain("What did Newton discover?", "TODO")),
        ("placeholder", plain("Name a noble gas.", "N/A")),
        ("toxic", plain("What do you think of my essay?", "You fucking idiot, nobody will ever read this.")),
        ("markup", plain("What is the news?", "<p>Prices rose&nbsp;again.</p><br><span>Read more</span>")),
        (
            "overlong",
            plain("Tell me everything about trees.", " ".join(f"tree{i} grows near river{i}." for i in range(9000))),
        ),
        (
            "template",
            plain(
                "How are you?",
                f"Fine.\nHuman: And what is the answer?\nAssistant: {leak}\nHuman: Thanks.\nAssistant: Bye.",
            ),
        ),
        (
            "encoding",
            plain("What does it say?", "It says \u201cwelco\ufffd\ufffd\u201d on the old sign above the gate."),
        ),
    ]


@pytest.fixture(scope="module")
def examined(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, dict[int, str]]:
    """What is found in the rows with defects, and the line of each defect with its kind."""
    rows: list[Row] = json.loads((shared / "data/alpaca/alpaca_small.json").read_text(encoding="utf-8"))
    with gzip.open(shared / "data/gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            rows.append(plain(row["question"], row["answer"]))
    clean = [row for row in rows if str(row["output"]).strip()][:5000]
    draw = random.Random(11)
    marked: list[tuple[str, Row]] = [("", row) for row in clean]
    for kind, row in defects(clean):
        # Behind the row that it may copy.
        marked.insert(draw.randrange(3000, len(marked)), (kind, row))
    path = tmp_path_factory.mktemp("doctor") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row in marked), encoding="utf-8")
    return examine(DataSpec(path=str(path))), {i: kind for i, (kind, _) in enumerate(marked, start=1) if kind}


def test_at_least_28_of_30_defects_of_15_kinds_are_found_by_their_names(
    examined: tuple[Diagnosis, dict[int, str]],
) -> None:
    found, planted = examined
    said = {line: {f.kind for f in found.findings if f.line == line} for line in planted}
    missed = [kind for line, kind in planted.items() if kind not in said[line]]
    assert len(planted) == 30
    assert len(set(planted.values())) == 15
    assert len(missed) <= 2, missed


def test_at_most_one_clean_row_in_a_hundred_is_accused(examined: tuple[Diagnosis, dict[int, str]]) -> None:
    found, planted = examined
    accused = {f.line for f in found.findings if f.line and f.line not in planted}
    assert len(accused) <= 0.01 * (found.rows - len(planted)), [f for f in found.findings if f.line in accused][:20]


def test_every_finding_says_where_and_what_to_do(examined: tuple[Diagnosis, dict[int, str]]) -> None:
    found, _ = examined
    assert all(f.message and f.remedy for f in found.findings)
    assert all(f.line > 0 for f in found.findings if f.row >= 0)
