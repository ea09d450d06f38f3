"""The closed form of kept activations against the bytes that autograd saves in this engine's forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from families import tokenizer
from luthier.advise.activations import kept
from luthier.advise.memory import Job, pass_of
from luthier.advise.reach import reach_of
from luthier.advise.shape import shape_of
from luthier.core.batch import Example
from luthier.core.component import component_class
from luthier.methods.base import Method
from luthier.models import leaner
from luthier.models.causal import CausalModel, probe
from training import engine

LENGTHS = (150, 53)
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 500}
_GATED = {
    **_IDS,
    "hidden_size": 64,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_GATED),
    "qwen3": transformers.Qwen3Config(**_GATED, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(
        **_IDS, n_embd=64, n_layer=3, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
}
METHODS: dict[str, dict[str, object]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora"},
    "lora-attention": {"kind": "lora", "targets": ["attention"]},
    "lora-dropout": {"kind": "lora", "dropout": 0.1},
    "ia3": {"kind": "ia3"},
    "adapter": {"kind": "adapter"},
    "adapter-dropout": {"kind": "adapter", "dropout": 0.1},
    "pfeiffer": {"kind": "pfeiffer"},
    "hadamard": {"kind": "hadamard"},
    "last-block": {"kind": "layers", "last": 1},
    "bitfit": {"kind": "bitfit", "add_biases": True},
}


def _saved_bytes(
    name: str,
    settings: dict[str, object],
    checkpointing: bool,
    share: float,
    bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Return the bytes that autograd keeps of one forward pass, parameters left out, each storage once."""
    torch.manual_seed(0)
    method = component_class("method", str(settings["kind"])).model_validate(settings)
    assert isinstance(method, Method)
    module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    if bf16 and method.freezes_most:
        module.to(torch.bfloat16)
    model = CausalModel(module, tokenizer(), name=name, path=name)
    probe(model)
    model.autocast = torch.bfloat16 if bf16 else None
    work = engine(model, method, gradient_checkpointing=checkpointing)
    draw = np.random.default_rng(0)
    rows = [
        Example(draw.integers(0, 500, n).astype(np.int32), (np.arange(n) >= n * (1 - share)).astype(np.float32))
        for n in LENGTHS
    ]
    batch = model.collate(rows)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    casts = {tuple(p.shape) for p in module.parameters()} | {
        tuple(p.t().shape) for p in module.parameters() if p.ndim == 2
    }
    seen: list[tuple[StorageWeakRef, int]] = []

    def count(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        is_weight = place.data_ptr() in own or (bf16 and tuple(tensor.shape) in casts)
        if not is_weight and tensor.is_floating_point():
            seen.append((StorageWeakRef(place), place.nbytes()))
        return tensor

    class Inner(saved_tensors_hooks):
        """Hooks within hooks hide what they keep from the outer ones."""

        def __init__(self, pack, unpack) -> None:
            def counted(tensor: Tensor) -> object:
                kept_as = pack(tensor)
                return count(kept_as) if isinstance(kept_as, Tensor) else kept_as

            super().__init__(counted, unpack)

    monkeypatch.setattr(leaner, "saved_tensors_hooks", Inner)
    with saved_tensors_hooks(count, lambda tensor: tensor):
        result = work.objective.loss_sum(model, batch)
    assert result.total.requires_grad  # what it holds on to is alive until here
    return sum({ref.cdata: size for ref, size in seen if not ref.expired()}.values())


@pytest.mark.parametrize("share", [1.0, 0.4], ids=["all-learnt", "answers-learnt"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_closed_form_counts_what_autograd_keeps(
    name: str, method: str, checkpointing: bool, share: float, monkeypatch: pytest.MonkeyPatch
):
    settings = METHODS[method]
    if method == "bitfit" and name == "gpt2":
        settings = {"kind": "bitfit"}
    _compare(name, settings, checkpointing, share, False, monkeypatch)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_doras_lengths_keep_what_they_scale(name: str, monkeypatch: pytest.MonkeyPatch):
    _compare(name, {"kind": "lora", "dora": True}, False, 1.0, False, monkeypatch)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_closed_form_holds_in_16_bits(method: str, monkeypatch: pytest.MonkeyPatch):
    _compare("llama", METHODS[method], False, 1.0, True, monkeypatch)


def _compare(
    name: str,
    settings: dict[str, object],
    checkpointing: bool,
    share: float,
    bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = _saved_bytes(name, settings, checkpointing, share, bf16, monkeypatch)
    shape = shape_of(CONFIGS[name].to_dict())
    supervised = sum(int((np.arange(n) >= n * (1 - share))[1:].sum()) for n in LENGTHS)
    job = Job(
        method=str(settings["kind"]),
        settings=settings,
        tokens=sum(LENGTHS),
        supervised=supervised,
        sequences=len(LENGTHS),
        dtype="bfloat16" if bf16 else "float32",
        gradient_checkpointing=checkpointing,
    )
    found = kept(shape, reach_of(job.method, settings, shape), pass_of(shape, job))
    # The gradient that the head makes at once is no saved tensor.
    gradient = supervised * shape.hidden * (2 if bf16 and job.method == "lora" else 4)
    predicted = found.activations + found.head - gradient
    # IA3 multiplies keys before Qwen3's norm, which shares what it keeps.
    near = 0.035 if (name, job.method) == ("qwen3", "ia3") else 0.01
    assert predicted == pytest.approx(measured, rel=near), f"{predicted / measured:.3f}"
