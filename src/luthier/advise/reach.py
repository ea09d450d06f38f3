"""How far a method reaches into a model: what it trains, and what the backward pass needs for it.

A frozen matrix needs no input kept, a frozen norm no normalised value, and blocks below the lowest trained one keep
nothing at all. The numbers of trained parameters are closed forms of the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.advise.shape import Matrix, ModelShape, roles_of
from luthier.core.errors import Problem, RecipeError

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Reach:
    """What a method does to a model, as far as memory and time depend on it.

    Attributes:
        parameters: trained, a classifier's new head left out.
        matrices: the matrices themselves are trained, in the blocks from `first_block` on.
        norms: normalisations in the blocks are trained; final_norm: the one behind the last block.
        beside: parts that have a low-rank update beside them.
        rank: of that update.
        lengths: DoRA's, which see what the matrix makes and what the update adds.
        bottlenecks: widths of the adapters in each block; plain: their activation keeps nothing of its own (relu).
        scaled: numbers per token and block that a trained vector multiplies; scaled_inner: those in the feed-forward.
        embeddings: the token embedding is trained.
        head: the output head is trained (always where it is the trained embedding).
        first_block: the lowest block that anything trained stands in or below; as many as there are blocks where
            nothing of the backbone is trained.
        enters: behind which part of that block the first trained thing stands; what is before it keeps nothing.
        from_below: the gradient flows into the first block's input.
        virtual_tokens: positions that the method puts before every sequence.
        prefix: they are keys and values of every layer, not embeddings.
    """

    parameters: int
    matrices: bool = False
    norms: bool = False
    final_norm: bool = False
    beside: frozenset[str] = frozenset()
    rank: int = 0
    lengths: bool = False
    bottlenecks: tuple[int, ...] = ()
    plain: bool = False
    scaled: int = 0
    scaled_inner: int = 0
    embeddings: bool = False
    head: bool = False
    first_block: int = 0
    enters: Literal["nothing", "attention", "feed_forward"] = "nothing"
    from_below: bool = False
    virtual_tokens: int = 0
    prefix: bool = False

    @property
    def keeps_inputs(self) -> Callable[[str], bool]:
        """Whether the input of a matrix of some part is kept for the gradient of what is trained there."""
        return lambda role: self.matrices or role in self.beside


def reach_of(kind: str, settings: Settings, shape: ModelShape) -> Reach:
    """Return how far a method with these settings reaches into a model of this shape.

    Args:
        kind: the method's word in a recipe.
        settings: its fields; those that are missing have the method's own defaults.

    Raises:
        RecipeError: a method of another package, of which nothing is known.
    """
    make = _METHODS.get(kind)
    if make is None:
        remedy = "count its parameters with luthier plan RECIPE, which builds the model without memory"
        raise RecipeError(Problem(f"There is no closed form for the method {kind}.", "method", remedy))
    return make(settings, shape)


def _full(settings: Settings, shape: ModelShape) -> Reach:
    return Reach(
        shape.total_parameters,
        matrices=True,
        norms=True,
        final_norm=True,
        embeddings=True,
        head=not shape.is_encoder,
        from_below=True,
    )


def _lora(settings: Settings, shape: ModelShape) -> Reach:
    rank = _number(settings, "rank", 8)
    return _beside(settings, shape, rank, 0)


def _adalora(settings: Settings, shape: ModelShape) -> Reach:
    usual = math.ceil(1.5 * _number(settings, "rank", 8))
    return _beside(settings, shape, _number(settings, "initial_rank", usual), 1)


def _beside(settings: Settings, shape: ModelShape, rank: int, per_rank: int) -> Reach:
    """Return the reach of updates of some rank beside the chosen matrices; `per_rank` numbers more for each rank."""
    targets = _targets(settings, ("all-linear",))
    chosen = shape.matching(targets)
    outside = [m for m in shape.outside if m.role in roles_of(targets)]

    def added(matrices: Sequence[Matrix]) -> int:
        lengths = sum(m.outputs for m in matrices) if settings.get("dora") else 0
        return sum(rank * (m.inputs + m.outputs + per_rank) for m in matrices) + lengths

    parameters = shape.layers * added(chosen) + added(outside) + len(_list(settings, "new_tokens")) * shape.hidden
    lengths = bool(settings.get("dora"))
    return Reach(parameters, beside=frozenset(m.role for m in chosen), rank=rank, lengths=lengths)


def _bitfit(settings: Settings, shape: ModelShape) -> Reach:
    norm_biases = 0 if shape.has_rms else shape.norms // 2
    finals = 0 if shape.has_rms else shape.hidden + (shape.hidden if shape.is_encoder else 0)
    if shape.is_encoder:  # the embeddings' norm has a bias too, and so may the pooler
        finals = shape.hidden + (shape.hidden if shape.final else 0)
    parameters = shape.layers * (shape.block_biases + norm_biases) + finals
    norms = bool(settings.get("norms"))
    if norms:
        parameters += shape.layers * (shape.norms - norm_biases) + shape.hidden * (2 if shape.is_encoder else 1)
    norms = norms or not shape.has_rms  # their biases, which keep the norm's input as its weight would
    return Reach(parameters, norms=norms, final_norm=norms, from_below=shape.is_encoder)


def _ia3(settings: Settings, shape: ModelShape) -> Reach:
    roles = _targets(settings, ("k", "v", "qkv", "down"))
    chosen = shape.matching(roles)
    inner = sum(m.inputs for m in chosen if m.role == "down")
    scaled = sum(m.outputs for m in chosen if m.role != "down")
    return Reach(shape.layers * (scaled + inner), scaled=scaled, scaled_inner=inner)


def _prompt(settings: Settings, shape: ModelShape) -> Reach:
    tokens = _number(settings, "tokens", 20)
    return Reach(tokens * shape.hidden, from_below=True, virtual_tokens=tokens)


def _p_tuning(settings: Settings, shape: ModelShape) -> Reach:
    tokens, width = _number(settings, "tokens", 20), shape.hidden
    inner = _number(settings, "encoder_size", width)
    if settings.get("encoder", "mlp") == "mlp":
        encoder = (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
    else:
        inputs = [width] + [2 * inner] * (_number(settings, "encoder_layers", 2) - 1)
        lstm = sum(2 * 4 * inner * (i + inner + 2) for i in inputs)
        encoder = lstm + (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width
    return Reach(tokens * width + encoder, from_below=True, virtual_tokens=tokens)


def _prefix(settings: Settings, shape: ModelShape) -> Reach:
    tokens, width = _number(settings, "tokens", 20), shape.kv_heads * shape.head_size
    everything = 2 * shape.layers * width
    if settings.get("projection"):
        inner = _number(settings, "projection_size", width)
        parameters = tokens * width + (width + 1) * inner + (inner + 1) * everything
    else:
        parameters = tokens * everything
    return Reach(parameters, virtual_tokens=tokens, prefix=True)


def _bottleneck(places: int, size: int, activation: str) -> Callable[[Settings, ModelShape], Reach]:
    def make(settings: Settings, shape: ModelShape) -> Reach:
        width, first = _number(settings, "bottleneck", size), _first(settings, shape)
        count = len(_list(settings, "blocks")) or shape.layers - _number(settings, "drop_first", 0)
        each = 2 * shape.hidden * width + width + shape.hidden
        norms = bool(settings.get("norms"))
        more = count * shape.norms + _final_norm(shape) if norms else 0
        return Reach(
            places * count * each + more,
            norms=norms,
            final_norm=norms,
            bottlenecks=(width,) * places,
            plain=settings.get("activation", activation) == "relu",
            first_block=first,
            enters="nothing" if norms else "attention" if places == 2 else "feed_forward",
        )

    return make


def _compacter(settings: Settings, shape: ModelShape) -> Reach:
    width, rank = _number(settings, "bottleneck", 32), _number(settings, "rank", 1)
    places = 1 if settings.get("feed_forward_only") else 2
    parts = _number(settings, "phm_dim", 4)
    count = len(_list(settings, "blocks")) or shape.layers - _number(settings, "drop_first", 0)
    each = 2 * rank * (shape.hidden + width) + width + shape.hidden
    norms = bool(settings.get("norms", True))
    more = count * shape.norms + _final_norm(shape) if norms else 0
    first = _first(settings, shape)
    parameters = count * places * each + parts**3 + more
    enters = "nothing" if norms else "attention" if places == 2 else "feed_forward"
    widths = (width,) * places
    return Reach(parameters, norms=norms, final_norm=norms, bottlenecks=widths, first_block=first, enters=enters)


def _hadamard(settings: Settings, shape: ModelShape) -> Reach:
    count = len(_list(settings, "blocks")) or shape.layers - _number(settings, "drop_first", 0)
    norm = shape.hidden * (1 if shape.has_rms else 2) if settings.get("norms", True) else 0
    each = shape.hidden * (2 if settings.get("shift", True) else 1) + norm
    first = _first(settings, shape)
    return Reach(count * each, norms=bool(norm), scaled=shape.hidden, first_block=first, enters="attention")


def _layers(settings: Settings, shape: ModelShape) -> Reach:
    depth = shape.layers
    chosen = {block % depth for block in _list(settings, "blocks") if isinstance(block, int)}
    chosen |= set(range(depth - _number(settings, "last", 0), depth)) | set(range(_number(settings, "first", 0)))
    if settings.get("select"):
        ranking, top = _list(settings, "ranking"), _number(settings, "top", 1)
        order = sorted(range(depth), key=lambda i: -float(str(ranking[i]))) if len(ranking) == depth else range(depth)
        chosen |= set(list(order)[:top])
    parameters = len(chosen) * shape.block_parameters
    embeddings, head = bool(settings.get("embeddings")), bool(settings.get("head"))
    trains_head = head or (embeddings and shape.is_tied)
    parameters += shape.embeddings * embeddings + shape.head * head
    if settings.get("norms"):
        parameters += (depth - len(chosen)) * shape.norms + _final_norm(shape)
    if settings.get("norms") and not embeddings:
        chosen.add(0)
    first = 0 if embeddings else min(chosen, default=depth)
    return Reach(
        parameters,
        matrices=True,
        norms=True,
        final_norm=bool(settings.get("norms")),
        embeddings=embeddings,
        head=trains_head,
        first_block=first,
        from_below=embeddings,
    )


def _only_head(settings: Settings, shape: ModelShape) -> Reach:
    return Reach(0, first_block=shape.layers)


def _moe(settings: Settings, shape: ModelShape) -> Reach:
    part = str(settings.get("train") or "experts_and_router")
    if settings.get("update") == "lora":
        rank = _number(settings, "rank", 8)
        each = shape.experts * rank * 3 * (shape.hidden + shape.expert_inner)
        return Reach(shape.layers * each, beside=frozenset({"expert"}), rank=rank)
    if part == "all":
        return _full(settings, shape)
    router = shape.experts * shape.hidden
    each = {"router": router, "experts": shape.expert_parameters - router}.get(part, shape.expert_parameters)
    return Reach(shape.layers * each, beside=frozenset({"expert"}))


def _hybrid(settings: Settings, shape: ModelShape) -> Reach:
    parts = [p for p in _list(settings, "parts") if isinstance(p, Mapping)]
    reaches = [reach_of(str(p.get("kind")), p, shape) for p in parts]
    if not reaches:
        return Reach(0, first_block=shape.layers)
    whole = reaches[0]
    for other in reaches[1:]:
        whole = replace(
            whole,
            parameters=whole.parameters + other.parameters,
            matrices=whole.matrices or other.matrices,
            norms=whole.norms or other.norms,
            final_norm=whole.final_norm or other.final_norm,
            beside=whole.beside | other.beside,
            rank=max(whole.rank, other.rank),
            bottlenecks=whole.bottlenecks + other.bottlenecks,
            lengths=whole.lengths or other.lengths,
            plain=whole.plain and other.plain,
            scaled=whole.scaled + other.scaled,
            scaled_inner=whole.scaled_inner + other.scaled_inner,
            embeddings=whole.embeddings or other.embeddings,
            head=whole.head or other.head,
            first_block=min(whole.first_block, other.first_block),
            enters=whole.enters if whole.enters == other.enters else "nothing",
            from_below=whole.from_below or other.from_below,
            virtual_tokens=whole.virtual_tokens + other.virtual_tokens,
            prefix=whole.prefix or other.prefix,
        )
    return whole


def _first(settings: Settings, shape: ModelShape) -> int:
    """Return the lowest block that a method of chosen blocks adds something to."""
    named = [block % shape.layers for block in _list(settings, "blocks") if isinstance(block, int)]
    return min(named) if named else _number(settings, "drop_first", 0)


def _final_norm(shape: ModelShape) -> int:
    """Return the numbers of the norm behind the last block; what an encoder has there is its pooler."""
    return 0 if shape.is_encoder else shape.final


def _number(settings: Settings, key: str, default: int) -> int:
    value = settings.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _list(settings: Settings, key: str) -> Sequence[object]:
    value = settings.get(key)
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _targets(settings: Settings, default: tuple[str, ...]) -> tuple[str, ...]:
    value = settings.get("targets")
    if isinstance(value, str):
        return (value,)
    return tuple(str(v) for v in value) if isinstance(value, Sequence) else default


def widest(matrices: Sequence[Matrix]) -> int:
    """Return the numbers in the largest of some matrices."""
    return max((m.parameters for m in matrices), default=0)


_METHODS: dict[str, Callable[[Settings, ModelShape], Reach]] = {
    "full": _full,
    "ulmfit": _full,
    "lora": _lora,
    "lora_plus": _lora,
    "qlora": _lora,
    "adalora": _adalora,
    "bitfit": _bitfit,
    "ia3": _ia3,
    "prompt": _prompt,
    "p_tuning": _p_tuning,
    "prefix": _prefix,
    "p_tuning_v2": _prefix,
    "adapter": _bottleneck(2, 64, "gelu"),
    "h_adapter": _bottleneck(2, 64, "gelu"),
    "pfeiffer": _bottleneck(1, 64, "relu"),
    "parallel": _bottleneck(1, 64, "relu"),
    "compacter": _compacter,
    "hadamard": _hadamard,
    "layers": _layers,
    "dense_head": _only_head,
    "feature_extraction": _only_head,
    "moe": _moe,
    "hybrid": _hybrid,
}
