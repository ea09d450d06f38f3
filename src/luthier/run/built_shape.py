"""The shape of a model whose family has no closed form: read off the model built without memory."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.advise.shape import Matrix, ModelShape
from luthier.core.errors import ModelError, Problem


def built_shape(config: Mapping[str, object]) -> ModelShape:
    """Return the shape of a config that transformers can build; totals are exact, activations as in blocks alike.

    Raises:
        ModelError: no model can be built from it, or it has no blocks that a plan could count.
    """
    try:
        return _read_off(config)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        # What transformers raises for a config it does not know is as various as its model code.
        what = f"The model's shape cannot be read off: {str(error).partition('. ')[0][:200]}."
        raise ModelError(Problem(what, "config.json", "update transformers, or check model_type")) from error


def _read_off(config: Mapping[str, object]) -> ModelShape:
    from transformers import AutoConfig

    from luthier.models.layers import layer_groups
    from luthier.models.shapes import count_parameters, is_encoder, meta_model
    from luthier.models.targets import linear_roles, matrix_shape

    values = dict(config)
    made = AutoConfig.for_model(str(values.pop("model_type")), **values)
    encoder = is_encoder(made)
    model = meta_model(made, 2 if encoder else None)
    text, groups = made.get_text_config(), layer_groups(model)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    last = len(groups.blocks) - 1
    inside = [n for n in linear_roles(model) if any(name.startswith(f"{n}.") for name in groups.blocks[last])]
    roles = linear_roles(model)
    modules = dict(model.named_modules())
    matrices = tuple(
        Matrix(
            roles[n],  # type: ignore[arg-type]
            *matrix_shape(modules[n]),
            getattr(modules[n], "bias", None) is not None,
        )
        for n in inside
    )
    block = sum(sizes[n] for n in groups.blocks[last])
    norms = sum(sizes[n] for n in groups.norms if n in set(groups.blocks[last]))
    known = sum(m.parameters + m.bias * m.outputs for m in matrices) + norms
    embeddings = sum(sizes[n] for n in groups.embeddings)
    head = 0 if encoder else sum(sizes[n] for n in groups.head)
    in_head = sum(sizes[n] for n in groups.head) if encoder else 0
    layers = len(groups.blocks)
    total = count_parameters(model) - in_head
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    hidden = int(text.hidden_size)
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 0
    return ModelShape(
        family=str(made.model_type),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        inner=max((m.outputs for m in matrices if m.role in ("up", "gate")), default=4 * hidden),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        matrices=matrices,
        norms=norms,
        embeddings=embeddings,
        head=head,
        # Blocks may differ: what the last one does not explain is counted here, so that the total is exact.
        final=total - embeddings - head - layers * block,
        has_rms=norms < 4 * hidden,
        is_tied=groups.is_tied,
        is_encoder=encoder,
        experts=int(experts) if block > known else 0,
        experts_per_token=int(getattr(text, "num_experts_per_tok", None) or 1) if block > known else 0,
        expert_inner=int(getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", 0) or 0),
        expert_parameters=block - known,
    )
