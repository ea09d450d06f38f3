"""Checkpoints: whole or not at all, never the wrong one deleted, never put on another model."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from families import examples, write
from luthier.core.errors import RunError
from luthier.core.rundir import StageDir
from luthier.methods.base import Method
from luthier.methods.full import Full
from luthier.methods.layers import Layers
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.train.checkpoint import OPTIMIZER, STATE, load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from training import engine

ROWS = examples([9, 12, 5])


@pytest.fixture
def start(family_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    def build(method: Method | None = None, family: str = "llama") -> Engine:
        return engine(load_model(str(family_folder(family))), method or Lora(rank=2))

    return build


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    return StageDir(tmp_path / "00-sft")


def _everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_checkpoint_holds_the_methods_files_the_tokenizer_the_moments_and_done(
    start: Callable[..., Engine], stage: StageDir
) -> None:
    running = start()
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={"note": [1, "x"]}, keep=2)
    assert folder == stage.checkpoint(1)
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", OPTIMIZER, STATE, "tokenizer.json", "DONE"} <= names
    assert not any(n.endswith((".bin", ".pt", ".pth", ".pkl")) for n in names)
    assert json.loads((folder / STATE).read_text())["note"] == [1, "x"]
    assert load_checkpoint(start(), folder)["note"] == [1, "x"]
    assert _everything(stage.checkpoints)[0] == "step-000001"  # nothing half-written beside it


def test_a_finished_run_leaves_the_moments_out(start: Callable[..., Engine], stage: StageDir) -> None:
    running = start()
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={}, keep=2, resumable=False)
    assert not (folder / OPTIMIZER).exists()
    assert json.loads((folder / STATE).read_text())["resumable"] is False


def test_a_torn_checkpoint_is_ignored_and_written_anew(start: Callable[..., Engine], stage: StageDir) -> None:
    running = start()
    running.train_step(ROWS)
    whole = save_checkpoint(running, stage, extra={}, keep=5)
    for torn in (stage.checkpoint(2), stage.checkpoints / ".step-000003.tmp"):
        shutil.copytree(whole, torn)
    (stage.checkpoint(2) / "DONE").unlink()
    assert stage.complete_checkpoints() == [whole]
    running.train_step(ROWS)
    (stage.checkpoint(2) / "leftover.txt").write_text("from the torn one")
    second = save_checkpoint(running, stage, extra={}, keep=5)
    running.train_step(ROWS)
    third = save_checkpoint(running, stage, extra={}, keep=5)
    assert stage.complete_checkpoints() == [whole, second, third]
    assert not (second / "leftover.txt").exists()
    assert {p.name for p in stage.checkpoints.iterdir()} == {p.name for p in (whole, second, third)}


# ---------------------------------------------------------------------- a full disk


def _fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
RUST = safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        (safetensors.torch, "save_file", RUST),
        (Path, "write_text", FULL),
        (Path, "mkdir", FULL),
        (Path, "touch", FULL),
        (Path, "rename", FULL),
        (os, "fsync", FULL),
        (Lora, "save", FULL),
        (Lora, "save", Exception("No space left on device (os error 28)")),  # what the tokenizers library raises
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30],
)
def test_a_full_disk_is_the_users_message_and_leaves_nothing_behind(
    target: object,
    name: str,
    error: Exception,
    start: Callable[..., Engine],
    stage: StageDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start()
    running.train_step(ROWS)
    first = save_checkpoint(running, stage, extra={}, keep=1)
    before = _everything(stage.checkpoints)
    running.train_step(ROWS)
    with monkeypatch.context() as patched:
        patched.setattr(target, name, _fails(error))
        with pytest.raises(RunError, match=r"(?s)step-000002.*No space left.*MiB free.*free some space"):
            save_checkpoint(running, stage, extra={}, keep=1)
    assert _everything(stage.checkpoints) == before
    assert stage.complete_checkpoints() == [first]
    save_checkpoint(running, stage, extra={}, keep=1)  # with space again, the run goes on


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [10, 300, 1300, 2100, 20_000, 40_000])
def test_a_real_failure_at_any_file_is_the_users_message_too(
    size: int, start: Callable[..., Engine], stage: StageDir
) -> None:
    # Among the sizes are those at which adapter, tokenizer and moments are the first that do not fit.
    small = Lora(rank=1, targets="model.layers.0.self_attn.k_proj")
    running = start(small if size < 2200 else Lora(rank=8))
    running.train_step(ROWS)
    with _largest_file(size), pytest.raises(RunError, match=r"(?s)File too large.*ulimit -f"):
        save_checkpoint(running, stage, extra={}, keep=1)
    assert _everything(stage.checkpoints) == []


def test_an_error_that_is_no_failed_write_is_not_called_one(
    start: Callable[..., Engine], stage: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    monkeypatch.setattr(Lora, "save", _fails(KeyError("a mistake in the method")))
    with pytest.raises(KeyError, match="a mistake in the method"):
        save_checkpoint(running, stage, extra={}, keep=1)
    assert _everything(stage.checkpoints) == []


# ---------------------------------------------------------------------- which ones stay


def _steps(stage: StageDir) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in stage.complete_checkpoints()]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay_and_the_best_is_never_deleted(
    keep: int, start: Callable[..., Engine], stage: StageDir
) -> None:
    running = start()
    for step in range(1, 8):
        running.train_step(ROWS)
        save_checkpoint(running, stage, extra={"best_step": min(step, 2)}, keep=keep)
        newest = set(range(max(1, step - keep + 1), step + 1))
        assert set(_steps(stage)) == newest | {min(step, 2)}
    assert _steps(stage) == sorted(_steps(stage))
    assert {p.name for p in stage.checkpoints.iterdir()} == {f"step-{s:06d}" for s in _steps(stage)}


def test_without_a_best_step_only_the_newest_stay(start: Callable[..., Engine], stage: StageDir) -> None:
    running = start()
    for _ in range(4):
        running.train_step(ROWS)
        save_checkpoint(running, stage, extra={}, keep=2)
    assert _steps(stage) == [3, 4]


def test_a_step_saved_twice_is_there_once_and_whole(start: Callable[..., Engine], stage: StageDir) -> None:
    running = start()
    running.train_step(ROWS)
    for mark in ("first", "second"):
        folder = save_checkpoint(running, stage, extra={"mark": mark}, keep=2)
    assert _steps(stage) == [1]
    assert load_checkpoint(start(), folder)["mark"] == "second"


# ---------------------------------------------------------------------- where it opens


@pytest.mark.parametrize("method", [Full(), Lora(rank=2), Layers(last=1)], ids=lambda m: m.kind)
def test_a_checkpoint_of_another_base_is_refused_and_nothing_is_changed(
    method: Method, start: Callable[..., Engine], stage: StageDir, tmp_path: Path
) -> None:
    running = start(method)
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={}, keep=1)
    other = engine(load_model(str(write("llama", tmp_path / "other", seed=1))), method)
    before = [p.detach().clone() for p in other.model.module.parameters()]
    with pytest.raises(RunError, match=r"(?s)not those the run was started with.*original model back"):
        load_checkpoint(other, folder)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.module.parameters()))
    assert other.step == 0


def test_a_checkpoint_of_another_method_is_refused(start: Callable[..., Engine], stage: StageDir) -> None:
    running = start(Lora(rank=2))
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={}, keep=1)
    for method, reason in (
        (Lora(rank=3), "other shape"),
        (Lora(rank=2, targets="q"), "unexpected"),
        (Full(), "no model.safetensors"),
        (Layers(last=1), "no trained.safetensors"),
    ):
        with pytest.raises(RunError, match=reason):
            load_checkpoint(start(method), folder)


@pytest.mark.parametrize("method", [Full(), Lora(rank=2), Layers(last=1)], ids=lambda m: m.kind)
def test_a_damaged_file_is_named(method: Method, start: Callable[..., Engine], stage: StageDir) -> None:
    running = start(method)
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={}, keep=1)
    (file,) = [p for p in folder.glob("*.safetensors") if p.name != OPTIMIZER]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"damaged|cannot be read") as caught:
        load_checkpoint(start(method), folder)
    assert str(folder) in str(caught.value)
    assert "use another copy" in str(caught.value)


@pytest.mark.parametrize("method", [Full(), Lora(rank=2), Layers(last=1)], ids=lambda m: m.kind)
def test_a_file_that_lacks_a_tensor_is_refused(method: Method, start: Callable[..., Engine], stage: StageDir) -> None:
    running = start(method)
    running.train_step(ROWS)
    folder = save_checkpoint(running, stage, extra={}, keep=1)
    (file,) = [p for p in folder.glob("*.safetensors") if p.name != OPTIMIZER]
    tensors = safetensors.torch.load_file(file)
    name = next(n for n in sorted(tensors) if "layers.1" in n)
    del tensors[name]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=rf"missing: .*{name.split('layers.1')[1][:12]}"):
        load_checkpoint(start(method), folder)
