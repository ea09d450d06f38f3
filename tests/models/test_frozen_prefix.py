"""Frozen blocks below everything trained run once for each row, and nothing that is trained can tell."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import FAMILIES, examples, write
from luthier.core.rundir import StageDir
from luthier.methods.base import Method, trainable
from luthier.methods.bitfit import BitFit
from luthier.methods.full import Full
from luthier.methods.hybrid import Hybrid
from luthier.methods.layers import Layers
from luthier.methods.lora import Lora
from luthier.models.frozen_prefix import digests
from luthier.models.hidden_store import INDEX, ROWS, HiddenStore
from luthier.models.layers import block_modules
from luthier.models.load import load_model
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine
from luthier.train.frozen_cache import drop_frozen_states, keep_frozen_states
from luthier.train.microbatch import Cut
from recipes import luthier, write_recipe
from training import engine

DATA = examples([9, 14, 5, 20, 7, 11, 16, 4], seed=1)
TOP = Layers(last=1)


def order(epoch: int) -> list[int]:
    return torch.randperm(len(DATA), generator=torch.Generator().manual_seed(epoch)).tolist()


def losses(running: Engine, steps: range) -> list[float]:
    """Train step by step through shuffled epochs of four steps each."""
    found = []
    for step in steps:
        rows = order(step // 4)[2 * (step % 4) : 2 * (step % 4) + 2]
        found.append(running.train_step([DATA[row] for row in rows])["loss"])
    return found


def calls(running: Engine, index: int = 0) -> list[int]:
    """Return a list that grows by one each time that the inside of a block runs."""
    made: list[int] = []
    inner = next(m for n, m in block_modules(running.model.module)[index].named_modules() if "mlp" in n)
    own = inner.forward

    def counted(*args: object, **kwargs: object) -> object:
        made.append(1)
        return own(*args, **kwargs)

    inner.forward = counted  # type: ignore[method-assign]
    return made


def begin(folder: Path, method: Method = TOP, **settings: object) -> Engine:
    # A large eps: some gradients are zero but for rounding (of keys' biases), and AdamW would blow these up.
    settings = {"eps": 1e-4, **settings}
    return engine(load_model(str(folder)), method, total_steps=12, steps_per_epoch=4, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gpt2-dropout"])
def test_losses_and_weights_are_those_of_a_run_without(
    name: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, kept = begin(family_folder(name)), begin(family_folder(name))
    said = keep_frozen_states(kept, tmp_path / "states", [DATA])
    assert "1 of 2 blocks run once for each row" in said
    torch.testing.assert_close(losses(kept, range(12)), losses(plain, range(12)), rtol=1e-5, atol=1e-5)
    for parameter, other in zip(kept.model.module.parameters(), plain.model.module.parameters()):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


def test_the_first_epoch_computes_and_the_others_do_not(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    running = begin(family_folder("llama"))
    keep_frozen_states(running, tmp_path / "states", [DATA])
    below, above = calls(running, 0), calls(running, 1)
    losses(running, range(4))
    assert len(below) == len(above) == 4
    losses(running, range(4, 12))
    assert (len(below), len(above)) == (4, 12)
    assert (tmp_path / "states" / ROWS).stat().st_size == sum(map(len, DATA)) * 32 * 4
    running.evaluate(DATA)
    assert len(below) == 4
    assert drop_frozen_states(running) == ""
    assert not (tmp_path / "states").exists()
    running.evaluate(DATA)
    assert len(below) > 4


def test_a_resumed_run_sees_the_same_bits(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    whole = begin(family_folder("llama"))
    keep_frozen_states(whole, tmp_path / "whole", [DATA])
    expected = losses(whole, range(12))
    first = begin(family_folder("llama"))
    keep_frozen_states(first, tmp_path / "states", [DATA])
    losses(first, range(3))
    saved = save_checkpoint(first, StageDir(tmp_path / "00-sft"), extra={}, keep=1)
    losses(first, range(3, 6))  # killed here, with states of rows that the resumed run has not seen yet
    second = begin(family_folder("llama"))
    load_checkpoint(second, saved)
    keep_frozen_states(second, tmp_path / "states", [DATA])
    assert losses(second, range(3, 12)) == expected[3:]
    for name, parameter in trainable(second.model.module).items():
        assert torch.equal(parameter, trainable(whole.model.module)[name])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cut", [Cut(), Cut(1, None)], ids=["whole", "single"])
def test_it_goes_with_checkpointing_and_any_cut(
    checkpointing: bool, cut: Cut, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = begin(family_folder("llama"))
    kept = begin(family_folder("llama"), gradient_checkpointing=checkpointing, cut=cut)
    keep_frozen_states(kept, tmp_path / "states", [DATA])
    below = calls(kept)
    torch.testing.assert_close(losses(kept, range(12)), losses(plain, range(12)), rtol=1e-5, atol=1e-5)
    assert len(below) == (4 if cut.sequences is None else 8)


def test_padded_batches_are_served_like_packed_ones(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    plain, kept = begin(family_folder("llama")), begin(family_folder("llama"))
    plain.model.packs = kept.model.packs = False
    keep_frozen_states(kept, tmp_path / "states", [DATA])
    below = calls(kept)
    torch.testing.assert_close(losses(kept, range(12)), losses(plain, range(12)), rtol=1e-5, atol=1e-5)
    assert len(below) == 4


@pytest.mark.parametrize(
    ("method", "depth"),
    [
        (Layers(head=True), 2),
        (Lora(rank=2, targets=("*.1.*",)), 1),
        (Lora(rank=2, targets=("*.1.*",), dropout=0.5), 1),
        (Hybrid(parts=(Layers(patterns=("model.layers.1.mlp",)), BitFit(norms=True, exclude=("model.layers.0",)))), 1),
        (Lora(rank=2), 0),
        (Full(), 0),
        (Layers(embeddings=True), 0),
        (Layers(last=1, norms=True), 0),
    ],
    ids=["head", "lora", "lora with dropout", "hybrid", "lora everywhere", "full", "embeddings", "norms"],
)
def test_the_depth_follows_from_what_is_trained(
    method: Method, depth: int, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, kept = begin(family_folder("llama"), method), begin(family_folder("llama"), method)
    said = keep_frozen_states(kept, tmp_path / "states", [DATA])
    assert (len(kept.model.prefix.blocks) if kept.model.prefix else 0) == depth
    assert bool(said) == bool(depth)
    torch.testing.assert_close(losses(kept, range(8)), losses(plain, range(8)), rtol=1e-5, atol=1e-5)


def test_frozen_blocks_that_draw_random_numbers_run_every_time(tmp_path: Path) -> None:
    folder = write("gpt2-dropout", tmp_path / "model")
    running = begin(folder)
    said = keep_frozen_states(running, tmp_path / "states", [DATA])
    assert "run in every epoch: they draw random numbers" in said
    assert running.model.prefix is None


def test_a_block_that_is_frozen_for_now_and_trained_later_does_not_count(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    running = begin(family_folder("llama"), Layers(first=2))
    for parameter in block_modules(running.model.module)[0].parameters():
        parameter.requires_grad_(False)  # as a method may do between steps
    assert keep_frozen_states(running, tmp_path / "states", [DATA]) == ""
    assert not any(p.requires_grad for p in block_modules(running.model.module)[0].parameters())


def test_a_hook_that_reads_a_frozen_block_keeps_it_running(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    running = begin(family_folder("llama"))
    block_modules(running.model.module)[0].register_forward_hook(lambda *_: None)
    assert keep_frozen_states(running, tmp_path / "states", [DATA]) == ""


def test_other_passes_through_the_model_are_untouched(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    running = begin(family_folder("llama"))
    tokens = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    before = running.model.module(input_ids=tokens).logits
    keep_frozen_states(running, tmp_path / "states", [DATA])
    running.evaluate(DATA)
    assert torch.equal(running.model.module(input_ids=tokens).logits, before)
    assert not any("forward" in vars(block) for block in block_modules(running.model.module)[:-1])


def test_too_little_room_on_the_disk_is_said_and_nothing_is_kept(
    family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.train.frozen_cache.SHARE_OF_DISK", 1e-12)
    running = begin(family_folder("llama"))
    said = keep_frozen_states(running, tmp_path / "states", [DATA])
    assert "keeping what they give takes 11 KiB" in said
    assert running.model.prefix is None
    assert not (tmp_path / "states").exists()


# ---------------------------------------------------------------------- the store


def store(folder: Path, limit: int = 10**6, identity: str = "a") -> HiddenStore:
    return HiddenStore(folder, 4, torch.float32, identity, limit)


def states(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, 4, generator=torch.Generator().manual_seed(seed))


def read(kept: HiddenStore, key: str, length: int) -> Tensor | None:
    into = torch.empty(length, kept.width, dtype=kept.dtype)
    return into if kept.read(key, into) else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_is_read_bit_by_bit_also_after_opening_again(dtype: torch.dtype, tmp_path: Path) -> None:
    kept = HiddenStore(tmp_path, 4, dtype, "a", 10**6)
    for key, length in (("x", 3), ("y", 5)):
        kept.write(key, states(length).to(dtype))
    kept.write("x", states(3, seed=9).to(dtype))  # the first states stay
    kept.close()
    again = HiddenStore(tmp_path, 4, dtype, "a", 10**6)
    for key, length in (("x", 3), ("y", 5)):
        found = read(again, key, length)
        assert found is not None
        assert torch.equal(found, states(length).to(dtype))
    assert read(again, "z", 3) is None
    again.write("z", states(2).to(dtype))
    assert again.end == 10 * 4 * dtype.itemsize


def test_half_written_and_damaged_states_are_not_taken(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for key in "abc":
        kept.write(key, states(3))
    kept.close()
    index = tmp_path / INDEX
    index.write_text(index.read_text()[:-9])  # the process died while writing the last line
    with (tmp_path / ROWS).open("r+b") as file:
        file.seek(50)
        file.write(b"\xff")  # inside the second
    again = store(tmp_path)
    assert [read(again, key, 3) is not None for key in "abc"] == [True, False, False]
    again.write("c", states(3))
    again.close()
    third = store(tmp_path)
    assert [read(third, key, 3) is not None for key in "abc"] == [True, False, True]
    assert all(json.loads(line) for line in index.read_text().splitlines())


def test_states_of_another_model_are_thrown_away(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.write("a", states(3))
    kept.close()
    assert read(store(tmp_path, identity="b"), "a", 3) is None
    assert (tmp_path / ROWS).stat().st_size == 0


def test_beyond_its_limit_and_on_a_full_disk_it_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(tmp_path, limit=100)
    kept.write("a", states(4))
    kept.write("b", states(4))
    assert ("a" in kept, "b" in kept, kept.fault) == (True, False, "")
    kept.limit_bytes = 10**6

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    kept.write("b", states(4))
    assert ("a" in kept, "b" in kept) == (True, False)
    assert "space" in kept.fault


def test_sequences_are_told_apart_by_their_tokens_however_they_are_batched(
    family_folder: Callable[[str], Path],
) -> None:
    model = load_model(str(family_folder("llama")))
    rows = [*DATA[:3], DATA[0]]
    packed = digests(model.collate(rows))
    model.packs = False
    assert digests(model.collate(rows)) == packed
    assert packed[0] == packed[3]
    assert len(set(packed)) == 3


# ---------------------------------------------------------------------- a run


def test_a_run_says_what_it_keeps_and_leaves_nothing_behind(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for cached in (True, False):
        keys = {"method": {"kind": "layers", "last": 1}, "epochs": 2, "max_steps": None, "eval_fraction": 0.2}
        recipe = write_recipe(tmp_path / str(cached), family_folder("llama"), cache_frozen=cached, **keys)
        said = luthier(capsys, "train", recipe, "--json")
        assert said.code == 0, said.err
        assert ("run once for each row" in said.err) == cached
        found[cached] = [
            json.loads(line)["loss"]
            for line in (tmp_path / str(cached) / "run" / "00-sft" / "metrics.jsonl").read_text().splitlines()
        ]
        assert not (tmp_path / str(cached) / "run" / "00-sft" / "frozen_states").exists()
    assert found[True] == pytest.approx(found[False], rel=1e-5)
