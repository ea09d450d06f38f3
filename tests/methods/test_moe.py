"""Mixtures: chosen experts, the balance loss and its hooks, upcycling, joined and replaced experts, counts."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from families import build, config, examples, tokenizer, write
from luthier.core.component import StageFacts
from luthier.core.errors import ModelError
from luthier.export.experts import join_experts, replace_expert
from luthier.methods.base import trainable
from luthier.methods.full import Full
from luthier.methods.ia3 import Ia3
from luthier.methods.layers import Layers
from luthier.methods.lora import Lora
from luthier.methods.modules.moe_routing import routing_of
from luthier.methods.moe import Join, Moe, Upcycle
from luthier.methods.prompt import Prompt
from luthier.models.load import load_model
from luthier.models.mixture import active_parameters, become_mixture, mixtures
from luthier.objectives.sft import Sft
from luthier.train.audit import audit, digests
from luthier.train.microbatch import Cut
from training import engine

TOKENS = torch.randint(3, 60, (2, 23), generator=torch.Generator().manual_seed(5))
DENSE = ("llama", "llama-tied", "mistral", "qwen2", "qwen3")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def meta(of: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(of)


# ---------------------------------------------------------------------- chosen experts


@pytest.mark.parametrize("update", ["full", "lora"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_only_the_chosen_experts_move_and_the_others_keep_their_bits(
    family: str, update: str, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    before = tensors(model.module)
    method = Moe(update=update, experts=(3, 0))  # type: ignore[arg-type]
    running = engine(model, method, weight_decay=0.5)  # decay would move what has no gradient
    hashes = digests(model.module)
    for step in range(4):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    assert audit(model.module, hashes).passed
    after = tensors(method.merge(model.module))
    assert after.keys() == before.keys()
    for name, old in before.items():
        if ".experts." in name:
            moved = [i for i in range(4) if not torch.equal(after[name][i], old[i])]
            assert moved == [0, 3], name
        else:
            assert torch.equal(after[name], old), name


@pytest.mark.parametrize("options", [{"update": "full", "experts": (1, 2)}, {"rank": 4}, {"rank": 4, "train": "all"}])
@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_a_trained_update_computes_what_the_merged_model_computes(family: str, options: dict[str, object]) -> None:
    model = build(family)
    plain = logits(build(family))
    method = Moe.model_validate(options)
    method.apply(model)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-5)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained = logits(model)
    assert (trained - plain).abs().max() > 0.05
    merged = method.merge(model)
    assert type(merged) is type(build(family))
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=2e-5)


def test_an_expert_without_a_token_has_a_gradient_of_zero_and_is_no_error() -> None:
    model = build("mixtral")
    Moe(update="full", experts=(2,)).apply(model)
    for layer in mixtures(model):  # no token goes to expert 2
        layer.router.register_forward_hook(lambda m, i, o: (o[0], o[1], torch.tensor([[0, 1]]).expand_as(o[2])))
    model(input_ids=TOKENS).logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in trainable(model).values())


@pytest.mark.parametrize("options", [{"experts": (1, 3)}, {"train": "experts_and_router"}, {"train": "all"}], ids=str)
@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_peft_opens_low_rank_updates_of_experts_with_the_same_logits(
    family: str, options: dict[str, object], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    folder = str(family_folder(family))
    method = Moe.model_validate({"rank": 3, "alpha": 7.5, **options})
    running = engine(load_model(folder), method)
    before = logits(running.model.module)
    running.model.module.train()
    for step in range(3):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    method.save(running.model.module, tmp_path, base=folder)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(tmp_path))
    trained = logits(running.model.module)
    torch.testing.assert_close(logits(opened), trained, rtol=0, atol=1e-5)  # type: ignore[arg-type]
    assert (trained - before).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"train": "router"}, {"train": "all", "update": "full", "experts": [1]}], ids=str)
def test_what_is_saved_of_a_mixture_is_what_is_loaded(
    options: dict[str, object], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(family_folder("mixtral"))
    method = Moe.model_validate(options)
    running = engine(load_model(folder), method)
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    method.save(running.model.module, tmp_path, base=folder)
    fresh = load_model(folder).module
    method.prepare(fresh)
    method.load(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(running.model.module))


# ---------------------------------------------------------------------- the balance loss, and routing


def test_the_balance_loss_is_counted_once_under_gradient_checkpointing(family_folder: Callable[[str], Path]) -> None:
    found = []
    for checkpointing in (False, True):
        model = load_model(str(family_folder("mixtral")))
        method = Moe(train="all", update="full", router_aux_loss=0.5)
        running = engine(model, method, gradient_checkpointing=checkpointing)
        running.forward_backward(examples([9, 14, 5, 20], share=1.0))
        grads = {n: p.grad.clone() for n, p in trainable(model.module).items() if p.grad is not None}
        row = running.train_step(examples([9, 14, 5, 20], seed=1, share=1.0))
        assert routing_of(model.module).take() == []  # nor is anything held of what was computed again
        found.append((grads, row["loss"], method.report(model.module, running.method_state)))
    (plain, plain_loss, plain_report), (again, again_loss, again_report) = found
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    assert again_loss == pytest.approx(plain_loss, abs=1e-6)
    assert again_report == plain_report


def test_the_balance_loss_reaches_the_routers_and_its_weight_scales_it(family_folder: Callable[[str], Path]) -> None:
    grads = []
    for weight in (0.0, 1.0, 2.0):
        model = load_model(str(family_folder("mixtral")))
        running = engine(model, Moe(train="router", router_aux_loss=weight))
        running.forward_backward(examples([9, 14, 5, 20], share=1.0))
        grads.append(model.module.get_submodule("model.layers.1.mlp.gate").weight.grad.clone())
    task, once, twice = grads
    assert (once - task).abs().max() > 1e-4
    torch.testing.assert_close(twice - task, 2 * (once - task), rtol=1e-3, atol=1e-5)


def test_a_pass_of_a_reference_model_does_not_take_the_balance_loss_away(
    family_folder: Callable[[str], Path],
) -> None:
    model = load_model(str(family_folder("mixtral")))
    method = Moe(train="router", router_aux_loss=1.0)
    method.prepare(model.module)
    batch, other = (model.collate(examples(lengths, share=1.0)) for lengths in ([9, 14], [30]))
    losses = []
    for with_reference in (False, True):
        model.nll_sum(batch)
        if with_reference:
            with model.evaluating():
                model.nll_sum(other)
        losses.append(method.penalty(model.module, batch))
    assert losses[0] is not None
    assert torch.equal(losses[0], losses[1])  # type: ignore[arg-type]


def test_no_logits_are_held_after_a_step_nor_in_evaluation_nor_in_generation(
    family_folder: Callable[[str], Path],
) -> None:
    model = load_model(str(family_folder("mixtral")))
    running = engine(model, Moe(train="router"))
    routing = routing_of(model.module)
    rows, seen = examples([9, 14, 5, 20], share=1.0), []
    for layer in mixtures(model.module):
        layer.router.register_forward_hook(lambda m, i, o: seen.append(weakref.ref(o[0])))
    running.train_step(rows)
    assert routing.take() == []
    running.evaluate(rows)
    model.module.generate(TOKENS[:, :4], max_new_tokens=3, do_sample=False)
    assert routing.take() == []
    running.train_step(rows)
    gc.collect()
    assert len(seen) > 4
    assert all(logits() is None for logits in seen)


def test_the_report_says_which_expert_got_how_many_tokens(family_folder: Callable[[str], Path]) -> None:
    reports = []
    for packs in (True, False):
        model = load_model(str(family_folder("mixtral")))
        running = engine(model, Moe(train="router"), cut=Cut(sequences=2))
        model.packs = packs
        for step in range(3):
            running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
        reports.append(running.method.report(model.module, running.method_state))
    packed, padded = reports
    assert packed == padded  # padding is nobody's token
    assert json.loads(json.dumps(packed)) == packed
    layers = packed["routing"]
    assert list(layers) == ["model.layers.0.mlp", "model.layers.1.mlp"]  # type: ignore[call-overload]
    for layer in layers.values():  # type: ignore[attr-defined]
        assert sum(layer["share"]) == pytest.approx(1.0, abs=1e-3)
        assert 0 < layer["entropy"] < 1
        assert 0 < layer["balance"] <= 1


def test_the_shares_in_the_report_are_those_of_the_routers_choices(family_folder: Callable[[str], Path]) -> None:
    model = load_model(str(family_folder("mixtral")))
    running = engine(model, Moe(train="router"))
    chosen: list[Tensor] = []
    router = model.module.get_submodule("model.layers.0.mlp.gate")
    handle = router.register_forward_hook(lambda m, i, o: chosen.append(o[2]))
    running.train_step(examples([9, 14, 5, 20], share=1.0))
    handle.remove()
    expected = torch.cat(chosen).flatten().bincount(minlength=4)
    share = running.method.report(model.module, running.method_state)["routing"]["model.layers.0.mlp"]["share"]  # type: ignore[index]
    assert share == pytest.approx((expected / expected.sum()).tolist(), abs=1e-4)


def test_what_the_report_sums_up_fades_so_that_it_tells_of_the_last_steps(
    family_folder: Callable[[str], Path],
) -> None:
    running = engine(load_model(str(family_folder("mixtral"))), Moe(train="router"))
    seen = []
    for step, lengths in enumerate(([9, 14], [5, 20, 6])):
        running.train_step(examples(lengths, seed=step, share=1.0))
        seen.append(float(running.method_state["routing.seen"]))
    assert seen == pytest.approx([23, 0.98 * 23 + 31])


def test_what_the_report_sums_up_survives_a_checkpoint(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from luthier.core.rundir import StageDir
    from luthier.train.checkpoint import load_checkpoint, save_checkpoint

    def started() -> object:
        return engine(load_model(str(family_folder("llama"))), Moe(upcycle=Upcycle(experts=3)))

    steps = [examples([9, 14, 5, 20], seed=step, share=1.0) for step in range(4)]
    whole, half, rest = started(), started(), started()
    for step in steps:
        whole.train_step(step)  # type: ignore[attr-defined]
    for step in steps[:2]:
        half.train_step(step)  # type: ignore[attr-defined]
    load_checkpoint(rest, save_checkpoint(half, StageDir(tmp_path), {}, keep=1))  # type: ignore[arg-type]
    for step in steps[2:]:
        rest.train_step(step)  # type: ignore[attr-defined]
    assert torch.equal(logits(rest.model.module), logits(whole.model.module))  # type: ignore[attr-defined]
    for name, total in whole.method_state.items():  # type: ignore[attr-defined]
        assert torch.equal(rest.method_state[name], total)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- upcycling


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("family", DENSE)
def test_an_upcycled_model_starts_as_the_dense_one(family: str, top_k: int, tmp_path: Path) -> None:
    model = build(family)
    dense = logits(model)
    become_mixture(model, experts=3, top_k=top_k)
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=5e-6)
    model.save_pretrained(tmp_path)
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(opened).__name__ == {"qwen2": "Qwen2Moe", "qwen3": "Qwen3Moe"}.get(family, "Mixtral") + "ForCausalLM"
    assert torch.equal(logits(opened), logits(model))


def test_every_expert_is_a_copy_of_the_feed_forward_until_noise_is_added() -> None:
    model, noisy, again = build("llama"), build("llama"), build("llama")
    mlp = model.get_submodule("model.layers.1.mlp")
    gate, up, down = (mlp.get_submodule(f"{part}_proj").weight.detach().clone() for part in ("gate", "up", "down"))
    become_mixture(model, experts=4, top_k=2)
    for each in (noisy, again):
        become_mixture(each, experts=4, top_k=2, noise=0.1, seed=3)
    gate_up_EXH, down_EHI = mixtures(model)[1].fused
    for expert in range(4):
        assert torch.equal(gate_up_EXH[expert], torch.cat([gate, up]))
        assert torch.equal(down_EHI[expert], down)
    added = mixtures(noisy)[1].fused[1] - down
    assert float(added.detach().std() / down.std()) == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(added[0], added[1])
    assert all(torch.equal(p, q) for p, q in zip(noisy.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 700.0,
        },
    ],
    ids=lambda r: r["rope_type"],
)
def test_scaled_positions_and_windows_are_carried_over(rope: dict[str, object]) -> None:
    model = build("mistral", rope_parameters=rope, rms_norm_eps=1e-3, hidden_act="gelu")
    dense = logits(model)
    assert (dense - logits(build("mistral", rms_norm_eps=1e-3, hidden_act="gelu"))).abs().max() > 0.01
    become_mixture(model, experts=2, top_k=2)
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", DENSE)
def test_upcycled_it_packs_and_generates_as_the_dense_model_did(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    model = load_model(str(family_folder(family)))
    prompts = tokenizer()(
        ["w5 w9 w11", "w7 w8 w9 w10 w30 w31 w40"], padding=True, padding_side="left", return_tensors="pt"
    )
    rows = examples([9, 14, 5, 20], share=1.0)

    def measured() -> tuple[Tensor, Tensor]:
        with model.evaluating():
            written = model.module.generate(
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                max_new_tokens=8,
                do_sample=False,
            )
            return model.nll_sum(model.collate(rows)), written

    loss, written = measured()
    Moe(upcycle=Upcycle(experts=3)).prepare(model.module)
    assert model.packs
    upcycled_loss, upcycled_written = measured()
    torch.testing.assert_close(upcycled_loss, loss, rtol=1e-5, atol=1e-4)
    assert torch.equal(upcycled_written, written)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [{"train": "router"}, {"train": "experts", "experts": [1]}, {"update": "lora"}, {"train": "experts_and_router"}],
    ids=str,
)
def test_every_part_of_an_upcycled_model_can_be_trained_saved_and_counted(
    family: str, options: dict[str, object], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(family_folder(family))
    method = Moe.model_validate({"upcycle": {"experts": 3}, **options})
    running = engine(load_model(folder), method)
    hashes = digests(running.model.module)
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    trained = logits(running.model.module)
    assert audit(running.model.module, hashes).passed
    assert method.count(meta(config(family))) == sum(p.numel() for p in trainable(running.model.module).values())
    method.save(running.model.module, tmp_path, base=folder)
    fresh = load_model(folder).module
    method.prepare(fresh)
    method.load(fresh, tmp_path)
    assert torch.equal(logits(fresh), trained)
    if (tmp_path / "config.json").is_file():
        opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        torch.testing.assert_close(logits(opened), trained, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(method.merge(fresh)), trained, rtol=0, atol=1e-5)
    assert (tmp_path / "config.json").is_file() == (method.update != "lora")


def test_a_classifier_is_upcycled_with_its_head() -> None:
    of = config("llama", num_labels=3)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(of).eval()
    before = model(input_ids=TOKENS).logits
    method = Moe(upcycle=Upcycle(experts=2), train="router")
    method.prepare(model)
    assert type(model).__name__ == "MixtralForSequenceClassification"
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before, rtol=0, atol=1e-5)
    assert model.config.num_labels == 3
    assert set(trainable(model)) == {"score.weight", *(f"model.layers.{i}.mlp.gate.weight" for i in range(2))}


# ---------------------------------------------------------------------- task experts


def _task_runs(base: Path, home: Path, patterns: tuple[str, ...] = ("*.mlp.*",)) -> list[str]:
    """Model folders trained from one base, each on its own data."""
    runs = []
    for index in range(3):
        model = load_model(str(base))
        running = engine(model, Layers(patterns=patterns) if patterns else Full())
        for step in range(2):
            running.train_step(examples([9, 14, 5, 20], seed=10 * index + step, share=1.0))
        model.module.save_pretrained(home / f"task{index}")
        runs.append(str(home / f"task{index}"))
    return runs


def _ask_only(model: PreTrainedModel, expert: int) -> None:
    for layer in mixtures(model):

        def forced(module: nn.Module, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
            scores = torch.zeros_like(output[1])
            scores[:, 0] = 1.0
            return output[0], scores, torch.tensor([[expert, (expert + 1) % 3]]).expand_as(output[2])

        layer.router.register_forward_hook(forced)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_joined_runs_asked_for_one_expert_are_that_run(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = _task_runs(family_folder(family), tmp_path)
    out = join_experts(str(family_folder(family)), runs, tmp_path / "joined")
    for index, run in enumerate(runs):
        joined = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        _ask_only(joined, index)
        alone = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
        torch.testing.assert_close(logits(joined), logits(alone), rtol=0, atol=5e-6)
    assert load_model(str(out)).packs


def test_what_any_method_has_trained_can_become_an_expert(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base, folders, trained = family_folder("llama"), [], []
    for index, method in enumerate((Lora(rank=2, targets="mlp"), Layers(patterns=("*.mlp.*",)), Ia3(targets="mlp"))):
        running = engine(load_model(str(base)), method)
        for step in range(2):
            running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
        folders.append(tmp_path / f"run{index}")
        folders[-1].mkdir()
        method.save(running.model.module, folders[-1], base=str(base))
        trained.append(logits(running.model.module))
    out = join_experts(str(base), [str(folder) for folder in folders], tmp_path / "joined")
    for index, alone in enumerate(trained):
        joined = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        _ask_only(joined, index)
        torch.testing.assert_close(logits(joined), alone, rtol=0, atol=2e-5)


def test_a_prompt_cannot_become_an_expert(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base, method = family_folder("llama"), Prompt(tokens=4)
    model = load_model(str(base)).module
    method.prepare(model)
    method.save(model, tmp_path, base=str(base))
    with pytest.raises(ModelError, match="cannot become an expert"):
        Moe.model_validate({"join": [str(base), str(tmp_path)]}).apply(build("llama"))


def test_what_is_no_feed_forward_is_averaged_where_runs_differ_and_kept_where_they_agree(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = _task_runs(family_folder("llama"), tmp_path, patterns=("*.mlp.*", "*.self_attn.q_proj.*"))
    out = join_experts(str(family_folder("llama")), runs, tmp_path / "joined")
    joined = tensors(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    alone = [tensors(AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)) for run in runs]
    base = tensors(build("llama"))
    for name in base:
        if ".q_proj." in name:
            expected = torch.stack([run[name] for run in alone]).mean(0)
            torch.testing.assert_close(joined[name], expected, rtol=1e-6, atol=1e-7)
        elif ".mlp." not in name:
            assert torch.equal(joined[name], base[name]), name


def test_replacing_an_expert_leaves_every_other_tensor_as_it_is(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    runs = _task_runs(family_folder("llama"), tmp_path)
    out = join_experts(str(family_folder("llama")), [runs[0], runs[1], runs[0]], tmp_path / "joined")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = load_file(out / "model.safetensors")
    replace_expert(out, 1, runs[2])
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".experts.1." in name} != set()
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    joined = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    _ask_only(joined, 1)
    alone = AutoModelForCausalLM.from_pretrained(runs[2], dtype=torch.float32)
    torch.testing.assert_close(logits(joined), logits(alone), rtol=0, atol=5e-6)
    with pytest.raises(ModelError, match="no expert 3"):
        replace_expert(out, 3, runs[2])


def test_the_method_joins_runs_and_trains_the_router_alone(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = family_folder("llama")
    runs = _task_runs(base, tmp_path)
    method = Moe.model_validate({"join": runs})
    assert method.join == Join(runs=tuple(runs))
    running = engine(load_model(str(base)), method)
    joined = AutoModelForCausalLM.from_pretrained(
        join_experts(str(base), runs, tmp_path / "joined"), dtype=torch.float32
    )
    assert torch.equal(logits(running.model.module), logits(joined))
    running.model.module.train()
    hashes = digests(running.model.module)
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    assert audit(running.model.module, hashes).passed
    assert set(trainable(running.model.module)) == {f"model.layers.{i}.mlp.gate.weight" for i in range(2)}
    assert method.count(meta(config("llama"))) == 2 * 3 * 32
    method.save(running.model.module, tmp_path / "saved", base=str(base))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(opened), logits(running.model.module))


def test_a_saved_joined_model_is_read_back_whole_though_its_runs_have_changed(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = family_folder("llama")
    runs = _task_runs(base, tmp_path)
    method = Moe.model_validate({"join": runs})
    model = load_model(str(base)).module
    method.prepare(model)
    method.save(model, tmp_path / "saved", base=str(base))
    write("llama", Path(runs[1]), seed=9)
    fresh = load_model(str(base)).module
    method.prepare(fresh)
    assert not torch.equal(logits(fresh), logits(model))
    method.load(fresh, tmp_path / "saved")
    assert torch.equal(logits(fresh), logits(model))


def test_a_recipe_remembers_where_its_runs_lie_and_leaves_other_names_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    found = Moe.model_validate({"join": ["a", "of/the-hub"]}).located(lambda path: tmp_path / path)
    assert found.join == Join(runs=(str(tmp_path / "a"), "of/the-hub"))
    upcycled = Moe(upcycle=Upcycle(experts=2))
    assert upcycled.located(lambda path: tmp_path / path) == upcycled


def test_a_run_of_other_sizes_or_none_at_all_is_refused(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    small = write("llama", tmp_path / "small", intermediate_size=16)
    for other, said in ((small, "no model of the base's sizes"), (tmp_path / "nothing", "There is no run")):
        with pytest.raises(ModelError, match=said):
            Moe.model_validate({"join": [str(family_folder("llama")), str(other)]}).apply(build("llama"))


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "model", "expected"),
    [
        ({}, {"model_type": "llama"}, "The model (llama) is dense"),
        ({}, {"model_type": "gpt2"}, "The model (gpt2) is dense"),
        ({"upcycle": {"experts": 4}}, {"model_type": "gpt2"}, "gpt2 has no mixture architecture"),
        ({"upcycle": {"experts": 4}}, {"model_type": "llama", "attention_bias": True}, "have biases"),
        ({"upcycle": {"experts": 4}}, {"model_type": "qwen2", "use_sliding_window": True}, "slides a window"),
        (
            {"upcycle": {"experts": 4}},
            {"model_type": "mixtral", "num_local_experts": 8},
            "mixture of 8 experts already",
        ),
        ({"upcycle": {"experts": 2, "top_k": 3}}, {"model_type": "llama"}, "cannot go to 3 of 2 experts"),
        ({"upcycle": {"experts": 2, "top_k": 1}, "router_aux_loss": 0}, {"model_type": "llama"}, "nothing would train"),
        ({"upcycle": {"experts": 2}, "join": ["a", "b"]}, {"model_type": "llama"}, "either upcycled or joined"),
        ({"upcycle": {"experts": 2}, "experts": [2]}, {"model_type": "llama"}, "no expert 2 among 2"),
        ({"experts": [0, 8]}, {"model_type": "mixtral", "num_local_experts": 8}, "no expert 8 among 8"),
        ({"experts": [1, 1]}, {"model_type": "mixtral", "num_local_experts": 8}, "names one twice"),
        ({"train": "router", "experts": [1]}, {}, "experts has no effect"),
        ({"train": "router", "update": "lora"}, {}, "update has no effect"),
        ({"update": "full", "rank": 4}, {}, "rank and alpha have no effect"),
        ({"join": ["a", "b"], "train": "all", "update": "lora"}, {"model_type": "llama"}, "no folder holds"),
        ({}, {"model_type": "gpt_oss", "num_local_experts": 8}, "built in a way that is not supported"),
        ({}, {"model_type": "qwen3_moe", "num_experts": 128}, None),
        ({"experts": [127]}, {"model_type": "qwen3_moe", "num_local_experts": 128}, None),
        ({"upcycle": {"experts": 8}}, {"model_type": "qwen2"}, None),
        ({}, {}, None),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_from_the_config_with_its_remedy(
    options: dict[str, object], model: dict[str, object], expected: str | None
) -> None:
    method = Moe.model_validate(options)
    problems = method.problems(StageFacts(method=method, objective=Sft(), model_config=model))
    assert [expected in p.what for p in problems] == ([True] if expected else [])
    assert all(p.remedy for p in problems)


def test_a_dense_model_of_the_hub_is_refused_when_it_is_there() -> None:
    with pytest.raises(ModelError, match=r"dense.*\n.*upcycle it"):
        Moe().apply(build("llama"))
    with pytest.raises(ModelError, match="no mixture architecture"):
        Moe(upcycle=Upcycle(experts=2)).apply(build("gpt2"))


# ---------------------------------------------------------------------- published sizes

MIXTRAL_8X7B = MixtralConfig(vocab_size=32000, num_local_experts=8, num_experts_per_tok=2)  # the class's own defaults
MISTRAL_7B = MistralConfig(vocab_size=32000, intermediate_size=14336)
# Qwen/Qwen3-30B-A3B on the hub: 30.5 billion parameters, 3.3 billion active.
QWEN3_30B = Qwen3MoeConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
)


def test_mixtral_8x7b_has_the_published_parameters() -> None:
    # Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088: 47B parameters, 13B active; the hub's safetensors index
    # of mistralai/Mixtral-8x7B-v0.1 says total_size 93405585408 bytes of bfloat16.
    model = meta(MIXTRAL_8X7B)
    assert Moe(train="all", update="full").count(model) == 46_702_792_704 == 93_405_585_408 // 2
    assert active_parameters(model) == 12_879_925_248
    assert Moe(train="router").count(model) == 32 * 8 * 4096


def test_mistral_7b_upcycled_eight_times_has_the_size_of_mixtral() -> None:
    assert Moe(upcycle=Upcycle(experts=8)).count(meta(MISTRAL_7B)) == 46_702_792_704


def test_low_rank_updates_of_mixtral_s_experts_are_counted_by_the_closed_form() -> None:
    model = meta(MIXTRAL_8X7B)
    each = 8 * (2 * 4096 + 3 * 14336)  # A: r·(H + I), B: r·(2I + H)
    assert Moe(rank=8).count(model) == 32 * 8 * each == 104_857_600
    assert Moe(rank=8, experts=(0, 3)).count(model) == 32 * 2 * each
    attention = 32 * 8 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    routers = 32 * 8 * 4096
    assert Moe(rank=8, train="all").count(model) == 104_857_600 + attention + routers


def test_qwen3_30b_a3b_has_the_published_parameters() -> None:
    model = meta(QWEN3_30B)
    assert round(Moe(train="all", update="full").count(model) / 1e9, 1) == 30.5
    assert round(active_parameters(model) / 1e9, 1) in (3.3, 3.4)


@pytest.mark.parametrize("options", [{"upcycle": {"experts": 3}}, {"join": ["somewhere", "else"]}], ids=str)
def test_tensors_without_numbers_are_enough_to_know_the_sizes(options: dict[str, object]) -> None:
    method = Moe.model_validate(options)
    plain, made = meta(config("qwen2")), meta(config("qwen2"))
    method.apply(made)
    assert method.count(plain) == sum(p.numel() for p in trainable(made).values())
