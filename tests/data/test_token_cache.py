"""Tokens kept on disk: found by what they depend on and by nothing else, whole or not at all, by two at once too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from families import tokenizer
from luthier.core.cache import cache_folder
from luthier.data import token_cache
from luthier.data.records import PromptAnswer, Record
from luthier.data.render import Rendered, Renderer
from luthier.data.token_cache import fingerprint_of, rendered_once
from recipes import luthier, pairs, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "LEAST_BYTES", 0)
    return tmp_path / "cache"


def records(count: int, file: str = "a.jsonl") -> list[Record]:
    return [
        PromptAnswer(row["prompt"], row["completion"], "", "", (), False, f"{file}:{line}")
        for line, row in enumerate(pairs(count), start=1)
    ]


def render(rows: list[Record], **settings: object) -> Rendered:
    renderer = Renderer(tokenizer(), **settings)  # type: ignore[arg-type]
    return rendered_once(rows, renderer.tokenizer, renderer.settings, lambda: renderer.render_all(rows))


def content(rendered: Rendered) -> list[tuple]:
    return [(e.tokens.tolist(), e.weights.tolist(), e.source, dict(e.extras), e.branches) for e in rendered.store]


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "tokens").iterdir() if not path.name.startswith("."))


def test_a_second_run_reads_what_the_first_one_kept(cache: Path) -> None:
    made = Renderer(tokenizer()).render_all(records(20))
    first, second = render(records(20)), render(records(20))
    assert first.origin.startswith("kept in the cache")
    assert second.origin.startswith("read from the cache")
    assert content(first) == content(second) == content(made)
    assert first.counts == second.counts == made.counts
    assert len(entries(cache)) == 1
    assert not second.store.tokens_T.flags.writeable


def test_rows_are_found_wherever_they_lie_and_are_called_by_their_present_file(cache: Path) -> None:
    render(records(20))
    moved = render(records(20, "elsewhere/b.jsonl"))
    assert moved.origin.startswith("read from the cache")
    assert moved.store[3].source == "elsewhere/b.jsonl:4"


@pytest.mark.parametrize("change", ["row", "order", "line", "max_length", "train_on", "template", "code"])
def test_whatever_tokens_depend_on_makes_another_entry(
    change: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = records(20), {"max_length": 90}
    render(rows, **settings)
    if change == "row":
        rows[7] = PromptAnswer("w3 ", "w4", "", "", (), False, rows[7].source)
    elif change == "order":
        rows.reverse()
    elif change == "line":
        rows[7] = PromptAnswer(rows[7].prompt, rows[7].answer, "", "", (), False, "a.jsonl:900")  # type: ignore[union-attr]
    elif change == "max_length":
        settings["max_length"] = 80
    elif change == "train_on":
        settings["train_on"] = "all"  # type: ignore[assignment]
    elif change == "template":
        settings["chat_template"] = "plain"  # type: ignore[assignment]
    else:
        monkeypatch.setattr(token_cache, "_code", lambda: "changed")
    assert render(rows, **settings).origin.startswith("kept in the cache")
    assert len(entries(cache)) == 2


def test_a_tokenizer_is_known_by_its_rules_and_not_by_what_it_was_last_asked() -> None:
    one, other = tokenizer(), tokenizer()
    other("w3 w4 w5", truncation=True, max_length=2)
    assert fingerprint_of(one) == fingerprint_of(other)
    other.add_tokens(["new"])
    assert fingerprint_of(one) != fingerprint_of(other)


@pytest.mark.parametrize("damage", ["cut", "missing", "meta", "empty"])
def test_a_torn_entry_is_never_read_and_is_replaced(damage: str, cache: Path) -> None:
    good = content(render(records(20)))
    [entry] = entries(cache)
    tokens = entry / "tokens.npy"
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-8])
    elif damage == "missing":
        tokens.unlink()
    elif damage == "meta":
        (entry / "meta.json").write_text('{"sizes": {"tok', encoding="utf-8")
    else:
        shutil.rmtree(entry)
        entry.mkdir()
    again = render(records(20))
    assert again.origin.startswith("kept in the cache")
    assert content(again) == good
    assert render(records(20)).origin.startswith("read from the cache")


def test_nothing_is_pickled(cache: Path) -> None:
    render(records(20))
    [entry] = entries(cache)
    assert {path.suffix for path in entry.iterdir()} == {".npy", ".json"}
    for path in entry.glob("*.npy"):
        assert np.load(path, allow_pickle=False).dtype != object


def test_small_sets_and_a_cache_that_is_off_leave_no_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "LEAST_BYTES", 1 << 20)
    assert render(records(20)).origin == ""
    monkeypatch.setattr(token_cache, "LEAST_BYTES", 0)
    monkeypatch.setenv("LUTHIER_CACHE", "off")
    assert cache_folder() is None
    assert render(records(20)).origin == ""
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_lost(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.joinpath("file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LUTHIER_CACHE", str(cache.parent / "file"))
    found = render(records(20))
    assert found.origin.startswith("not kept in the cache")
    assert content(found) == content(Renderer(tokenizer()).render_all(records(20)))


def test_the_folder_is_the_one_named_then_that_of_the_desktop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LUTHIER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "luthier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "luthier"


_ONE_OF_TWO = """
import sys, time
from pathlib import Path
import numpy as np
from luthier.data import token_cache
from luthier.data.records import Text
from luthier.data.render import Rendered
from luthier.data.store import StoreBuilder

token_cache.LEAST_BYTES = 0
token_cache.fingerprint_of = lambda tokenizer: "the same"

def made(size):
    builder = StoreBuilder()
    for row in range(size):
        builder.add(np.arange(row + 2), np.ones(row + 2, np.float32), f"a:{row}")
    return Rendered(builder.build(), {"rows": size, "notes": []})

Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
for size in range(20, 80):
    rows = [Text(str(row), f"a:{row}") for row in range(size)]
    found = token_cache.rendered_once(rows, None, {}, lambda: made(size))
    assert "not kept" not in found.origin and "cache" in found.origin, found.origin
    assert [e.tokens.tolist() for e in found.store] == [e.tokens.tolist() for e in made(size).store]
"""


def test_two_processes_at_once_see_whole_entries_and_leave_one_of_each(cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    ready = [tmp_path / "one", tmp_path / "two"]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _ONE_OF_TWO, str(mine), str(other)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for mine, other in (ready, ready[::-1])
    ]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert len(entries(cache)) == 60
    assert not list((cache / "tokens").glob(".tmp-*"))


def test_a_run_has_the_same_losses_with_and_without_a_cache(
    cache: Path, tmp_path: Path, capsys: Capture, family_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, outcomes, said = family_folder("llama"), [], []  # type: ignore[operator]
    for name in ("made", "read", "without"):
        if name == "without":
            monkeypatch.setenv("LUTHIER_CACHE", "off")
        home = tmp_path / name
        home.mkdir()
        write_rows(home / "rows.jsonl", pairs(30))
        recipe = write_recipe(home, model, eval_fraction=0.2, max_steps=5, eval_steps=2)
        shown = luthier(capsys, "train", recipe)
        assert shown.code == 0, shown.err
        said.append(" ".join(shown.err.split()))
        rows = (home / "run" / "00-sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        outcomes.append([{k: v for k, v in json.loads(row).items() if k != "step_seconds"} for row in rows])
    assert "tokens kept in the cache" in said[0]
    assert "tokens read from the cache" in said[1]
    assert "cache" not in said[2]
    assert outcomes[0] == outcomes[1] == outcomes[2]
