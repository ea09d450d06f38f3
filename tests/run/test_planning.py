"""The plan of a recipe, and what a run says of it afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from luthier.advise.cards import CARDS, card_of
from luthier.advise.overhead import Holes, Observation, Overhead, fit
from luthier.advise.shape import shape_of
from luthier.advise.speed import Speed
from luthier.cli.main import app
from luthier.core.errors import UserError
from luthier.run.config import parse_recipe
from luthier.run.planning import Target, assumed_load, plan_stage, settle_checkpointing

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
SMALL = {**LLAMA_70B, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 500}
CARD = Target("cuda", 80 * 2**30, "card", Speed(1e14, 0.0, 400.0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _plan(config: dict[str, object], target: Target = CARD, **keys: object):
    recipe = parse_recipe(
        {"model": "starter", "data": "starter:quickstart", "method": "lora", "max_steps": 100, **keys}
    )
    load = assumed_load(recipe, 512, config, target.device, "no rows")
    return plan_stage(recipe, config, load, target)


def test_operations_are_two_for_each_parameter_and_token_forward_and_as_many_for_each_gradient():
    """6·N·D (Kaplan et al. 2020) for full fine-tuning; 4·N·D where the weights are frozen; attention comes on top."""
    shape = shape_of(LLAMA_70B)
    for method, passes in (("full", 6), ("lora", 4)):
        plan = _plan(LLAMA_70B, method=method, dtype="bfloat16")
        assert plan.flops == pytest.approx(passes * shape.active_parameters * plan.tokens, rel=0.03)


def test_hours_and_energy_follow_from_operations_speed_and_power():
    plan = _plan(LLAMA_70B, method="lora")
    assert plan.seconds == pytest.approx(plan.flops / 1e14)
    assert plan.energy_kwh == pytest.approx(plan.seconds * 400 / 3.6e6)


def test_a_file_and_a_federated_round_are_as_large_as_what_is_trained():
    plan = _plan(SMALL, method={"kind": "lora", "rank": 4})
    assert plan.adapter_bytes == 4 * plan.trainable_parameters
    assert plan.round_bytes == 8 * plan.trainable_parameters


def test_checkpointing_is_chosen_only_where_the_run_would_not_fit():
    recipe = parse_recipe(
        {"model": "starter", "data": "starter:quickstart", "method": "lora", "gradient_checkpointing": "auto"}
    )
    load = assumed_load(recipe, 4096, LLAMA_70B, "cuda", "no rows")
    plenty = Target("cuda", 10**13, "card")
    scarce = Target("cuda", 160 * 10**9, "card")
    assert settle_checkpointing(recipe, LLAMA_70B, load, plenty)[0] is False
    on, why = settle_checkpointing(recipe, LLAMA_70B, load, scarce)
    assert on
    assert "would not fit" in why


def test_cards_are_found_by_name_by_number_and_by_size():
    assert card_of("a100-80gb") == (1, CARDS["A100-80GB"])
    assert card_of("8xH100-80GB") == (8, CARDS["H100-80GB"])
    assert card_of("2x24GB")[0] == 2
    assert card_of("24GB")[1].memory_bytes == 24 * 2**30
    with pytest.raises(UserError, match="H100"):
        card_of("H10")


def test_calibration_finds_the_terms_that_made_the_runs():
    truth = Overhead(40_000_000, 0.2, 0.4, 0.7, 0.5, 0.5, 0.9, 0.3, 0.8, 0.6, 0.1, products=1.4, passes=0.6)
    seen = []
    for holes in get_args(Holes):
        for resident, kept in ((1e8, 2e7), (3e8, 9e7), (9e8, 4e8)):
            blank = Observation(resident, kept, kept, holes, 0.0, 1e-9 * resident, 2e-9 * kept)
            measured = {"peak": blank.predicted(truth), "seconds": blank.predicted_seconds(truth)}
            seen.append(replace(blank, **measured))
    start = Overhead(45_000_000, 0.15, 0.5, 0.6, 0.6, 0.6, 0.8, 0.4, 0.7, 0.7, 0.08)
    found = fit(seen, start)
    for name in ("fixed_bytes", *get_args(Holes)):  # the weak spring holds a little
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.06)
    for name in ("products", "passes"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-4)


def test_what_no_run_tells_stays_as_it_was():
    start = Overhead(45_000_000, 0.15, 0.5, 0.6, 0.6, 0.6, 0.8, 0.4, 0.7, 0.7, 0.08)
    one = Observation(3e8, 1e8, 9e7, "trained", 0.0)
    found = fit([replace(one, peak=one.predicted(start) * 1.2)], start)
    assert found.trained > start.trained
    assert found.fixed_bytes > start.fixed_bytes
    assert all(getattr(found, kind) == pytest.approx(getattr(start, kind)) for kind in get_args(Holes)[1:])
    assert fit([], start) == start


def test_a_70b_model_is_told_what_fits_which_card_and_what_must_leave_it(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B), encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", str(tmp_path), "--what-fits", "--gpu", "24GB,48GB,80GB", "--json"])
    rows = json.loads(done.stdout)["rows"]
    found = {(row["card"].split()[-2], row["method"]): row for row in rows}
    assert found["48", "qlora"]["fits"] and found["48", "qlora"]["how"] == "plain"  # noqa: PT018 — QLoRA's own claim
    assert "host" in found["24", "qlora"]["how"]
    assert "host" in found["80", "lora"]["how"]
    assert not found["24", "full"]["fits"] or "host" in found["24", "full"]["how"]
    assert "weights" in found["80", "qlora"]["sum"]


def test_a_run_keeps_its_plan_and_what_was_measured(tmp_path: Path):
    recipe = tmp_path / "r.json"
    keys = {"model": "starter", "data": "starter:quickstart", "method": "lora", "max_steps": 3, "samples": 0}
    keys |= {"run": str(tmp_path / "run"), "gradient_checkpointing": "auto"}
    recipe.write_text(json.dumps(keys), encoding="utf-8")
    planned = CliRunner().invoke(app, ["plan", str(recipe), "--json"])
    said = json.loads(planned.stdout)
    assert {"peak_bytes", "parts", "seconds", "flops", "trainable_parameters"} <= said.keys()
    assert said["peak_bytes"] == sum(said["parts"].values())
    done = CliRunner().invoke(app, ["train", str(recipe)])
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "run/plan.json").read_text())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert kept["gradient_checkpointing"] is False
    assert kept["trainable_parameters"] == report["trainable_parameters"] == said["trainable_parameters"]
    assert kept["measured"]["peak_bytes"] > 0
    fitted = CliRunner().invoke(app, ["plan", "--calibrate", str(tmp_path / "run"), "--json"])
    assert json.loads(fitted.stdout)["cpu"]["runs"] == 1
    assert (tmp_path / "cache/luthier/calibration.json").is_file()
    assert CliRunner().invoke(app, ["plan", "--forget"]).exit_code == 0
    assert not (tmp_path / "cache/luthier/calibration.json").is_file()
