"""Optimizers with a smaller state: close to AdamW, a quarter of its memory, resumed bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from families import examples
from luthier.core.component import StageFacts
from luthier.core.errors import MissingExtra, RecipeError
from luthier.core.rundir import StageDir
from luthier.methods.full import Full
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.optim.adamw import AdamW
from luthier.optim.adamw_8bit import AdamW8bit, PagedAdamW, PagedAdamW8bit
from luthier.optim.base import Optimizer
from luthier.optim.schedules import Cosine
from luthier.run.config import parse_recipe
from luthier.train.checkpoint import load_checkpoint, save_checkpoint
from luthier.train.engine import Engine, Settings
from recipes import luthier, write_recipe

pytest.importorskip("bitsandbytes")
ROWS = [examples([9, 14, 5, 20], seed=step, share=1.0) for step in range(8)]


@pytest.fixture
def start(family_folder: Callable[[str], Path]) -> Callable[[Optimizer], Engine]:
    def build(optimizer: Optimizer) -> Engine:
        model = load_model(str(family_folder("llama")))
        Full().prepare(model.module)
        settings = Settings(total_steps=8, learning_rate=1e-2, weight_decay=0.1)
        return Engine(model, Full(), Sft(), optimizer, Cosine(), settings)

    return build


def _wide() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)))


def test_its_updates_are_those_of_adamw_up_to_eight_bits() -> None:
    one, other = _wide(), _wide()
    start = one.detach().clone()
    precise = AdamW().build([{"params": [one], "weight_decay": 0.1}], 1e-2)
    coarse = AdamW8bit().build([{"params": [other], "weight_decay": 0.1}], 1e-2)
    draw = torch.Generator().manual_seed(1)
    signal = torch.randn(96, 64, generator=draw)
    for _ in range(20):
        gradient = signal + 0.3 * torch.randn(96, 64, generator=draw)
        one.grad, other.grad = gradient.clone(), gradient.clone()
        precise.step()
        coarse.step()
    moved, difference = (one - start).detach().norm(), (one - other).detach().norm()
    assert 0 < float(difference) < 0.05 * float(moved)


def test_its_moments_take_a_quarter_of_the_memory_and_small_tensors_keep_float32() -> None:
    wide, thin = _wide(), torch.nn.Parameter(torch.ones(64))
    optimizer = AdamW8bit().build([{"params": [wide, thin], "weight_decay": 0.0}], 1e-2)
    for parameter in (wide, thin):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [optimizer.state[wide][key] for key in ("state1", "state2")]
    assert {m.dtype for m in moments} == {torch.uint8}
    assert optimizer.state[thin]["state1"].dtype == torch.float32


def test_a_resumed_run_goes_on_bit_by_bit(start: Callable[[Optimizer], Engine], tmp_path: Path) -> None:
    whole = start(AdamW8bit())
    expected = [whole.train_step(rows)["loss"] for rows in ROWS]
    first = start(AdamW8bit())
    for rows in ROWS[:5]:
        first.train_step(rows)
    saved = save_checkpoint(first, StageDir(tmp_path / "00-sft"), extra={}, keep=1)
    second = start(AdamW8bit())
    load_checkpoint(second, saved)
    steps = {values["step"] for values in second.optimizer.state.values()}
    assert steps == {5}
    assert [second.train_step(rows)["loss"] for rows in ROWS[5:]] == expected[5:]
    for one, other in zip(whole.model.module.parameters(), second.model.module.parameters()):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is asked for")
@pytest.mark.parametrize("optimizer", [PagedAdamW8bit(), PagedAdamW()], ids=lambda o: o.kind)
def test_paged_moments_need_a_gpu_and_say_so_before_training(optimizer: Optimizer) -> None:
    with pytest.raises(RecipeError, match=r"(?s)no such GPU.*adamw_8bit"):
        optimizer.build([{"params": [_wide()]}], 1e-3)
    facts = StageFacts(method=Full(), objective=Sft())
    (problem,) = optimizer.problems(facts)  # the recipe may be for another machine, so it can be read
    assert problem.severity == "warning"
    assert AdamW8bit().problems(facts) == []


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"luthier\[quantization\]"):
        AdamW8bit().build([{"params": [_wide()]}], 1e-3)


def test_a_recipe_takes_it_by_its_word_and_knows_other_tools_words() -> None:
    values = {"model": "starter", "method": "full", "data": "starter:quickstart"}
    assert parse_recipe({**values, "optimizer": "adamw_8bit"}).optimizer == AdamW8bit()
    with pytest.raises(RecipeError, match="optimizer: adamw_8bit"):
        parse_recipe({**values, "optimizer": "adamw_bnb_8bit"})


def test_a_run_trains_with_it(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r", family_folder("llama"), method="full", optimizer="adamw_8bit")
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert said.json["loss_last"] < said.json["loss_first"]
