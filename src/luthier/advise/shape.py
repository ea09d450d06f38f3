"""A model's sizes from its config.json alone: closed forms, no torch, no weights.

Every matrix of a block is listed once with its inputs, outputs and part, so that whatever is counted (parameters, LoRA,
bits, operations, activations) is a sum over the same list.

Shape legend: H hidden size, F inner size of the feed-forward, A attention heads, K key/value heads, D head size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from luthier.core.errors import ModelError, Problem

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "down", "other"]
Activation = Literal["silu", "gelu", "gelu_new", "relu"]
_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "qkv", "o"),
    "mlp": ("gate", "up", "down"),
    "all-linear": ("q", "k", "v", "qkv", "o", "gate", "up", "down", "other"),
}


@dataclass(frozen=True)
class Matrix:
    """One matrix of a block."""

    role: Role
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Numbers in the matrix, its bias not counted."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """What a plan has to know of a model.

    Attributes:
        family: the config's model_type.
        matrices: of one block; of a mixture of experts without the experts.
        norms: numbers in one block's normalisations.
        embeddings: parameters of tokens, positions and types, and of a norm that belongs to them.
        head: parameters of the output head; 0 where it is the embedding.
        final: parameters behind the last block: the final norm, an encoder's pooler.
        outside: matrices of the backbone that stand in no block (the pooler); their numbers are counted in `final`.
        block_norms: how many normalisations of width H a block has.
        head_norms: each head's queries and keys are normalised (Qwen 3).
        has_rms: norms divide by the root of the mean square; False where they subtract the mean as well.
        experts: in each block; 0 where there is one feed-forward.
        expert_parameters: of one block's experts and their router.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    context: int | None
    matrices: tuple[Matrix, ...]
    norms: int
    embeddings: int
    head: int
    final: int
    outside: tuple[Matrix, ...] = ()
    activation: Activation = "silu"
    block_norms: int = 2
    head_norms: bool = False
    has_rms: bool = True
    is_tied: bool = False
    is_encoder: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_inner: int = 0
    expert_parameters: int = 0

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward is down(act(gate(x)) · up(x))."""
        return self.experts > 0 or any(matrix.role == "gate" for matrix in self.matrices)

    @property
    def block_matrices(self) -> int:
        """Parameters in one block's matrices, experts left out."""
        return sum(matrix.parameters for matrix in self.matrices)

    @property
    def block_biases(self) -> int:
        """Parameters in the biases of one block's matrices."""
        return sum(matrix.outputs for matrix in self.matrices if matrix.bias)

    @property
    def block_parameters(self) -> int:
        """All parameters of one block."""
        return self.block_matrices + self.block_biases + self.norms + self.expert_parameters

    @property
    def total_parameters(self) -> int:
        """All parameters; a shared matrix counts once, a classifier's head is not counted."""
        return self.embeddings + self.layers * self.block_parameters + self.final + self.head

    @property
    def active_parameters(self) -> int:
        """Parameters that one token is multiplied with, the head's included."""
        expert = 3 * self.hidden * self.expert_inner
        chosen = self.experts_per_token * expert + self.hidden * self.experts if self.experts else 0
        return self.layers * (self.block_matrices + chosen) + self.head_matrix

    @property
    def head_matrix(self) -> int:
        """Numbers in the matrix that makes logits, tied or not; 0 in an encoder."""
        return 0 if self.is_encoder else self.vocabulary * self.hidden

    def matching(self, targets: tuple[str, ...]) -> tuple[Matrix, ...]:
        """Return the matrices of a block that targets such as `attention`, `q` or `all-linear` mean."""
        wanted = roles_of(targets)
        return tuple(matrix for matrix in self.matrices if matrix.role in wanted)


def roles_of(targets: tuple[str, ...]) -> frozenset[str]:
    """Return the parts that words such as `attention`, `q` or `all-linear` mean; a fused matrix is part of each."""
    wanted = {role for target in targets for role in _GROUPS.get(target, (target,))}
    return frozenset(wanted | {"qkv"} if wanted & {"q", "k", "v"} else wanted)


def shape_of(config: Mapping[str, object], where: str = "config.json") -> ModelShape:
    """Return the shape that a config.json describes.

    Raises:
        ModelError: a family whose blocks are not written down here, or a size that is missing.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type"):
        return shape_of({**text}, where)
    family = str(config.get("model_type"))
    make = _FAMILIES.get(family)
    if make is None:
        remedy = f"closed forms are there for: {', '.join(sorted(_FAMILIES))}"
        raise ModelError(Problem(f"The sizes of the family {family} are not known without building it.", where, remedy))
    try:
        return make(_Config(config, family))
    except KeyError as error:
        raise ModelError(Problem(f"config.json lacks {error.args[0]}.", where, "complete it")) from error


def read_shape(path: Path) -> ModelShape:
    """Return the shape of a model folder or of a config.json file.

    Raises:
        ModelError: there is no config, it is damaged, or its family is not known.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            Problem(f"The config cannot be read ({error}).", str(file), "give a model's folder")
        ) from error
    if not isinstance(config, dict):
        raise ModelError(Problem("The config holds no JSON object.", str(file), "give a model's config.json"))
    return shape_of(config, str(file))


def has_closed_form(config: Mapping[str, object]) -> bool:
    """Return whether the family of a config is written down here."""
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) and text.get("model_type") else config
    return str(inner.get("model_type")) in _FAMILIES


class _Config:
    """A config.json under one set of names, with the defaults of its family."""

    _OTHER_NAMES: ClassVar[dict[str, tuple[str, ...]]] = {
        "hidden_size": ("n_embd", "dim", "d_model"),
        "num_hidden_layers": ("n_layer", "n_layers"),
        "num_attention_heads": ("n_head", "n_heads"),
        "intermediate_size": ("n_inner", "hidden_dim", "ffn_dim"),
        "max_position_embeddings": ("n_positions",),
        "num_experts": ("num_local_experts",),
    }

    def __init__(self, values: Mapping[str, object], family: str) -> None:
        self.values, self.family = values, family

    def get(self, key: str, default: object = None) -> object:
        for name in (key, *self._OTHER_NAMES.get(key, ())):
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int):
            raise KeyError(key)
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default))

    @property
    def context(self) -> int | None:
        value = self.get("max_position_embeddings")
        return value if isinstance(value, int) else None


@dataclass(frozen=True)
class _Style:
    """In what the gated families differ."""

    qkv_bias: bool | None = None  # None: as attention_bias says
    o_bias: bool | None = None
    tied: bool = False
    norms: int = 2
    head_norms: Literal["none", "each", "whole"] = "none"
    fused: bool = False  # one matrix for q, k, v, and one for gate and up
    has_rms: bool = True
    norm_numbers: int = 1
    activation: Activation = "silu"
    inner_key: str = "intermediate_size"


def _gated(style: _Style) -> Callable[[_Config], ModelShape]:
    """Return the shape of families like Llama: rotary places, gated feed-forward, no biases but a few."""

    def make(config: _Config) -> ModelShape:
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        kv_heads = config.size("num_key_value_heads", heads)
        head_size = config.size("head_dim", hidden // heads)
        inner, vocabulary = config.size("intermediate_size"), config.size("vocab_size")
        said = config.flag("attention_bias", False)
        qkv_bias = said if style.qkv_bias is None else config.flag("qkv_bias", style.qkv_bias)
        o_bias = said if style.o_bias is None else style.o_bias
        mlp_bias = config.flag("mlp_bias", False)
        queries, keys = heads * head_size, kv_heads * head_size
        if style.fused:
            matrices = (
                Matrix("qkv", hidden, queries + 2 * keys, qkv_bias),
                Matrix("o", queries, hidden, o_bias),
                Matrix("gate", hidden, 2 * inner, mlp_bias),
                Matrix("down", inner, hidden, mlp_bias),
            )
        else:
            matrices = (
                Matrix("q", hidden, queries, qkv_bias),
                Matrix("k", hidden, keys, qkv_bias),
                Matrix("v", hidden, keys, qkv_bias),
                Matrix("o", queries, hidden, o_bias),
                Matrix("gate", hidden, inner, mlp_bias),
                Matrix("up", hidden, inner, mlp_bias),
                Matrix("down", inner, hidden, mlp_bias),
            )
        per_head = {"none": 0, "each": 2 * head_size, "whole": queries + keys}[style.head_norms]
        is_tied = config.flag("tie_word_embeddings", style.tied)
        return ModelShape(
            family=config.family,
            hidden=hidden,
            layers=config.size("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            inner=inner,
            vocabulary=vocabulary,
            context=config.context,
            matrices=matrices,
            norms=style.norms * hidden * style.norm_numbers + per_head,
            embeddings=vocabulary * hidden,
            head=0 if is_tied else vocabulary * hidden,
            final=hidden * style.norm_numbers,
            activation=style.activation,
            block_norms=style.norms,
            head_norms=style.head_norms != "none",
            has_rms=style.has_rms,
            is_tied=is_tied,
        )

    return make


def _mixture(style: _Style, inner_key: str, shared: bool = False) -> Callable[[_Config], ModelShape]:
    """Return the shape of mixtures of experts: every block's feed-forward is several, and a router chooses."""

    def make(config: _Config) -> ModelShape:
        dense = _gated(style)(config)
        hidden, experts, inner = dense.hidden, config.size("num_experts"), config.size(inner_key)
        kept = tuple(m for m in dense.matrices if m.role not in ("gate", "up", "down"))
        beside = 0
        if shared:  # an expert that sees every token, and the gate that weighs it
            own = config.size("shared_expert_intermediate_size")
            kept += (Matrix("gate", hidden, own), Matrix("up", hidden, own), Matrix("down", own, hidden))
            beside = hidden
        return replace(
            dense,
            matrices=kept,
            inner=config.size("shared_expert_intermediate_size") if shared else inner,
            experts=experts,
            experts_per_token=config.size("num_experts_per_tok", 2),
            expert_inner=inner,
            expert_parameters=experts * 3 * hidden * inner + experts * hidden + beside,
        )

    return make


def _gpt2(config: _Config) -> ModelShape:
    hidden, vocabulary, places = (
        config.size("hidden_size", 768),
        config.size("vocab_size", 50257),
        config.size("max_position_embeddings", 1024),
    )
    heads, inner = config.size("num_attention_heads", 12), config.size("intermediate_size", 4 * hidden)
    is_tied = config.flag("tie_word_embeddings", True)
    return ModelShape(
        family=config.family,
        hidden=hidden,
        layers=config.size("num_hidden_layers", 12),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        inner=inner,
        vocabulary=vocabulary,
        context=places,
        matrices=(
            Matrix("qkv", hidden, 3 * hidden, True),
            Matrix("o", hidden, hidden, True),
            Matrix("up", hidden, inner, True),
            Matrix("down", inner, hidden, True),
        ),
        norms=4 * hidden,
        embeddings=(vocabulary + places) * hidden,
        head=0 if is_tied else vocabulary * hidden,
        final=2 * hidden,
        activation=_activation(config.get("activation_function", "gelu_new")),
        has_rms=False,
        is_tied=is_tied,
    )


def _gpt_neox(config: _Config) -> ModelShape:
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size")
    heads, inner = config.size("num_attention_heads"), config.size("intermediate_size")
    bias, is_tied = config.flag("attention_bias", True), config.flag("tie_word_embeddings", False)
    return ModelShape(
        family=config.family,
        hidden=hidden,
        layers=config.size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        inner=inner,
        vocabulary=vocabulary,
        context=config.context,
        matrices=(
            Matrix("qkv", hidden, 3 * hidden, bias),
            Matrix("o", hidden, hidden, bias),
            Matrix("up", hidden, inner, True),
            Matrix("down", inner, hidden, True),
        ),
        norms=4 * hidden,
        embeddings=vocabulary * hidden,
        head=0 if is_tied else vocabulary * hidden,
        final=2 * hidden,
        activation=_activation(config.get("hidden_act", "gelu")),
        has_rms=False,
        is_tied=is_tied,
    )


def _bert(pooler: bool) -> Callable[[_Config], ModelShape]:
    """Return the shape of BERT and its kin as a backbone for a classifier; `pooler`: it has a layer behind the first
    token (RoBERTa's classifier has one in its head instead)."""

    def make(config: _Config) -> ModelShape:
        hidden, vocabulary = config.size("hidden_size", 768), config.size("vocab_size", 30522)
        heads, inner = config.size("num_attention_heads", 12), config.size("intermediate_size", 3072)
        rows = vocabulary + config.size("max_position_embeddings", 512) + config.size("type_vocab_size", 2)
        return ModelShape(
            family=config.family,
            hidden=hidden,
            layers=config.size("num_hidden_layers", 12),
            heads=heads,
            kv_heads=heads,
            head_size=hidden // heads,
            inner=inner,
            vocabulary=vocabulary,
            context=config.context,
            matrices=(
                Matrix("q", hidden, hidden, True),
                Matrix("k", hidden, hidden, True),
                Matrix("v", hidden, hidden, True),
                Matrix("o", hidden, hidden, True),
                Matrix("up", hidden, inner, True),
                Matrix("down", inner, hidden, True),
            ),
            norms=4 * hidden,
            embeddings=rows * hidden + 2 * hidden,
            head=0,
            final=hidden * hidden + hidden if pooler else 0,
            outside=(Matrix("other", hidden, hidden, True),) if pooler else (),
            activation=_activation(config.get("hidden_act", "gelu")),
            has_rms=False,
            is_encoder=True,
        )

    return make


def _activation(name: object) -> Activation:
    """Return which of the known functions a config names; those that are computed alike count as one."""
    text = str(name)
    if text in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return "gelu_new" if text == "gelu_new" else "gelu"
    return "relu" if text.startswith("relu") else "silu" if text in ("silu", "swish") else "gelu"


_LLAMA = _Style()
_QWEN2 = _Style(qkv_bias=True, o_bias=False)
_FAMILIES: dict[str, Callable[[_Config], ModelShape]] = {
    "llama": _gated(_LLAMA),
    "mistral": _gated(_LLAMA),
    "smollm3": _gated(_Style(tied=True)),
    "granite": _gated(_LLAMA),
    "qwen2": _gated(_QWEN2),
    "qwen3": _gated(_Style(head_norms="each")),
    "phi3": _gated(_Style(fused=True, qkv_bias=False, o_bias=False)),
    "gemma": _gated(_Style(tied=True, activation="gelu")),
    "gemma2": _gated(_Style(tied=True, norms=4, activation="gelu")),
    "gemma3_text": _gated(_Style(tied=True, norms=4, head_norms="each", activation="gelu")),
    "olmo2": _gated(_Style(head_norms="whole")),
    "mixtral": _mixture(_LLAMA, "intermediate_size"),
    "qwen2_moe": _mixture(_QWEN2, "moe_intermediate_size", shared=True),
    "qwen3_moe": _mixture(_Style(head_norms="each"), "moe_intermediate_size"),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bert": _bert(pooler=True),
    "roberta": _bert(pooler=False),
    "xlm-roberta": _bert(pooler=False),
}
