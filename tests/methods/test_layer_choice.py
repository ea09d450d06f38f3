"""Blocks chosen by the data: the block that must learn is found, the choice is kept, shown, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from families import build, config, examples, tokenizer
from luthier.core.component import StageFacts
from luthier.core.errors import ModelError
from luthier.methods.base import trainable
from luthier.methods.layers import Layers
from luthier.models.layers import layer_groups
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.train.microbatch import Cut
from luthier.train.probe import StageProbe
from recipes import luthier, write_recipe

CRITERIA = ("gradient", "signal_to_noise")


@dataclass(frozen=True)
class Told:
    """A probe whose gradients are given."""

    model: PreTrainedModel
    batches: list[dict[str, Tensor]]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tokenizer()

    def gradients(self, batches: int) -> Iterator[dict[str, Tensor]]:
        yield from self.batches[:batches]


def _told(sizes: list[float], shared: list[float], batches: int = 4) -> Told:
    """Gradients of blocks: `sizes` times the weights' own length, of which the share `shared` is the same each time."""
    model = build("llama", num_hidden_layers=len(sizes))
    draw = torch.Generator().manual_seed(0)
    weights = dict(model.named_parameters())
    found = []
    directions = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    for _ in range(batches):
        batch = {}
        for block, size, share in zip(layer_groups(model).blocks, sizes, shared):
            for n in block:
                way = share * directions[n] + (1 - share) * torch.randn(weights[n].shape, generator=draw)
                batch[n] = size * weights[n].norm() * way / way.norm()
        found.append(batch)
    return Told(model, found)


def test_gradient_takes_the_blocks_with_the_largest_gradient_beside_their_weights() -> None:
    chosen = Layers(select="gradient", top=2).choose(_told([0.1, 0.4, 0.2, 0.3], [0.0] * 4))
    assert chosen.blocks == (1, 3)
    assert chosen.ranking == pytest.approx((0.1, 0.4, 0.2, 0.3), rel=1e-3)


def test_signal_to_noise_takes_the_blocks_whose_batches_agree_whatever_their_size() -> None:
    chosen = Layers(select="signal_to_noise", top=2).choose(_told([9.0, 0.1, 5.0, 0.2], [0.0, 0.9, 0.3, 0.8]))
    assert chosen.blocks == (1, 3)
    assert chosen.ranking[1] > chosen.ranking[3] > chosen.ranking[2] > chosen.ranking[0]


def test_the_ratio_of_signal_to_noise_is_that_of_the_plain_formula() -> None:
    probe = _told([1.0, 2.0], [0.5, 0.1])
    chosen = Layers(select="signal_to_noise", top=1).choose(probe)
    for block, score in zip(layer_groups(probe.model).blocks, chosen.ranking):
        stacked = torch.stack([torch.cat([batch[n].detach().reshape(-1) for n in block]) for batch in probe.batches])
        expected = stacked.mean(0).square().sum() / stacked.var(0).sum()
        assert score == pytest.approx(float(expected), rel=1e-3)


def test_one_batch_has_no_noise_to_compare_with() -> None:
    with pytest.raises(ModelError, match=r"(?s)compares batches.*lower batch_size"):
        Layers(select="signal_to_noise", top=1).choose(_told([1.0, 2.0], [0.5, 0.1], batches=1))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_gradients_of_real_data_rank_the_blocks_once_and_leave_the_model_as_it_was(
    criterion: str, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder("llama")))
    rows = examples([9, 14, 5, 20] * 8, seed=1)
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    wanted = {n: p.requires_grad for n, p in model.module.named_parameters()}
    method = Layers(select=criterion, top=1)  # type: ignore[arg-type]
    chosen = method.choose(StageProbe(model, Sft(), rows, 4, Cut()))
    assert len(chosen.ranking) == 2
    assert chosen.blocks == (max((0, 1), key=lambda block: chosen.ranking[block]),)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.module.named_parameters())
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == wanted
    chosen.apply(model.module)
    assert set(trainable(model.module)) == set(layer_groups(model.module).blocks[chosen.blocks[0]])
    assert chosen.choose(StageProbe(model, Sft(), rows, 4, Cut())) is chosen  # decided once


def test_named_blocks_stay_chosen_and_the_count_is_known_before_the_choice() -> None:
    method = Layers(blocks=(0,), norms=True, select="gradient", top=1)
    expected = method.count(build("llama", num_hidden_layers=4))
    chosen = method.choose(_told([0.1, 0.4, 0.2, 0.3], [0.0] * 4))
    assert chosen.blocks == (0, 1)
    model = build("llama", num_hidden_layers=4)
    chosen.apply(model)
    assert sum(p.numel() for p in trainable(model).values()) == expected == chosen.count(model)


def test_without_a_look_at_the_data_nothing_is_guessed() -> None:
    with pytest.raises(ModelError, match=r"(?s)not chosen.*blocks"):
        Layers(select="gradient", top=1).apply(build("llama"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"select": "gradient"}, "how many blocks"),
        ({"top": 2, "last": 1}, "no effect without select"),
        ({"select": "gradient", "top": 7}, "has 2 blocks, not 7"),
        ({"select": "gradient", "top": 1}, None),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_made_is_refused(options: dict[str, object], expected: str | None) -> None:
    method = Layers.model_validate(options)
    facts = StageFacts(method=method, objective=Sft(), model_config=config("llama").to_dict())
    found = [str(p) for p in method.problems(facts)]
    assert len(found) == (1 if expected else 0)
    assert all(expected in problem for problem in found if expected)


@pytest.mark.parametrize(
    ("family", "role", "names"),
    [
        ("llama", "attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("llama", "down", ("down_proj",)),
        ("gpt2", "attention", ("c_attn", "attn.c_proj")),
    ],
)
def test_a_pattern_may_be_a_role(family: str, role: str, names: tuple[str, ...]) -> None:
    model = build(family)
    Layers(patterns=(role,)).apply(model)
    expected = {n for n, _ in model.named_parameters() if any(f"{part}." in n for part in names)}
    assert set(trainable(model)) == expected


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_run_says_what_was_chosen_on_screen_and_in_its_report(
    criterion: str, family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"kind": "layers", "select": criterion, "top": 1}
    said = luthier(capsys, "train", write_recipe(tmp_path / "r", family_folder("llama"), method=method), "--json")
    assert said.code == 0, said.err
    kept = json.loads((tmp_path / "r" / "run" / "00-sft" / "method.json").read_text())
    report = json.loads((tmp_path / "r" / "run" / "report.json").read_text())
    shown = report["method_report"]
    assert shown["chosen_blocks"] == kept["blocks"]
    assert shown["block_scores"] == kept["ranking"]
    assert len(kept["ranking"]) == 2
    assert f"by {criterion}" in said.err
