"""Whatever is wrong with the input: exit code 2, one message for each problem with its place and remedy, no traceback,
and nothing left behind that a later run would take for good.

Every table's row is a name, what is wrong, and a part of each message that must be said, in order.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes import Said, luthier, pairs, write_rows

Capture = pytest.CaptureFixture[str]
Told = str | Sequence[str]
Spoil = Callable[[Path], object]


@pytest.fixture
def home(tmp_path: Path, family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, data and a model that are right; the working directory."""
    shutil.copytree(family_folder("llama"), tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", pairs(12))
    (tmp_path / "r.yaml").write_text(recipe())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(**changes: object) -> str:
    """Return a good recipe with some lines changed, or left out where the value is None."""
    lines = {"model": "model", "method": "lora", "data": "rows.jsonl", "max_steps": 2, "batch_size": 4, "run": "out"}
    return "".join(f"{key}: {value}\n" for key, value in {**lines, **changes}.items() if value is not None)


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def refuse(said: Said, told: Told) -> None:
    """Require one message for each part of `told`, with a place and a remedy, and nothing else."""
    parts = [told] if isinstance(told, str) else list(told)
    assert said.code == 2, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "Warning:" not in said.err
    assert len(said.problems) == len(parts), said.err
    for problem, part in zip(said.problems, parts):
        assert part in problem
        assert "→" in problem, f"no remedy: {problem}"
        assert ": " in problem.partition("→")[0], f"no place: {problem}"


def refuse_to_train(home: Path, told: Told, capsys: Capture, *overrides: str) -> None:
    """Require that training is refused with these messages and leaves every file as it was."""
    before = tree(home)
    refuse(luthier(capsys, "train", "r.yaml", *overrides), told)
    assert tree(home) == before


# ---------------------------------------------------------------------- the recipe

RECIPES: list[tuple[str, str | bytes | None, Told]] = [
    ("missing", None, "There is no such file"),
    ("empty", "", "The recipe is empty"),
    ("comments alone", "# nothing\n", "The recipe is empty"),
    ("list", "- model\n- data\n", "a list"),
    ("broken", "model: [starter\n", "r.yaml:"),
    ("tab", "model: model\nmethod:\n\tkind: lora\n", "indented with a tab"),
    ("no blank", "model:starter\n", "no space after the colon"),
    ("binary", b"model: \0\0\0\xff", "binary"),
    ("UTF-16", recipe().encode("utf-16"), "UTF-16"),
    ("latin-1", recipe(run="caf\xe9").encode("latin-1"), "not encoded as UTF-8"),
    ("twice", recipe() + "model: starter\n", "given twice"),
    ("unknown key", recipe(epoks=3), 'Did you mean "epochs"'),
    ("name of another tool", recipe(per_device_train_batch_size=2), "per_device_train_batch_size"),
    ("no data", recipe(data=None), 'The key "data" is missing'),
    ("no model", recipe(model=None), 'The key "model" is missing'),
    ("unknown method", recipe(method="lorra"), 'Did you mean "lora"'),
    ("unknown field of a method", recipe(method="{kind: lora, rang: 4}"), 'Did you mean "rank"'),
    ("word for a number", recipe(batch_size="many"), "batch_size"),
    ("true for a number", recipe(batch_size="true"), "batch_size"),
    ("zero", recipe(batch_size=0), "batch_size is 0"),
    ("negative rate", recipe(learning_rate=-1e-4), "learning_rate"),
    ("infinite rate", recipe(learning_rate=".inf"), "finite"),
    ("no number", recipe(learning_rate=".nan"), "finite"),
    ("all held out", recipe(eval_fraction=1), "eval_fraction"),
    ("no effect", recipe(early_stopping=2), "early_stopping has no effect"),
    ("twice the same", recipe(epochs=3), "epochs has no effect"),
    ("larger than the step", recipe(micro_batch_size=9), "micro_batch_size is 9"),
    ("longer than the model", recipe(max_length=97), "built for 96"),
    ("no biases", recipe(method="bitfit"), "no biases"),
    ("too many blocks", recipe(method="{kind: layers, last: 9}"), "2 blocks"),
    ("unknown matrices", recipe(method="{kind: lora, targets: nowhere}"), "r.yaml:2"),
    ("unknown template", recipe(model="{path: model, chat_template: chatmal}"), 'Did you mean "chatml"'),
    ("tracker that is not there", recipe(log_to="wandb"), 'pip install "luthier[wandb]"'),
    ("too large", "# " + "x" * (1 << 20), "larger than 1 MiB"),
    ("several at once", recipe(epoks=3, batch_size=0, data="none.jsonl"), ["batch_size", "epoks", "none.jsonl"]),
]


@pytest.mark.parametrize(("content", "told"), [row[1:] for row in RECIPES], ids=[row[0] for row in RECIPES])
def test_a_wrong_recipe_is_refused(
    content: str | bytes | None, told: Told, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    monkeypatch.setattr("luthier.train.hooks.trackers.find_spec", lambda name: None)
    (home / "r.yaml").unlink()
    if content is not None:
        (home / "r.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    refuse_to_train(home, told, capsys)


# ---------------------------------------------------------------------- the data


def parquet(rows: list[dict[str, str]]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


GOOD = b'{"prompt": "w4 w5", "completion": "w6"}\n'
LONG = json.dumps({"prompt": "w4 " * 200, "completion": "w6"}).encode() + b"\n"
BROKEN = b'{"prompt": }\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
DATA: list[tuple[str, str, bytes | None, Told]] = [
    ("missing", "rows.jsonl", None, "There is no such file"),
    ("empty", "rows.jsonl", b"", "file is empty"),
    ("blank lines", "rows.jsonl", b"\n \n", "file is empty"),
    ("BOM alone", "rows.jsonl", b"\xef\xbb\xbf", "There are no rows"),
    ("UTF-16", "rows.jsonl", GOOD.decode().encode("utf-16"), "UTF-16"),
    ("latin-1", "rows.jsonl", GOOD + b'{"prompt": "caf\xe9", "completion": "w6"}\n', "rows.jsonl:2"),
    ("NUL bytes", "rows.jsonl", GOOD + b"\0" * 40 + b"\n", "rows.jsonl:2"),
    ("broken line", "rows.jsonl", GOOD + b'{"prompt": "w4", \n' + GOOD, "rows.jsonl:2"),
    ("two broken lines", "rows.jsonl", BROKEN + GOOD + BROKEN, ["rows.jsonl:1", "rows.jsonl:3"]),
    ("a list in a line", "rows.jsonl", GOOD + b"[1, 2]\n", "rows.jsonl:2"),
    ("wrong columns", "rows.jsonl", b'{"a": "w4", "b": "w5"}\n', "columns"),
    ("a row without its answer", "rows.jsonl", GOOD + b'{"prompt": "w4"}\n', "rows.jsonl:2"),
    ("a number for an answer", "rows.jsonl", GOOD + b'{"prompt": "w4", "completion": {"a": 1}}\n', "rows.jsonl:2"),
    ("empty answers", "rows.jsonl", b'{"prompt": "w4", "completion": ""}\n', "rows.jsonl:1"),
    ("ends with a question", "rows.jsonl", b'{"messages": [{"role": "user", "content": "w4"}]}\n', "rows.jsonl:1"),
    (
        "no template",
        "rows.jsonl",
        b'{"messages": [{"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5"}]}\n',
        "chatml",
    ),
    ("plain text under sft", "rows.jsonl", b'{"text": "w4 w5 w6"}\n', "objective=lm"),
    ("one overlong row", "rows.jsonl", GOOD + LONG, "→ on_overlong=drop leaves out 1"),
    (
        "a huge line",
        "rows.jsonl",
        GOOD + b'{"prompt": "' + b"w4 " * 400_000 + b'", "completion": "w6"}\n',
        "rows.jsonl:2",
    ),
    ("pointer", "rows.jsonl", POINTER, "git lfs pull"),
    ("weights", "rows.jsonl", b"\x80\x02}q\x00(X\x05\x00\x00\x00", "rows.jsonl"),
    ("CSV without an end of quote", "rows.csv", b'prompt,completion\n"w4,w5\n', "rows.csv"),
    ("CSV with too many fields", "rows.csv", b"prompt,completion\nw4,w5,w6\n", "rows.csv:2"),
    ("JSON that ends too soon", "rows.json", b'[{"prompt": "w4", "completion": "w5"}, ', "rows.json"),
    ("Parquet that ends too soon", "rows.parquet", parquet(pairs(9))[:-20], "rows.parquet"),
    ("no Parquet", "rows.parquet", GOOD, "not a Parquet file"),
    ("gzip that ends too soon", "rows.jsonl.gz", gzip.compress(GOOD * 999)[:-9], "rows.jsonl.gz"),
    ("no gzip", "rows.jsonl.gz", b"\x1f\x8b garbage", "rows.jsonl.gz"),
    ("unknown kind", "rows.pdf", b"%PDF-1.4", "rows.pdf"),
    ("empty folder", "rows/.keep", b"", "holds no data files"),
]


@pytest.mark.parametrize(("name", "content", "told"), [row[1:] for row in DATA], ids=[row[0] for row in DATA])
def test_wrong_data_are_refused(name: str, content: bytes | None, told: Told, home: Path, capsys: Capture):
    (home / "rows.jsonl").unlink()
    if content is not None:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(content)
    refuse_to_train(home, told, capsys, f"data={name.partition('/')[0]}")


OPTIONS: list[tuple[str, bytes, list[str], Told]] = [
    ("all overlong, dropped", LONG * 3, ["on_overlong=drop"], "No row is left"),
    ("nothing trained in what is kept", LONG * 3, ["on_overlong=truncate"], "rows.jsonl:1"),
    ("a single row to split", GOOD, ["eval_fraction=0.5"], "single row"),
    ("unknown format", GOOD, ["data.format=alpacca"], 'Did you mean "alpaca"'),
    ("columns that are not there", GOOD, ["data={path: rows.jsonl, columns: {prompt: frage}}"], "frage"),
    ("split of a plain file", GOOD, ["data.split=train"], "data.split=train"),
    ("starter data that are not there", GOOD, ["data=starter:quikstart"], "data=starter:quikstart"),
    ("pattern without a match", GOOD, ["data=*.csv"], "No file matches"),
    ("wrong data to measure on", GOOD, ["eval_data=none.jsonl"], "none.jsonl"),
    ("wrong data of a task", GOOD, ["evaluate=[{name: a, data: none.jsonl, metric: loss}]"], "none.jsonl"),
    (
        "all weights zero",
        b'{"messages": [{"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5", "weight": 0}]}\n',
        ["model.chat_template=plain"],
        "Not one token is trained on",
    ),
]


@pytest.mark.parametrize(
    ("content", "overrides", "told"), [row[1:] for row in OPTIONS], ids=[row[0] for row in OPTIONS]
)
def test_data_that_an_option_makes_wrong_are_refused(
    content: bytes, overrides: list[str], told: Told, home: Path, capsys: Capture
):
    (home / "rows.jsonl").write_bytes(content)
    refuse_to_train(home, told, capsys, *overrides)


def test_a_byte_order_mark_alone_is_no_reason_to_refuse(home: Path, capsys: Capture):
    (home / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD * 8)
    said = luthier(capsys, "train", "r.yaml")
    assert said.code == 0, said.err
    assert "byte-order mark" in said.err


# ---------------------------------------------------------------------- the model's folder


def write(name: str, content: bytes) -> Spoil:
    return lambda model: (model / name).write_bytes(content)


def remove(name: str) -> Spoil:
    return lambda model: (model / name).unlink()


def cut(name: str, size: int) -> Spoil:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def config(**changes: object) -> Spoil:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def rewrite(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def larger_tokenizer(model: Path) -> None:
    import families

    families.tokenizer(families.VOCABULARY + 9).save_pretrained(model)


def only_a_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


NORM = "model.norm.weight"
MODELS: list[tuple[str, Spoil, Told]] = [
    ("missing", shutil.rmtree, "not on this machine"),
    ("a file", lambda model: (shutil.rmtree(model), model.write_text("x")), "a model is a folder"),
    ("no config", remove("config.json"), "no config.json"),
    ("broken config", write("config.json", b"{"), "cannot be read"),
    ("config of nothing", write("config.json", b"{}"), "model_type"),
    (
        "unknown architecture",
        config(model_type="nonesuch", architectures=["NonesuchForCausalLM"]),
        "update transformers",
    ),
    ("no language model", config(model_type="vit", architectures=["ViTModel"]), "causal language model"),
    ("impossible sizes", config(num_attention_heads=0), "cannot be loaded"),
    ("no weights", remove("model.safetensors"), "from_scratch=true"),
    ("weights cut off", cut("model.safetensors", -100), "cut off"),
    ("empty weights", write("model.safetensors", b""), "no complete safetensors"),
    ("pointer for weights", write("model.safetensors", POINTER), "git lfs pull"),
    ("NaN", weights(lambda t: t[NORM].fill_(float("nan"))), "NaN or infinite numbers: model.norm.weight"),
    ("infinity", weights(lambda t: t[NORM][:1].fill_(float("inf"))), "NaN or infinite"),
    ("missing tensor", weights(lambda t: t.pop(NORM)), "missing: model.norm.weight"),
    ("tensor too many", weights(lambda t: t.update(more=torch.zeros(2))), "more"),
    ("wrong shape", weights(lambda t: t.update({NORM: torch.ones(7)})), NORM),
    ("other sizes in config", config(hidden_size=64), "shape"),
    ("only a pickle", only_a_pickle, "is a pickle"),
    ("adapter", adapter, "this is an adapter"),
    ("no tokenizer", remove("tokenizer.json"), "no tokenizer"),
    ("broken tokenizer", write("tokenizer.json", b"{"), "tokenizer cannot be loaded"),
    ("tokenizer of nothing", write("tokenizer.json", b"{}"), "tokenizer cannot be loaded"),
    ("tokenizer too large", larger_tokenizer, "only 64 rows"),
    ("broken template", write("chat_template.jinja", b"{% for %}"), "no valid Jinja"),
    (
        "two faults",
        lambda model: (remove("tokenizer.json")(model), cut("model.safetensors", -9)(model)),
        ["tokenizer", "cut off"],
    ),
]


@pytest.mark.parametrize(("spoil", "told"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_a_wrong_model_is_refused(spoil: Spoil, told: Told, home: Path, capsys: Capture):
    spoil(home / "model")
    refuse_to_train(home, told, capsys)


def test_all_that_is_wrong_is_told_at_once(home: Path, capsys: Capture):
    (home / "rows.jsonl").write_bytes(BROKEN)
    (home / "model" / "tokenizer.json").unlink()
    (home / "out").mkdir()
    (home / "out" / "mine.txt").write_text("mine")
    (home / "r.yaml").write_text(recipe(epoks=3))
    refuse_to_train(home, ["epoks", "tokenizer", "rows.jsonl:1"], capsys)
    assert luthier(capsys, "check", "r.yaml").err == luthier(capsys, "train", "r.yaml").err
    (home / "r.yaml").write_text(recipe())
    refuse_to_train(home, ["not empty", "tokenizer", "rows.jsonl:1"], capsys)


# ---------------------------------------------------------------------- the run folder and the disk


def folder_with(name: str) -> Spoil:
    return lambda home: ((home / "out").mkdir(), (home / "out" / name).write_text("{}"))


FOLDERS: list[tuple[str, Spoil, list[str], Told]] = [
    ("a file", lambda home: (home / "out").write_text("mine"), [], "is a file"),
    ("in a file", lambda home: (home / "f").write_text("mine"), ["run=f/out"], "f/out"),
    ("not empty", folder_with("mine.txt"), [], "not empty"),
    ("a run", folder_with("resolved.json"), [], "luthier resume out"),
    ("name too long", lambda home: None, [f"run={'x' * 300}"], "name too long"),
    ("a NUL", lambda home: None, ["run=a\0b"], "control character"),
    ("below a system folder", lambda home: None, ["run=/proc/out"], "/proc/out"),
]


@pytest.mark.parametrize(("spoil", "overrides", "told"), [row[1:] for row in FOLDERS], ids=[row[0] for row in FOLDERS])
def test_a_wrong_run_folder_is_refused(spoil: Spoil, overrides: list[str], told: Told, home: Path, capsys: Capture):
    spoil(home)
    refuse_to_train(home, told, capsys, *overrides)


@pytest.fixture
def small_disk(home: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that gives a file system of its own, of a size and with options such as `ro`."""
    mounted = []

    def mount(options: str) -> Path:
        folder = home / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


# From too small for the first file to too small for the last: each size fills up somewhere else.
SIZES = ["size=4k", "size=16k", "size=48k", "size=100k", "size=200k", "size=300k"]


@pytest.mark.parametrize("options", SIZES)
def test_a_full_disk_is_told_and_leaves_nothing_or_a_run_that_goes_on(
    options: str, small_disk: Callable[[str], Path], home: Path, capsys: Capture
):
    disk = small_disk(options)
    said = luthier(capsys, "train", "r.yaml", f"run={disk / 'out'}", "max_steps=6", "save_steps=1")
    refuse(said, "No space left on device")
    assert "free some space" in said.err
    if not (disk / "out").exists():
        return
    assert f"luthier resume {disk / 'out'}" in said.err
    assert not list(disk.glob("out/00-sft/checkpoints/.*"))
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    said = luthier(capsys, "resume", disk / "out", "--json")
    assert said.code == 0, said.err
    assert said.json["steps"] == 6


def test_a_disk_that_cannot_be_written_is_told(small_disk: Callable[[str], Path], home: Path, capsys: Capture):
    disk = small_disk("ro")
    refuse(luthier(capsys, "train", "r.yaml", f"run={disk / 'out'}"), "Read-only file system")


PLACES = [
    ("luthier.run.launch.write_yaml", "first file"),
    ("luthier.run.stage.render_stage", "preview"),
    ("luthier.run.training_loop.save_checkpoint", "checkpoint"),
    ("luthier.run.stage.audit", "after the last step"),
    ("luthier.run.launch.write_report", "report"),
]


@pytest.mark.parametrize("place", [name for name, _ in PLACES], ids=[where for _, where in PLACES])
def test_wherever_the_disk_is_full_it_is_told(place: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/file")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        refuse(luthier(capsys, "train", "r.yaml"), "No space left on device")
    if (home / "out").exists():
        luthier(capsys, "resume", "out")
        assert json.loads((home / "out" / "report.json").read_text())["status"] == "finished"


def test_an_export_to_a_full_disk_leaves_nothing(small_disk: Callable[[str], Path], home: Path, capsys: Capture):
    assert luthier(capsys, "train", "r.yaml").code == 0
    disk = small_disk("size=48k")
    refuse(luthier(capsys, "export", "out", disk / "merged"), "No space left on device")
    assert not list(disk.iterdir())


# ---------------------------------------------------------------------- the real program

PROGRAM: list[tuple[str, Spoil, list[str], str]] = [
    ("recipe", lambda home: (home / "r.yaml").write_text("model: [\n"), ["train", "r.yaml"], "r.yaml:"),
    ("data", lambda home: (home / "rows.jsonl").write_bytes(BROKEN), ["train", "r.yaml"], "rows.jsonl:1"),
    ("weights", lambda home: cut("model.safetensors", -9)(home / "model"), ["train", "r.yaml"], "cut off"),
    ("NaN", lambda home: MODELS[12][1](home / "model"), ["train", "r.yaml"], "NaN or infinite"),
    ("run folder", lambda home: (home / "out").write_text("mine"), ["train", "r.yaml"], "is a file"),
    ("no run", lambda home: None, ["resume", "nowhere"], "holds no run"),
]


@pytest.mark.parametrize(("spoil", "argv", "told"), [row[1:] for row in PROGRAM], ids=[row[0] for row in PROGRAM])
def test_the_program_refuses_as_it_does_in_this_process(spoil: Spoil, argv: list[str], told: str, home: Path):
    spoil(home)
    before = tree(home)
    done = subprocess.run([sys.executable, "-m", "luthier", *argv], capture_output=True, text=True, timeout=120)
    refuse(Said(done.returncode, done.stdout, done.stderr), told)
    assert tree(home) == before


def test_what_is_wrong_is_found_without_torch(home: Path):
    cut("model.safetensors", -9)(home / "model")
    code = (
        "import sys\nfrom luthier.cli.main import main\ntry:\n    main(['train', 'r.yaml'])\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2 []", done.stderr
