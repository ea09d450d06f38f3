"""Load a causal language model from a folder, a hub id or `starter`, and find out what is wrong before training.

Missing, superfluous and misshapen tensors are errors here: transformers fills gaps with random numbers and a warning.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import ModelError, Problem
from luthier.models.causal import CausalModel, probe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["auto", "float32", "bfloat16"]


def model_folder(name: str, base: Path | None = None) -> str:
    """Return where a model lies: `starter` and folders become paths; anything else is a hub id and stays as it is."""
    if name == "starter":
        return str(files("luthier.starter"))
    for root in (Path(), base or Path()):
        if (root / name).expanduser().is_dir():
            return str((root / name).expanduser())
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local:
        beside = Path(name).expanduser().parent
        near = sorted(p.parent.name for p in beside.glob("*/config.json")) if beside.is_dir() else []
        remedy = (
            f"models there: {', '.join(near)}" if near else "give a folder with a config.json, a hub id, or starter"
        )
        raise ModelError(Problem("There is no such model folder.", where=name, remedy=remedy))
    return name


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
) -> CausalModel:
    """Load model and tokenizer, check every weight, and try the fast paths.

    Weights are float32, the compute dtype is set through autocast. With `frozen_in_16_bits` they are kept in the
    compute dtype, for methods that leave nearly all of them frozen (the few trained ones go back to float32).

    Raises:
        ModelError: anything about the folder or the weights that a user has to mend.
    """
    import torch

    where = model_folder(name, base)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    compute = choose_dtype(dtype, device)
    tokenizer = load_tokenizer(where, revision, trust_remote_code)
    stored = compute if frozen_in_16_bits else torch.float32
    if from_scratch:
        module = _random_model(where, trust_remote_code, seed)
    else:
        module = _pretrained(where, revision, trust_remote_code, stored)
        _refuse_non_finite(module, where)
    _check_vocabulary(module, tokenizer, where)
    model = CausalModel(module.to(device), tokenizer, name=name, path=where)
    model.fingerprint = fingerprint(module)
    probe(model)
    model.autocast = compute if compute is not torch.float32 else None
    return model


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

    folder = Path(where)
    if folder.is_dir() and not any((folder / n).is_file() for n in _TOKENIZER_FILES):
        raise ModelError(
            Problem(
                "The model folder has no tokenizer.",
                where=where,
                remedy=f"copy the model's tokenizer files into it ({', '.join(_TOKENIZER_FILES[:3])}, …)",
            )
        )
    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises a dozen kinds here; each becomes the user's message, by name
        raise _load_error("tokenizer", where, error) from error


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "sentencepiece.bpe.model",
)


def _pretrained(where: str, revision: str | None, trust_remote_code: bool, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    _check_folder(where)
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            where,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
        )
    except Exception as error:  # as above: named and handed to the user
        raise _load_error("model", where, error) from error
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
    return module


def _random_model(where: str, trust_remote_code: bool, seed: int) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise _load_error("config", where, error) from error


def _check_folder(where: str) -> None:
    folder = Path(where)
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if not config.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = (
            "this is an adapter; give the model it was trained on, or export it first: luthier export RUN --to hf OUT"
            if adapter
            else "give the folder that holds config.json and the weights"
        )
        raise ModelError(Problem("The model folder has no config.json.", where=where, remedy=remedy))
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(Problem(f"config.json cannot be read: {error}.", where=str(config))) from error
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        remedy = (
            f"{pickled[0]} is a pickle, which can run code when opened; convert it to safetensors first"
            if pickled
            else "put model.safetensors beside config.json, or train from scratch with model.from_scratch=true"
        )
        raise ModelError(Problem("The model folder has no safetensors weights.", where=where, remedy=remedy))


def _refuse_non_finite(module: PreTrainedModel, where: str) -> None:
    # A sum is finite only if every term is (or the sum overflows, which float64 does not at these sizes).
    bad = [n for n, p in module.named_parameters() if not bool(p.detach().sum(dtype=_float64()).isfinite())]
    if bad:
        raise ModelError(
            Problem(
                f"{len(bad)} weight tensors hold NaN or infinite numbers: {_some(bad)}.",
                where=where,
                remedy="the file is damaged or comes from a run that diverged; use an earlier checkpoint",
            )
        )


def _float64() -> torch.dtype:
    import torch

    return torch.float64


def _check_vocabulary(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    rows = module.get_input_embeddings().weight.shape[0]
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


def _load_error(what: str, where: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(where).is_dir():
        remedy = "the folder's files are incomplete or damaged"
        if "trust_remote_code" in str(error):
            remedy = "the model brings its own code; if you trust it, set model.trust_remote_code=true"
    else:
        remedy = "check the name; offline, give a folder instead of a hub id"
    return ModelError(
        Problem(f"The {what} cannot be loaded ({type(error).__name__}: {first[:300]}).", where=where, remedy=remedy)
    )


def _some(names: object) -> str:
    listed = [str(n[0] if isinstance(n, tuple) else n) for n in names]  # type: ignore[attr-defined]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(sorted(listed)[:5]) + more
