"""Several adapters on one base: switching, stacking, merging, and what a merge says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from families import write
from luthier.core.errors import Failure, RunError
from luthier.export import merging
from luthier.export.adapters import AdapterSet, fingerprint_of, write_base
from luthier.export.merging import merge_adapters
from luthier.methods.base import trainable
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.models.loaded import LoadedModel
from recipes import luthier, write_recipe

TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(3))
FAMILIES = ["llama", "gpt2"]


def made(folder: Path, base: Path, seed: int, **options: object) -> Path:
    """Write an adapter whose tensors are all drawn from a seed, as if it had been trained."""
    model = load_model(str(base))
    method = Lora.model_validate({"rank": 4, **options})
    method.prepare(model.module)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model.module).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15)
    folder.mkdir(parents=True)
    method.save(model.module, folder, base=model.path)
    write_base(folder, model)
    return folder


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> Path:
    return family_folder(request.param)


@pytest.fixture
def three(base: Path, tmp_path: Path) -> dict[str, Path]:
    """Adapters of one rank, the last on other matrices."""
    return {
        "one": made(tmp_path / "one", base, 1),
        "two": made(tmp_path / "two", base, 2, alpha=5.0),
        "three": made(tmp_path / "three", base, 3, targets="mlp"),
    }


def logits(model: LoadedModel) -> Tensor:
    with model.evaluating():
        return model.module(input_ids=TOKENS, use_cache=False).logits


def opened(base: Path, folder: Path) -> Tensor:
    """The logits of one adapter, opened by PEFT alone."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder))
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


def deltas(folder: Path) -> dict[str, Tensor]:
    """ΔW of each matrix by its name, from the two files alone: (out, in)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scaling = config["lora_alpha"] / (config["r"] ** (0.5 if config["use_rslora"] else 1))
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    return {n: scaling * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in names}


def summed(folders: dict[str, Path], weights: list[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for folder, weight in zip(folders.values(), weights):
        for name, delta in deltas(folder).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    gap = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted)
    return (gap / sum(float(t.square().sum()) for t in wanted.values())) ** 0.5


def test_switching_gives_what_each_gives_alone(base: Path, three: dict[str, Path]):
    model = load_model(str(base))
    plain = logits(model)
    adapters = AdapterSet(model)
    for name, folder in three.items():
        adapters.add(name, folder)
        assert torch.equal(logits(model), plain)  # opening one does not switch it on
    assert adapters.names() == list(three)
    for name in ("two", "one", "three", "one"):
        adapters.use(name)
        torch.testing.assert_close(logits(model), opened(base, three[name]), rtol=0, atol=1e-5)
    assert (logits(model) - plain).abs().max() > 1e-2
    adapters.off()
    assert torch.equal(logits(model), plain)
    assert not any(p.requires_grad for n, p in model.module.named_parameters() if "lora_" in n)


def test_a_stack_is_the_sum_of_its_updates(base: Path, three: dict[str, Path]):
    model = load_model(str(base))
    adapters = AdapterSet(model)
    for name, folder in three.items():
        adapters.add(name, folder)
    adapters.stack(["one", "three"])
    by_hand = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    modules = dict(by_hand.named_modules())
    with torch.no_grad():
        for name, delta in summed({n: three[n] for n in ("one", "three")}, [1.0, 1.0]).items():
            module = modules[name.removeprefix("base_model.model.")]
            weight = module.get_parameter("weight")
            weight += delta if isinstance(module, torch.nn.Linear) else delta.T
        wanted = by_hand(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4)
    adapters.use("one")
    torch.testing.assert_close(logits(model), opened(base, three["one"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [[0.7, 0.3, 1.0], [1.0, -0.5, 0.25]])
def test_a_linear_merge_is_the_weighted_sum_of_the_updates(
    base: Path, three: dict[str, Path], weights: list[float], tmp_path: Path
):
    report = merge_adapters(load_model(str(base)), three, weights, tmp_path / "out")
    wanted = summed(three, weights)
    assert distance(deltas(tmp_path / "out"), wanted) < 1e-5
    assert report.from_sum < 1e-5
    assert report.rank == 12
    assert report.reload_difference < 1e-4
    whole = sum(float(t.square().sum()) for t in wanted.values()) ** 0.5
    for parent, folder in zip(report.parents, three.values()):
        own = {n: deltas(folder).get(n, torch.zeros_like(t)) for n, t in wanted.items()}
        size = sum(float(t.square().sum()) for t in own.values()) ** 0.5
        dot = sum(float((own[n] * t).sum()) for n, t in wanted.items())
        assert parent.distance == pytest.approx(distance(wanted, own), rel=1e-4)
        assert parent.cosine == pytest.approx(dot / size / whole, abs=1e-5)
        assert parent.kl > 0
    assert report.kl_from_base > 0
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["from_sum"] == report.from_sum


def test_a_merge_of_one_with_all_the_weight_is_that_one(base: Path, three: dict[str, Path], tmp_path: Path):
    report = merge_adapters(load_model(str(base)), three, [1.0, 0.0, 0.0], tmp_path / "out")
    first = report.parents[0]
    assert first.distance < 1e-5
    assert first.cosine == pytest.approx(1, abs=1e-5)
    assert abs(first.kl) < 1e-5
    assert report.parents[1].kl > 1e-3
    torch.testing.assert_close(opened(base, tmp_path / "out"), opened(base, three["one"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("rank", [None, 6])
def test_ties_and_dare_are_peft_s(base: Path, three: dict[str, Path], method: str, rank: int | None, tmp_path: Path):
    pair = {name: three[name] for name in ("one", "two")}
    report = merge_adapters(
        load_model(str(base)),
        pair,
        [0.7, 0.6],
        tmp_path / "out",
        method,  # type: ignore[arg-type]
        density=0.6,
        rank=rank,
        seed=11,
    )
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(three["one"]), adapter_name="one"
    )
    model.load_adapter(str(three["two"]), "two")
    torch.manual_seed(11)
    kind = method if rank is None else f"{method}_svd"
    model.base_model.add_weighted_adapter(  # type: ignore[operator]
        ["one", "two"], [0.7, 0.6], "both", combination_type=kind, density=0.6, svd_rank=rank
    )
    model.set_adapter("both")
    with torch.no_grad():
        wanted = model.eval()(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(opened(base, tmp_path / "out"), wanted, rtol=0, atol=1e-4)
    assert report.rank == (rank or 4)
    assert report.from_sum > 0.05  # it is no weighted sum, and says so


def test_a_sum_cut_to_a_rank_is_the_nearest_of_that_rank(base: Path, three: dict[str, Path], tmp_path: Path):
    pair = {name: three[name] for name in ("one", "two")}
    report = merge_adapters(load_model(str(base)), pair, [1.0, 1.0], tmp_path / "out", rank=5)
    found = deltas(tmp_path / "out")
    for name, total in summed(pair, [1.0, 1.0]).items():
        u, s, v = torch.linalg.svd(total)
        torch.testing.assert_close(found[name], u[:, :5] @ torch.diag(s[:5]) @ v[:5], rtol=0, atol=1e-4)
    assert 0 < report.from_sum < 1


def test_parents_scaled_by_the_root_of_the_rank_are_not_scaled_twice(base: Path, tmp_path: Path):
    pair = {n: made(tmp_path / n, base, i, rank=4 + i, rslora=True) for i, n in enumerate(("one", "two"))}
    merge_adapters(load_model(str(base)), pair, [0.5, 0.5], tmp_path / "out")
    assert distance(deltas(tmp_path / "out"), summed(pair, [0.5, 0.5])) < 1e-5


def test_an_adapter_that_started_from_the_base_s_own_directions_merges_like_any_other(base: Path, tmp_path: Path):
    pair = {"plain": made(tmp_path / "plain", base, 1), "pissa": made(tmp_path / "pissa", base, 2, init="pissa")}
    report = merge_adapters(load_model(str(base)), pair, [0.5, 0.5], tmp_path / "out")
    assert distance(deltas(tmp_path / "out"), summed(pair, [0.5, 0.5])) < 1e-5
    assert report.rank == 4 + 8  # what it added and what it took away at the start


def test_an_adapter_of_another_base_is_refused(base: Path, three: dict[str, Path], tmp_path: Path):
    other = write("llama", tmp_path / "other", seed=9)
    stranger = made(tmp_path / "stranger", other, 4)
    adapters = AdapterSet(load_model(str(base)))
    adapters.add("one", three["one"])
    with pytest.raises(RunError, match="another base model"):
        adapters.add("stranger", stranger)
    assert adapters.names() == ["one"]
    with pytest.raises(RunError, match="another base model"):
        merge_adapters(load_model(str(base)), {**three, "stranger": stranger}, [1.0] * 4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merged_adapter_remembers_its_base_and_merges_again(base: Path, three: dict[str, Path], tmp_path: Path):
    model = load_model(str(base))
    pair = {name: three[name] for name in ("one", "two")}
    merge_adapters(model, pair, [0.5, 0.5], tmp_path / "first")
    assert fingerprint_of(tmp_path / "first") == model.fingerprint
    again = {"first": tmp_path / "first", "three": three["three"]}
    merge_adapters(load_model(str(base)), again, [1.0, 2.0], tmp_path / "second")
    assert distance(deltas(tmp_path / "second"), summed(three, [0.5, 0.5, 2.0])) < 1e-5


WRONG = [
    ({"weights": [1.0]}, "one number for each"),
    ({"weights": [0.0, 0.0]}, "nothing would be left"),
    ({"weights": [float("nan"), 1.0]}, "one number for each"),
    ({"method": "ties", "density": 0.0}, "more than 0"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_a_merge_without_meaning_is_told(three: dict[str, Path], base: Path, options: dict, told: str, tmp_path: Path):
    pair = {name: three[name] for name in ("one", "two")}
    arguments = {"weights": [0.5, 0.5], **options}
    with pytest.raises(RunError, match=told):
        merge_adapters(load_model(str(base)), pair, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


UNSUITABLE = [
    ({"dora": True}, "magnitudes"),
    ({"modules_to_save": ["lm_head"]}, "whole modules"),
]


@pytest.mark.parametrize(("options", "told"), UNSUITABLE)
def test_what_is_more_than_an_update_does_not_add_up(
    options: dict, told: str, family_folder: Callable[[str], Path], tmp_path: Path
):
    base = family_folder("llama")
    model = load_model(str(base))
    adapters = AdapterSet(model)
    adapters.add("plain", made(tmp_path / "plain", base, 1))
    odd = made(tmp_path / "odd", base, 2, **options)
    adapters.add("odd", odd)
    for act in (lambda: adapters.stack(["plain", "odd"]), lambda: adapters.merge("m", ["plain", "odd"], [1.0, 1.0])):
        with pytest.raises(RunError, match=told):
            act()
    adapters.use("odd")  # alone it works
    torch.testing.assert_close(logits(model), opened(base, odd), rtol=0, atol=1e-5)
    adapters.use("plain")
    torch.testing.assert_close(logits(model), opened(base, tmp_path / "plain"), rtol=0, atol=1e-5)


def test_factors_of_several_ranks_need_the_rank_of_the_result(base: Path, three: dict[str, Path], tmp_path: Path):
    uneven = {"one": three["one"], "wide": made(tmp_path / "wide", base, 5, rank=7)}
    with pytest.raises(RunError, match="--rank 7"):
        merge_adapters(load_model(str(base)), uneven, [1.0, 1.0], tmp_path / "out", "ties")
    assert merge_adapters(load_model(str(base)), uneven, [1.0, 1.0], tmp_path / "out", "ties", rank=7).rank == 7


def test_names_are_checked(base: Path, three: dict[str, Path], tmp_path: Path):
    adapters = AdapterSet(load_model(str(base)))
    for act in (lambda: adapters.use("one"), lambda: adapters.stack(["one"])):
        with pytest.raises(RunError, match="none yet"):
            act()
    adapters.add("one", three["one"])
    for act, told in (
        (lambda: adapters.add("one", three["two"]), "already an adapter"),
        (lambda: adapters.merge("one", ["one"], [1.0]), "already an adapter"),
        (lambda: adapters.use("two"), "there are: one"),
        (lambda: adapters.merge("m", ["one", "two"], [1.0, 1.0]), "there are: one"),
        (lambda: adapters.add("x", tmp_path), "holds no adapter"),
    ):
        with pytest.raises(RunError, match=told):
            act()


def test_an_adapter_of_another_shape_without_a_fingerprint_is_told(
    family_folder: Callable[[str], Path], tmp_path: Path
):
    small = write("llama", tmp_path / "small", hidden_size=16, head_dim=4)
    folder = made(tmp_path / "adapter", small, 1)
    (folder / "base.json").unlink()
    adapters = AdapterSet(load_model(str(family_folder("llama"))))
    with pytest.raises(RunError, match="does not open on this model"):
        adapters.add("one", folder)


def test_a_merge_that_is_not_what_was_written_is_not_kept(
    base: Path, three: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merging, "SUM_TOLERANCE", -1.0)
    with pytest.raises(Failure, match="weighted sum"):
        merge_adapters(load_model(str(base)), three, [1.0] * 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_are_merged_by_the_program(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = family_folder("llama")
    for name, seed in (("poems", 1), ("tales", 2)):
        recipe = write_recipe(tmp_path, model, seed=seed, run=str(tmp_path / name), method={"kind": "lora", "rank": 2})
        assert luthier(capsys, "train", recipe).code == 0
    runs = [tmp_path / "poems", tmp_path / "tales"]
    said = luthier(capsys, "merge", *runs, "--weights", "0.7,0.3", "--out", tmp_path / "both", "--json")
    assert said.code == 0, said.err
    assert said.json["from_sum"] < 1e-4
    assert [p["name"] for p in said.json["parents"]] == ["poems", "tales"]
    checkpoints = {run.name: run / json.loads((run / "report.json").read_text())["final_checkpoint"] for run in runs}
    assert distance(deltas(tmp_path / "both"), summed(checkpoints, [0.7, 0.3])) < 1e-4
    said = luthier(capsys, "merge", tmp_path / "both", runs[0], "--out", tmp_path / "more", "--method", "ties")
    assert said.code == 2
    assert "--rank" in said.err
    said = luthier(capsys, "merge", tmp_path / "both", runs[0], "--out", tmp_path / "more")
    assert said.code == 0, said.err
    assert "weighted sum" in said.out
    said = luthier(capsys, "merge", *runs, "--out", tmp_path / "both")
    assert said.code == 2
    assert "exists already" in said.err
    out = ["--out", tmp_path / "third"]
    for words, told in (
        ([runs[0]], "at least two"),
        ([*runs, "--weights", "1"], "2 adapters and 1 weights"),
        ([*runs, "--weights", "a,b"], "--weights 0.7,0.3"),
        ([runs[0], tmp_path], "no adapter here"),
    ):
        said = luthier(capsys, "merge", *words, *out)
        assert said.code == 2
        assert told in said.err
    assert not (tmp_path / "third").exists()


def test_a_run_of_another_base_is_refused_by_the_program(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, model in (("mine", family_folder("llama")), ("other", write("llama", tmp_path / "m", seed=5))):
        recipe = write_recipe(tmp_path, model, run=str(tmp_path / name), max_steps=1)
        assert luthier(capsys, "train", recipe).code == 0
    said = luthier(capsys, "merge", tmp_path / "mine", tmp_path / "other", "--out", tmp_path / "out")
    assert said.code == 2
    assert "another base model" in said.err
    assert not (tmp_path / "out").exists()
