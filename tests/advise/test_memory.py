"""Published tables of memory, and what a plan says of large models, to the unit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from luthier.advise.memory import Job, kv_cache, plan_memory, quantized_bytes, quantized_parameters
from luthier.advise.shape import ModelShape, shape_of

GB = 1e9
SHAPE_7B = replace(
    shape_of(LlamaConfig(hidden_size=4096, intermediate_size=11008, vocab_size=32000).to_dict()),
    layers=0,
    embeddings=7_500_000_000,
    head=0,
    final=0,
)
"""Nothing but 7.5 billion parameters, as ZeRO's table counts."""


def llama_70b() -> ModelShape:
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    return shape_of(config.to_dict())


@pytest.mark.parametrize(("placement", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_zeros_table_comes_out(placement: str, gigabytes: float):
    """Rajbhandari et al. 2019, figure 1: 7.5 B parameters on 64 devices, Adam in mixed precision."""
    job = Job(method="full", mixed=True, dtype="bfloat16", devices=64, placement=placement, tokens=0, micro_batches=2)  # type: ignore[arg-type]
    parts = plan_memory(SHAPE_7B, job).parts
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert round(states / GB, 1) == gigabytes


@pytest.mark.parametrize(("double", "bits"), [(True, 4.127), (False, 4.5)])
def test_nf4_takes_as_many_bits_as_the_paper_says(double: bool, bits: float):
    """Dettmers et al. 2023, section 3: 0.5 bits of constants, 0.127 with double quantisation."""
    shape = llama_70b()
    found = 8 * sum(quantized_bytes(shape, 4, double)) / quantized_parameters(shape)
    assert round(found, 3) == bits


def test_keys_and_values_of_llama_2_70b_take_what_the_gqa_paper_counts():
    """80 layers x 8 heads x 128 numbers x 2 (key, value) x 2 bytes = 327,680 bytes for each token."""
    job = Job(dtype="bfloat16", rollout_sequences=4, rollout_tokens=1000)
    assert kv_cache(llama_70b(), job) == 327_680 * 4000


def test_all_parts_add_up_and_every_device_has_its_share():
    job = Job(method="full", devices=4, placement="zero3", micro_batches=2)
    whole = plan_memory(llama_70b(), replace(job, devices=1, placement="single"))
    cut = plan_memory(llama_70b(), job)
    assert cut.peak_bytes == sum(cut.parts.values())
    for name in ("weights", "gradients", "optimizer"):
        assert cut.parts[name] == pytest.approx(whole.parts[name] / 4, rel=1e-6)
    assert cut.parts["activations"] == whole.parts["activations"]


def test_what_is_offloaded_lies_in_the_hosts_memory():
    job = Job(method="full", devices=8, placement="zero3", mixed=True, dtype="bfloat16")
    here = plan_memory(llama_70b(), job)
    away = plan_memory(llama_70b(), replace(job, offload="optimizer"))
    assert away.host == {"optimizer": here.parts["optimizer"]}
    assert away.peak_bytes == here.peak_bytes - here.parts["optimizer"]
    assert here.host == {}


def test_gradients_of_an_earlier_micro_batch_stand_beside_activations():
    job = Job(method="full", tokens=4096)
    one, several = plan_memory(llama_70b(), job), plan_memory(llama_70b(), replace(job, micro_batches=4))
    assert several.peak_bytes - one.peak_bytes > 0
    assert several.parts["gradients"] == 4 * llama_70b().total_parameters


def test_checkpointing_takes_less_and_longer_batches_more():
    job = Job(method="lora", tokens=4096)
    plain = plan_memory(llama_70b(), job).peak_bytes
    assert plan_memory(llama_70b(), replace(job, gradient_checkpointing=True)).peak_bytes < plain
    assert plan_memory(llama_70b(), replace(job, tokens=8192)).peak_bytes > plain


def test_a_plan_imports_no_torch():
    code = (
        "import sys, luthier.advise.memory, luthier.advise.shape;"
        "assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
