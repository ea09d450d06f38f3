"""QLoRA: bits that are bitsandbytes' own, files that PEFT opens, a merge into an ordinary model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from families import build, config, examples, write
from luthier.core.batch import Example
from luthier.core.component import StageFacts
from luthier.core.errors import MissingExtra, ModelError
from luthier.methods.base import trainable
from luthier.methods.lora import Lora
from luthier.methods.qlora import QLora
from luthier.models import quantized
from luthier.models.load import load_model
from luthier.models.quantized import has_quantized, is_quantized
from luthier.objectives.sft import Sft
from luthier.train.audit import audit, digests
from training import engine

bnb = pytest.importorskip("bitsandbytes")
TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(1))
WIDE: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""bitsandbytes' own kernel on CPUs is right only where a row is a multiple of its blocks of 64."""


def _logits(module: torch.nn.Module) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("shape", [(48, 64), (600, 1024), (3, 5), (40, 32)])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_bits_are_those_of_bitsandbytes(shape: tuple[int, int], double: bool, quant_type: str) -> None:
    from luthier.models.quantized_linear import Linear4, Workspace

    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    theirs = bnb.nn.Params4bit(weight.clone(), quant_type=quant_type, compress_statistics=double).to("cpu")
    ours = Linear4(weight, None, False, Workspace(), quant_type, double)
    assert torch.equal(ours.weight.data, theirs.data)
    assert torch.equal(ours.weight.quant_state.absmax, theirs.quant_state.absmax)
    full = ours.dequantized(torch.float32)
    if shape[1] % 64 == 0:
        assert torch.equal(full, bnb.functional.dequantize_4bit(theirs.data, theirs.quant_state))
    assert 0.02 < float((full - weight).norm() / weight.norm()) < 0.14


def test_dequantising_asks_for_no_memory_but_the_scales() -> None:
    from luthier.models.quantized_linear import PAIRS, Linear4, Workspace

    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    layer = Linear4(weight, None, False, Workspace(), "nf4", True)
    layer.dequantized(torch.float32)  # the workspace itself
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer.dequantized(torch.float32)
    largest = max(event.cpu_memory_usage for event in profile.events() or ())
    assert largest <= max(PAIRS * 8, weight.numel() // 64 * 4)


def test_peft_is_imported_without_the_compilers_back_end() -> None:
    script = (
        "import sys, torch, transformers; compiler = torch.compile\n"
        "from luthier.models.quantized import import_bitsandbytes; import_bitsandbytes()\n"
        "import peft; assert 'bitsandbytes' in sys.modules\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules and torch.compile is compiler"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_experts_that_keep_their_precision_are_named(tmp_path: Path) -> None:
    model = load_model(str(write("mixtral", tmp_path)), base_bits=4)
    experts = sum(p.numel() for n, p in model.module.named_parameters() if "experts" in n)
    assert any(f"experts keep their precision: {experts:,} weights" in note for note in model.notes)
    plain = load_model(str(write("llama", tmp_path / "dense")), base_bits=4)
    assert not any("experts" in note for note in plain.notes)


@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.012)])
def test_a_product_with_a_quantised_matrix_is_the_dense_one(bits: int, error: float) -> None:
    from luthier.models.quantized import Quantization, dense, quantize

    plain, model = build("llama"), build("llama")
    quantize(model, Quantization(bits), "cpu")  # type: ignore[arg-type]
    name = "model.layers.0.mlp.down_proj"
    layer = model.get_submodule(name)
    full = dense(layer)
    x = torch.randn(3, 7, layer.in_features, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, full(x), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, full.weight.sum(dim=0).expand_as(x), rtol=1e-4, atol=1e-4)
    weight = plain.get_submodule(name).weight
    assert (full.weight - weight).norm() / weight.norm() < error


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    "options", [{}, {"bits": 8}, {"dora": True}, {"rslora": True, "modules_to_save": ["norm"]}], ids=str
)
def test_it_trains_keeps_its_base_saves_loads_and_merges(
    family: str, options: dict[str, object], tmp_path: Path
) -> None:
    if family == "gpt2" and "modules_to_save" in options:
        options = {**options, "modules_to_save": ["ln_f"]}
    method = QLora.model_validate(options)
    sizes = {} if not method.dora else {"n_embd": 64} if family == "gpt2" else WIDE
    folder = write(family, tmp_path / "base", **sizes)
    model = load_model(str(folder), base_bits=method.base_bits)
    assert has_quantized(model.module)
    assert not is_quantized(model.module.get_output_embeddings())
    base = _logits(model.module)
    running = engine(model, method)
    torch.testing.assert_close(_logits(model.module), base, rtol=0, atol=2e-5)
    with torch.device("meta"):
        counted = method.count(AutoModelForCausalLM.from_config(config(family, **sizes)))
    assert counted == sum(p.numel() for p in trainable(model.module).values())
    hashes = digests(model.module)
    model.module.train()
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    assert audit(model.module, hashes).passed
    trained = _logits(model.module)
    assert (trained - base).abs().max() > 1e-3
    (tmp_path / "a").mkdir()
    method.save(model.module, tmp_path / "a", base="b")
    fresh = load_model(str(folder), base_bits=method.base_bits)
    assert fresh.fingerprint == model.fingerprint
    method.prepare(fresh.module)
    method.load(fresh.module, tmp_path / "a")
    assert torch.equal(_logits(fresh.module), trained)
    merged = method.merge(fresh.module)
    assert not has_quantized(merged)
    torch.testing.assert_close(_logits(merged), trained, rtol=0, atol=2e-5)
    assert all(p.dtype == torch.float32 for p in merged.parameters())


def test_peft_opens_the_adapter_on_a_base_that_transformers_quantised(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    folder = write("llama", tmp_path / "base", **WIDE)
    method = QLora(rank=4)
    model = load_model(str(folder), base_bits=4)
    running = engine(model, method)
    for step in range(2):
        running.train_step(examples([9, 14, 5, 20], seed=step, share=1.0))
    (tmp_path / "a").mkdir()
    method.save(model.module, tmp_path / "a", base=str(folder))
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    plain = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "a"))
    opened.train()  # bitsandbytes computes in bfloat16 when it evaluates on some CPUs
    with torch.no_grad():
        found = opened(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, _logits(model.module), rtol=0, atol=2e-4)


def test_the_full_model_is_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import load

    def whole(*arguments: object) -> None:
        raise AssertionError("the model was loaded in full")

    folder = write("llama", tmp_path)
    monkeypatch.setattr(load, "_pretrained", whole)
    model = load_model(str(folder), base_bits=4)
    assert has_quantized(model.module)
    for module in model.module.modules():
        assert type(module) is not nn.Linear or module is model.module.get_output_embeddings()


def test_dora_refuses_rows_that_the_library_would_read_wrongly(tmp_path: Path) -> None:
    model = load_model(str(write("llama", tmp_path)), base_bits=4)  # rows of 32
    with pytest.raises(ModelError, match=r"(?s)multiple of 64.*bits: 8"):
        QLora(dora=True).apply(model.module)


def test_loftq_starts_nearer_to_the_full_model_and_resumes_from_the_file(tmp_path: Path) -> None:
    folder = write("gpt2", tmp_path / "base")
    full = _logits(load_model(str(folder)).module)
    away = {}
    for init in ("default", "loftq"):
        model = load_model(str(folder), base_bits=4).module
        method = QLora(rank=16, init=init)  # type: ignore[arg-type]
        method.apply(model)
        away[init] = float((_logits(model) - full).norm())
    assert away["loftq"] < 0.75 * away["default"]
    (tmp_path / "a").mkdir()
    method.save(model, tmp_path / "a", base="b")
    again = load_model(str(folder), base_bits=4).module
    method.apply(again)
    method.load(again, tmp_path / "a")
    assert torch.equal(_logits(again), _logits(model))


def test_a_damaged_weight_is_named(tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = float("nan")
    write("llama", tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(tmp_path), base_bits=4)


def test_a_matrix_in_few_bits_cannot_be_trained_in_full(tmp_path: Path) -> None:
    model = load_model(str(write("llama", tmp_path)), base_bits=4)
    with pytest.raises(ModelError, match=r"(?s)4 bits.*norms, lm_head"):
        QLora(modules_to_save=("model.layers.0.mlp",)).apply(model.module)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(quantized, "has_bitsandbytes", lambda: False)
    method = QLora()
    (problem,) = method.problems(StageFacts(method=method, objective=Sft()))
    assert "luthier[quantization]" in problem.remedy
    with pytest.raises(MissingExtra, match=r"luthier\[quantization\]"):
        load_model(str(write("llama", tmp_path)), base_bits=4)


@pytest.mark.parametrize(
    ("name", "methods", "share"),
    [
        ("starter", (QLora(), QLora(init="loftq")), 0.02),
        # Rows of 64 weights have no redundancy: NF4 alone costs this model 7 % of its loss, training wins back half.
        ("stories260K", (QLora(bits=8),), 0.005),
    ],
)
def test_the_loss_stays_near_that_of_lora_on_a_real_model(
    name: str, methods: tuple[QLora, ...], share: float, shared: Path
) -> None:
    folder = name if name == "starter" else str(shared / "models" / name)
    text = (shared / "data/tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if len(line) > 100][:88]

    def held_out(method: Lora) -> float:
        model = load_model(folder, base_bits=method.base_bits)
        rows = [np.array(model.tokenizer(line).input_ids[:100], dtype=np.int32) for line in lines]
        data = [Example(tokens, np.ones(len(tokens), dtype=np.float32)) for tokens in rows]
        running = engine(model, method, total_steps=8, learning_rate=1e-3)
        for step in range(8):
            running.train_step(data[8 * step : 8 * step + 8])
        return running.evaluate(data[64:])[0]

    lora = held_out(Lora())
    for method in methods:
        assert held_out(method) == pytest.approx(lora, rel=share)


def test_matrices_too_small_to_gain_keep_their_precision_and_it_is_said(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "KEPT_BELOW", 16_384)
    small = load_model(str(shared / "models" / "stories260K"), base_bits=4)
    assert not has_quantized(small.module)
    assert any("keep their precision" in note for note in small.notes)
    for method in (QLora(), QLora(init="loftq")):
        running = engine(load_model(small.path, base_bits=4), method)
        plain = engine(load_model(small.path), Lora())
        rows = examples([9, 14], share=1.0)
        assert running.train_step(rows)["loss"] == pytest.approx(plain.train_step(rows)["loss"], rel=1e-6)
    large = load_model("starter", base_bits=4)
    sizes = {m.weight.numel() for m in large.module.modules() if type(m) is nn.Linear}
    assert has_quantized(large.module)
    assert sizes == {large.module.get_output_embeddings().weight.numel()} or max(sizes) < 16_384
