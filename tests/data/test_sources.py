"""Reading files: every kind, every fault with its place and its remedy."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError, MissingExtra
from luthier.data import readers
from luthier.data.load import load_records
from luthier.data.sources import read_rows
from luthier.data.spec import DataSpec, resolve_path

ROWS = [{"text": "one"}, {"text": "zwei é 春眠 😀"}, {"text": "a\nb"}]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(min_size=1, max_size=6), values, min_size=1, max_size=4)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def fault(path: Path, limit: int | None = None) -> str:
    with pytest.raises(DataError) as error:
        list(read_rows(path, limit))
    return str(error.value)


# ---- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "rows"])
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(objects, min_size=2, max_size=5))
def test_json_lines_are_read_back_whatever_the_file_is_called(tmp_path_factory, name: str, rows) -> None:
    path = written(tmp_path_factory.mktemp("lines") / name, lines(rows))
    read = list(read_rows(path))
    assert [row.value for row in read] == rows
    assert [row.source for row in read] == [f"{path}:{i + 1}" for i in range(len(rows))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(objects, min_size=1, max_size=5))
def test_a_list_in_one_file_is_read_back_with_the_line_of_each_row(tmp_path_factory, name: str, indent, rows) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    path = written(tmp_path_factory.mktemp("list") / name, text)
    read = list(read_rows(path))
    assert [row.value for row in read] == rows
    if indent:
        starts = [i + 1 for i, line in enumerate(text.split("\n")) if line.startswith("  {")]
        assert [row.source for row in read] == [f"{path}:{n}" for n in starts]


@pytest.mark.parametrize("key", ["data", "rows", "train", "examples"])
def test_a_list_inside_an_object_is_found_wherever_it_stands(tmp_path: Path, key: str) -> None:
    content = json.dumps({"version": key, "about": {key: [1]}, key: ROWS, "end": 1}, indent=1)
    assert [row.value for row in read_rows(written(tmp_path / "a.json", content))] == ROWS


def test_one_row_alone_is_a_row_even_when_it_holds_a_list(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}]}
    for name in ("a.json", "a.jsonl"):
        assert [r.value for r in read_rows(written(tmp_path / name, json.dumps(row)))] == [row]
    assert [r.value for r in read_rows(written(tmp_path / "b.json", json.dumps(row, indent=2)))] == [row]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@settings(max_examples=25, deadline=None)
@given(cells=st.lists(st.tuples(*[st.text(st.sampled_from('ab ,;"\n春'), max_size=6)] * 2), min_size=1, max_size=5))
def test_tables_written_by_the_csv_module_are_read_back(tmp_path_factory, name: str, cells) -> None:
    import csv

    path = tmp_path_factory.mktemp("table") / name
    kept = [("a", "b"), *(c for c in cells if any(c))]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if name == "a.tsv" else ",")
        writer.writerows([("prompt", "answer"), *kept])
    assert [tuple(row.value.values()) for row in read_rows(path)] == kept


def test_a_table_row_knows_the_line_where_it_begins(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'prompt,answer\n"two\nlines",b\nc,d\n')
    assert [row.source for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_of_a_csv_file_is_seen(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path / "a.csv", f"prompt{separator}answer\na{separator}b\n")
    assert next(read_rows(path)).value == {"prompt": "a", "answer": "b"}


def test_quotation_marks_in_tab_separated_text_stay_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'prompt\tanswer\nClaim: "a" is "b\t"no\n"all ""of"" it"\ty\n')
    assert [tuple(r.value.values()) for r in read_rows(path)] == [('Claim: "a" is "b', '"no'), ('all "of" it', "y")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_gzip_is_unpacked_whatever_the_name_says(tmp_path: Path, suffix: str) -> None:
    content = {".csv": "text\none\n", ".txt": "one"}.get(suffix, '{"text": "one"}\n')
    for name in (f"a{suffix}.gz", f"b{suffix}"):
        path = written(tmp_path / name, gzip.compress(content.encode()))
        assert [row.value for row in read_rows(path)] == [{"text": "one"}]


def test_a_byte_order_mark_is_left_out_and_noted(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", lines(ROWS)), ("a.json", json.dumps(ROWS)), ("a.csv", "text\none\n")):
        path = written(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
        records = load_records(DataSpec(path=str(path)), objective="lm")
        assert records.records[0].text == "one"  # type: ignore[union-attr]
        assert "byte-order mark" in records.counts["notes"][0]  # type: ignore[index]


@given(parts=st.lists(st.text(st.sampled_from("ab \n春")).filter(str.strip), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_text_file_is_one_document_or_as_many_as_it_marks(tmp_path_factory, parts: list[str]) -> None:
    path = written(tmp_path_factory.mktemp("text") / "a.txt", "\n<|endoftext|>\n".join(parts))
    read = list(read_rows(path))
    assert [row.value["text"] for row in read] == [part.strip("\r\n") for part in parts]
    text = path.read_text(encoding="utf-8").split("\n")
    for row, part in zip(read, parts):
        assert text[int(row.source.rpartition(":")[2]) - 1] == part.strip("\n").split("\n")[0]


def test_parquet_and_saved_data_sets_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "split"))
    for name in ("a.parquet", "plain", "split"):
        rows = list(read_rows(tmp_path / name))
        assert [row.value for row in rows] == ROWS
        assert rows[2].source.endswith(":3")
    spec = DataSpec(path=str(tmp_path / "split"), split="test")
    assert len(load_records(spec, objective="lm")) == 1
    with pytest.raises(DataError, match='Did you mean "test"') as error:
        load_records(DataSpec(path=str(tmp_path / "split"), split="tset"))
    assert "train, test" in str(error.value)
    with pytest.raises(DataError, match="has no splits"):
        load_records(DataSpec(path=str(tmp_path / "plain"), split="test"))


def test_a_missing_library_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r'pip install "luthier\[data\]"'):
        list(read_rows(written(tmp_path / "a.parquet", b"PAR1 and more")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    written(tmp_path / "saved" / "state.json", "{}")
    with pytest.raises(MissingExtra, match=r'pip install "luthier\[data\]"'):
        list(read_rows(tmp_path / "saved"))


def test_folders_and_patterns_read_all_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        written(tmp_path / name, lines([{"text": name}]))
    written(tmp_path / "README.md", "not data")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        records = load_records(DataSpec(path=str(path)), objective="lm")
        assert [r.text for r in records.records] == ["a.jsonl", "b.jsonl"]  # type: ignore[union-attr]
        assert records.counts["files"] == 2
    assert load_records(DataSpec(path=str(tmp_path)), objective="lm").counts["unused_files"] == ["README.md"]


def test_paths_are_relative_to_the_recipe_and_starter_names_are_known(tmp_path: Path) -> None:
    assert resolve_path("a.jsonl", tmp_path) == tmp_path / "a.jsonl"
    assert resolve_path(str(tmp_path / "a.jsonl"), Path("/elsewhere")) == tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="choose one of"):
        resolve_path("starter:nothing")


# ---- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", ["file is empty"]),
        ("a.jsonl", " \n\n", ["file is empty"]),
        ("a.jsonl", '{"text": "é"}\n'.encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
        ("a.jsonl", '{"text": "abcd"}\n'.encode("utf-16-le"), ["UTF-16"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', [":2: ", "0xe9 at offset 27", "iconv -f LATIN1 -t UTF-8"]),
        ("a.json", '[\n{"text": "你好"}]'.encode("gb18030"), [":2: ", "iconv -f GB18030"]),
        ("a.csv", b"text\ncaf\xe9\n", [":2: ", "iconv -f LATIN1"]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n{"text": 3}', [":2: ", "column 13", "near"]),
        ("a.jsonl", '{"text": "a"}\n["b"]\n3\n', [":2: ", "got a list", ":3: ", "got a number", 'write {"text"']),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\x00"}\n', [":2: ", "NUL byte at offset 25", "tr -d"]),
        ("a.json", b'[{"text": "b\x00"}]', ["NUL", "tr -d"]),
        ("a.json", '[{"text": "a"},\n{"text": "b"', [":2", "Not JSON"]),
        ("a.json", '[{"text": "a"},\n', ["cut off", '"]"']),
        ("a.json", '[{"text": "a"}]\n[{"text": "b"}]', [":2: ", "more after the end of the list"]),
        ("a.json", '{\n"text": "a"\n}\n{\n"text": "b"\n}', ["second object", ":4", "jq -c"]),
        ("a.json", '{"train": [{"a": 1}], "rows": [{"a": 1}]}', ["several lists", "jq -c '.train[]'"]),
        ("a.json", "3", ["Expected an object", "a number"]),
        ("a.jsonl", r'{"text": "\ud83d"}', ["half of a character"]),
        ("a.csv", "text,label\na\n", [":2: ", "1 cells, the header has 2", "quotes"]),
        ("a.csv", "text,text\na,b\n", ["twice", '"text"', "columns: {prompt: 1, answer: 2}"]),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["git-LFS", "git lfs pull"]),
        ("a.csv", b"PK\x03\x04....", ["zip", "save the table as CSV"]),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", ["zstd -d"]),
        ("a.json", "<!DOCTYPE html><html>", ["web page"]),
        ("a.parquet", "text", ["not a Parquet file"]),
        ("a.parquet", b"PAR1....PAR1", ["Parquet", "fetch it again"]),
        ("a.yaml", "a: 1", ["Cannot tell", "JSONL, JSON, CSV"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 2000)[:-30], ["cut off"]),
    ],
)
def test_each_fault_is_named_with_its_place_and_its_remedy(tmp_path: Path, name: str, content, expected) -> None:
    message = fault(written(tmp_path / name, content))
    for part in expected:
        assert part in message
    assert "→" in message


def test_a_line_that_is_too_long_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch) -> None:
    from luthier.data import json_rows

    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 2**20)
    message = fault(written(tmp_path / "a.jsonl", lines(ROWS) + json.dumps({"text": "x" * 2**20})))
    assert "longer than 1 MiB" in message
    assert ":4: " in message
    assert readers.MAX_LINE_BYTES == 64 * 2**20


def test_good_rows_are_still_read_when_others_are_broken(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\nbroken\n{"text": "b"}\n')
    rows = read_rows(path)
    assert [next(rows).value["text"], next(rows).value["text"]] == ["a", "b"]
    with pytest.raises(DataError):
        next(rows)


def test_all_problems_are_counted_and_the_first_of_each_kind_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        list(read_rows(written(tmp_path / "a.jsonl", '{"text": "a"}\n' + "broken\n" * 500 + "[1]\n" * 7)))
    problems = error.value.problems
    assert len(problems) == 11
    assert "507 problems in all, 10 shown (json 500, not an object 7)" in problems[-1].what


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", lines(ROWS))
    message = fault(tmp_path / "trian.jsonl")
    assert 'Did you mean "train.jsonl"' in message
    assert "hf download me/data" in fault(tmp_path / "me" / "data")
    assert "relative to the recipe" in fault(tmp_path / "nowhere" / "a.jsonl")
    assert "No file matches" in fault(tmp_path / "*.csv")


def test_a_folder_without_data_says_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    written(tmp_path / "notes.md", "x")
    message = fault(tmp_path)
    assert "no data files" in message
    assert "inner" in message
    assert "JSONL" in message


def test_a_folder_that_mixes_training_and_test_files_is_not_read_as_one(tmp_path: Path) -> None:
    for name in ("train-00.jsonl", "test.jsonl"):
        written(tmp_path / name, lines(ROWS))
    message = fault(tmp_path)
    assert "look meant for testing (test.jsonl)" in message
    assert f"data.path: {tmp_path}/train-00.jsonl" in message
    assert len(list(read_rows(tmp_path / "train*"))) == len(ROWS)


def test_split_without_a_saved_data_set_is_an_error_not_ignored(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines(ROWS))
    with pytest.raises(DataError, match="has no effect"):
        load_records(DataSpec(path=str(path), split="test"), objective="lm")


def test_reading_and_checking_need_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines([{"prompt": "a", "answer": "b"}]))
    code = (
        "import sys\n"
        "from luthier.data.load import load_records\n"
        "from luthier.data.spec import DataSpec\n"
        f"assert len(load_records(DataSpec(path={str(path)!r}))) == 1\n"
        "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules), 'too much imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
