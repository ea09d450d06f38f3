"""Mixture-of-experts models: found in a model, made of a dense one, joined of several, changed expert by expert.

A dense Llama, Mistral or Qwen becomes a mixture of the architecture that has its attention: Mixtral, Qwen2-MoE or
Qwen3-MoE. Every expert is a feed-forward of the dense model's shape, and the weights of the chosen ones sum to one, so
that a mixture of equal experts computes what the dense model computed, up to rounding.

Sources: sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055); Branch-Train-MiX (Sukhbaatar et al. 2024,
arXiv:2403.07816).

Shape legend: E experts, I intermediate size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from luthier.core.errors import ModelError, Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

MIXTURE_OF = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
"""The architecture of mixtures that has the attention of a dense one."""
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Architectures whose experts are two fused tensors under a router that chooses by a softmax."""
_SHARED_WIDTH = 8
"""Qwen2-MoE has an expert that every token passes; an upcycled one has it this narrow, with an output of zero."""
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
    "rope_parameters",
    "id2label",
    "label2id",
    "problem_type",
    "dtype",
)
"""What a mixture's config takes over from a dense one."""


# ---------------------------------------------------------------------- the parts of a mixture


@dataclass(frozen=True)
class Mixture:
    """One layer's router and experts.

    Attributes:
        name: of the block that holds both (`model.layers.0.mlp`).
        router: gives (logits, weights, indices); `weight` is (E, H).
        experts: holds `gate_up_proj` (E, 2I, H) and `down_proj` (E, H, I).
        top_k: experts that each token goes to.
    """

    name: str
    router: nn.Module
    experts: nn.Module
    top_k: int

    @property
    def fused(self) -> tuple[Tensor, Tensor]:
        """The two tensors that hold all experts."""
        return cast("Tensor", self.experts.gate_up_proj), cast("Tensor", self.experts.down_proj)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, H and I."""
        experts, hidden, inner = self.fused[1].shape
        return experts, hidden, inner

    @property
    def count(self) -> int:
        return self.sizes[0]


def mixtures(model: nn.Module) -> list[Mixture]:
    """Return the mixtures of a model in order; empty for a dense one, and for experts that are built in another way."""
    from torch import nn

    found = []
    for name, module in model.named_modules():
        router, experts = getattr(module, "gate", None), getattr(module, "experts", None)
        if isinstance(experts, nn.Module) and isinstance(router, nn.Module):
            fused = (getattr(experts, part, None) for part in ("gate_up_proj", "down_proj"))
            if all(isinstance(tensor, nn.Parameter) for tensor in fused):
                found.append(Mixture(name, router, experts, int(router.top_k)))  # type: ignore[arg-type]
    return found


def unknown_mixture(model_type: str) -> Problem:
    """Return what is said of a mixture whose experts are built in a way that is not supported."""
    return Problem(
        f"The experts or routers of {model_type} are built in a way that is not supported.",
        where="method",
        remedy=f"use a model of {', '.join(MIXTURES)}, or train the rest of it with lora or layers",
    )


def active_parameters(model: nn.Module) -> int:
    """Return the parameters that one token passes: all, less the experts that it does not go to."""
    total = sum(p.numel() for p in model.parameters())
    for layer in mixtures(model):
        total -= sum(t.numel() for t in layer.fused) * (layer.count - layer.top_k) // layer.count
    return total


# ---------------------------------------------------------------------- dense → mixture


def become_mixture(model: PreTrainedModel, experts: int, top_k: int, noise: float = 0.0, seed: int = 0) -> None:
    """Make a dense model a mixture in place: each expert a copy of the feed-forward, the router new.

    Args:
        noise: standard deviation of what is added to each copy, as a share of the matrix's own.
        seed: of the routers and the noise.

    Raises:
        ModelError: the architecture has no mixture with its attention.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    dense = dict(model.named_parameters(remove_duplicate=False))

    def copies(name: str) -> Tensor:
        tensor = dense[name].detach()
        stacked = tensor.expand(experts, *tensor.shape).clone()
        if noise and not stacked.is_meta:
            size = noise * float(tensor.float().std())
            stacked += size * torch.randn(stacked.shape, generator=draw).to(stacked)
        return stacked

    _become(model, mixture_config(model.config, experts, top_k), copies, draw)


def mixture_config(dense: PreTrainedConfig, experts: int, top_k: int) -> PreTrainedConfig:
    """Return the config of the mixture that a dense model becomes.

    Raises:
        ModelError: the architecture has no mixture with its attention.
    """
    from transformers import AutoConfig

    values = dense.to_dict()
    reason = why_not_upcycled(values)
    if reason:
        raise ModelError(Problem(reason, where="method.upcycle"))
    kept = {key: values[key] for key in _KEPT if values.get(key) is not None}
    kind, inner = MIXTURE_OF[str(values["model_type"])], values["intermediate_size"]
    own: dict[str, object]
    if kind == "mixtral":
        own = {"num_local_experts": experts, "sliding_window": values.get("sliding_window")}
    else:
        own = {
            "num_experts": experts,
            "moe_intermediate_size": inner,
            "norm_topk_prob": True,  # weights that do not sum to one would shrink the feed-forward's output
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
        }
        own |= {"shared_expert_intermediate_size": _SHARED_WIDTH, "qkv_bias": True} if kind == "qwen2_moe" else {}
        own |= {"attention_bias": bool(values.get("attention_bias"))} if kind == "qwen3_moe" else {}
    config = AutoConfig.for_model(kind, **{**kept, **own, "num_experts_per_tok": top_k})
    config._name_or_path = dense._name_or_path
    return config


def shared_expert_size(dense_type: str, hidden: int) -> int:
    """Return the parameters of the expert that every token passes, in a layer that was made of a dense one."""
    return (3 * _SHARED_WIDTH + 1) * hidden if MIXTURE_OF[dense_type] == "qwen2_moe" else 0


def why_not_upcycled(config: dict[str, object]) -> str:
    """Return why a dense model, known by its config, cannot become a mixture; empty where it can."""
    kind = config.get("model_type")
    if kind not in MIXTURE_OF:
        return f"{kind} has no mixture architecture with the same attention; {', '.join(MIXTURE_OF)} have one."
    if kind in ("llama", "mistral") and (config.get("attention_bias") or config.get("mlp_bias")):
        return "This model's matrices have biases, and Mixtral's have none."
    if kind == "qwen3" and config.get("mlp_bias"):
        return "This model's feed-forward has biases, and an expert has none."
    if kind in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        return "This model slides a window over some of its layers, and its mixture architecture does it otherwise."
    return ""


def _become(
    model: PreTrainedModel, config: PreTrainedConfig, copies: Callable[[str], Tensor], draw: torch.Generator
) -> None:
    """Turn `model` into the mixture of `config`; `copies` gives (E, …) of a dense feed-forward matrix, by its name."""
    import torch
    from torch import nn

    from luthier.models.leaner import make_leaner

    dense = dict(model.named_parameters(remove_duplicate=False))
    target = _mixture_class(model, config)
    with torch.device("meta"):
        made = target(config)
    device, dtype = model.device, next(iter(dense.values())).dtype
    for name, blank in list(made.named_parameters(remove_duplicate=False)):
        parent, _, last = name.rpartition(".")
        if name in dense:
            tensor = dense[name]  # the parameter itself, so that what was tied stays tied
        else:
            tensor = nn.Parameter(_new_tensor(name, blank, copies, config, draw).to(device, dtype))
        setattr(made.get_submodule(parent), last, tensor)
    # Its frequencies are buffers, which came out empty on the meta device.
    rotary = type(made.base_model.rotary_emb)
    made.base_model.rotary_emb = rotary(config=config).to(device)  # type: ignore[call-arg]  # taken for a Tensor
    made.set_attn_implementation(model.config._attn_implementation or "eager")
    if model.can_generate():
        made.generation_config = model.generation_config
    made.train(model.training)
    # Whoever holds the model holds the mixture from here on.
    model.__class__ = target
    model.__dict__.clear()
    model.__dict__.update(made.__dict__)
    make_leaner(model)


def _mixture_class(model: PreTrainedModel, config: PreTrainedConfig) -> type[PreTrainedModel]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for task in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        if type(model) is task._model_mapping.get(type(model.config), None):  # type: ignore[attr-defined]
            return task._model_mapping[type(config)]  # type: ignore[attr-defined]
    what = f"{type(model).__name__} cannot become a mixture."
    raise ModelError(Problem(what, where="method.upcycle", remedy="use a causal language model or a classifier"))


def _new_tensor(
    name: str, blank: Tensor, copies: Callable[[str], Tensor], config: PreTrainedConfig, draw: torch.Generator
) -> Tensor:
    import torch

    block, _, last = name.rpartition(".experts.")
    if last == "gate_up_proj":
        return torch.cat([copies(f"{block}.gate_proj.weight"), copies(f"{block}.up_proj.weight")], dim=1)
    if last == "down_proj":
        return copies(f"{block}.down_proj.weight")
    if name.endswith(".shared_expert.down_proj.weight"):
        return torch.zeros(blank.shape)
    return torch.randn(blank.shape, generator=draw) * config.initializer_range


# ---------------------------------------------------------------------- dense models → experts of one mixture


def join_into(
    model: PreTrainedModel, parts: Iterable[dict[str, Tensor]], count: int, top_k: int, seed: int = 0
) -> None:
    """Make a dense model a mixture in place, whose expert i is the feed-forward of part i.

    What is not feed-forward is averaged over the parts, as Branch-Train-MiX does; where all agree it keeps its bits.

    Args:
        parts: `count` models of the same sizes, as tensors by name; taken one after the other.
        seed: of the routers.

    Raises:
        ModelError: the architecture has no mixture with its attention.
    """
    import torch

    config = mixture_config(model.config, count, top_k)
    shared: dict[str, Tensor] = {}
    differing: set[str] = set()
    experts: dict[str, list[Tensor]] = {}
    for index, part in enumerate(parts):
        for name, tensor in part.items():
            if ".mlp." in name:
                experts.setdefault(name, []).append(tensor)
            elif index == 0:
                shared[name] = tensor
            elif name in differing or not torch.equal(tensor, shared[name]):
                differing.add(name)
                # A running mean; as long as all were equal, the first is it, bit for bit.
                shared[name] = shared[name] + (tensor - shared[name]) / (index + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in shared:
                parameter.copy_(shared[name])
    draw = torch.Generator().manual_seed(seed)
    _become(model, config, lambda name: torch.stack(experts[name]), draw)


def put_expert(model: PreTrainedModel, index: int, part: dict[str, Tensor]) -> None:
    """Put a dense model's feed-forwards in the place of expert `index` of every layer."""
    import torch

    with torch.no_grad():
        for layer in mixtures(model):
            gate, up, down = (part[f"{layer.name}.{which}_proj.weight"] for which in ("gate", "up", "down"))
            gate_up_EXH, down_EHI = layer.fused
            gate_up_EXH[index] = torch.cat([gate, up])
            down_EHI[index] = down


def dense_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Return the shapes of the dense model that a mixture was made of; a dense model's own."""
    import torch

    found = mixtures(model)
    blocks = tuple(f"{layer.name}." for layer in found)
    shapes = {n: p.shape for n, p in model.named_parameters() if not n.startswith(blocks)}
    for layer in found:
        _, hidden, inner = layer.sizes
        for which in ("gate", "up"):
            shapes[f"{layer.name}.{which}_proj.weight"] = torch.Size((inner, hidden))
        shapes[f"{layer.name}.down_proj.weight"] = torch.Size((hidden, inner))
    return shapes
