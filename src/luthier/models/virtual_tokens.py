"""Trained vectors that stand before every sequence: as embeddings (soft prompts), or as keys and values of every layer.

They live in a child of the backbone and enter through its hooks, so that the model keeps its class and its names, and
nobody above the backbone (heads, objectives, generation) sees more positions than there are tokens. They come before
each sequence of a packed row, before each row of a padded batch (behind the padding on its left), and once into a
generation. Real tokens stand P places further on, as they would after P real ones.

Shape legend: B rows, T positions, S sequences, P virtual tokens, H hidden size, K key/value heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError, Problem
from luthier.models import attention
from luthier.models.leaner import SELECTED
from luthier.models.room import BY_CACHE, NAME, no_room, not_checkpointed, unseen, without_prefixes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.utils.generic import ModelOutput


class VirtualTokens(nn.Module):
    """What stands before every sequence.

    Attributes:
        encoder: gives the vectors (1, P, width) of the indices (1, P).
        size: P.
        kept: of the forward pass under way, where the real tokens are: (1, N) in a packed row, (B, T) in a batch.
    """

    def __init__(self, encoder: nn.Module, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.size = size
        self.kept: Tensor | None = None
        self.register_buffer("indices", torch.arange(size), persistent=False)

    def forward(self) -> Tensor:
        """Return the vectors (P, width)."""
        return self.encoder(self.get_buffer("indices")[None])[0]


@dataclass(frozen=True)
class PrefixShape:
    """Sizes of a prefix's keys and values."""

    layers: int
    heads: int
    head_size: int

    @property
    def width(self) -> int:
        """Numbers in the keys of one layer."""
        return self.heads * self.head_size


def prefix_shape(config: PreTrainedConfig) -> PrefixShape:
    """Return the sizes that a model's config gives its keys and values."""
    text = config.get_text_config()
    queries = int(text.num_attention_heads)
    heads = int(getattr(text, "num_key_value_heads", None) or queries)
    head_size = int(getattr(text, "head_dim", None) or text.hidden_size // queries)
    return PrefixShape(int(text.num_hidden_layers), heads, head_size)


def virtual_tokens(model: nn.Module) -> VirtualTokens | None:
    """Return a model's virtual tokens, if it has been given any."""
    found = dict(getattr(model, "base_model", model).named_children()).get(NAME)
    return found if isinstance(found, VirtualTokens) else None


def add_soft_prompt(model: PreTrainedModel, encoder: nn.Module, size: int) -> None:
    """Put the vectors that `encoder` gives before the embeddings of every sequence.

    Raises:
        ModelError: the model leaves no room for them.
    """
    backbone = _add(model, encoder, size)
    backbone.register_forward_pre_hook(_insert, with_kwargs=True)
    backbone.register_forward_hook(_remove)


def add_prefix(model: PreTrainedModel, encoder: nn.Module, size: int) -> None:
    """Put the keys and values that `encoder` gives before those of every sequence, in every layer.

    Raises:
        ModelError: the model leaves no room for them, or its layers do not ask for them.
    """
    problem = without_prefixes(model.config.get_text_config().to_dict())
    if problem is not None:
        raise ModelError(problem)
    backbone = _add(model, encoder, size)
    if model.config.model_type in BY_CACHE:
        backbone.register_forward_pre_hook(_fill_cache, with_kwargs=True)
        return
    backbone.register_forward_pre_hook(_hand_prefix, with_kwargs=True)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    _number_layers(backbone, prefix_shape(model.config).layers)
    if model.device.type != "meta":
        _require_every_layer(model, backbone)


def _add(model: PreTrainedModel, encoder: nn.Module, size: int) -> PreTrainedModel:
    text = model.config.get_text_config()
    problem = no_room(size, getattr(text, "max_position_embeddings", None))
    if problem is None and virtual_tokens(model) is not None:
        problem = Problem(
            "Something stands before every sequence already; there is room for one prompt or prefix.",
            where="method",
            remedy="use one of prompt, p_tuning, prefix and p_tuning_v2",
        )
    if problem is not None:
        raise ModelError(problem)
    backbone = model.base_model
    backbone.add_module(NAME, VirtualTokens(encoder, size).to(model.device))
    return backbone  # type: ignore[return-value]


def _of(backbone: nn.Module) -> VirtualTokens:
    found = backbone.get_submodule(NAME)
    assert isinstance(found, VirtualTokens)
    return found


def _number_layers(backbone: nn.Module, layers: int) -> None:
    """Give attentions that do not know their layer (DistilBERT's) its number."""
    unnumbered = [m for m in backbone.modules() if "is_causal" in vars(m) and "layer_idx" not in vars(m)]
    if len(unnumbered) == layers:
        for index, module in enumerate(unnumbered):
            module.layer_idx = index  # type: ignore[assignment]


def _require_every_layer(model: PreTrainedModel, backbone: nn.Module) -> None:
    """Run two tokens through the model and make sure that every layer has asked for its part of the prefix."""
    wanted = set(range(prefix_shape(model.config).layers))
    seen: set[int] = set()

    def listen(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
        prefix = kwargs["kv_prefix"]
        assert isinstance(prefix, attention.Prefix)
        seen.update(prefix.seen)

    hook = backbone.register_forward_hook(listen, with_kwargs=True)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (NotImplementedError, TypeError) as error:
        raise ModelError(unseen(str(error))) from error
    finally:
        hook.remove()
        model.train(was_training)
    if seen != wanted:
        raise ModelError(unseen(f"{len(wanted - seen)} of its {len(wanted)} layers ask for none"))


# ---------------------------------------------------------------------- hooks of the backbone


def _named(backbone: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> dict[str, object]:
    """Return all arguments by name; some heads hand the tokens by position."""
    names = list(inspect.signature(backbone.forward).parameters)
    given = {**dict(zip(names, args)), **kwargs}
    given.pop(SELECTED, None)  # counted without the tokens that are added here
    return given


def _tensor(given: dict[str, object], name: str) -> Tensor | None:
    value = given.get(name)
    return value if isinstance(value, Tensor) else None


def _tokens_in_cache(given: dict[str, object]) -> int:
    """Return the length of the cache, what stands before the sequence included."""
    cache = given.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None else 0  # type: ignore[attr-defined]


def _hand_prefix(backbone: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple, dict]:
    """Give the attention of every layer its keys and values, and move the tokens' places behind them."""
    given = _named(backbone, args, kwargs)
    virtual = _of(backbone)
    tokens = _tensor(given, "inputs_embeds") if given.get("input_ids") is None else _tensor(given, "input_ids")
    assert tokens is not None, "a forward pass has tokens or their embeddings"
    positions = _tensor(given, "position_ids")
    if positions is None:
        start = _tokens_in_cache(given)
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        given["position_ids"] = positions + virtual.size + _first_position(backbone)
    else:
        given["position_ids"] = positions + virtual.size
    given["kv_prefix"] = attention.Prefix(_states(backbone), positions)
    return (), given


def _states(backbone: nn.Module) -> Tensor:
    """Return the prefix's keys and values, (2·layers, K, P, D)."""
    virtual, shape = _of(backbone), prefix_shape(backbone.config)  # type: ignore[arg-type]
    return virtual().view(virtual.size, 2 * shape.layers, shape.heads, shape.head_size).permute(1, 2, 0, 3)


def _fill_cache(backbone: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple, dict]:
    """Give keys and values to every layer as a cache that begins with them."""
    from transformers import Cache, DynamicCache

    given = _named(backbone, args, kwargs)
    if backbone.training and getattr(backbone, "gradient_checkpointing", False):
        raise ModelError(not_checkpointed(str(backbone.config.model_type)))  # type: ignore[union-attr]
    tokens = _tensor(given, "inputs_embeds") if given.get("input_ids") is None else _tensor(given, "input_ids")
    assert tokens is not None, "a forward pass has tokens or their embeddings"
    virtual, rows = _of(backbone), tokens.shape[0]
    cache = given.get("past_key_values")
    cache = cache if isinstance(cache, Cache) else DynamicCache()
    known = cache.get_seq_length()
    if known == 0:
        states = _states(backbone).to(backbone.dtype)[:, None].expand(-1, rows, -1, -1, -1)  # type: ignore[arg-type]
        for layer in range(len(states) // 2):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)
    given["past_key_values"] = cache
    mask = _tensor(given, "attention_mask")
    if mask is None:
        mask = torch.ones(rows, max(known - virtual.size, 0) + tokens.shape[1], dtype=torch.long, device=tokens.device)
    given["attention_mask"] = torch.cat([mask.new_ones(rows, virtual.size), mask], dim=1)
    return (), given


def _first_position(backbone: nn.Module) -> int:
    """Return the number of the first place: RoBERTa and its kin begin behind the padding's own."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _insert(backbone: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple, dict]:
    """Put the virtual tokens before every sequence, unless the cache has them already."""
    given = _named(backbone, args, kwargs)
    virtual = _of(backbone)
    virtual.kept = None
    mask, positions = _tensor(given, "attention_mask"), _tensor(given, "position_ids")
    if _tokens_in_cache(given) > 0:
        if mask is not None:
            places, _ = _row_places(mask, virtual.size)
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], virtual.size), mask], 1).gather(1, places)
        if positions is not None:
            given["position_ids"] = positions + virtual.size
        return (), given
    embeds = _tensor(given, "inputs_embeds")
    if embeds is None:
        embeds = backbone.get_input_embeddings()(given.pop("input_ids"))  # type: ignore[operator]
        assert isinstance(embeds, Tensor)
    given["input_ids"] = None
    borders = _tensor(given, "cu_seq_lens_q")
    if borders is not None:
        lengths = given.get("segment_lengths") or borders.diff().tolist()
        places, kept = _packed_places(lengths, virtual.size, embeds.device)  # type: ignore[arg-type]
        # A piece that branches gets them before its beginning, which stays what its endings leave of it.
        grown = tuple(n + virtual.size for n in lengths)  # type: ignore[attr-defined]
        given["segment_lengths"] = grown
        given["cu_seq_lens_q"] = borders + virtual.size * torch.arange(
            len(borders), dtype=borders.dtype, device=borders.device
        )
    else:
        rows = mask if mask is not None else embeds.new_ones(embeds.shape[:2], dtype=torch.long)
        places, kept = _row_places(rows, virtual.size)
        if mask is not None:
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], virtual.size), mask], 1).gather(1, places)
    virtual.kept = kept
    prompt = virtual().to(embeds.dtype)[None].expand(embeds.shape[0], -1, -1)
    given["inputs_embeds"] = _take(torch.cat([prompt, embeds], dim=1), places)
    if positions is not None:
        own = torch.arange(virtual.size, device=positions.device)[None].expand(positions.shape[0], -1)
        moved = torch.cat([own, positions + virtual.size], dim=1).expand(embeds.shape[0], -1)
        given["position_ids"] = moved.gather(1, places)
    kinds = _tensor(given, "token_type_ids")
    if kinds is not None:
        given["token_type_ids"] = torch.cat([kinds.new_zeros(kinds.shape[0], virtual.size), kinds], 1).gather(1, places)
    return (), given


def _remove(backbone: nn.Module, args: tuple[object, ...], out: ModelOutput) -> ModelOutput:
    """Take the virtual tokens out of what the backbone returns, so that it is aligned with its input."""
    virtual = _of(backbone)
    kept, virtual.kept = virtual.kept, None
    if kept is None:
        return out
    out["last_hidden_state"] = hidden = _take(out["last_hidden_state"], kept)
    if out.get("hidden_states") is not None:
        out["hidden_states"] = tuple(_take(states, kept) for states in out["hidden_states"])
    if out.get("pooler_output") is not None:
        # An encoder sums a text up at its first token, not at a virtual one.
        out["pooler_output"] = _pooled(backbone, hidden)
    return out


def _pooled(backbone: nn.Module, hidden_BTH: Tensor) -> Tensor:
    pooler = backbone.get_submodule("pooler")
    if isinstance(pooler, nn.Linear):  # ALBERT takes the first token itself, and the activation apart
        return backbone.get_submodule("pooler_activation")(pooler(hidden_BTH[:, 0]))
    return pooler(hidden_BTH)


def _take(states_BTH: Tensor, places_BT: Tensor) -> Tensor:
    return states_BTH.gather(1, places_BT[..., None].expand(-1, -1, states_BTH.shape[-1]))


def _row_places(mask_BT: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return where each place of the longer rows comes from in [virtual, row], and where the row's own are in them.

    The virtual tokens go between a row's left padding and its first token.
    """
    length = mask_BT.shape[1]
    padding = mask_BT.bool().int().argmax(dim=1, keepdim=True)
    place = torch.arange(size + length, device=mask_BT.device)[None].expand(mask_BT.shape[0], -1)
    places = torch.where(place < padding, place + size, torch.where(place < padding + size, place - padding, place))
    own = torch.arange(length, device=mask_BT.device)[None]
    return places, own + size * (own >= padding)


def _packed_places(lengths: Sequence[int], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the same for one row of sequences that stand end to end; (1, N + S·P) and (1, N)."""
    real = torch.tensor(lengths)
    segment = torch.arange(len(lengths))
    starts = real.cumsum(0) - real
    in_grown = segment.repeat_interleave(real + size)
    offset = torch.arange(len(in_grown)) - (starts + segment * size)[in_grown]
    places = torch.where(offset < size, offset, starts[in_grown] + offset)
    kept = torch.arange(int(real.sum())) + (segment.repeat_interleave(real) + 1) * size
    return places[None].to(device), kept[None].to(device)
