"""Several methods at once: each keeps its own laws, and no tensor belongs to two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from families import build, config, enlarge, examples
from luthier.core.batch import Batch
from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, RecipeError, RunError
from luthier.methods.base import Method, trainable
from luthier.methods.bitfit import BitFit
from luthier.methods.hybrid import Hybrid
from luthier.methods.layers import Layers
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.run.config import parse_recipe
from luthier.run.schema import recipe_schema
from recipes import luthier, write_recipe
from training import engine

TOP = {"kind": "layers", "last": 1}
BELOW = {"kind": "lora", "rank": 3, "exclude": ["model.layers.1.*"]}
NORMS = {"kind": "bitfit", "norms": True, "exclude": ["model.layers.1"]}
THREE = Hybrid.model_validate({"parts": [TOP, BELOW, NORMS]})
TOKENS = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))


class Watched(Method):
    """A part that does everything a method may do, to one tensor."""

    family: ClassVar[str] = ""  # not for the table of methods
    kind: Literal["watched-for-a-test"] = "watched-for-a-test"

    name: str = "model.norm.weight"
    scale: float = 0.5
    chosen: int = 0

    title: ClassVar[str] = "Watched"
    default_learning_rate: ClassVar[float] = 1e-3

    def choose(self, probe: object) -> Watched:
        return self.model_copy(update={"chosen": 7})

    def apply(self, model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == self.name)

    def count(self, model: PreTrainedModel) -> int:
        return model.get_parameter(self.name).numel()

    def param_groups(self, model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
        return [{"params": list(trainable(model).values()), "weight_decay": 0.0, "lr_scale": self.scale}]

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        return {"seen": torch.zeros(2)}

    def before_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        assert list(trainable(model)) == [self.name]
        state["seen"][0] += 1

    def penalty(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return 0.1 * model.get_parameter(self.name).square().sum()

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        state["seen"] = state["seen"] + torch.tensor([0.0, 1.0])

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        return {"seen": state["seen"].tolist()}


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def test_each_tensor_is_trained_by_its_part_and_the_count_is_their_sum() -> None:
    model = build("llama")
    THREE.apply(model)
    names = set(trainable(model))
    assert {n for n in names if n.startswith("model.layers.1.")} == {
        n for n, _ in build("llama").named_parameters() if n.startswith("model.layers.1.")
    }
    below = {n for n in names if n.startswith("model.layers.0.")}
    assert all("lora_" in n or "norm" in n for n in below)
    assert names - below == {n for n in names if n.startswith("model.layers.1.")} | {"model.norm.weight"}
    assert sum(p.numel() for p in trainable(model).values()) == THREE.count(build("llama"))


@pytest.mark.parametrize("parts", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_the_order_of_the_parts_does_not_matter(parts: tuple[int, ...]) -> None:
    model, other = build("llama"), build("llama")
    THREE.apply(model)
    Hybrid(parts=tuple(THREE.parts[i] for i in parts)).apply(other)
    assert set(trainable(model)) == set(trainable(other))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_trained_it_saves_into_one_folder_loads_and_merges(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(str(family_folder(family)))
    running = engine(model, THREE)
    before = {n: p.detach().clone() for n, p in trainable(model.module).items()}
    for step in range(3):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    assert not any(torch.equal(p, before[n]) for n, p in trainable(model.module).items())
    expected = _logits(model.module)
    THREE.save(model.module, tmp_path, base=model.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["method.json", "trained.safetensors"]
    card = json.loads((tmp_path / "method.json").read_text())
    again = load_model(str(family_folder(family))).module
    method = Hybrid.model_validate(card["method"])
    assert method == THREE
    method.prepare(again)
    method.load(again, tmp_path)
    assert torch.equal(_logits(again), expected)
    merged = method.merge(again)
    torch.testing.assert_close(_logits(merged), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(_logits(opened), expected, rtol=0, atol=1e-5)


def test_every_part_keeps_its_state_its_groups_its_penalty_and_its_report(family_folder: Callable[[str], Path]) -> None:
    parts = (Layers(last=1), Watched(), Watched(name="model.layers.0.input_layernorm.weight", scale=0.25))
    method = Hybrid(parts=parts)
    running = engine(load_model(str(family_folder("llama"))), method)
    assert sorted(running.method_state) == ["part1.seen", "part2.seen"]
    assert [g.get("lr_scale") for g in running.optimizer.param_groups] == [None, None, 0.5, 0.25]
    for step in range(3):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    assert running.method_state["part1.seen"].tolist() == [3.0, 3.0]
    said = method.report(running.model.module, running.method_state)["parts"]
    assert isinstance(said, list)
    assert [part["kind"] for part in said] == ["layers", "watched-for-a-test", "watched-for-a-test"]
    assert said[2]["seen"] == [3.0, 3.0]
    assert sum(part["trainable_parameters"] for part in said) == sum(p.numel() for p in running._trained.values())
    batch = running.model.collate(examples([5]))
    found = method.penalty(running.model.module, batch)
    own = [part.penalty(running.model.module, batch) for part in parts[1:]]
    assert found is not None
    torch.testing.assert_close(found, own[0] + own[1])  # type: ignore[operator]
    assert len(trainable(running.model.module)) == len(running._trained)


def test_parts_choose_before_training(family_folder: Callable[[str], Path]) -> None:
    chosen = Hybrid(parts=(Layers(last=1), Watched())).choose(None)  # type: ignore[arg-type]
    assert isinstance(chosen.parts[1], Watched)
    assert chosen.parts[1].chosen == 7


def test_a_classifiers_new_head_is_trained_beside_the_parts() -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in config("llama").to_dict().items() if k not in ("architectures", "model_type")}
    model = enlarge(LlamaForSequenceClassification(LlamaConfig(**sizes)))
    THREE.prepare(model)
    groups = THREE.param_groups(model, 0.1)
    listed = [id(p) for g in groups for p in g["params"]]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(id(p) for p in trainable(model).values())
    assert "score.weight" in THREE.state_dict(model)
    THREE.load_state_dict(model, {n: t + 1 for n, t in THREE.state_dict(model).items()})


@pytest.mark.parametrize(
    ("parts", "expected", "place", "remedy"),
    [
        ([TOP, {"kind": "bitfit", "norms": True}], "train model.layers.1.", "method.parts.1", '"model.layers.1.*"'),
        ([{"kind": "lora"}, TOP], "layers (part 1) both train model.layers.1.", "method.parts.0", '"model.layers.1.*"'),
        ([TOP, {"kind": "full"}], "both train model.layers.1.", "method.parts.1", "choose other tensors"),
        ([{"kind": "layers", "first": 1}, TOP, {"kind": "layers", "first": 1}], "part 2", "method.parts.2", "choose"),
    ],
    ids=["norms twice", "lora beside a trained weight", "full", "three"],
)  # fmt: skip
def test_what_two_parts_would_train_is_refused_by_name(
    parts: list[dict[str, object]], expected: str, place: str, remedy: str
) -> None:
    with pytest.raises(ModelError) as caught:
        Hybrid.model_validate({"parts": parts}).apply(build("llama"))
    (problem,) = caught.value.problems
    assert expected in problem.what
    assert problem.where == place
    assert remedy in problem.remedy


def test_the_remedy_of_an_overlap_mends_it() -> None:
    parts = [TOP, {"kind": "lora"}, {"kind": "bitfit", "norms": True}]
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            Hybrid.model_validate({"parts": parts}).apply(build("llama"))
        problem = caught.value.problems[0]
        index = int(problem.where.rpartition(".")[2])
        parts[index] = {**parts[index], "exclude": json.loads(problem.remedy.partition("exclude: ")[2])}
    Hybrid.model_validate({"parts": parts}).apply(build("llama"))


def test_what_is_wrong_in_a_part_names_the_part() -> None:
    method = Hybrid(parts=(Layers(), BitFit(), Layers(last=9)))
    facts = StageFacts(method=method, objective=Sft(), model_config=config("llama").to_dict())
    found = [(p.where, p.what) for p in method.problems(facts)]
    assert [where for where, _ in found] == ["method.parts.0", "method.parts.1", "method.parts.2.last"]
    with pytest.raises(ModelError, match=r"method\.parts\.1\.targets.*matches no linear"):
        Hybrid(parts=(Layers(last=1), Lora(targets="qq_proj"))).apply(build("llama"))
    single = Hybrid(parts=(Layers(last=1),))
    assert "has 1 parts" in str(single.problems(facts)[0])


def test_what_parts_say_of_the_base_and_of_its_positions_holds_for_the_whole() -> None:
    method = Hybrid.model_validate({"parts": [{"kind": "prompt", "tokens": 5}, {"kind": "qlora"}]})
    assert method.reserved_positions == 5
    assert method.base_bits == 4
    assert method.base_quantization == method.parts[1].base_quantization
    facts = StageFacts(method=method, objective=Sft(), model_config=config("llama").to_dict())
    assert method.problems(facts) == []
    clash = Hybrid.model_validate({"parts": [TOP, {"kind": "qlora", "exclude": ["model.layers.1.*"]}]})
    assert "quantised weights cannot be trained" in str(clash.problems(facts)[0])
    whole = Hybrid.model_validate({"parts": [TOP, {"kind": "feature_extraction"}]})
    assert any("takes the whole model" in problem.what for problem in whole.problems(facts))


RECIPE = {"model": "starter", "data": "starter:quickstart"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([TOP, {"kind": "lorra"}], r'method\.parts\.1.*(no method "lorra"|Did you mean "lora")'),
        ([TOP, "lorra"], r'Did you mean "lora"'),
        ([TOP, {"rank": 4}], r"(?s)method\.parts\.1 does not say its kind.*lora"),
        ([TOP, {"kind": "lora", "rank": 0}], r"method\.parts\.1\.rank is 0; it has to be at least 1"),
        ([TOP, {"kind": "lora", "rank": True}], r"method\.parts\.1\.rank is"),
        ([TOP, {"kind": "lora", "rnak": 3}], r'(?s)no key "method\.parts\.1\.rnak".*Did you mean "rank"'),
        ([TOP, {"kind": "hybrid", "parts": []}], r'no method "hybrid"'),
        ([{"kind": "layers"}, "lora"], r"told no layer"),
    ],
    ids=["kind", "short form", "no kind", "range", "boolean", "key", "nested", "own rule"],
)
def test_a_recipe_says_what_is_wrong_in_a_part(parts: list[object], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parse_recipe({**RECIPE, "method": {"kind": "hybrid", "parts": parts}})


def test_a_recipe_may_name_a_part_by_its_kind_alone() -> None:
    recipe = parse_recipe({**RECIPE, "method": {"kind": "hybrid", "parts": [TOP, "lora"]}})
    assert isinstance(recipe.method, Hybrid)
    assert recipe.method.parts == (Layers(last=1), Lora())
    assert parse_recipe(recipe.dump()).method == recipe.method


def test_the_schema_says_that_parts_are_methods() -> None:
    definitions = cast("dict[str, dict]", recipe_schema()["$defs"])
    assert definitions["method.hybrid"]["properties"]["parts"]["items"] == {"$ref": "#/$defs/Method"}
    assert definitions["Method"] == {"$ref": "#/$defs/method"}


def test_a_merge_that_one_part_cannot_make_is_refused_before_anything_changes() -> None:
    model = build("qwen3")
    method = Hybrid(parts=(BitFit(add_biases=True), Layers(embeddings=True)))
    method.apply(model)
    with pytest.raises(RunError, match="of its part bitfit"):
        method.merge(model)
    assert trainable(model)


def test_a_run_trains_reports_and_goes_on_with_a_hybrid(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"kind": "hybrid", "parts": [TOP, BELOW, NORMS]}
    said = luthier(capsys, "train", write_recipe(tmp_path / "r", family_folder("llama"), method=method), "--json")
    assert said.code == 0, said.err
    report = json.loads((tmp_path / "r" / "run" / "report.json").read_text())
    assert report["frozen_unchanged"]
    assert [part["kind"] for part in report["method_report"]["parts"]] == ["layers", "lora", "bitfit"]
    assert luthier(capsys, "export", tmp_path / "r" / "run", tmp_path / "out").code == 0
