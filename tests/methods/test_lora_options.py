"""Every option of LoRA: counted, trained, saved, opened by PEFT, merged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import build, config, examples, write
from luthier.core.component import StageFacts
from luthier.core.errors import ModelError
from luthier.methods.base import trainable
from luthier.methods.lora import Lora
from luthier.models.load import load_model
from luthier.objectives.sft import Sft
from luthier.train.audit import audit, digests
from training import engine

TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(1))

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "rslora": ("llama", {"rslora": True, "rank": 4}),
    "gaussian": ("qwen2", {"init": "gaussian"}),
    "dora": ("llama", {"dora": True, "rank": 3}),
    "dora-gpt2": ("gpt2", {"dora": True}),
    "dora-tied": ("llama-tied", {"dora": True, "targets": ["q", "v"]}),
    "pissa": ("llama", {"init": "pissa", "rank": 4}),
    "pissa-gpt2": ("gpt2", {"init": "pissa", "rank": 4}),
    "pissa-rslora": (
        "qwen3",
        {"init": "pissa", "rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {"down": 5}},
    ),
    "pissa-full-rank": ("llama", {"init": "pissa", "rank": 40, "targets": "k"}),
    "rank-pattern": ("llama", {"rank_pattern": {"q": 3, "model.layers.0.*": 2, "down_proj": 5}}),
    "alpha-pattern": ("qwen3", {"alpha_pattern": {"attention": 4.5, "model.layers.1.mlp.up_proj": 9}, "rslora": True}),
    "exclude": ("llama", {"exclude": ["model.layers.0.*", "gate"]}),
    "norm": ("llama", {"modules_to_save": ["model.norm"]}),
    "head": ("llama", {"modules_to_save": ["lm_head"], "dora": True}),
    "embeddings-and-norms": ("qwen3", {"modules_to_save": ["embed_tokens", "*_layernorm"]}),
    "a-module-of-the-targets": ("llama", {"modules_to_save": ["model.layers.1.mlp"]}),
    "rows": ("llama", {"new_tokens": [7, 5, 61]}),
    "rows-tied": ("llama-tied", {"new_tokens": [7, 5, 61]}),
    "rows-gpt2": ("gpt2", {"new_tokens": [9]}),
    "experts": ("mixtral", {"target_parameters": ["experts"], "rank": 2}),
    "experts-alone": ("mixtral", {"target_parameters": ["experts"], "targets": [], "rank": 2, "rslora": True}),
    "one-expert-tensor": ("mixtral", {"target_parameters": ["mlp.experts.down_proj"], "targets": "q", "rank": 2}),
    "experts-transposed": ("gpt-oss", {"target_parameters": ["experts"], "rank": 2}),
    "experts-rank": ("qwen2-moe", {"target_parameters": ["experts"], "rank_pattern": {"experts": 1, "q": 2}}),
}


def _logits(module: torch.nn.Module) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


def _bits(module: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all tensors under the names they have in the plain model."""
    wrapped = re.compile(r"(\.token_adapter|\.base_layer)+(?=\.)")
    return {wrapped.sub("", n): p.detach().clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_an_option_is_counted_trained_saved_opened_by_peft_and_merged(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    method = Lora.model_validate(options)
    folder, saved = write(family, tmp_path / "base"), tmp_path / "adapter"
    saved.mkdir()
    model = load_model(str(folder))
    base, base_logits = _bits(model.module), _logits(model.module)
    torch.manual_seed(3)
    running = engine(model, method)
    torch.testing.assert_close(_logits(model.module), base_logits, rtol=0, atol=2e-5)
    declared, hashes = trainable(model.module), digests(model.module)
    with torch.device("meta"):
        counted = method.count(AutoModelForCausalLM.from_config(config(family)))
    assert counted == sum(p.numel() for p in declared.values())

    model.module.train()
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    outcome = audit(model.module, hashes)
    assert outcome.frozen_changed == outcome.trained_unchanged == ()
    trained = _logits(model.module)
    assert (trained - base_logits).abs().max() > 1e-3
    now = _bits(model.module)
    moved = {n for n, before in base.items() if not torch.equal(before, now[n])}
    assert moved <= declared.keys()

    method.save(model.module, saved, base=str(folder))
    fresh = load_model(str(folder)).module
    method.prepare(fresh)
    method.load(fresh, saved)
    assert torch.equal(_logits(fresh), trained)

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(saved))
    torch.testing.assert_close(_logits(opened), trained, rtol=0, atol=2e-5)

    merged = method.merge(fresh)
    torch.testing.assert_close(_logits(merged), trained, rtol=0, atol=2e-5)
    assert {n for n, _ in merged.named_parameters()} == base.keys()
    assert not any("peft" in type(m).__module__ or "luthier" in type(m).__module__ for m in merged.modules())


def test_only_the_rows_of_the_chosen_tokens_change(tmp_path: Path) -> None:
    model = load_model(str(write("llama-tied", tmp_path)))
    before = model.module.get_input_embeddings().weight.detach().clone()
    method = Lora(new_tokens=(5, 61))
    running = engine(model, method)
    running.train_step(examples([9, 14, 5, 20], share=1.0))
    after = method.merge(model.module).get_input_embeddings().weight.detach()
    changed = (after != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [5, 61]


def test_tokens_are_found_by_their_text_before_the_run_begins(tmp_path: Path) -> None:
    model = load_model(str(write("llama", tmp_path)))

    class Looks:
        tokenizer = model.tokenizer

    method = Lora(new_tokens=("w7", 5))
    assert method.choose(Looks()).new_tokens == (7, 5)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"(?s)no token '<tool>'.*add it to the tokenizer"):
        Lora(new_tokens=("<tool>",)).choose(Looks())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"rows 0 to 63.*64"):
        Lora(new_tokens=(64,)).apply(build("llama"))


def test_a_dora_layer_trains_the_length_of_each_row_apart(tmp_path: Path) -> None:
    model = build("llama")
    method = Lora(dora=True, targets="q", rank=2)
    method.apply(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layer.get_base_layer().weight.norm(dim=1))
    method.save(model, tmp_path, base="b")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector" in load_file(
        tmp_path / "adapter_model.safetensors"
    )


def test_pissa_starts_from_the_principal_singular_vectors_as_peft_does() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    ours, theirs = build("llama"), build("llama")
    Lora(init="pissa", rank=4, targets="q").apply(ours)
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], init_lora_weights="pissa"), theirs
    )
    mine, peer = (m.get_submodule("model.layers.0.self_attn.q_proj") for m in (ours, theirs))
    for part in ("lora_A", "lora_B"):
        torch.testing.assert_close(getattr(mine, part)["default"].weight, getattr(peer, part)["default"].weight)
    assert torch.equal(
        mine.get_base_layer().weight, build("llama").get_submodule("model.layers.0.self_attn.q_proj").weight
    )


def test_pissa_in_a_large_matrix_comes_near_the_exact_one() -> None:
    from luthier.methods.modules import pissa_linear

    exact, near = build("llama"), build("llama")
    Lora(init="pissa", rank=4, targets="q").apply(exact)
    before = pissa_linear.LARGEST_EXACT
    pissa_linear.LARGEST_EXACT = 1
    try:
        Lora(init="pissa", rank=4, targets="q").apply(near)
    finally:
        pissa_linear.LARGEST_EXACT = before
    starts = [m.get_submodule("model.layers.0.self_attn.q_proj") for m in (exact, near)]
    torch.testing.assert_close(*(s.start_b @ s.start_a for s in starts), rtol=1e-3, atol=1e-3)


def test_a_classifiers_head_is_trained_and_opens_in_peft(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    base = LlamaForSequenceClassification(config("llama", num_labels=3)).eval()
    base.save_pretrained(tmp_path / "base")
    method = Lora(rank=2)
    method.prepare(base)
    names = trainable(base)
    assert "score.weight" in names
    assert not any("score" in n and "lora" in n for n in names)
    with torch.no_grad():
        for p in names.values():
            p.add_(0.1 * torch.randn_like(p))
    logits = _logits(base)
    (tmp_path / "a").mkdir()
    method.save(base, tmp_path / "a", base="b")
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["score"]
    assert written["task_type"] == "SEQ_CLS"
    plain = LlamaForSequenceClassification.from_pretrained(tmp_path / "base")
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "a"))
    torch.testing.assert_close(_logits(opened), logits, rtol=0, atol=1e-5)
    again = LlamaForSequenceClassification.from_pretrained(tmp_path / "base")
    method.prepare(again)
    method.load(again, tmp_path / "a")
    torch.testing.assert_close(_logits(again), logits, rtol=0, atol=0)
    torch.testing.assert_close(_logits(method.merge(again)), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"exclude": ["q_porj"]}, r"q_porj.*q_proj"),
        ({"exclude": ["all-linear"]}, r"excluded.*exclude less"),
        ({"modules_to_save": ["lm_haed"]}, r"lm_haed.*lm_head"),
        ({"target_parameters": ["experts"]}, r"no fused tensor.*targets"),
        ({"rank_pattern": {"q_porj": 2}}, r"q_porj"),
        ({"rank_pattern": {"q": 2}, "targets": "down"}, r"nothing that targets has chosen"),
        ({"targets": "nope", "exclude": ["nada"]}, r"nope.*nada"),
        ({"init": "loftq"}, r"quantised.*qlora"),
        ({"init": "pissa", "dora": True}, r"one of them"),
    ],
    ids=str,
)
def test_an_option_that_means_nothing_here_is_refused_with_its_remedy(options: dict[str, object], remedy: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){remedy}"):
        Lora.model_validate(options).apply(build("llama"))


def test_a_tied_head_cannot_be_saved_apart() -> None:
    with pytest.raises(ModelError, match=r"(?s)one matrix.*new_tokens"):
        Lora(modules_to_save=("lm_head",)).apply(build("llama-tied"))


def test_all_linear_on_a_mixture_says_that_experts_stay_as_they_are() -> None:
    def said(**options: object) -> list[str]:
        method = Lora.model_validate(options)
        facts = StageFacts(method=method, objective=Sft(), model_config=config("mixtral").to_dict())
        return [f"{p.severity}: {p.remedy}" for p in method.problems(facts)]

    assert [w for w in said() if w.startswith("warning") and "target_parameters: [experts]" in w]
    assert said(targets="attention") == said(target_parameters=["experts"]) == []
    assert [w for w in said(target_parameters=["experts"], dropout=0.1) if w.startswith("error")]
