"""Load a model from a folder, a hub id or `starter`, and find out what is wrong before training.

Missing, superfluous and misshapen tensors are errors here: transformers fills gaps with random numbers and a warning.
Only the head of a classifier may be new, and the head of what the folder was before may be left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from luthier.core.errors import ModelError, Problem
from luthier.models.causal import CausalModel, probe
from luthier.models.classifier import Classifier, class_config, probe_classifier, settle_padding
from luthier.models.files import inspect_model, local_folder
from luthier.models.heads import head_modules, mark_new
from luthier.models.loaded import LoadedModel
from luthier.models.quantized import Quantization, kept_notes, load_streaming, quantize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["auto", "float32", "bfloat16"]


def load_model(
    name: str,
    *,
    base: Path | None = None,
    revision: str | None = None,
    dtype: DType = "auto",
    trust_remote_code: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
    device: str | None = None,
    frozen_in_16_bits: bool = False,
    base_bits: Literal[4, 8] | None = None,
    base_quantization: tuple[Literal["nf4", "fp4"], bool] = ("nf4", True),
    tokenizer: PreTrainedTokenizerBase | None = None,
    classes: Sequence[str] | None = None,
    multi_label: bool | None = None,
) -> LoadedModel:
    """Load model and tokenizer (unless one is given), check every weight, and try the fast paths.

    Weights are float32, the compute dtype is set through autocast. With `frozen_in_16_bits` they are kept in the
    compute dtype, for methods that leave nearly all of them frozen (the few trained ones go back to float32).

    Args:
        base_bits: 4 or 8 keeps the matrices of the backbone in so many bits.
        base_quantization: the type of 4-bit numbers, and whether their scales are quantised too.
        classes: names of classes, to load the model as a classifier; a head that the folder lacks is drawn from `seed`.
        multi_label: whether several classes may apply to a text; None asks the folder.

    Raises:
        ModelError: anything about the folder or the weights that a user has to mend.
    """
    import torch

    where = check_folder(name, base, revision, from_scratch)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    compute = choose_dtype(dtype, device)
    tokenizer = tokenizer or load_tokenizer(where, revision, trust_remote_code)
    stored = compute if frozen_in_16_bits else torch.float32
    notes: list[str] = []
    config = load_config(where, revision, trust_remote_code)
    if classes is not None:
        config = class_config(config, classes, settle_padding(tokenizer, answers=len(classes) == 1), multi_label)
    torch.manual_seed(seed)
    how = None if base_bits is None else Quantization(base_bits, *base_quantization)
    module = None
    if how is not None and classes is None and not from_scratch and not trust_remote_code:
        module = load_streaming(where, config, how, stored, device)
    if module is None:
        if from_scratch:
            module = _random_model(where, config, trust_remote_code, classes is not None)
        else:
            module, notes = _pretrained(where, config, revision, trust_remote_code, stored, classes is not None)
            _refuse_non_finite(module, where)
        if how is not None:
            quantize(module, how, device)
    if how is not None:
        notes += kept_notes(module)
    _check_vocabulary(module, tokenizer, where)
    module.to(torch.device(device))  # type: ignore[arg-type]  # annotated for a class, where it is called on objects
    model: LoadedModel
    if classes is None:
        model = CausalModel(module, tokenizer, name=name, path=where, fingerprint=fingerprint(module), notes=notes)
        probe(model)
    else:
        model = Classifier(module, tokenizer, name=name, path=where, fingerprint=fingerprint(module), notes=notes)
        probe_classifier(model)
    model.autocast = compute if compute is not torch.float32 else None
    return model


def check_folder(name: str, base: Path | None = None, revision: str | None = None, from_scratch: bool = False) -> str:
    """Return where a model is loaded from: the absolute path of a folder, or the id of a hub model.

    Raises:
        ModelError: with everything that would stop it from loading.
    """
    _, problems = inspect_model(name, base, revision=revision, from_scratch=from_scratch)
    if problems:
        raise ModelError(*problems)
    return str(local_folder(name, base) or name)


def choose_dtype(dtype: DType, device: str) -> torch.dtype:
    """Return the compute dtype: what was asked for, or what the machine is fast at.

    bfloat16 on a CPU without native support runs several times slower than float32, so `auto` means float32 there.
    """
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def load_tokenizer(where: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder or hub id.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises a dozen kinds here; each becomes the user's message, by name
        raise _load_error("tokenizer", where, error) from error


def load_config(where: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a model folder or hub id.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        raise _load_error("config", where, error) from error


def _pretrained(
    where: str,
    config: PreTrainedConfig,
    revision: str | None,
    trust_remote_code: bool,
    dtype: torch.dtype,
    classifies: bool,
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, and what the user is told about its head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the screen has its own
    if classifies:
        logging.set_verbosity_error()  # a new head is no news: `_settle_head` says it in a sentence
    try:
        loaded: object = (AutoModelForSequenceClassification if classifies else AutoModelForCausalLM).from_pretrained(
            where,
            config=config,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are errors below, by name
        )
        module, info = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)
    except Exception as error:  # as above: named and handed to the user
        raise _load_error("model", where, error) from error
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()
    notes = _settle_head(module, info) if classifies else []
    problems = [
        Problem(f"{what}: {_some(names)}.", where=where, remedy=remedy)
        for what, names, remedy in (
            ("Weights are missing", info["missing_keys"], "the file is incomplete or belongs to another architecture"),
            ("Weights have another shape than config.json says", info["mismatched_keys"], "check config.json"),
            (
                "The file holds weights that this architecture does not have",
                [k for k in info["unexpected_keys"] if not k.endswith(("rotary_emb.inv_freq", ".attn.bias"))],
                "check architectures and sizes in config.json",
            ),
        )
        if names
    ]
    if problems:
        raise ModelError(*problems)
    return module, notes


def _settle_head(module: PreTrainedModel, info: dict[str, list[str]]) -> list[str]:
    """Take what belongs to heads out of what is missing or superfluous, and return what to tell the user."""
    backbone = f"{module.base_model_prefix}."
    pooler = f"{backbone}pooler."
    heads = tuple(f"{name}." for name in head_modules(module))

    def is_new(name: str) -> bool:
        return name.startswith((*heads, pooler))

    new = [n for n in info["missing_keys"] if is_new(n)]
    resized = [n[0] if isinstance(n, tuple) else str(n) for n in info["mismatched_keys"]]
    new += [n for n in resized if n.startswith(heads)]
    left = [n for n in info["unexpected_keys"] if not n.startswith(backbone) or n.startswith(pooler)]
    info["missing_keys"] = [n for n in info["missing_keys"] if n not in new]
    info["mismatched_keys"] = [n for n, name in zip(info["mismatched_keys"], resized) if name not in new]
    info["unexpected_keys"] = [n for n in info["unexpected_keys"] if n not in left]
    mark_new(module, (n for n in new if n.startswith(pooler)))
    sizes = {n: p.numel() for n, p in module.named_parameters()}
    classes = ", ".join(str(name) for name in list((module.config.id2label or {}).values())[:5])
    said = []
    if new:
        count = sum(sizes.get(n, 0) for n in new)
        what = f"the classes: {classes}" if len(module.config.id2label or {}) > 1 else "one number for each sequence"
        said.append(f"A new head ({count:,} parameters, drawn from the seed) learns {what}.")
    if left:
        said.append(f"The folder's other head is left behind: {_some(left)}.")
    return said


def _random_model(where: str, config: PreTrainedConfig, trust_remote_code: bool, classifies: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    try:
        return kind.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        raise _load_error("model", where, error) from error


def _refuse_non_finite(module: PreTrainedModel, where: str) -> None:
    import torch

    bad = []
    for name, parameter in module.named_parameters():
        # The extremes are NaN when any number is; found in one pass without a copy of the tensor.
        extremes = torch.stack(torch.aminmax(parameter.detach()))
        if not bool(extremes.isfinite().all()):
            bad.append(name)
    if bad:
        raise ModelError(
            Problem(
                f"{len(bad)} weight tensors hold NaN or infinite numbers: {_some(bad)}.",
                where=where,
                remedy="the file is damaged or comes from a run that diverged; use an earlier checkpoint",
            )
        )


def _check_vocabulary(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    rows = cast("torch.nn.Embedding", module.get_input_embeddings()).weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            Problem(
                f"The tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} rows.",
                where=where,
                remedy="use the tokenizer that belongs to the model",
            )
        )


def fingerprint(module: PreTrainedModel) -> str:
    """Return a short hash of the weights: shapes, and up to 4096 numbers of each tensor. Adapters remember it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


_LOAD_REMEDIES = (
    ("trust_remote_code", "the model brings its own code; if you trust it, set model.trust_remote_code=true"),
    ("does not recognize this architecture", "update transformers, or check model_type in config.json"),
    ("Unrecognized configuration class", "give a causal language model, one that writes text"),
)


def _load_error(what: str, where: str, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # Some end their first line with a colon and say what is wrong in the next.
    first = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    if Path(where).is_dir():
        usual = "a file of the folder is incomplete or damaged: copy it again from where the model comes from"
        remedy = next((remedy for sign, remedy in _LOAD_REMEDIES if sign in str(error)), usual)
    else:
        remedy = "check the name; offline, give a folder instead of a hub id"
    return ModelError(
        Problem(f"The {what} cannot be loaded ({type(error).__name__}: {first[:300]}).", where=where, remedy=remedy)
    )


def _some(names: object) -> str:
    listed = [str(n[0] if isinstance(n, tuple) else n) for n in names]  # type: ignore[attr-defined]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(sorted(listed)[:5]) + more
