"""Models whose frozen matrices are kept in 4 or 8 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

The whole model never stands in memory in full: tensors are read from the file one by one, and each matrix is quantised
before the next is read. Files are read, not mapped: the pages of a mapped file count as the process's memory.
Embeddings, norms and heads keep their precision.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from luthier.core.errors import MissingExtra, ModelError, Problem
from luthier.core.heap import keep_large_blocks_apart
from luthier.models.files import read_header, weight_files
from luthier.models.targets import is_linear, linear_roles

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from luthier.core.workspace import Workspace

KEPT_BELOW = 16_384
"""Matrices of fewer numbers keep their precision: a few kilobytes each would be saved, and thin models lose most by
coarse weights (64 wide: 7 % of the loss)."""
ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last names of the small matrices that choose experts: they decide, and are kept as they are."""


@dataclass(frozen=True)
class Quantization:
    """How frozen matrices are stored.

    Attributes:
        bits: 4 (blocks of 64 numbers share a scale) or 8 (rows share one).
        quant_type: of 4 bits: nf4, whose 16 values are the quantiles of a normal distribution, or fp4.
        double: the scales of 4-bit blocks are quantised to 8 bits too: 0.4 bits less for each weight.
    """

    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True


def has_bitsandbytes() -> bool:
    """Return whether the library that quantises is installed."""
    return find_spec("bitsandbytes") is not None


def require_bitsandbytes() -> None:
    """Make sure that bitsandbytes can be imported, and that it keeps its advice to itself.

    Raises:
        MissingExtra: it is not installed.
    """
    if not has_bitsandbytes():
        raise MissingExtra("bitsandbytes", "quantization", "A quantised base model")
    # On processors with bfloat16 products it recommends a package of kernels that Luthier's own products do not use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import_bitsandbytes()


def import_bitsandbytes() -> None:
    """Import the library that quantises, where it is installed, and leave PyTorch's compiler out of it.

    While it is imported it hands some functions to `torch.compile`, which brings in the compiler's back end: 40 MiB
    and a second. They are the fallback of devices without kernels of their own, and compute the same as they are. PEFT
    imports the library wherever it is installed: to be called before PEFT is imported.
    """
    if "bitsandbytes" in sys.modules or not has_bitsandbytes():
        return
    import torch

    compiler = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    finally:
        torch.compile = compiler


def _uncompiled(function: Callable[..., object], **_: object) -> Callable[..., object]:
    return function


def load_streaming(
    where: str, config: PreTrainedConfig, how: Quantization, dtype: torch.dtype, device: str
) -> PreTrainedModel | None:
    """Return a causal language model read tensor by tensor, or None where its files need transformers to be understood.

    That is the case if names in the files are not the names in the model (experts stored one by one, older
    layouts); then the caller loads the model as usual and calls `quantize`.

    Raises:
        MissingExtra: bitsandbytes is not installed.
        ModelError: weights hold NaN or infinite numbers.
    """
    require_bitsandbytes()
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from luthier.core.workspace import Workspace

    keep_large_blocks_apart()  # clearing fresh pages is nothing beside dequantising
    folder = Path(where)
    if not folder.is_dir():
        return None
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    places = {name: (folder / file, entry) for file, name, entry in _entries(folder)}
    wanted = dict(model.named_parameters())
    buffers = dict(model.state_dict()).keys() - wanted.keys()
    tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - wanted.keys()
    fits = wanted.keys() <= places.keys() <= wanted.keys() | tied | buffers
    if not fits or any(tuple(places[n][1]["shape"]) != tuple(p.shape) for n, p in wanted.items()):
        return None
    chosen, reading, making = set(_matrices(model)), Workspace(), Workspace()
    broken = []
    for name in wanted:
        path, _, last = name.rpartition(".")
        is_matrix = path in chosen and last == "weight"
        tensor = _read(*places[name], reading if is_matrix else Workspace()).to(device=device, dtype=dtype)
        if not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
            broken.append(name)
        module = model.get_submodule(path)
        if is_matrix:
            _put(model, path, _quantized(module, tensor, how, making))
        else:
            setattr(module, last, torch.nn.Parameter(tensor, requires_grad=False))
    if broken:
        remedy = "the file is damaged or comes from a run that diverged; use an earlier checkpoint"
        some = ", ".join(broken[:5])
        raise ModelError(Problem(f"{len(broken)} weight tensors hold NaN or infinite numbers: {some}.", where, remedy))
    model.tie_weights()
    _mark(model, how)
    return model.eval()


def quantize(model: PreTrainedModel, how: Quantization, device: str) -> None:
    """Quantise the matrices of a model in place, one after the other.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    require_bitsandbytes()
    from luthier.core.workspace import Workspace

    workspace = Workspace()
    for name in _matrices(model):
        module = model.get_submodule(name)
        _put(model, name, _quantized(module, module.weight.detach().to(device), how, workspace))  # type: ignore[operator]
    _mark(model, how)


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module is a matrix in 4 or 8 bits."""
    return hasattr(module, "dequantized")


def has_quantized(model: nn.Module) -> bool:
    """Return whether some of a model's matrices are kept in 4 or 8 bits."""
    return any(is_quantized(module) for module in model.modules())


def make_dense(model: PreTrainedModel) -> None:
    """Put ordinary layers, with the numbers that their bits stand for, in the place of all quantised ones."""
    for name, module in list(model.named_modules()):
        if is_quantized(module):
            _put(model, name, dense(module))
    _mark(model, None)


def dense(module: nn.Module) -> nn.Module:
    """Return an ordinary layer that computes what a quantised one does, of the class it had before."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight_OI: Tensor = module.dequantized(torch.float32).clone()  # type: ignore[operator]
    inputs, outputs = weight_OI.shape[1], weight_OI.shape[0]
    bias = module.bias
    if module.was_transposed:
        plain = Conv1D(outputs, inputs)
        plain.weight = nn.Parameter(weight_OI.t().contiguous(), requires_grad=False)
        plain.bias = bias  # type: ignore[assignment]
        return plain
    plain = nn.Linear(inputs, outputs, bias=False, device="meta")
    plain.weight = nn.Parameter(weight_OI, requires_grad=False)
    plain.bias = bias  # type: ignore[assignment]
    return plain


def kept_notes(model: PreTrainedModel) -> list[str]:
    """Return what to tell the user of weights that keep their precision although the base is quantised."""
    notes = []
    kept = [n for n in _candidates(model) if not is_quantized(model.get_submodule(n))]
    if kept:
        notes.append(
            f"{len(kept)} matrices of fewer than {KEPT_BELOW:,} numbers keep their precision: they would lose more "
            "than they save."
        )
    experts = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n)
    if experts:
        notes.append(
            f"The experts keep their precision: {experts:,} weights in fused tensors, which are no linear modules. "
            "Only the matrices beside them are quantised, so little memory is saved."
        )
    return notes


def _matrices(model: PreTrainedModel) -> list[str]:
    return [n for n in _candidates(model) if model.get_submodule(n).weight.numel() >= KEPT_BELOW]  # type: ignore[operator]


def _candidates(model: PreTrainedModel) -> list[str]:
    return [n for n in linear_roles(model) if n.rpartition(".")[2] not in ROUTERS and is_linear(model.get_submodule(n))]


def _quantized(module: nn.Module, weight: Tensor, how: Quantization, workspace: Workspace) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    from luthier.models.quantized_linear import Linear4, Linear8

    is_transposed = isinstance(module, Conv1D)
    weight_OI = weight.t().contiguous() if is_transposed else weight
    bias = cast("nn.Parameter | None", module.bias)
    if how.bits == 8:
        return Linear8(weight_OI, bias, is_transposed, workspace)
    return Linear4(weight_OI, bias, is_transposed, workspace, how.quant_type, how.double)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _mark(model: PreTrainedModel, how: Quantization | None) -> None:
    """Say what the base is where PEFT looks for it."""
    model.is_loaded_in_4bit = how is not None and how.bits == 4  # type: ignore[assignment]
    model.is_loaded_in_8bit = how is not None and how.bits == 8  # type: ignore[assignment]


def _entries(folder: Path) -> Iterator[tuple[str, str, dict]]:
    for file in weight_files(folder):
        for name, entry in read_header(folder / file).items():
            if name != "__metadata__":
                yield file, name, entry


def stored_tensors(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Return for each tensor of a model folder a function that reads it; empty where there is no such folder."""
    from luthier.core.workspace import Workspace

    if not folder.is_dir():
        return {}
    return {name: partial(_read, folder / file, entry, Workspace()) for file, name, entry in _entries(folder)}


def _read(file: Path, entry: dict, workspace: Workspace) -> Tensor:
    """Return one tensor of a safetensors file, read into the workspace."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    first, end = entry["data_offsets"]
    raw = workspace.take((end - first,), torch.uint8)
    with file.open("rb", buffering=0) as stream:
        header = int.from_bytes(stream.read(8), "little")
        stream.seek(8 + header + first)
        view, done = memoryview(raw.numpy()), 0  # type: ignore[arg-type]
        while done < len(view):
            done += stream.readinto(view[done:]) or len(view)
    return raw.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
